"""What data/README.md tells people to type does what it says, on servers of our own; its computed figures are those its lines print."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fromage.chat.command import read_declared
from fromage.data.captions import open_captions
from fromage.vist.stories import StoryImages
from house_rules import ROOT
from PIL import Image

TEXT = (ROOT / "data/README.md").read_text(encoding="utf-8")
SHELL = "\n".join(text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M) if not kind)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where four pictures are served, 0.jpg to 3.jpg."""
    (tmp_path / "served").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (60 * number, 0, 0)).save(tmp_path / f"served/{number}.jpg")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def shell(command: str, folder: Path) -> None:
    """Runs the page's lines in a folder, with this Python as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_computed_figures_are_those_that_the_lines_print() -> None:
    lines = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    prose = TEXT.replace(lines, "")
    figures = re.findall(r"[\d.]+ GB", done.stdout)
    assert len(figures) == 10 and [each for each in set(figures) - {"0.2 GB"} if each not in prose] == []
    printed = {float(each.split()[0]) for each in figures}
    told = re.findall(r"(?:weights|activations|tower) ([\d.]+) GB", prose) + re.findall(r"([\d.]+) GB of float16", prose)
    assert len(told) >= 10 and {float(each) for each in told} <= printed


def test_the_pictures_of_stories_are_fetched_under_their_ids(address: str, tmp_path: Path) -> None:
    images = [{"id": str(100 + number), "url_o": f"{address}/{number}.jpg"} for number in range(5)] + [{"id": "105"}]
    lines = [[{"story_id": "1", "text": "One.", "album_id": "a", "photo_flickr_id": str(100 + number),
               "worker_arranged_photo_order": number}] for number in range(5)]
    stories = tmp_path / "data/vist/val.story-in-sequence.json"
    stories.parent.mkdir(parents=True)
    stories.write_text(json.dumps({"images": images, "annotations": lines}))
    command = re.search(r"^mkdir -p data/vist/images\n.*?(?=^papermill)", SHELL, re.S | re.M)[0]
    shell(command, tmp_path)
    with pytest.warns(UserWarning, match="missing image 2"):
        source = StoryImages(stories, tmp_path / "data/vist/images")
        assert [example.id for example in source] == ["100", "101", "102", "103"]
    assert source.problems.counts == {"missing image": 2}  # one is gone, one has no address


def test_the_header_turns_googles_table_into_one_that_is_read_by_name(address: str, tmp_path: Path) -> None:
    rows = [f"picture {number}\t{address}/{number}.jpg" for number in range(4)]
    (tmp_path / "Train_GCC-training.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text("\n".join(rows) + "\n")
    shell("\n".join(re.findall(r"^sed .*$", SHELL, re.M)), tmp_path)
    for split in ("train", "validation"):
        table = tmp_path / f"{split}.tsv"
        assert table.read_text().splitlines() == ["caption\turl", *rows]
        assert [each.caption for each in open_captions(table, "google_tsv", tmp_path / "served")] == [
            f"picture {number}" for number in range(4)]


def test_the_runs_of_the_page_take_the_parameters_it_gives_them() -> None:
    commands = re.findall(r"papermill nbs/(\w+)\.ipynb(.*?)</dev/null", SHELL, re.S)
    assert {name for name, _ in commands} == {"prepare", "eval_vist", "eval_visdial"}
    for name, words in commands:
        given = set(re.findall(r"-p (\w+) ", words))
        assert given and given <= {each[0] for each in read_declared(name)}, name
    named = set(re.findall(r"`-p (\w+)[` ]", TEXT))  # in the prose
    known = {each[0] for name in ("prepare", "train", "eval_vist", "eval_visdial") for each in read_declared(name)}
    assert named <= known and {"tokens_per_pass", "train_form"} <= named & {each[0] for each in read_declared("train")}
