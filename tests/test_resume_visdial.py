"""A VisDial evaluation that is killed at any instant goes on without a lost or doubled question."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fromage.mini.rendering import write_visdial

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import torch
from fromage.visdial.dialogues import read_dialogues
from fromage.networks.features import FeatureStore
from fromage.core.journals import Journal
from fromage.mini.rendering import WorldPaths
from fromage.model.model import Fromage
from fromage.networks.stand_ins import stand_in_language_model
from fromage.visdial.answers import score_answers

def run(folder, output):
    dialogues = read_dialogues(WorldPaths(Path(folder)).visdial_json).dialogues
    ids = [str(each.image_id) for each in dialogues]
    store = FeatureStore(Path("."), np.random.default_rng(0).normal(size=(len(ids), 24)), ids, [""] * len(ids), {}, {}, "", "")
    torch.manual_seed(0)
    model = Fromage(*stand_in_language_model("llama", seed=0), 24)
    with Journal(f"{output}.jsonl", {"model": 0}) as journal:
        np.save(f"{output}.npy", score_answers(model, dialogues, store, store, journal))

run(*sys.argv[1:])
"""


def start(folder: Path, output: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(output)], env=environment,
                            stdout=subprocess.DEVNULL)


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    for _ in range(6000):
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("the evaluation did not come that far in a minute")


def test_a_killed_evaluation_continues(tmp_path: Path) -> None:
    write_visdial(tmp_path / "visdial", 5, 0)
    assert start(tmp_path, tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed.jsonl"
    for lines in (2, 4):  # the header is the first line
        process = start(tmp_path, tmp_path / "killed")
        try:
            wait_for_lines(process, killed, lines)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "killed.npy").exists()
        killed.open("ab").write(b'{"name": "half a li')
    assert start(tmp_path, tmp_path / "killed").wait() == 0
    names = [json.loads(line).get("name") for line in killed.read_text().splitlines()]
    assert len(names) == len(set(names)) == 6
    assert np.array_equal(np.load(tmp_path / "killed.npy"), np.load(tmp_path / "whole.npy"), equal_nan=True)
