"""What evaluations refuse, they refuse before any picture is read; and searching a long index needs little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from house_rules import ROOT
from papermill_runs import run_notebook

from fromage.mini.rendering import WorldPaths, ensure_world
from fromage.model.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def world() -> WorldPaths:
    return ensure_world()


@pytest.fixture(autouse=True)
def no_heavy_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the heavy work began")
    for module in ("networks.features", "networks.splits"):
        monkeypatch.setattr(f"fromage.{module}.extract_features", refuse)


def changed(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_heavy_work_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the heavy work began"):
        run_notebook("eval_vist")


@pytest.mark.parametrize("kind, message", [
    ("no file", "no such file"), ("other json", "images is missing; allowed is a list"), ("no story", "holds no annotation"),
    ("four images", "has 4 images; allowed is 5"), ("no folder", "no such file or folder")])
def test_bad_stories(world: WorldPaths, tmp_path: Path, kind: str, message: str) -> None:
    whole, path, given = json.loads(world.vist_json.read_text()), tmp_path / "stories.json", {}
    if kind == "no folder":
        given = {"images": str(tmp_path / "nowhere")}
    elif kind == "no file":
        given = {"stories": str(path)}
    else:
        value = {"other json": {"data": []}, "no story": whole | {"annotations": []},
                 "four images": whole | {"annotations": whole["annotations"][1:]}}[kind]
        given = {"stories": changed(path, value)}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_notebook("eval_vist", **given)


@pytest.mark.parametrize("given, message", [
    ({"protocol": "new"}, "among 'published', 'corrected'"), ({"limit": 1}, "limit = 1"),
    ({"others": ("SigLIP",)}, "vision tower 'SigLIP': allowed is"), ({"others": ("ViT-B-16-SigLIP:x",)}, "allowed is webli"),
    ({"checkpoint": "nowhere.safetensors"}, "no such file")])
def test_bad_parameters_of_stories(given: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_notebook("eval_vist", **given)


@pytest.mark.parametrize("name", ["eval_vist", "eval_visdial"])
def test_a_checkpoint_of_another_tower(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_checkpoint("data/mini/checkpoint.safetensors")
    trained.tower_fingerprint = "0" * 64
    monkeypatch.setattr("fromage.model.checkpoint.load_checkpoint", lambda path: trained)
    with pytest.raises(ValueError, match="belongs to another vision tower"):
        run_notebook(name)


@pytest.mark.parametrize("kind, message", [
    ("no file", "no such file"), ("other json", "allowed is an object with dialogs, questions, answers"), ("no dialogue", "none of its 0 dialogues"),
    ("test split", "hides answers"), ("dense", "which are a list"), ("answered", "answered = 0")])
def test_bad_dialogues(world: WorldPaths, tmp_path: Path, kind: str, message: str) -> None:
    whole, path = json.loads(world.visdial_json.read_text()), tmp_path / "dialogues.json"
    if kind in ("no file", "answered", "dense"):
        given = {"no file": {"dialogues": str(path)}, "answered": {"answered": 0}, "dense": {"dense": str(world.visdial_json)}}[kind]
    else:
        last = {name: value for name, value in whole["data"]["dialogs"][0]["dialog"][0].items()
                if name in ("question", "answer_options")}
        hidden = [{**entry, "dialog": [*entry["dialog"][:-1], last]} for entry in whole["data"]["dialogs"][:2]]
        value = {"other json": {"data": []}, "no dialogue": whole | {"data": whole["data"] | {"dialogs": []}},
                 "test split": {"split": "test2018", "data": whole["data"] | {"dialogs": hidden}}}[kind]
        given = {"dialogues": changed(path, value)}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_notebook("eval_visdial", **given)


PROGRAM = """
import torch
from fromage.model.retrieval import ImageIndex

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

index = ImageIndex(range(400_000), torch.full((400_000, 64), 0.125, dtype=torch.float16))
ImageIndex(range(100), index.embeddings[:100]).search(torch.randn(2, 64), 10)
before = peak()
index.search(torch.randn(160, 64), 10, chunk=4096)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of memory")
def test_searching_needs_memory_for_a_chunk_only() -> None:
    """Scores of 160 queries with 400,000 images alone are 256 MB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 128


def test_an_approximate_index_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from fromage.model.approximate import build_approximate
    from fromage.model.retrieval import ImageIndex
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="needs FAISS: pip install"):
        build_approximate(ImageIndex(["a"], torch.ones(1, 2)))
