"""Files and parameters as an attacker, or a disk, would have them: every reader takes them in whole or refuses them in one line."""

import ast
import copy
import io
import json
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
from house_rules import ROOT
from PIL import Image

from fromage.chat.dialogue import Dialogue, ask, give_answer
from fromage.chat.pictures import read_picture
from fromage.chat.transcripts import export_json, import_json
from fromage.core.attacks import DONE, house_key
from fromage.core.journals import Journal, LineJournal
from fromage.core.parameters import read_parameters
from fromage.core.presets import change, get_preset
from fromage.core.records import load_record, start_record
from fromage.core.tensors import load_newest, save_tensors
from fromage.data.captions import open_captions
from fromage.data.sources import BadImage, ImageFolder, decode_image
from fromage.mini.rendering import write_shards, write_tables
from fromage.model.checkpoint import load_checkpoint, load_released, load_released_gallery, save_checkpoint
from fromage.model.galleries import load_index, save_index
from fromage.model.model import Fromage
from fromage.model.release import save_released
from fromage.model.retrieval import ImageIndex
from fromage.networks.features import extract_features
from fromage.networks.stand_ins import stand_in_language_model
from fromage.networks.stores import open_features
from fromage.networks.towers import preprocess_image
from fromage.study.answers import (export_table, import_table, read_label_studio, read_ratings,
                                   write_label_studio)
from fromage.study.blinding import ensure_practice
from fromage.study.folder import open_key, open_study
from fromage.study.session import Session, agree, record_answer
from fromage.study.specification import make_specification, read_specification
from fromage.visdial.dialogues import read_dialogues
from fromage.vist.stories import read_stories
from fromage.vist.telling import human_telling, load_tellings, save_tellings
from mutations import ODD, mutate_bytes, mutate_text
from processes import Growth

PATIENCE = 10  # seconds, of the wall
MOST_MEMORY = 2048  # MiB that a case may add
RAW = re.compile(r"\b(KeyError|TypeError|AttributeError|IndexError|RecursionError|Traceback)\b")


@dataclass
class Target:
    """A reader, the good files that it reads (name -> bytes) below a folder, and how one of them is wounded."""
    name: str
    folder: Path
    read: Callable[[], Any]
    wounded: tuple[str, ...]
    text: bool = False
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in self.folder.rglob("*")
                      if path.is_file()}
        assert set(self.wounded) <= set(self.files), (self.name, self.wounded, sorted(self.files))

    def restore(self) -> None:
        """The good files again, and no others."""
        shutil.rmtree(self.folder)
        for name, data in self.files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)

    def attack(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        """The kind of a wound, and what makes it and reads: `read`, or the line that refused."""
        name = rng.choice(self.wounded)
        change = mutate_text if self.text and rng.random() < 0.6 else mutate_bytes
        data, kind = change(self.files[name], rng)

        def attempt() -> str:
            (self.folder / name).write_bytes(data)
            try:
                return judge(self.read, self.refusals)
            finally:
                self.restore()
        return kind, attempt


class Found(BaseException):
    """An attack that ended neither in success nor in one clear line; no `except Exception` of the code under test keeps it."""


def interrupt(*_: object) -> None:
    """Ends what takes too long."""
    raise Found(f"still running after {PATIENCE} s")


def judge(read: Callable[[], Any], refusals: tuple[type[Exception], ...] = (ValueError, OSError)) -> str:
    """`read`, or the line that refused; Found for a raw error, a hang, several lines, or too much memory."""
    begun, growth = time.monotonic(), Growth()
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)  # again each second, should something swallow it
    try:
        with warnings.catch_warnings(action="ignore"):
            line = outcome(read, refusals)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took, grown = time.monotonic() - begun, growth.peak()
    if took > PATIENCE:
        raise Found(f"took {took:.0f} s")
    if grown > MOST_MEMORY:
        raise Found(f"took {grown:,.0f} MiB")
    return line


def outcome(read: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> str:
    """`read`, or the line that refused; Found for a raw error or one that is not clear."""
    try:
        read()
        return "read"
    except refusals as error:
        line = str(error)
        if "\n" in line or RAW.search(line) or not line:
            raise Found(f"{type(error).__name__}: {line[:300]!r}") from error
        return line
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise Found(f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:200]!r}") from error


