"""Index sets as they are used: searched after changes, changed by two at once, killed, from a shell and in a dialogue."""

import hashlib
import importlib.util
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from house_rules import ROOT
from killing import Stage, finish, kill_within
from papermill_runs import run_notebook
from PIL import Image

from fromage.chat.command import main
from fromage.chat.conversation import Conversation, open_gallery
from fromage.chat.dialogue import PLAIN, Dialogue, ask
from fromage.chat.pictures import Picture
from fromage.core.folders import FolderHeld
from fromage.model.approximate import SearchMethod, measure_recall
from fromage.model.assistant import Assistant, open_assistant
from fromage.model.checkpoint import Checkpoint, load_checkpoint
from fromage.model.galleries import save_index
from fromage.model.generation import Decoding
from fromage.model.index_sets import (add_files, add_pictures, changing, compact_set, delete_pictures, describe_set, load_set, open_index,
                                      read_set, write_set)
from fromage.model.retrieval import ImageIndex

CHECKPOINT = "data/mini/checkpoint.safetensors"
METHODS = ("ivf", "ivfpq", "hnsw")
NEEDS_FAISS = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="pip install 'fromage-grounding[faiss]'")
FORK = multiprocessing.get_context("fork")
KILLS = 5  # of each change


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The shipped one."""
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    """Of the shipped checkpoint."""
    return open_assistant(CHECKPOINT)


def paint(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of pictures, each of sixteen colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), 0).save(folder / f"{number:03}.png")
    return folder


def clusters(count: int, seed: int) -> torch.Tensor:
    """Normalised rows (count, 32) in float16 around forty places that do not depend on the seed."""
    centres = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(seed)
    rows = centres[torch.randint(40, (count,), generator=drawn)] + 0.5 * torch.randn(count, 32, generator=drawn)
    return F.normalize(rows, dim=-1).half()


def add_rows(place: Path, rows: torch.Tensor, prefix: str, most_rows: int) -> None:
    """Adds embeddings to a set as if pictures had been looked at."""
    names = [f"{prefix}/{number}" for number in range(len(rows))]
    with changing(place, new=True) as index_set:
        write_set(place, add_files(place, index_set, ImageIndex(names, rows, [], "key", names), most_rows))


def named_files(place: Path) -> set[str]:
    """Those of a set whose names do not say that they are hidden for good."""
    return {path.name for path in place.iterdir() if path.name not in (".held", ".holder.json")}


def contents(place: Path) -> dict[str, str]:
    """Id -> hash of its embedding, for all of a set; its sums are compared."""
    index = load_set(place)
    return {name: hashlib.sha256(row.numpy().tobytes()).hexdigest() for name, row in zip(index.ids, index.embeddings[:], strict=True)}


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, torch.Tensor, set[str]]:
    """A set of four files, of which some rows were deleted after three were there; queries; the names of the deleted."""
    place = tmp_path / "set"
    add_rows(place, clusters(3000, 1), "old", 1000)
    queries = F.normalize(clusters(60, 2).float(), dim=-1)
    index = load_set(place)
    gone = {index.ids[row] for row in index.search(queries, 3)[0].flatten().tolist()}
    delete_pictures(place, [*sorted(gone), "old/29*"])
    gone |= {name for name in index.ids if name.startswith("old/29")}
    add_rows(place, clusters(700, 3), "new", 1000)
    return place, queries, gone


def test_exact_search_finds_in_a_set_what_it_finds_in_one_index(grown: tuple) -> None:
    place, queries, gone = grown
    index = load_set(place)
    assert len(read_set(place).files) == 4 and len(index) == 3700 - len(gone) and not gone & {*index.ids}
    whole = ImageIndex([*index.ids], index.embeddings[:])
    assert index.embeddings[:].dtype == torch.float16
    for chunk in (16384, 700, 64):
        for part, wanted in zip(index.search(queries, 25, chunk=chunk), whole.search(queries, 25, chunk=chunk), strict=True):
            assert torch.equal(part, wanted)
    compact_set(place, most_rows=900)
    for part, wanted in zip(load_set(place).search(queries, 25), whole.search(queries, 25), strict=True):
        assert torch.equal(part, wanted)


@NEEDS_FAISS
@pytest.mark.parametrize("name", METHODS)
def test_approximate_search_of_a_set_that_changes(name: str, tmp_path: Path) -> None:
    """What was deleted is never found; tables of files that stayed are not made again; recall stays high."""
    place, method = tmp_path / "set", SearchMethod(name, smallest=1, code_bytes=8)
    add_rows(place, clusters(3000, 1), "old", 1000)
    queries = F.normalize(clusters(60, 2).float(), dim=-1)
    first = open_index(place, search=method)
    assert all(table is not None for table in first.tables) and measure_recall(first, queries) > 0.95
    made = {path: path.stat().st_mtime_ns for path in place.glob("*.faiss")}
    gone = {first.ids[row] for row in first.search(queries, 5)[0].flatten().tolist()}
    looked = first.exact.embeddings[torch.tensor(first.rows_of(sorted(gone)))].float()  # what was deleted is asked for
    delete_pictures(place, sorted(gone))
    add_rows(place, clusters(700, 3), "new", 1000)
    second = open_index(place, search=method)
    assert len(made) == 3 and all(path.stat().st_mtime_ns == moment for path, moment in made.items())
    assert len([*place.glob("*.faiss")]) == 4 and len(second) == 3700 - len(gone)
    for asked in (queries, looked):
        rows, cosines = second.search(asked, 10)
        assert (rows >= 0).all() and not gone & {second.ids[row] for row in rows.flatten().tolist()}
        assert torch.equal(cosines, second.exact.cosines(F.normalize(asked, dim=-1), rows))
        assert measure_recall(second, asked) > 0.95
    assert any(second.ids[row].startswith("new/") for row in second.search(queries, 10)[0].flatten().tolist())
    compact_set(place)
    assert not [*place.glob("*.faiss")]
    assert measure_recall(open_index(place, search=method), queries) > 0.95


@NEEDS_FAISS
@pytest.mark.parametrize("name", METHODS)
def test_a_file_that_lost_nearly_all_its_rows(name: str, tmp_path: Path) -> None:
    """There are fewer rows than are asked of each file; those that are left are found, and no others."""
    place = tmp_path / "set"
    add_rows(place, clusters(600, 1), "old", 300)
    delete_pictures(place, [f"old/{number}" for number in range(298)])
    found = open_index(place, search=SearchMethod(name, smallest=1, breadth=1000, probes=1000))
    rows, _ = found.search(clusters(5, 2).float(), len(found))
    assert len(found) == 302 and all(sorted(each) == [*range(302)] for each in rows.tolist())


def hold_set(place: Path, entered: "multiprocessing.synchronize.Event", over: "multiprocessing.synchronize.Event") -> None:
    """Changes a set until it is told that this is over."""
    with changing(place):
        entered.set()
        over.wait(60)


def test_a_second_change_is_refused_and_the_set_can_be_read(tmp_path: Path) -> None:
    place, entered, over = tmp_path / "set", FORK.Event(), FORK.Event()
    add_rows(place, clusters(20, 1), "old", 10)
    process = FORK.Process(target=hold_set, args=(place, entered, over))
    process.start()
    assert entered.wait(60)
    before = contents(place)
    for change in (lambda: delete_pictures(place, ["old/1"]), lambda: compact_set(place), lambda: add_rows(place, clusters(3, 2), "new", 10)):
        with pytest.raises(FolderHeld, match=f"process {process.pid} of .* writes this folder"):
            change()
    assert contents(place) == before and describe_set(place)["pictures"] == 20
    over.set()
    process.join(60)
    assert process.exitcode == 0 and delete_pictures(place, ["old/1"]) == 1


def come_and_go(place: Path, pictures: Path, prefix: str, assistant: Assistant, checkpoint: Checkpoint) -> None:
    """Adds a picture in each of six rounds and deletes every second, each change as soon as nobody else makes one."""
    def insist(change: Callable[[], object]) -> None:
        while True:
            try:
                change()
                return
            except FolderHeld:
                time.sleep(random.random() / 50)

    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 99)).save(pictures / f"{number}.png")
        insist(lambda: add_pictures(pictures, place, checkpoint, prefix, tower=assistant.tower))
        if number % 2:
            insist(lambda: delete_pictures(place, [f"{prefix}{number - 1}.png"]))
            (pictures / f"{number - 1}.png").unlink()


def test_two_processes_lose_nothing(tmp_path: Path, assistant: Assistant, checkpoint: Checkpoint) -> None:
    started = []
    for prefix in ("one/", "two/"):
        pictures = tmp_path / prefix
        pictures.mkdir()
        started.append(FORK.Process(target=come_and_go, args=(tmp_path / "set", pictures, prefix, assistant, checkpoint)))
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    assert {*contents(tmp_path / "set")} == {f"{prefix}{number}.png" for prefix in ("one/", "two/") for number in (1, 3, 5)}
    assert named_files(tmp_path / "set") == {"index.json", *(file.name for file in read_set(tmp_path / "set").files)}


@pytest.mark.parametrize("name", ["add", "delete", "compact"])
def test_a_killed_change_is_made_or_not(name: str, tmp_path: Path, assistant: Assistant, checkpoint: Checkpoint) -> None:
    """Killed anywhere, there is the set before or the set after; the next change leaves nothing behind of it."""
    pictures, start = paint(tmp_path / "pictures", 20), tmp_path / "start"
    add_pictures(pictures, start, checkpoint, tower=assistant.tower, most_rows=7)
    delete_pictures(start, ["00*"])
    more = paint(tmp_path / "more", 60, 1)
    changes = {"add": lambda place: add_pictures(more, place, checkpoint, "more/", tower=assistant.tower, batch_size=4, most_rows=25),
               "delete": lambda place: delete_pictures(place, ["01*"]), "compact": compact_set}
    stage = Stage(name, lambda place: changes[name](place) and None, contents)
    before = contents(start)
    shutil.copytree(start, tmp_path / "whole")
    begun = time.monotonic()
    assert not finish(stage, tmp_path / "whole")
    seconds, after = time.monotonic() - begun, contents(tmp_path / "whole")
    killed = 0
    for number in range(20 * KILLS):
        place, share = tmp_path / f"killed {number}", random.random()
        shutil.copytree(start, place)
        killed += kill_within(stage, place, share * seconds)
        left = contents(place)
        assert left in (before, after), f"killed at {share} of {seconds} s"
        add_pictures(pictures, place, checkpoint, tower=assistant.tower)  # the next change: those of the first folder come back
        assert {*contents(place)} == {*left} | {path.name for path in pictures.iterdir()}
        assert named_files(place) == {"index.json", *(file.name for file in read_set(place).files)}, f"killed at {share} of {seconds} s"
        if killed == KILLS:
            return
    raise AssertionError(f"{killed} kills")


def test_the_next_change_sweeps_what_no_list_names(tmp_path: Path) -> None:
    """Files of a change that was killed go; what is somebody's own stays."""
    place = tmp_path / "set"
    add_rows(place, clusters(20, 1), "old", 10)
    kept = named_files(place) | {"notes.txt", "000001.ivf.faiss", "000001.ivf.json"}
    left = {"000003.safetensors", "000009.ivf.faiss", "000009.ivf.json", ".tmp-0123456789ab-000003.safetensors",
            ".tmp-0123456789ab-000001.safetensors", ".tmp-0123456789ab-index.json", ".tmp-0123456789ab-.holder.json"}
    for name in kept - named_files(place) | left:
        (place / name).write_text("left")
    assert delete_pictures(place, ["old/3"]) == 1
    assert named_files(place) == kept


