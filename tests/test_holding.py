"""Every run holds what it writes: while another process has it, the run is refused at once and names that process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_rules import read_notebooks, runs
from papermill_runs import run_notebook

from fromage.core.folders import FolderHeld
from fromage.mini.rendering import ensure_world
from fromage.study.blinding import build_study, ensure_practice, practice_tellings
from fromage.vist.stories import read_stories

FOLDERS = {"ablate": "cache", "analyse_ratings": "output", "attack": "output", "compose": "output", "eval_visdial": "output", "pretrain_mini": "folder", "tell_stories": "output",
           "tutorial": "output"}
REPORTS = ("benchmark", "claims", "costs", "eval_knowledge", "eval_unseen", "eval_vist", "pretrain_tower", "show_examples", "verify")
LATE = ("prepare", "train")  # behind the features: tested with their own subjects
NOTHING = ("chat", "rate_stories", "watch_study")  # the pages: an open journal is held by its own lock, the last one writes nothing
PROGRAM = """
import sys
from fromage.core.folders import Hold, hold_report
held = [Hold(sys.argv[1]), hold_report(sys.argv[2])]
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the folder `held` and the report `reports/report`."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "held"), str(tmp_path / "reports" / "report")],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("")


def test_every_run_is_among_these() -> None:
    there = {notebook.name for notebook in runs(read_notebooks())}
    assert there <= {*FOLDERS, *REPORTS, *LATE, *NOTHING}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_held_folder_stops_a_run(name: str, holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(FolderHeld, match=f"held: process {holder.pid} of .* writes this folder"):
        report = {} if name == "tutorial" else {"report": str(tmp_path / "report")}  # it writes none
        run_notebook(name, **{FOLDERS[name]: str(tmp_path / "held")}, **report)


@pytest.mark.parametrize("name", REPORTS)
def test_a_held_report_stops_a_run(name: str, holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(FolderHeld, match=f"report: process {holder.pid} of .* writes this report"):
        run_notebook(name, report=str(tmp_path / "reports" / "report"))


def test_a_held_study_is_not_built_anew(holder: subprocess.Popen, tmp_path: Path) -> None:
    world, study = ensure_world(), ensure_practice(tmp_path / "study")
    tellings = practice_tellings(read_stories(world.vist_json).stories[:72])
    with pytest.raises(FolderHeld, match=f"process {holder.pid} of "):
        build_study(study.specification, tellings, world.vist_images, tmp_path / "held")
