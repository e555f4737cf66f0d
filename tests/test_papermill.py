"""The runs by the command that a user types: injected parameters arrive, wrong ones stop the run with a message that helps."""

import nbformat
import pytest
from house_rules import ROOT, read_notebooks, runs
from papermill_runs import Outcome, execute, parameter_words

RUNS = [notebook.name for notebook in runs(read_notebooks())]


def test_words_of_the_command_line() -> None:
    assert parameter_words("steps", 3) == ["-p", "steps", "3"]
    assert parameter_words("resume", False) == ["-y", "{resume: false}"]
    assert parameter_words("layers", [-1, 2]) == ["-y", "{layers: [-1, 2]}"]
    assert parameter_words("limit", None) == ["-y", "{limit: null}"]


@pytest.mark.parametrize("name", RUNS)
def test_an_unknown_parameter_stops_a_run(name: str, tmp_path) -> None:
    outcome = execute(name, tmp_path / "out.ipynb", lrr=1)
    assert outcome.status != 0 and "unknown parameter 'lrr'" in outcome.log and "allowed: " in outcome.log
    assert executed_cells(outcome) == 2  # the injected parameters and the check; nothing behind it


def executed_cells(outcome: Outcome) -> int:
    """How many cells ran, the parameters' own cell aside."""
    cells = nbformat.read(outcome.notebook, as_version=4).cells
    return sum(bool(cell.get("execution_count")) for cell in cells if "parameters" not in cell.metadata.get("tags", ()))
