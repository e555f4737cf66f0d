"""Every module can be imported alone, from anywhere; light ones stay light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from house_rules import ROOT, modules

MODULES = [name for name in modules() if name.count(".") == 1 and not name.endswith("__init__")]
LIGHT = {"core.config": "torch", "core.metrics": "torch"}  # parameters must be refused before anything heavy is loaded
# Each module in a process of its own that knows no other module of the package; what is heavy is loaded once, before they part.
PROGRAM = f"""
import contextlib, importlib, io, json, os, sys, traceback
sys.path.insert(0, {str(ROOT)!r})
import matplotlib.pyplot, open_clip, pandas, torch, transformers
assert not any(name.split(".")[0] == "fromage" for name in sys.modules)
outcomes = {{}}
for module in sys.argv[1:]:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        said, problem = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(said):
                importlib.import_module(f"fromage.{{module}}")
        except BaseException:
            problem = traceback.format_exc()
        os.write(writer, (problem + said.getvalue()).encode()[-4000:])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        outcomes[module] = stream.read().decode()
    os.waitpid(child, 0)
print(json.dumps(outcomes))
"""


def import_each(modules: list[str], folder: Path) -> dict[str, str]:
    """Module -> what goes wrong, and what is printed, when it is the only one imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `import_each` finds of all modules."""
    return import_each(MODULES, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone(module: str, outcomes: dict[str, str]) -> None:
    assert outcomes[module] == ""


@pytest.mark.parametrize("module", LIGHT)
def test_module_stays_light(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import fromage.{module}; assert {LIGHT[module]!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)


def test_a_broken_import_is_seen(tmp_path: Path) -> None:
    assert "No module named 'fromage.no_such_module'" in import_each(["no_such_module"], tmp_path)["no_such_module"]
