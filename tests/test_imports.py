"""Every module can be imported alone, in a fresh process, from anywhere; light ones stay light."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from house_rules import ROOT

MODULES = sorted(path.stem for path in (ROOT / "fromage").glob("[a-z]*.py"))
LIGHT = {"config": "torch", "metrics": "torch"}  # parameters must be refused before anything heavy is loaded


def import_alone(module: str, folder: Path) -> str:
    """What goes wrong, and what is printed, when a fresh process imports one module."""
    code = f"import sys, fromage.{module}; assert {LIGHT.get(module)!r} not in sys.modules, 'not light'"
    environment_path = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    done = subprocess.run([sys.executable, "-c", environment_path + code], cwd=folder, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300)
    return (done.stdout + done.stderr).strip() if done.returncode or done.stdout else ""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Module -> problem, two processes at a time."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MODULES, pool.map(lambda module: import_alone(module, folder), MODULES)))


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone(module: str, outcomes: dict[str, str]) -> None:
    assert outcomes[module] == ""


def test_a_broken_import_is_seen(tmp_path: Path) -> None:
    assert "No module named 'fromage.no_such_module'" in import_alone("no_such_module", tmp_path)
