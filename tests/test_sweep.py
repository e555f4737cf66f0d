"""A sweep that is killed goes on, what is done is found again, and a variant that fails is a row of its own."""

import multiprocessing
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fromage.ablation.sweep as sweeping
from fromage.ablation.measurements import Amounts, Items, Sources
from fromage.ablation.sweep import Setting, Task, done, paths_of, plan, sweep
from fromage.core.presets import MINI, change
from fromage.model.model import Fromage

CHOSEN = {"baseline": {}, "no [RET]": {"ret": "none"}}


def weights(model: Fromage, *_: object) -> dict[str, Items]:
    """In place of measurements, which take long: what training changed."""
    return {"weights": Items([float(model.image_map.weight.detach().double().sum()), float(model.logit_scale.detach())])}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    """A small setting; its trainings are real, its measurements are not."""
    monkeypatch.setattr(sweeping, "open_material", lambda *_: SimpleNamespace(key="material", texts=[], definitions=[]))
    monkeypatch.setattr(sweeping, "measure", weights)
    base = change(MINI, steps=6, batch_size=4, train_examples=256, validation_examples=200, save_every=1, validate_every=6)
    return Setting(base, Sources(), Amounts(), folder=str(tmp_path / "cache"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the variants that are trained, as it happens."""
    names, train = [], sweeping.train_task

    def train_and_tell(task: Task, *rest: object) -> dict:
        names.append(task.name)
        return train(task, *rest)

    monkeypatch.setattr(sweeping, "train_task", train_and_tell)
    return names


def tasks_of(shared: Setting, chosen: dict = CHOSEN) -> dict:
    return plan(shared, chosen, (0,), f"{shared.folder}/networks", 1)


def kill_during(tasks: dict, key: tuple[str, int]) -> None:
    """Sweep in another process, which dies while it trains the variant `key`."""
    folder = paths_of(tasks[key])[0].parent
    process = multiprocessing.get_context("fork").Process(target=sweep, args=(tasks,))
    process.start()
    for _ in range(6000):
        if list(folder.glob("state.*")) or not process.is_alive():
            break
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the sweep ended before it could be killed"


def test_a_killed_sweep_goes_on(shared: Setting, trained: list[str], tmp_path: Path) -> None:
    tasks = tasks_of(shared)
    kill_during(tasks, ("no [RET]", 0))
    assert [done(task) for task in tasks.values()] == [True, False]
    before = paths_of(tasks["baseline", 0])[0].stat().st_mtime_ns
    continued = sweep(tasks)
    assert trained == ["no [RET]"] and paths_of(tasks["baseline", 0])[0].stat().st_mtime_ns == before
    whole = sweep(tasks_of(Setting(shared.base, shared.sources, shared.amounts, folder=str(tmp_path / "whole"))))
    assert [each.measured for each in continued] == [each.measured for each in whole]
    assert [each.training["history"] for each in continued] == [each.training["history"] for each in whole]


def test_what_is_done_is_found_again_and_what_failed_is_tried_again(
        shared: Setting, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train = sweeping.train_task

    def fail(task: Task, *rest: object) -> dict:
        if task.name == "no [RET]":
            raise MemoryError("no room for this one")
        return train(task, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(sweeping, "train_task", fail)
        first = sweep(tasks_of(shared))
    assert [each.error for each in first] == ["", "MemoryError: no room for this one"]
    again = sweep(tasks_of(shared))
    assert [each.error for each in again] == ["", ""] and again[0] == first[0] and trained == ["baseline", "no [RET]"]