def test_the_command_from_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(*words: str) -> str:
        main(["index", *words])
        return capsys.readouterr().out.strip()

    pictures, place = paint(tmp_path / "pictures", 12), str(tmp_path / "set")
    (pictures / "broken.png").write_bytes(b"no image")
    assert run("add", str(pictures), "--to", place) == "12 new, 0 changed, 0 unchanged, 0 removed, 1 unusable"
    (pictures / "broken.png").unlink()
    (pictures / "003.png").unlink()
    assert run("add", str(pictures), "--to", place, "--remove") == "0 new, 0 changed, 11 unchanged, 1 removed, 0 unusable"
    assert run("add", str(paint(tmp_path / "more", 2, 1)), "--to", place, "--prefix", "more/").startswith("2 new")
    assert run("show", place).startswith("13 pictures, 1 deleted, 2 files")
    assert run("delete", "more/*", "000.png", "--from", place) == "3 deleted"
    assert run("show", place).startswith("10 pictures, 4 deleted, 2 files")
    assert run("compact", place).startswith("10 pictures, 0 deleted, 1 files")
    for words, told in ((("delete", "nothing.png", "--from", place), "no picture 'nothing.png'; allowed are"),
                        (("show", str(pictures)), "index.json: no such file; allowed is the list of an index set"),
                        (("add", str(tmp_path / "more"), "--to", place), "'001.png' is in the set already, from another folder"),
                        (("add", str(tmp_path / "nowhere"), "--to", place), "nowhere")):
        with pytest.raises(SystemExit, match=told):
            main(["index", *words])
    assert run("show", place).startswith("10 pictures, 0 deleted, 1 files")
    main(["find", "a red ball", place, "--k", "2", "--search", "exact"])
    assert len(capsys.readouterr().out.splitlines()) == 2


