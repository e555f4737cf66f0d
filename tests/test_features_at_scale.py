"""Features of many shards: made by any number of processes, which may be killed, and read by a training from the disk."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fromage.core.folders import is_running
from fromage.core.presets import PRESETS, change
from fromage.core.workers import Claims, Worker, WorkerError
from fromage.data.captions import open_captions
from fromage.model import steps
from fromage.model.steps import WINDOW_ROWS, FeaturePairs, make_pairs, open_pairs, step_rows
from fromage.model.tokens import Vocabulary, encode_captions
from fromage.networks import decoding, features, stores
from fromage.networks.decoding import Decoders
from fromage.networks.extraction import ExtractionOrder, extract_together
from fromage.networks.features import describe_store, extract_features
from fromage.networks.stand_ins import stand_in_language_model
from fromage.networks.stores import FeatureStore, StoreError, open_features
from fromage.networks.towers import preprocess_image

SHARDS, EACH = 5, 12
FORK = multiprocessing.get_context("fork")  # real processes that need not import everything again


class SlowTower:
    """Means of patches of pixels, which take some seconds; every batch leaves a line in a log."""
    width, image_size, fingerprint, name = 48, (8, 8), "patches", "stand-in"

    def __init__(self, seconds: float = 0.0, log: Path | None = None):
        self.seconds, self.log = seconds, log

    def preprocess(self, image: Image.Image, squash: bool = False) -> Tensor:
        return preprocess_image(image, self.image_size, (0, 0, 0), (1, 1, 1), squash=squash)

    def encode(self, pixels: Tensor) -> Tensor:
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(hashlib.sha256(pixels.numpy().tobytes()).hexdigest() + "\n")
        time.sleep(self.seconds)
        return torch.nn.functional.avg_pool2d(pixels, 2).flatten(1)


def run(shards: Path, store: Path, seconds: float = 0.0, log: Path | None = None) -> FeatureStore:
    """Makes a store of shards."""
    with warnings.catch_warnings(action="ignore"):
        return extract_features(SlowTower(seconds, log), open_captions(shards, "shards"), store, batch_size=4, dtype="float16", flush_every=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of twelve pictures, every seventh broken; the fourth shard has nothing else."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for key in range(EACH):
                number = shard * EACH + key
                stream = io.BytesIO()
                Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)).save(stream, "PNG")
                picture = b"broken" if number % 7 == 3 or shard == 3 else stream.getvalue()
                for suffix, data in ((".png", picture), (".txt", f"caption {number}".encode())):
                    member = tarfile.TarInfo(f"{key:04d}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of one process that nothing interrupts."""
    return run(shards, tmp_path_factory.mktemp("whole"))


def same(folder: Path, whole: FeatureStore) -> None:
    """Asserts that a store has every byte of another, timings apart."""
    names = [path.relative_to(whole.folder) for path in whole.folder.rglob("*")
             if path.suffix and path.name != "timings.json" and "tokens" not in path.parts and not path.name.startswith(".")]
    assert len(names) == 1 + 4 * SHARDS
    for name in names:
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert open_features(folder, whole.key).content == whole.content


def start(*given: object) -> multiprocessing.Process:
    """One process that makes a store."""
    process = FORK.Process(target=run, args=given)
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    """How a process ended."""
    process.join(60)
    return process.exitcode


def wait_for(path: Path, lines: int) -> None:
    """Returns once a log has so many lines."""
    for _ in range(3000):
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come to {lines} lines in half a minute")


