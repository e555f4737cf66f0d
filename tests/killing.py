"""Everything that writes, killed at moments that nobody chose, and started again: what is there in the end is what was there without."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fromage.core.attacks import DONE, house_key
from stages import STAGES

ROW = 3  # kills of a run at most, before it may end
LATE = 10  # runs for each kill at most: one may end before it is killed
LONGEST = 600  # seconds, of a run


@dataclass(frozen=True)
class Stage:
    """Something that writes: `write` in a folder, which goes on, or begins anew, where it was ended; `read` what must be equal then."""
    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]


@dataclass
class Kills:
    """How a stage fared."""
    stage: str
    kills: int = 0
    late: int = 0  # runs that had ended before
    resumed: int = 0  # runs that were compared with the whole one
    seconds: float = 0.0  # of the whole one
    moments: list[float] = field(default_factory=list)  # shares of these
    found: list[str] = field(default_factory=list)


def run_quietly(write: Callable[[Path], None], folder: Path, problem: Path) -> None:
    """What the process does; an error is left in the file `problem`."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        write(folder)
    except BaseException:
        problem.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def start(stage: Stage, folder: Path) -> multiprocessing.process.BaseProcess:
    """The stage in a process of its own; it begins at once, since it is forked from one that has imported everything."""
    process = multiprocessing.get_context("fork").Process(
        target=run_quietly, args=(stage.write, folder, folder.with_suffix(".problem")))
    process.start()
    return process


def finish(stage: Stage, folder: Path) -> str:
    """Runs the stage to its end; an error's last line, empty for none."""
    process = start(stage, folder)
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
        return f"still running after {LONGEST} s"
    if process.exitcode == 0:
        return ""
    problem = folder.with_suffix(".problem")
    return problem.read_text().strip().splitlines()[-1] if problem.is_file() else f"ended with {process.exitcode}"


def kill_within(stage: Stage, folder: Path, wait: float) -> bool:
    """Starts the stage and kills it so many seconds later; whether it was killed before it had ended."""
    process = start(stage, folder)
    process.join(wait)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def differing(whole: Any, resumed: Any) -> str:
    """Where two results differ, in words; empty where they are equal."""
    if whole == resumed:
        return ""
    if isinstance(whole, dict) and isinstance(resumed, dict):
        names = sorted(name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name))
        return f"other, missing or more: {', '.join(names[:5])}"
    return f"{str(resumed)[:100]} instead of {str(whole)[:100]}"


def kill_stage(stage: Stage, kills: int, folder: Path, seed: int = 0) -> Kills:
    """Runs the stage whole, then kills it at `kills` random moments, at most `ROW` of them in one folder before it may end."""
    told, rng = Kills(stage.name), random.Random(f"{seed} {stage.name}")
    (folder / "whole").mkdir(parents=True)
    begun = time.monotonic()
    problem = finish(stage, folder / "whole")
    told.seconds = round(time.monotonic() - begun, 3)
    if problem:
        told.found.append(f"not killed: {problem}")
        return told
    whole = stage.read(folder / "whole")
    while told.kills < kills and told.kills + told.late < LATE * kills:
        place = folder / "killed"
        place.mkdir()
        row = rng.randint(1, min(ROW, kills - told.kills))
        for _ in range(row):
            share = rng.random()
            if not kill_within(stage, place, share * told.seconds):
                told.late += 1
                break
            told.kills += 1
            told.moments.append(round(share, 3))
        problem = finish(stage, place) or differing(whole, stage.read(place))
        told.resumed += 1
        if problem:
            told.found.append(f"killed at {told.moments[-row:]} of {told.seconds} s: {problem}")
        shutil.rmtree(place)
    if told.kills < kills:
        told.found.append(f"{told.kills} kills of {kills}: it ended before in {told.late} runs")
    return told


def make_stages(place: Path) -> dict[str, Stage]:
    """All of them, their materials below `place`."""
    return {name: Stage(name, *make(place)) for name, make in STAGES.items()}


def main(kills: int, folder: str) -> int:
    """Kills every stage, writes the record, and prints what was found; how much that is."""
    from fromage.core.records import start_record
    record = start_record("kills", {"kills": kills, "code": house_key()}, 0)
    told = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, stage in make_stages(Path(scratch, "materials")).items():
            told.append(kill_stage(stage, kills, Path(scratch, re.sub(r"\W+", "-", name))))
            print(f"{name}: {told[-1].kills} kills, a whole run takes {told[-1].seconds} s, {len(told[-1].found)} found",
                  f"{DONE}{kills * len(told) / len(STAGES)}", sep="\n", flush=True)
    found = [f"{each.stage}, {line}" for each in told for line in each.found]
    record.finish({"kills": sum(each.kills for each in told), "found": len(found), "stages": {each.stage: {
        "kills": each.kills, "ended before": each.late, "compared": each.resumed, "seconds of a whole run": each.seconds,
        "found": len(each.found)} for each in told}}, {"found": found[:20]})
    record.finding = f"{record.metrics['kills']} kills in {len(told)} stages: {len(found)} runs ended otherwise than without."
    print(f"{record.save(f'{folder}/kills.json')}: {record.finding}", *found[:20], sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), sys.argv[2])))
