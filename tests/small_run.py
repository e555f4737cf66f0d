"""A training so small that several processes can share it on any machine; `torchrun tests/small_run.py <folder> <runs>` is one of them."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fromage.core.config import Config
from fromage.core.groups import ALONE, Group, Processes
from fromage.core.presets import MINI, change
from fromage.core.progress import heard
from fromage.core.records import write_text
from fromage.core.tracking import Tracker
from fromage.core.workers import Worker
from fromage.model.checkpoint import new_model
from fromage.model.distributed import LineTracker, say_progress
from fromage.model.model import trained_parameters
from fromage.model.steps import make_pairs
from fromage.model.training import Run, fit
from fromage.networks.layers import count_own
from fromage.networks.stand_ins import stand_in_language_model

WORDS = ["a", "red", "car", "the", "old", "man", "in", "house"]


class Slow(LineTracker):
    """Waits at every step."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, step, values, group="training"):
        super().__call__(step, values, group)
        time.sleep(self.seconds)


def small_config(**settings: object) -> Config:
    """Twelve steps of eight pairs, a state after every third."""
    usual = {"batch_size": 8, "steps": 12, "visual_tokens": 2, "retrieval_dim": 8, "warmup_steps": 2, "validate_every": 6,
             "save_every": 3, "tokens_per_pass": 40}
    return change(MINI, **usual | settings)


def train_small(folder: Path, group: Group = ALONE, watch: Tracker = Tracker(), **settings: object) -> tuple[Run, dict[str, torch.Tensor]]:
    """The run and the weights after all its steps; how many frozen values a process of several held lies beside its state."""
    config, rng = small_config(**settings), np.random.default_rng(0)
    opened = config.backbones.weights == "random"  # in the shape of the miniature's own, as a configuration opens it
    model = new_model(config, 24, *(() if opened else stand_in_language_model("opt", spare_rows=7)), group=group)
    if group.size > 1:
        write_text(folder / f"own-{group.rank}", str(count_own(model.language_model)))
    captions = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(40)]
    pairs = make_pairs(model.vocabulary, rng.normal(size=(40, 24)).astype(np.float32), captions, 24)
    run = fit(model, pairs, pairs, config, folder, watch=watch, group=group)
    return run, {name: value.detach().clone() for name, value in trained_parameters(model).items()}


def main(folder: Path, runs: dict[str, dict[str, object]], seconds: float, patience: float) -> None:
    """One process of several runs (name -> settings), one after another: each leaves its weights in a folder of its name."""
    rank = int(os.environ["RANK"])
    Worker(rank, folder / "processes").begin()
    with heard(say_progress):
        group = Processes(patience=patience)
        for name, settings in runs.items():
            _, weights = train_small(folder / name, group, Slow(seconds) if group.leads else Tracker(), **settings)
            save_file(weights, folder / name / f"weights-{rank}.safetensors")
        group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *map(float, sys.argv[3:]))