def test_what_one_process_makes(whole: FeatureStore, shards: Path, tmp_path: Path) -> None:
    """Limited, the first images are one piece, with the same features."""
    assert (whole.problems["n_total"], len(whole)) == (60, 41) and whole.features.shape == (41, 48)
    assert whole.captions[11] == f"caption {int(whole.ids[11].split('/')[0][:5]) * EACH + int(whole.ids[11][-4:])}"
    undivided = extract_features(SlowTower(), open_captions(shards, "shards"), tmp_path / "first", 4, "float16", limit=20)
    np.testing.assert_array_equal(undivided.features, whole.features[:20])
    assert isinstance(undivided.features, np.ndarray) and undivided.ids[:] == whole.ids[:20]


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_makes_the_same_and_each_piece_once(count: int, shards: Path, whole: FeatureStore, tmp_path: Path) -> None:
    processes = [start(shards, tmp_path / "store", 0.1, tmp_path / "log") for _ in range(count)]
    assert [ended(process) for process in processes] == [0] * count
    same(tmp_path / "store", whole)
    run(shards, tmp_path / "one", 0.0, tmp_path / "alone")
    counted = Counter((tmp_path / "log").read_text().splitlines())
    assert counted == Counter((tmp_path / "alone").read_text().splitlines()) and set(counted.values()) == {1}


def test_killed_at_any_piece_the_rest_goes_on(shards: Path, whole: FeatureStore, tmp_path: Path) -> None:
    """One of two is killed, and the other makes all; then all are killed, and one goes on."""
    first, second = (start(shards, tmp_path / "two", 0.2, tmp_path / f"log{n}") for n in range(2))
    wait_for(tmp_path / "log0", 1)
    first.kill()
    assert (ended(second), ended(first)) == (0, -signal.SIGKILL)
    same(tmp_path / "two", whole)
    alone = start(shards, tmp_path / "one", 0.2, tmp_path / "log")
    wait_for(tmp_path / "log", 5)
    alone.kill()
    assert ended(alone) == -signal.SIGKILL
    with pytest.raises(StoreError, match="half-written"):
        open_features(tmp_path / "one")
    run(shards, tmp_path / "one")
    same(tmp_path / "one", whole)