@dataclass
class Case:
    """One attack and how it ended."""
    target: str
    kind: str
    ended: str  # read, refused or found
    line: str  # that refused, names and numbers left out; or what was found
    seconds: float
    grown: int  # MiB, at most


def attempt_case(target: str, kind: str, attempt: Callable[[], str], number: int) -> Case:
    """Makes an attack."""
    begun, growth = time.monotonic(), Growth()
    try:
        line = attempt()
        ended = "read" if line == "read" else "refused"
        line = "" if line == "read" else re.sub(r"\d+|'[^']*'|/\S+", "…", line)[:200]
    except Found as problem:
        ended, line = "found", f"case {number}: {problem}"
    return Case(target, kind, ended, line, round(time.monotonic() - begun, 3), growth.peak())


@dataclass
class Tally:
    """What was tried, case by case."""
    cases: list[Case] = field(default_factory=list)

    @property
    def found(self) -> list[str]:
        """What ended in no way that is allowed."""
        return [f"{case.target}, {case.kind}, {case.line}" for case in self.cases if case.ended == "found"]

    def count(self, *names: str) -> dict[tuple[str, ...], Counter]:
        """How cases ended, for each combination of `names`: target, kind."""
        counted: dict[tuple[str, ...], Counter] = {}
        for case in self.cases:
            counted.setdefault(tuple(getattr(case, name) for name in names), Counter())[case.ended] += 1
        return counted

    def refusals(self) -> dict[str, int]:
        """Target -> how many different lines refused."""
        lines = {(case.target, case.line) for case in self.cases if case.ended == "refused"}
        return Counter(target for target, _ in lines)

    def summary(self) -> dict[str, Any]:
        """For a record."""
        refusals, kinds = self.refusals(), self.count("target", "kind")
        return {"readers": {target: numbers(counted) | {
            "different refusals": refusals.get(target, 0),
            "slowest (s)": max(case.seconds for case in self.cases if case.target == target),
            "most memory (MiB)": max(case.grown for case in self.cases if case.target == target),
            "kinds": {kind: numbers(each) for (owner, kind), each in sorted(kinds.items()) if owner == target}}
            for (target,), counted in sorted(self.count("target").items())},
            "kinds": {kind: numbers(counted) for (kind,), counted in sorted(self.count("kind").items())}}


def numbers(counted: Counter) -> dict[str, int]:
    """Cases, and how they ended."""
    return {"cases": counted.total(), **{ended: counted[ended] for ended in ("read", "refused", "found")}}


def attack_all(targets: list[Target], cases: int, seed: int = 0, done: Sequence[Case] = (),
               note: Callable[[Case], None] = lambda case: None) -> Tally:
    """`cases` attacks, shared out in turn over all targets and the parameters of all runs; `done` were made before.

    `note` is told of each."""
    tally, parameters = Tally([*done]), [*declared_parameters()]
    turns = [*targets, None, None]
    for number in range(len(done), cases):
        target, rng = turns[number % len(turns)], random.Random(f"{seed} {number}")
        if target is None:
            run, source = rng.choice(parameters)
            name, (kind, attempt) = "parameters of runs", attack_parameters(source, rng)
        else:
            name, (kind, attempt) = target.name, target.attack(rng)
        tally.cases.append(attempt_case(name, kind, attempt, number))
        note(tally.cases[-1])
    return tally


def declared_parameters() -> Iterator[tuple[str, str]]:
    """(run, its parameters' and checks' cells, up to the check)."""
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        declared, check = cells[0].source, cells[1].source
        call = next(node for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "read_parameters")
        limits = {word.arg: word.value for word in call.keywords}
        plain = {}
        for name, value in limits.items():
            try:
                plain[name] = ast.literal_eval(value)
            except ValueError:  # names of the library
                continue
        yield path.stem, f"{declared}\nLIMITS = {plain!r}"


