"""Kills: a stage that is killed anywhere and started again ends as if it had not been; one that would not is found."""

import json
import os
import time
from pathlib import Path

import pytest
from killing import Stage, kill_stage, make_stages
from stages import STAGES


@pytest.mark.parametrize("name", STAGES)  # more of each: `make attack`
def test_killed_and_started_again(name: str, tmp_path: Path) -> None:
    stage = Stage(name, *STAGES[name](tmp_path / "materials"))
    told = kill_stage(stage, 3, tmp_path / "runs", seed=time.time_ns())
    assert told.found == [] and told.kills == 3, told


def test_every_stage_is_there(tmp_path: Path) -> None:
    assert {*make_stages(tmp_path)} == {*STAGES} and len(STAGES) == 8


def append_carelessly(folder: Path) -> None:
    """Ten lines, of which nobody asks which are there already."""
    with open(folder / "lines", "a") as stream:
        for number in range(10):
            stream.write(f"{number}\n")
            stream.flush()
            time.sleep(0.02)


def read_lines(folder: Path) -> list[str]:
    """All of them."""
    return (folder / "lines").read_text().split()


def test_a_stage_that_does_things_twice_is_found(tmp_path: Path) -> None:
    told = kill_stage(Stage("careless", append_carelessly, read_lines), 4, tmp_path)
    assert told.kills == 4 and told.found and "instead of" in told.found[0]


def test_a_stage_that_refuses_to_go_on_is_found(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "begun").mkdir()
        time.sleep(0.2)
        (folder / "lines").write_text("done")
    told = kill_stage(Stage("refusing", write, read_lines), 2, tmp_path)
    assert any("FileExistsError" in line for line in told.found)


def test_a_stage_that_is_careful_is_not_found(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        time.sleep(0.1)
        (folder / f".{os.getpid()}").write_text(json.dumps(["done"]))
        (folder / f".{os.getpid()}").rename(folder / "lines")
    told = kill_stage(Stage("careful", write, read_lines), 4, tmp_path)
    assert told.found == [] and told.kills == 4 and all(0 <= moment <= 1 for moment in told.moments)
