"""The runs by the command that a user types: injected parameters arrive, wrong ones stop the run with a message that helps."""

import ast
import json
import os
import pty
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from house_rules import ROOT, read_notebooks, runs
from papermill_runs import Outcome, execute, parameter_words

from fromage.core.folders import Hold

RUNS = [notebook.name for notebook in runs(read_notebooks())]


def test_words_of_the_command_line() -> None:
    assert parameter_words("steps", 3) == ["-p", "steps", "3"]
    assert parameter_words("resume", False) == ["-y", "{resume: false}"]
    assert parameter_words("layers", [-1, 2]) == ["-y", "{layers: [-1, 2]}"]
    assert parameter_words("limit", None) == ["-y", "{limit: null}"]


@pytest.mark.parametrize("notebook", runs(read_notebooks()), ids=RUNS)
def test_papermill_reads_every_parameter(notebook) -> None:
    declared = next(cell for cell in notebook.code if "parameters" in cell.tags).tree.body
    inferred = papermill.inspect_notebook(str(ROOT / "nbs" / f"{notebook.name}.ipynb"))
    assert [*inferred] == [node.target.id for node in declared if isinstance(node, ast.AnnAssign)]


@pytest.mark.parametrize("name", RUNS)
def test_an_unknown_parameter_stops_a_run(name: str, tmp_path) -> None:
    outcome = execute(name, tmp_path / "out.ipynb", {"lrr": 1})
    assert outcome.status != 0 and "unknown parameter 'lrr'" in outcome.log and "allowed: " in outcome.log
    assert executed_cells(outcome) == 2  # the injected parameters and the check; nothing behind it


def test_a_terminal_shows_how_far_a_run_came(tmp_path) -> None:
    code = "import time\nfrom fromage.core.progress import progress\nfor _ in progress(range(6), label='training'): time.sleep(0.6)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    plain = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # by it a kernel keeps no terminal
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"], cwd=tmp_path, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=theirs, env=plain, check=True, timeout=120)
    told = os.read(ours, 100_000).decode()
    os.close(ours), os.close(theirs)
    assert re.search(r"\r\x1b\[Ktraining: [45]/6 .* left", told) and "training: 6/6 (100%)" in told


def executed_cells(outcome: Outcome) -> int:
    """How many cells ran, the parameters' own cell aside."""
    cells = nbformat.read(outcome.notebook, as_version=4).cells
    return sum(bool(cell.get("execution_count")) for cell in cells if "parameters" not in cell.metadata.get("tags", ()))


@pytest.mark.parametrize("name, value, allowed", [
    ("steps", "many", "steps = 'many': allowed is int"),
    ("steps", 1.5, "steps = 1.5: allowed is int"),
    ("batch_size", 1, "batch_size = 1: allowed is int from 2"),
    ("precision", "fp8", "precision = 'fp8': allowed is"),
    ("preset", "huge", "huge"),
])
def test_a_wrong_value_stops_training(name: str, value, allowed: str, tmp_path) -> None:
    outcome = execute("train", tmp_path / "out.ipynb", {name: value})
    assert outcome.status != 0 and allowed in outcome.log
    assert executed_cells(outcome) == 2


def test_injected_parameters_arrive(tmp_path) -> None:
    """A tiny training, started outside of the repository: notebook, record, picture and checkpoint, all as asked."""
    source = (ROOT / "nbs" / "train.ipynb").read_bytes()
    asked = {"steps": 4, "map_steps": 6, "batch_size": 8, "train_examples": 64, "validation_examples": 32, "visual_tokens": 2, "examples": 2,
             "learning_rate": 1e-3}
    places = {"output": str(tmp_path / "run"), "report": str(tmp_path / "train-tiny")}
    outcome = execute("train", tmp_path / "train-tiny.ipynb", asked | places, folder=tmp_path)
    assert outcome.status == 0, outcome.log[-2000:]
    record = json.loads((tmp_path / "train-tiny.json").read_text())
    assert {name: record["config"]["training"].get(name) for name in ("steps", "batch_size", "learning_rate")} == {
        name: asked[name] for name in ("steps", "batch_size", "learning_rate")}
    assert record["config"]["grounding"]["visual_tokens"] == 2
    assert record["metrics"]["steps"] == 4 and record["metrics"]["training pairs"] == 64
    assert record["metrics"]["text_to_image.R@1"]["n_used"] == 32
    assert len(record["metrics"]["settling"]) == 6 and (tmp_path / "run" / "settled.safetensors").is_file()
    assert (tmp_path / "run" / "best.safetensors").is_file() and (tmp_path / "train-tiny.png").is_file()
    assert outcome.notebook.stat().st_size < 2_000_000
    assert (ROOT / "nbs" / "train.ipynb").read_bytes() == source


def test_a_held_folder_is_refused(tmp_path) -> None:
    """Preparing features in a folder that another process writes names that process."""
    with Hold(tmp_path / "store"):
        outcome = execute("prepare", tmp_path / "run.ipynb", {"preset": "mini", "output": str(tmp_path / "store"), "limit": 8})
    assert outcome.status != 0 and f"process {os.getpid()} of " in outcome.log and "writes this folder" in outcome.log