def attack_parameters(source: str, rng: random.Random) -> tuple[str, Callable[[], str]]:
    """One to three parameters of a run with odd values, or a name that it has not; the kind, and the attempt."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    limits = namespace.pop("LIMITS")
    names = [name for name in namespace["__annotations__"]]
    chosen = [rng.choice([*names, "typo"]) for _ in range(rng.randint(1, 3))]
    for name in chosen:
        namespace[name] = copy.deepcopy(rng.choice((*ODD, 0, 2, "cpu", "cuda:99", "mini", "a\nb", "/", 10**9, [1, 2], (3,), "\0")))
    kind = "a name that is none" if "typo" in chosen else "an odd value" if len(set(chosen)) == 1 else "several odd values"
    return kind, lambda: judge(lambda: read_parameters(namespace, **limits))


def picture(colour: tuple[int, int, int], form: str) -> bytes:
    """A small picture's file."""
    pixels = np.random.default_rng(sum(colour)).integers(0, 256, (20, 24, 3), np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.paste(colour, (0, 0, 12, 12))
    image.save(buffer, form)
    return buffer.getvalue()


def caption_targets(place: Path) -> Iterator[Target]:
    """Everything that is read as captioned images."""

    def take(path: Path, form: str, images: Path | None = None) -> None:
        for example in open_captions(path, form, images):
            try:
                decode_image(example.data)
            except BadImage:
                continue

    def target(name: str, read: Callable[[], Any], suffixes: tuple[str, ...], text: bool = False) -> Target:
        folder = place / name.replace(" ", "-")
        wounded = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(suffixes)))
        return Target(name, folder, read, wounded[:3], text)

    write_shards(place / "shards", "train", 8, 4, 0)
    yield target("shards", lambda: take(place / "shards", "shards"), (".tar", ".json"), True)
    for form in ("google_tsv", "caption_tsv"):
        folder = place / form.replace("_", "-")
        write_tables(folder, 6, 0)
        tables = {path: path.read_bytes() for path in folder.rglob("*.tsv")}
        path = next((each for each, data in tables.items() if (b"://" in data) == (form == "google_tsv")))
        yield Target(form, folder, lambda path=path, form=form, folder=folder: take(
            path, form, next(each for each in folder.iterdir() if each.is_dir())), (path.relative_to(folder).as_posix(),))
    folder = place / "pairs"
    folder.mkdir()
    for number, form in enumerate(("JPEG", "PNG", "WEBP", "GIF")):
        (folder / f"{number}.{form.lower()}").write_bytes(picture((number, 200, 9), form))
        (folder / f"{number}.txt").write_text("a caption")
    yield target("pairs", lambda: take(folder, "pairs"), (".txt",))
    photos = place / "pictures"
    shutil.copytree(folder, photos)
    yield target("pictures", lambda: take(photos, "folder"), ("0.jpeg", "1.png", "2.webp", "3.gif"))


def benchmark_targets(place: Path) -> Iterator[Target]:
    """VIST's, VisDial's and told stories' files."""
    line = {"story_id": "1", "album_id": "2", "photo_flickr_id": "3", "text": "A dog.", "worker_arranged_photo_order": 0}
    story = {"images": [{"id": "3"}], "annotations": [[line | {"worker_arranged_photo_order": number}] for number in range(5)]}
    turn = {"question": 0, "answer": 7, "answer_options": [*range(100)], "gt_index": 7}
    talk = {"split": "val2018", "data": {
        "dialogs": [{"image_id": number, "caption": "a box", "dialog": [turn] * 10} for number in (5, 6)],
        "questions": ["is it"], "answers": [f"answer {number}" for number in range(100)]}}
    dense = [{"image_id": 5, "round_id": 2, "relevance": [0.25] * 100}]
    folders = {name: place / name for name in ("vist", "visdial", "tellings")}
    for folder in folders.values():
        folder.mkdir()
    (folders["vist"] / "told.json").write_text(json.dumps(story))
    (folders["visdial"] / "talk.json").write_text(json.dumps(talk))
    (folders["visdial"] / "dense.json").write_text(json.dumps(dense))
    stories = read_stories(folders["vist"] / "told.json").stories
    save_tellings(folders["tellings"] / "stories.jsonl", [human_telling(each) for each in stories * 2])
    yield Target("VIST", folders["vist"], lambda: read_stories(folders["vist"] / "told.json", "story"), ("told.json",), True)
    yield Target("VisDial", folders["visdial"], lambda: read_dialogues(
        folders["visdial"] / "talk.json", folders["visdial"] / "dense.json"), ("talk.json", "dense.json"), True)
    yield Target("told stories", folders["tellings"], lambda: load_tellings(folders["tellings"] / "stories.jsonl"),
                 ("stories.jsonl",), True)


