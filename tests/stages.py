"""What is killed: each stage that writes, small, as a function of a folder, beside one that reads what must be equal."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Made = tuple[Callable[[Path], None], Callable[[Path], Any]]


def hash_files(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Relative name -> hash, of all files below a folder but those whose names begin with a dot."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob(pattern))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)}


def hashes_of(*names: str) -> Callable[[Path], Any]:
    """Reads the hashes of all files below `names` in a folder, or of everything."""
    def read(folder: Path) -> dict[str, str]:
        found = hash_files(folder)
        return {name: value for name, value in found.items() if not names or name.startswith(names)}
    return read


def make_photos(place: Path, count: int) -> Path:
    """A folder of small pictures, every seventh broken."""
    from PIL import Image
    place.mkdir(parents=True)
    for number in range(count):
        path = place / f"{number:03d}.png"
        if number % 7 == 3:
            path.write_bytes(b"broken")
        else:
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    return place


def rendering(place: Path) -> Made:
    """The miniature world, few of everything."""
    from fromage.mini.rendering import WorldSizes, ensure_world
    sizes = WorldSizes(train=60, validation=20, shard=20, albums=6, dialogues=6, table=8)

    def read(folder: Path) -> dict[str, str]:
        found = hashes_of("rendered")(folder)
        assert found.pop("rendered/index.json")  # holds the seconds that it took
        return found
    return lambda folder: ensure_world(folder / "rendered", sizes) and None, read


def features(place: Path) -> Made:
    """A feature store of sixty pictures, a few at a time."""
    from attacking import PatchTower
    from fromage.data.sources import ImageFolder
    from fromage.networks.features import extract_features
    photos = make_photos(place / "photos", 60)

    def write(folder: Path) -> None:
        extract_features(PatchTower(), ImageFolder(photos), folder / "store", batch_size=4, flush_every=1)
    return write, hashes_of("store/features.npy", "store/rows.jsonl", "store/offsets.npy", "store/manifest.json")


def training(place: Path) -> Made:
    """Forty steps, the state written after every third."""
    from test_training import train_in
    return lambda folder: train_in(folder / "run") and None, hashes_of("run/best.safetensors", "run/state.safetensors")


def visdial_answers(place: Path) -> Made:
    """The journal of the scores of a few dialogues."""
    from fromage.core.journals import Journal
    from fromage.mini.rendering import WorldPaths, write_visdial
    from fromage.model.model import Fromage
    from fromage.networks.features import FeatureStore
    from fromage.networks.stand_ins import stand_in_language_model
    from fromage.visdial.answers import score_answers
    from fromage.visdial.dialogues import read_dialogues
    write_visdial(place / "visdial", 5, 0)
    dialogues = read_dialogues(WorldPaths(place).visdial_json).dialogues
    ids = [str(each.image_id) for each in dialogues]
    store = FeatureStore(Path("."), np.random.default_rng(0).normal(size=(len(ids), 24)), ids, [""] * len(ids), {}, {}, "", "")
    torch.manual_seed(0)
    model = Fromage(*stand_in_language_model("llama", seed=0), 24)

    def write(folder: Path) -> None:
        with Journal(folder / "answers.jsonl", {"model": 0}) as journal:
            np.save(folder / "scores.npy", score_answers(model, dialogues, store, store, journal))
    return write, hashes_of("answers.jsonl", "scores.npy")


def sweeping(place: Path) -> Made:
    """Two variants; the trainings are real, in place of measurements stand the weights."""
    import fromage.ablation.sweep as sweeps
    from fromage.ablation.measurements import Amounts, Items, Sources
    from fromage.core.presets import MINI, change
    base = change(MINI, steps=6, batch_size=4, train_examples=256, validation_examples=200, save_every=1, validate_every=6)

    def measure(model: Any, *_: object) -> dict[str, Items]:
        return {"weights": Items([float(model.image_map.weight.detach().double().sum()), float(model.logit_scale.detach())])}

    def outcomes(folder: Path) -> list[Any]:
        sweeps.open_material, sweeps.measure = (lambda *_: SimpleNamespace(key="material", texts=[], definitions=[])), measure
        setting = sweeps.Setting(base, Sources(), Amounts(), folder=str(folder / "cache"))
        return sweeps.sweep(sweeps.plan(setting, {"baseline": {}, "no [RET]": {"ret": "none"}}, (0,), f"{setting.folder}/networks", 1))

    def write(folder: Path) -> None:
        told = [{"error": each.error, "measured": repr(each.measured), "history": repr(each.training["history"])} for each in outcomes(folder)]
        (folder / "told.json").write_text(json.dumps(told))
    return write, lambda folder: json.loads((folder / "told.json").read_text())


def stories(place: Path) -> Made:
    """Told stories, the study made of them, its key, and its tasks for another program."""
    from dataclasses import replace

    from fromage.mini.rendering import ensure_world
    from fromage.study.answers import write_label_studio
    from fromage.study.blinding import PRACTICE, build_study, practice_tellings
    from fromage.study.folder import open_study
    from fromage.study.specification import read_specification
    from fromage.vist.stories import read_stories
    from fromage.vist.telling import save_tellings
    world = ensure_world()
    specification = replace(read_specification("data/studies/paper.toml"), **PRACTICE)
    tellings = practice_tellings(read_stories(world.vist_json).stories[:72])

    def write(folder: Path) -> None:
        save_tellings(folder / "stories.jsonl", tellings)
        build_study(specification, tellings, world.vist_images, folder / "study", "fixed")
        write_label_studio(open_study(folder / "study"), folder / "label_studio")
    return write, hashes_of()


def rating(place: Path) -> Made:
    """A rater's session, from the consent to the last screen."""
    import shutil

    from fromage.study.blinding import ensure_practice
    from fromage.study.folder import open_study
    from fromage.study.session import Session, agree, move, ratings_path, record_answer
    made = ensure_practice(place / "study", secret="fixed")
    rater = next(iter(made.plan))

    def write(folder: Path) -> None:
        if not (folder / "study").exists():
            shutil.rmtree(folder / ".copied", ignore_errors=True)  # of a copy that was killed
            shutil.copytree(made.folder, folder / ".copied")
            (folder / ".copied").rename(folder / "study")
        session = Session(open_study(folder / "study"), rater)
        if not session.consented:
            agree(session)
        while not session.finished:
            for number, criterion in enumerate(session.study.specification.criteria):
                options = session.visit.options
                record_answer(session, criterion.name, options[(session.place + number) % len(options)])
            move(session, 1)
        session.journal.close()

    def read(folder: Path) -> list[dict[str, Any]]:
        from fromage.core.journals import parse_lines
        path = ratings_path(open_study(folder / "study"), rater)
        lines = parse_lines(path, path.read_bytes().splitlines())
        return [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in lines]
    return write, read


def indexing(place: Path) -> Made:
    """The index of a folder of images, with its features."""
    from fromage.model.checkpoint import load_checkpoint, load_tower
    from fromage.model.galleries import index_folder
    checkpoint = load_checkpoint("data/mini/checkpoint.safetensors")
    tower = load_tower(checkpoint, "cpu")
    photos = make_photos(place / "gallery", 60)
    return (lambda folder: index_folder(photos, checkpoint, folder / "index.safetensors", tower=tower, batch_size=4) and None,
            hashes_of("index.safetensors"))


STAGES: dict[str, Callable[[Path], Made]] = {
    "rendering": rendering, "features": features, "training": training, "answers of VisDial": visdial_answers, "sweep": sweeping,
    "stories and their study": stories, "a rater's session": rating, "index": indexing}