@NEEDS_FAISS
def test_a_dialogue_with_a_set_that_is_searched_approximately(tmp_path: Path, assistant: Assistant, checkpoint: Checkpoint) -> None:
    pictures, place = paint(tmp_path / "pictures", 600), tmp_path / "set"
    add_pictures(pictures, place, checkpoint, tower=assistant.tower, most_rows=300)
    answers = {}
    for search in ("exact", SearchMethod("ivf", smallest=1, probes=1000), SearchMethod("hnsw", smallest=1, breadth=1000)):
        gallery = open_gallery(assistant, place, search=search, pictures=pictures)
        assert search == "exact" or all(table is not None for table in gallery.index.tables)
        talk = Conversation(assistant, gallery)
        done = talk.respond(ask(Dialogue(template=PLAIN), "a red ball", [gallery.picture(5)]), Decoding(ret_bias=20.0, images=3))
        found = [piece for piece in done.exchanges[0].answer if isinstance(piece, Picture)]
        answers[str(search)] = [(picture.name, picture.score) for picture in found]
        delete = [picture.name for picture in found]
    assert len({*map(tuple, answers.values())}) == 1 and len(found) == 3, answers
    delete_pictures(place, delete)
    run = run_notebook("chat", images=str(place), search="ivf", pictures=str(pictures))  # the page that people open
    assert run["gallery"].index.method.name == "ivf" and len(run["gallery"].index) == 597
    done = Conversation(run["assistant"], run["gallery"]).respond(ask(Dialogue(), "a red ball"), mode="picture")
    shown = [piece.name for piece in done.exchanges[0].answer if isinstance(piece, Picture)]
    assert shown and not {*shown} & {*delete}