def study_targets(place: Path) -> Iterator[Target]:
    """A study, its key, answers, exports and specification."""
    made = ensure_practice(place / "made" / "study", secret="fixed")
    rater = next(iter(made.plan))
    session = Session(made, rater)
    agree(session)
    for criterion in made.specification.criteria:
        record_answer(session, criterion.name, session.visit.options[0])
    session.journal.close()
    key = open_key(made)

    def folder(name: str) -> Path:
        shutil.copytree(place / "made", place / name)
        return place / name

    first = folder("study")
    yield Target("study", first, lambda: open_study(first / "study"), ("study/study.json",), True)
    second = folder("key")
    yield Target("study's key", second, lambda: open_key(open_study(second / "study")), ("study.key.json",), True)
    third = folder("ratings")

    def resume() -> None:
        read_ratings(made, key, third / "study" / "ratings")
        Session(open_study(third / "study"), rater).journal.close()
    yield Target("ratings", third, resume, (f"study/ratings/{rater}.jsonl",), True)
    exports = place / "exports"
    exports.mkdir()
    write_label_studio(made, exports)
    answers, _ = read_ratings(made, key)
    for ending in ("csv", "parquet"):
        export_table(answers, exports / f"answers.{ending}")
        yield Target(f"answers in {ending}", exports, lambda path=exports / f"answers.{ending}": import_table(made, path),
                     (f"answers.{ending}",))
    yield Target("Label Studio", exports, lambda: read_label_studio(made, key, exports / "tasks.json"), ("tasks.json",), True)
    asked = place / "specification"
    asked.mkdir()
    shutil.copy(ROOT / "data/studies/paper.toml", asked)
    yield Target("specification", asked, lambda: read_specification(asked / "paper.toml"), ("paper.toml",))
    assert make_specification(tomllib.loads((asked / "paper.toml").read_text()))


def store_targets(place: Path) -> Iterator[Target]:
    """Feature stores, indexes, checkpoints, states, journals and records."""
    (place / "photos").mkdir()
    for number in range(3):
        (place / "photos" / f"{number}.png").write_bytes(picture((number, 9, 9), "PNG"))
    source = ImageFolder(place / "photos")
    extract_features(PatchTower(), source, place / "store")
    yield Target("feature store", place / "store", lambda: [*open_features(place / "store").captions],
                 ("features.npy", "rows.jsonl", "offsets.npy", "manifest.json"), True)
    names = ["0.png", "1.png", "2.png"]
    (place / "index").mkdir()
    save_index(ImageIndex(names, torch.eye(3).half(), names, "key"), place / "index" / "a.safetensors")
    yield Target("index", place / "index", lambda: load_index(place / "index" / "a.safetensors"), ("a.safetensors",))
    yield Target("index without sums", place / "index", lambda: load_index(place / "index" / "a.safetensors", verify=False),
                 ("a.safetensors",))
    (place / "checkpoint").mkdir()
    model = Fromage(*stand_in_language_model("opt", spare_rows=7), 24, 2, 8)
    config = change(get_preset("mini"), visual_tokens=2, retrieval_dim=8)
    save_checkpoint(place / "checkpoint" / "c.safetensors", model, config, "tower")
    for verify in (True, False):
        yield Target("checkpoint" + " without sums" * (not verify), place / "checkpoint",
                     lambda verify=verify: load_checkpoint(place / "checkpoint" / "c.safetensors", verify), ("c.safetensors",))
    (place / "state").mkdir()
    for name in ("state.safetensors", "state.previous.safetensors"):
        save_tensors(place / "state" / name, "training state", {"weight/a": torch.ones(3)}, {"identity": {}})
    yield Target("training state", place / "state", lambda: load_newest(place / "state" / "state.safetensors", "training state"),
                 ("state.safetensors", "state.previous.safetensors"))
    (place / "journal").mkdir()
    with Journal(place / "journal" / "j.jsonl", {"of": 1}) as journal:
        for number in range(4):
            journal.append(str(number), np.arange(3.0))
    yield Target("journal", place / "journal", lambda: Journal(place / "journal" / "j.jsonl", {"of": 1}).close(), ("j.jsonl",), True)
    (place / "records").mkdir()
    start_record("train", asdict(config), 0).finish({"R@1": 3}).save(place / "records" / "r.json")
    yield Target("record", place / "records", lambda: load_record(place / "records" / "r.json"), ("r.json",), True)


