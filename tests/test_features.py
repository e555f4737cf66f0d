"""What a notebook cannot show of the feature store: a process killed at any instant, and two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fromage.data.sources import ImageFolder
from fromage.networks.features import extract_features
from fromage.networks.stores import StoreError, open_features

FILES = ("features.npy", "rows.jsonl", "offsets.npy", "manifest.json")
PROGRAM = """
import sys, time
import torch
from fromage.networks.features import extract_features
from fromage.networks.towers import preprocess_image
from fromage.data.sources import ImageFolder

class SlowTower:
    width, image_size, fingerprint, name = 48, (8, 8), "patches", "stand-in"
    seconds = 0.0

    def preprocess(self, image, squash=False):
        return preprocess_image(image, self.image_size, (0, 0, 0), (1, 1, 1), squash=squash)

    def encode(self, pixels):
        time.sleep(self.seconds)
        return torch.nn.functional.avg_pool2d(pixels, 2).flatten(1)

def run(images, store, seconds):
    tower = SlowTower()
    tower.seconds = seconds
    return extract_features(tower, ImageFolder(images), store, batch_size=4, flush_every=1)

if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
"""
program: dict = {"__name__": "program"}
exec(PROGRAM, program)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images, every seventh broken."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(60):
        if number % 7 == 3:
            (folder / f"{number:03d}.png").write_bytes(b"broken")
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def start(images: Path, store: Path, seconds: float) -> subprocess.Popen:
    """The extraction as a process of its own, `seconds` for each batch."""
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(images), str(store), str(seconds)])


def wait_for_rows(process: subprocess.Popen, store: Path, rows: int) -> None:
    """Returns once the journal has `rows` rows."""
    journal = store / "journal.json"
    for _ in range(6000):
        if journal.is_file() and json.loads(journal.read_text())["rows"] >= rows:
            return
        assert process.poll() is None, "the extraction ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("the extraction did not come that far in a minute")


def test_killed_and_resumed_equals_uninterrupted(images: Path, tmp_path: Path) -> None:
    """kill -9 twice, then finish: the same bytes as in one go, and no half-written store was ever taken for a whole one."""
    whole = program["run"](images, tmp_path / "whole", 0.0)
    assert (len(whole), whole.problems["n_total"]) == (51, 60)
    killed = tmp_path / "killed"
    for rows in (8, 24):
        process = start(images, killed, 0.15)
        try:
            wait_for_rows(process, killed, rows)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with pytest.raises(StoreError, match="half-written"):
            open_features(killed)
        (killed / "features.npy").open("ab").write(b"a row that was cut off")  # what the disk may hold beyond the journal
    program["run"](images, killed, 0.0)
    for name in FILES:
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_processes_make_one_store(images: Path, tmp_path: Path) -> None:
    """The second waits for the first and finds its store."""
    processes = [start(images, tmp_path / "shared", 0.02) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    whole = program["run"](images, tmp_path / "whole", 0.0)
    for name in FILES:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(open_features(tmp_path / "shared", key=whole.key)) == len(whole)


def test_an_interrupted_store_refuses_another_tower(images: Path, tmp_path: Path) -> None:
    """Rows of two towers never end up in one store."""
    class Failing(program["SlowTower"]):
        def encode(self, pixels):
            raise RuntimeError("power cut")
    with pytest.raises(RuntimeError, match="power cut"):
        extract_features(Failing(), ImageFolder(images), tmp_path / "store")
    other = program["SlowTower"]()
    other.fingerprint = "another"
    with pytest.raises(StoreError, match="tower patches there, another asked for"):
        extract_features(other, ImageFolder(images), tmp_path / "store")


@pytest.mark.parametrize("name", FILES[:3])
def test_a_file_cut_short_is_noticed(images: Path, tmp_path: Path, name: str) -> None:
    """A store whose files changed size since the manifest was written is not opened."""
    store = program["run"](images, tmp_path / "store", 0.0)
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged"):
        open_features(store.folder)
