"""Training in several processes: what one process trains, at any number of them; one that is killed or hangs ends all, and they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from house_rules import ROOT
from safetensors.torch import load_file
from small_run import small_config, train_small

from fromage.core.config import ConfigError
from fromage.core.folders import FolderHeld, is_running
from fromage.core.groups import Group
from fromage.core.tensors import load_tensors
from fromage.core.workers import Worker, WorkerError, follow
from fromage.model.distributed import STEP, Order, fit_together
from fromage.networks.layers import list_layers
from fromage.networks.shapes import random_language_model

SCRIPT = str(ROOT / "tests" / "small_run.py")
SETTINGS = {"joined": {"concat_probability": 1.0}, "apart": {"concat_probability": 0.0},
            "no RET": {"concat_probability": 0.5, "retrieval_concat_probability": 0.5, "ret": "none"},
            "layers shared": {"weights": "random", "shard_layers": True, "recompute": True}}


def share(folder: Path, processes: int, runs: dict[str, dict], act=lambda step, workers: None, seconds: float = 0.0,
          patience: float = 20.0) -> None:
    """Trains in several processes, one run (name -> settings) after another; `act` is called after each step."""
    (folder / "processes").mkdir(parents=True, exist_ok=True)
    workers = [Worker(rank, folder / "processes") for rank in range(processes)]
    for line in follow([SCRIPT, str(folder), json.dumps(runs), str(seconds), str(patience)], workers, patience):
        if line.startswith(STEP) and line.endswith('"training"]'):
            act(json.loads(line.removeprefix(STEP))[0], workers)


def history_of(folder: Path) -> list[dict[str, float]]:
    """The losses of every step in a run's last state."""
    return load_tensors(folder / "state.safetensors", "training state")[1]["history"]


def weights_of(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    """What a process of a run has left."""
    return load_file(folder / f"weights-{rank}.safetensors")


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Asserts that weights are the same to 1e-5."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_what_one_does(processes: int, tmp_path: Path) -> None:
    """Losses and weights to 1e-5, rows joined or not; all processes end with the same weights, and one of them writes."""
    chosen = {name: settings for name, settings in SETTINGS.items() if processes == 2 or name != "layers shared"}
    share(tmp_path / "many", processes, chosen)
    for name, settings in chosen.items():
        one, weights = train_small(tmp_path / "one" / name, **settings)
        many = tmp_path / "many" / name
        assert len(one.history) == 12
        for ours, alone in zip(history_of(many), one.history, strict=True):
            assert ours == pytest.approx(alone, rel=1e-5, abs=1e-5)
        close(weights_of(many), weights)
        for rank in range(1, processes):
            assert all(torch.equal(value, weights_of(many)[key]) for key, value in weights_of(many, rank).items())
        written = {path.name for path in many.glob("*.safetensors") if not path.name.startswith("weights-")}
        assert written == {path.name for path in one.folder.glob("*.safetensors")}


def test_layers_shared_out_in_bf16_give_the_bits_of_whole_ones(tmp_path: Path) -> None:
    """Two processes hold half of every layer each, and train as with all of it in both, recomputed or not."""
    usual = {"weights": "random", "precision": "bfloat16"}
    runs = {"whole": usual, "shared": usual | {"shard_layers": True}, "again": usual | {"shard_layers": True, "recompute": True}}
    share(tmp_path, 2, runs)
    for name in ("shared", "again"):
        assert history_of(tmp_path / name) == history_of(tmp_path / "whole")
        assert all(torch.equal(value, weights_of(tmp_path / name)[key]) for key, value in weights_of(tmp_path / "whole").items())
    whole, *parts = (int((tmp_path / name / f"own-{rank}").read_text()) for name, rank in (("whole", 0), ("shared", 0), ("shared", 1)))
    layers = sum(value.numel() for value in list_layers(random_language_model("data/mini/lm")[0]).parameters())
    assert sum(parts) == 2 * whole - layers and max(parts) < whole - 0.45 * layers


@pytest.mark.parametrize("packing", ["int8", "nf4"])
def test_packed_layers_train(packing: str, tmp_path: Path) -> None:
    """Losses near those of whole layers, and falling."""
    usual = {"weights": "random", "precision": "bfloat16", "learning_rate": 0.01}
    packed, whole = (train_small(tmp_path / name, **usual, quantization=name)[0].history for name in (packing, "none"))
    assert packed[0]["captioning"] == pytest.approx(whole[0]["captioning"], rel=0.02)
    assert packed[-1]["total"] < packed[0]["total"]


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    group = Group()
    group.size = 3
    with pytest.raises(ConfigError, match="batch_size = 8: allowed for 3 processes is a multiple of 6"):
        train_small(tmp_path, group)


def test_a_second_run_in_the_folder_is_refused_before_it_touches_the_first(tmp_path: Path) -> None:
    """Its order, and the pulses of its processes, stay as they are."""
    code = "import sys; from fromage.core.folders import Hold; held = Hold(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "processes")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    (tmp_path / "processes" / "0.pulse").write_text(str(first.pid))
    with pytest.raises(FolderHeld, match=f"process {first.pid} of "):
        fit_together(Order(small_config(), str(tmp_path)), 2)
    first.communicate()
    assert {path.name for path in tmp_path.rglob("*") if not path.name.startswith(".")} == {"processes", "0.pulse"}


def strike(folder: Path, sent: signal.Signals, told: str) -> None:
    """Sends a signal to the second of two processes after the seventh step; within 30 seconds none is left, and the error says who it was."""
    began, seen = [], []

    def act(step: int, workers: list[Worker]) -> None:
        if step == 7:
            seen.extend(int(worker.pulse.read_text()) for worker in workers)
            began.append(time.monotonic())
            os.kill(seen[1], sent)

    with pytest.raises(WorkerError, match=f"process 1 of 2 {told}.* its last line: (training: |tokenising)"):
        share(folder, 2, {"run": {}}, act, seconds=0.3, patience=10.0)
    assert time.monotonic() - began[0] < 30 and not any(map(is_running, seen))
    assert 0 < len(history_of(folder / "run")) < 12


def test_one_that_is_killed_ends_all_and_they_go_on_to_the_same_bits(tmp_path: Path) -> None:
    strike(tmp_path / "killed", signal.SIGKILL, "was ended by SIGKILL")
    for name in ("killed", "whole"):
        share(tmp_path / name, 2, {"run": {}})
    ended, whole = tmp_path / "killed" / "run", tmp_path / "whole" / "run"
    assert all(torch.equal(value, weights_of(whole)[name]) for name, value in weights_of(ended).items())
    for name in ("state.safetensors", "best.safetensors"):
        assert (ended / name).read_bytes() == (whole / name).read_bytes()


def test_one_that_hangs_ends_all_and_one_process_goes_on(tmp_path: Path) -> None:
    strike(tmp_path / "hung", signal.SIGSTOP, "was not heard of for")
    run, weights = train_small(tmp_path / "hung" / "run")
    assert run.step == 12
    close(weights, train_small(tmp_path / "whole")[1])