class PatchTower:
    """A stand-in for a vision tower that averages patches of pixels."""
    width, image_size, fingerprint, name = 12, (8, 8), "patches", "stand-in"

    def preprocess(self, image: Any, squash: bool = False) -> torch.Tensor:
        """Pixels (3, 8, 8)."""
        return preprocess_image(image, self.image_size, (0, 0, 0), (1, 1, 1), squash=squash)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 12)."""
        return torch.nn.functional.avg_pool2d(pixels, 4).flatten(1)


def release_targets(place: Path) -> Iterator[Target]:
    """The released format, dialogues, and a language model's own files."""
    torch.manual_seed(0)
    model = Fromage(*stand_in_language_model("opt", spare_rows=7), 24, 2, 8)
    named = change(get_preset("small"), visual_tokens=2, retrieval_dim=8)
    save_released(place / "released", model, named)
    yield Target("released model", place / "released", lambda: load_released(place / "released"),
                 ("model_args.json", "pretrained_ckpt.pth.tar"), True)
    (place / "gallery").mkdir()
    (place / "gallery" / "g.pkl").write_bytes(pickle.dumps({"paths": ["a", "b"], "embeddings": [*np.eye(2, dtype=np.float32)]}))
    yield Target("released gallery", place / "gallery", lambda: load_released_gallery(place / "gallery" / "g.pkl"), ("g.pkl",))
    (place / "dialogue").mkdir()
    shown = read_picture("a.png", picture((1, 2, 3), "PNG"), 3, 0.5)
    dialogue = ask(give_answer(ask(Dialogue(), "what is it?", [shown]), ["a ", shown]), "more")
    (place / "dialogue" / "d.json").write_text(export_json(dialogue))
    yield Target("dialogue", place / "dialogue", lambda: import_json((place / "dialogue" / "d.json").read_bytes()), ("d.json",), True)


def make_targets(place: Path) -> list[Target]:
    """Every reader with good files below `place`."""
    found = []
    for make in (caption_targets, benchmark_targets, study_targets, store_targets, release_targets):
        folder = place / make.__name__
        folder.mkdir(parents=True)
        found += [*make(folder)]
    for target in found:
        judge(target.read, target.refusals)
    return found


def attack_on(cases: int, folder: str, scratch: Path) -> Tally:
    """`cases` attacks, noted in a journal in `folder` as they are made: one that was interrupted goes on, with the same code."""
    key = house_key()
    with LineJournal(f"{folder}/mutations-{key[:12]}.jsonl", {"code": key, "seed": 0}) as journal:
        done = [Case(**line) for line in journal.lines[:cases]]

        def note(case: Case) -> None:
            journal.add(asdict(case))
            if not len(journal.lines) % 100:
                print(f"{DONE}{len(journal.lines)}", flush=True)
        return attack_all(make_targets(scratch), cases, done=done, note=note)


def main(cases: int, folder: str) -> int:
    """Attacks, writes the record of what was tried, and prints what was found; how much that is."""
    record = start_record("mutations", {"cases": cases, "code": house_key()}, 0)
    with tempfile.TemporaryDirectory() as scratch:
        tally = attack_on(cases, folder, Path(scratch))
    slowest, largest = (max(tally.cases, key=lambda case: getattr(case, name)) for name in ("seconds", "grown"))
    record.finish({"cases": len(tally.cases), "found": len(tally.found), "seconds of cases": round(sum(case.seconds for case in tally.cases)),
                   "slowest (s)": slowest.seconds, "slowest case": f"{slowest.target}, {slowest.kind}",
                   "most memory (MiB)": largest.grown, "largest case": f"{largest.target}, {largest.kind}"} | tally.summary(),
                  {"found": tally.found[:20]})
    record.finding = f"{cases:,} mutated files and parameters: {len(tally.found)} ended otherwise than in success or one clear line."
    print(f"{record.save(f'{folder}/mutations.json')}: {record.finding}", *tally.found[:20], sep="\n")
    return len(tally.found)


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), sys.argv[2])))
