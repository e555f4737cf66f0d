"""Runs notebooks by the command that a user types, or in the process of a test."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from house_rules import ROOT


@dataclass(frozen=True)
class Outcome:
    """How a papermill run ended: its exit status, what it printed, and where the executed notebook is."""
    status: int
    log: str
    notebook: Path


def execute(notebook: str, output: Path, parameters: dict[str, Any], folder: Path = ROOT, timeout: float = 900) -> Outcome:
    """`papermill nbs/<notebook>.ipynb <output> -p name value ...` in `folder`, with stdin closed."""
    words = [text for name, value in parameters.items() for text in parameter_words(name, value)]
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs" / f"{notebook}.ipynb"), str(output), "--no-progress-bar", *words]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    return Outcome(done.returncode, done.stdout + done.stderr, output)


def parameter_words(name: str, value: Any) -> list[str]:
    """The words of the command line that hand papermill one parameter: plain with -p, everything else as YAML."""
    return ["-p", name, str(value)] if isinstance(value, (str, int, float)) and not isinstance(value, bool) \
        else ["-y", yaml.safe_dump({name: value}, default_flow_style=True, width=1000).strip()]


def run_notebook(name: str, **parameters: Any) -> dict[str, Any]:
    """Runs the code of nbs/<name>.ipynb in this process, with parameters set as papermill sets them; returns its variables."""
    namespace = {"__name__": "run"}
    for cell in nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
            namespace |= parameters if "parameters" in cell.metadata.get("tags", ()) else {}
    return namespace