def test_a_process_that_hangs_is_named_and_the_next_run_goes_on(shards: Path, whole: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a piece of one that was stopped, and nobody writes into it; once that one has ended, the store is the same."""
    monkeypatch.setattr(features, "Claims", partial(Claims, patience=3.0))
    stopped = start(shards, tmp_path / "store", 0.2, tmp_path / "log")
    wait_for(tmp_path / "log", 2)
    os.kill(stopped.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=f"pieces.00000: process {stopped.pid} of .* was not heard of for [3-9] s"):
        run(shards, tmp_path / "store")
    assert time.monotonic() - begun < 30
    stopped.kill()
    assert ended(stopped) == -signal.SIGKILL
    run(shards, tmp_path / "store")
    same(tmp_path / "store", whole)


@pytest.mark.parametrize(("sent", "told"), [(signal.SIGKILL, "was ended by SIGKILL"), (signal.SIGSTOP, "was not heard of for [3-9] s")])
def test_a_parent_follows_its_processes_and_tells_who_ended_or_hangs(sent: signal.Signals, told: str, shards: Path, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini tower's store by two processes, of which one is killed or stopped, is that of one."""
    import fromage.networks.extraction as extraction
    order = ExtractionOrder(("data/mini/tower", None, "cpu", "float32"), (str(shards), "shards", None), str(tmp_path / "store"))
    begin, seen = extraction.start_worker, []

    def begin_and_strike(path: Path, worker: Worker, threads: int) -> subprocess.Popen:
        seen.append(begin(path, worker, threads))
        if len(seen) == 1:
            wait_for(worker.pulse, 1)
            seen[0].send_signal(sent)
        return seen[-1]
    monkeypatch.setattr(extraction, "start_worker", begin_and_strike)
    with pytest.warns(UserWarning, match=f"process 1 of 2 {told}.*its last line: .*the others did its part"):
        store = extract_together(order, 2, patience=3.0)
    assert len(store) == 41 and not any(is_running(process.pid) for process in seen)
    alone = extraction.extract_order(ExtractionOrder(order.tower, order.source, str(tmp_path / "alone")))
    assert store.content == alone.content


class HostileTower(SlowTower):
    """A picture of thirteen rows kills the process that decodes it."""

    def preprocess(self, image: Image.Image, squash: bool = False) -> Tensor:
        if image.height == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().preprocess(image, squash)


def test_a_picture_that_kills_its_decoder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others have the pixels that threads give them, and the extraction ends."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 13 if number == 5 else 12), (number, 9, 200)).save(pictures / f"{number:02d}.png")
    (pictures / "07.png").write_bytes(b"broken")
    tower = SlowTower()
    threads = extract_features(tower, open_captions(pictures, "folder"), tmp_path / "threads", 4)
    monkeypatch.setattr(decoding.multiprocessing, "get_context", lambda kind: FORK)
    found = extract_features(HostileTower(), open_captions(pictures, "folder"), tmp_path / "processes", 4, decoders=2)
    assert {name: each["count"] for name, each in found.problems["reasons"].items()} == {"broken image": 1, "image that ends its decoder": 1}
    assert found.problems["reasons"]["image that ends its decoder"]["names"] == ["05.png"]
    keep = [number for number, name in enumerate(threads.ids) if name != "05.png"]
    np.testing.assert_array_equal(found.features, threads.features[keep])
    with Decoders(partial(tower.preprocess, squash=False)) as decoders:
        assert decoders.collect(decoders.submit([b""]))[0][0] == "broken image"


class StallingTower(SlowTower):
    """A picture of thirteen rows stops the first process that decodes it, or any."""

    def __init__(self, once: Path | None):
        super().__init__()
        self.once = once

    def preprocess(self, image: Image.Image, squash: bool = False) -> Tensor:
        if image.height == 13 and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().preprocess(image, squash)


@pytest.mark.parametrize("always", [False, True])
def test_a_decoder_that_hangs_is_replaced(always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had is decoded by another one; a picture with which every decoder hangs is counted."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (13 if number == 5 else 400, 400, 3), np.uint8)  # more than a pipe holds
        Image.fromarray(pixels).save(pictures / f"{number:02d}.png")
    threads = extract_features(SlowTower(), open_captions(pictures, "folder"), tmp_path / "threads", 4)
    monkeypatch.setattr(decoding.multiprocessing, "get_context", lambda kind: FORK)
    monkeypatch.setattr(features, "Decoders", partial(Decoders, patience=3.0))
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="decoder [12] of 2 was not heard of for [3-9] s, its last line: nothing; another one goes on"):
        found = extract_features(StallingTower(None if always else tmp_path / "once"), open_captions(pictures, "folder"), tmp_path / "processes", 4,
                                 decoders=2)
    assert time.monotonic() - begun < 30
    keep = [number for number, name in enumerate(threads.ids) if name != "05.png" or not always]
    np.testing.assert_array_equal(found.features, threads.features[keep])
    assert {name: each["names"] for name, each in found.problems["reasons"].items()} == ({"image that ends its decoder": ["05.png"]} if always else {})


def test_damage_in_a_large_store_stops_its_reader(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and text are compared before it is opened, features while it is read, and on demand."""
    store = run(shards, tmp_path / "store")
    monkeypatch.setattr(stores, "SUMMED_AT_ONCE", 0)
    open_features(store.folder).features.check.refuse(wait=True)
    path = stores.piece_folder(store.folder, 1) / "features.npy"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    rows = open_features(store.folder).features
    with pytest.raises(StoreError, match="damaged"):
        rows.check.refuse(wait=True)
    with pytest.raises(StoreError, match="damaged"):
        rows[0]


def test_a_batch_of_pieces_is_that_of_an_array(whole: FeatureStore) -> None:
    vocabulary = Vocabulary(stand_in_language_model("opt")[1])
    pairs = open_pairs(vocabulary, whole, 12)
    alone = make_pairs(vocabulary, whole.features[:], [*whole.captions], 12)
    rows = [40, 3, 17, 3, 0]
    for ours, theirs in zip(vars(pairs.batch(rows)).values(), vars(alone.batch(rows)).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_captions_are_tokenised_once_and_as_one_by_one(whole: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kept ids were damaged; another tokenizer has its own."""
    vocabulary = Vocabulary(stand_in_language_model("opt")[1])
    texts = [*whole.captions, "a [RET] within", "", "two  blanks", " begins", "ünïcode ☂", "x" * 200]
    for most in (4, 24):
        assert encode_captions(vocabulary, texts, most) == [vocabulary.encode_caption(text, most) for text in texts]
        assert encode_captions(vocabulary, texts[:-5], most) == [vocabulary.encode_caption(text, most) for text in texts[:-5]]
    calls = []
    monkeypatch.setattr(steps, "encode_captions", lambda *given: calls.append(len(given[1])) or encode_captions(*given))
    expected = make_pairs(vocabulary, whole.features, whole.captions, 10)
    calls.clear()

    def ids() -> Sequence[int]:
        return open_pairs(vocabulary, whole, 10).ids.tolist()
    assert ids() == ids() == expected.ids.tolist() and calls == [41]
    [path] = [path for path in whole.folder.glob("tokens/*/ids.npy") if len(np.load(path)) == len(expected.ids)]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert ids() == expected.ids.tolist() and calls == [41, 41]


@pytest.mark.parametrize("count", [10, 12_000, WINDOW_ROWS])
def test_up_to_a_window_an_epoch_is_a_permutation(count: int) -> None:
    """Bit by bit as before there were windows: trainings that began then go on."""
    size = min(count, 64)
    for step in (0, count // size - 1, count // size):
        epoch, place = divmod(step, count // size)
        order = np.random.default_rng([7, epoch, 0]).permutation(count)
        assert step_rows(count, size, 7, step).tolist() == order[place * size:(place + 1) * size].tolist()


def test_beyond_a_window_every_row_comes_once_and_in_few_blocks() -> None:
    count, size = 5 * WINDOW_ROWS + 777, 180
    batches = count // size
    epochs = [np.concatenate([step_rows(count, size, 3, epoch * batches + step) for step in range(batches)]) for epoch in (0, 1)]
    for rows in epochs:
        assert len(np.unique(rows)) == len(rows) == batches * size and 0 <= rows.min() and rows.max() < count
        blocks = [len(np.unique(rows[first:first + WINDOW_ROWS] // 1024)) for first in range(0, 5 * WINDOW_ROWS, WINDOW_ROWS)]
        assert blocks == [64] * 5
    assert (epochs[0] == epochs[1]).mean() < 0.001
    assert step_rows(count, size, 3, batches + 5).tolist() == epochs[1][5 * size:6 * size].tolist()


def test_the_towers_arithmetic_is_part_of_a_key_only_where_it_is_not_float32(shards: Path) -> None:
    tower = SlowTower()
    plain = describe_store(tower, open_captions(shards, "shards"))
    assert [*plain] == ["tower", "source", "resize", "limit", "dtype"]
    tower.precision = "bfloat16"
    assert describe_store(tower, open_captions(shards, "shards")) == plain | {"precision": "bfloat16"}


def test_the_papers_features_are_half_floats() -> None:
    assert {name for name, preset in PRESETS.items() if preset.data.feature_dtype != "float16"} == {"mini", "smol", "emoji"}
    assert change(PRESETS["paper"], tower_precision="bfloat16").backbones.tower_precision == "bfloat16"


def test_pairs_know_their_file(whole: FeatureStore) -> None:
    pairs = FeaturePairs(whole.features, whole.captions, np.zeros(0, np.int32), np.zeros(42, np.int64))
    assert pairs.name() == str(whole.folder) and json.loads((whole.folder / "timings.json").read_text())["images"] == 60