OPENING = """
import json, sys, threading, time, tracemalloc
from fromage.model.index_sets import open_index

def private():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

peak, over = [0.0], threading.Event()

def watch():
    while not over.wait(0.001):
        peak[0] = max(peak[0], private())

open_index(sys.argv[2])  # what is imported and kept at the first time
before = private()
threading.Thread(target=watch).start()
tracemalloc.start()
index = open_index(sys.argv[1], verify=False)
grown, objects = private() - before, tracemalloc.get_traced_memory()[1] / 2**20
found = index.rows_of(["a picture with a name of some length/123456.jpg"])
over.set()
print(json.dumps([grown, max(peak[0], private()) - before, objects, tracemalloc.get_traced_memory()[1] / 2**20, found, len(index)]))
"""


def test_a_large_index_is_opened_without_a_copy(tmp_path: Path) -> None:
    """Neither embeddings nor ids come into the process's own memory: hashes of 64 bits and row numbers do."""
    count, width = 200_000, 256
    names = [f"a picture with a name of some length/{number:06}.jpg" for number in range(count)]
    rows = torch.full((count, width), width ** -0.5, dtype=torch.float16)
    large = save_index(ImageIndex(names, rows, [], "key"), tmp_path / "large.safetensors")
    small = save_index(ImageIndex(names[:2], rows[:2], [], "key"), tmp_path / "small.safetensors")
    done = subprocess.run([sys.executable, "-c", OPENING, str(large), str(small)], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, peak, objects, later, found, length = json.loads(done.stdout)
    assert (found, length) == ([123_456], count)
    assert max(grown, peak) < 32, "MiB; the embeddings are 98"
    assert max(objects, later) < 8, "MiB of Python and NumPy; the ids as texts are 20"
