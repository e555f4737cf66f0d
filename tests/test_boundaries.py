"""Files that others wrote, mutated: each is read, or refused in one line that names it, never by an error of the code that stumbled."""

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutations import mutate

from fromage.core.config import ROOT
from fromage.study.answers import import_table, read_label_studio, read_ratings, write_label_studio
from fromage.study.blinding import ensure_practice
from fromage.study.folder import Study, key_path, open_key, open_study
from fromage.study.session import Session, agree, record_answer, ratings_path
from fromage.study.specification import make_specification
from fromage.vist.stories import read_stories
from fromage.visdial.dialogues import read_dialogues


def outcome(read: Callable[[], Any], named: str) -> str:
    """`read`, or the line that refused; an assertion where it names no file or is none."""
    try:
        read()
        return "read"
    except (ValueError, OSError) as error:
        line = str(error)
    assert "\n" not in line and named in line and "KeyError" not in line and "TypeError" not in line, line
    return line


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A small study with some answers of one rater."""
    study = ensure_practice(tmp_path_factory.mktemp("boundaries") / "study")
    session = Session(study, next(iter(study.plan)))
    agree(session)
    for criterion in study.specification.criteria:
        record_answer(session, criterion.name, session.visit.options[0])
    session.journal.close()
    return study


def fuzz(path: Path, good: Any, read: Callable[[], Any], seed: int, rounds: int = 150) -> set[str]:
    """The outcomes of reading mutations of `good`, written to `path`, and of what is no JSON of ours at all."""
    rng = random.Random(seed)
    texts = [json.dumps(mutate(good, rng)[0]) for _ in range(rounds)] + ["[" * 100_000, "", "{", "null", "3", "[]"]
    found = set()
    for text in texts:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        found.add(outcome(read, path.name))
    path.write_bytes(b"\xff\xfe\x00")
    found.add(outcome(read, path.name))
    return found


def test_mutated_studies_and_keys(study: Study, tmp_path: Path) -> None:
    """study.json and its key."""
    good = json.loads((study.folder / "study.json").read_text())
    folder = tmp_path / "study"
    folder.mkdir()
    assert len(fuzz(folder / "study.json", good, lambda: open_study(folder), 1)) > 5
    secret = tmp_path / "k.json"

    def use_key() -> None:
        key = open_key(study, secret)
        read_ratings(study, key)
    assert len(fuzz(secret, json.loads(key_path(study.folder).read_text()), use_key, 2)) > 3


def test_mutated_exports_of_label_studio(study: Study, tmp_path: Path) -> None:
    """JSON and JSON-MIN; CSV and TSV are named."""
    key, path = open_key(study), tmp_path / "export.json"
    write_label_studio(study, tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())[:3]
    full = [task | {"annotations": [{"completed_by": 3, "created_at": "2026-01-01", "lead_time": 4.0, "result": [
        {"from_name": "coherent", "to_name": "optionA", "type": "choices", "value": {"choices": ["A"]}}]}]} for task in tasks]
    flat = [task["data"] | {"annotation_id": 7, "annotator": 5, "lead_time": 1.5, "coherent": "A"} for task in tasks]
    for seed, good in ((3, full), (4, flat)):
        assert "read" in fuzz(path, good, lambda: read_label_studio(study, key, path), seed, 300)
    for name in ("export.csv", "export.TSV"):
        assert "choose JSON or JSON-MIN" in outcome(lambda: read_label_studio(study, key, tmp_path / name), name)


def test_mutated_answers(study: Study, tmp_path: Path) -> None:
    """Lines of a rater's file are counted, not fatal; the session of that rater says what is wrong; a table is read or named."""
    key, rng = open_key(study), random.Random(5)
    rater = next(iter(study.plan))
    lines = [json.loads(line) for line in ratings_path(study, rater).read_text().splitlines()]
    for line in lines:
        line.pop("crc32", None)  # a mutated line of a file with sums is damaged in any case
    path = tmp_path / f"{rater}.jsonl"
    for _ in range(150):
        place = rng.randrange(len(lines))
        changed = [mutate(line, rng)[0] if place == number else line for number, line in enumerate(lines)]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        read_ratings(study, key, tmp_path)
        ratings_path(study, rater).write_bytes(path.read_bytes())
        try:
            Session(study, rater).journal.close()
        except ValueError as error:
            assert rater in str(error) and "cannot be used" in str(error)
    for content in (b"", b"a,b\n1,2\n", b"\xff\xfe"):
        (tmp_path / "t.csv").write_bytes(content)
        assert outcome(lambda: import_table(study, tmp_path / "t.csv"), "t.csv") != "read"


def test_mutated_specifications() -> None:
    """The paper's specification with every kind of wrong value."""
    good, rng = tomllib.loads((ROOT / "data/studies/paper.toml").read_text()), random.Random(6)
    found = {outcome(lambda: make_specification(mutate(good, rng)), "") for _ in range(400)}
    assert len(found) > 10


def test_mutated_stories_and_dialogues(tmp_path: Path) -> None:
    """VIST's and VisDial's files."""
    line = {"story_id": "1", "album_id": "2", "photo_flickr_id": "3", "text": "A dog.", "worker_arranged_photo_order": 0}
    story = {"images": [{"id": "3"}], "annotations": [[line | {"worker_arranged_photo_order": place}] for place in range(5)]}
    path = tmp_path / "told.json"
    assert "read" in fuzz(path, story, lambda: read_stories(path), 7)
    turn = {"question": 0, "answer": 7, "answer_options": [*range(100)], "gt_index": 7}
    dialogues = {"split": "val2018", "data": {"dialogs": [{"image_id": number, "caption": "a box", "dialog": [turn] * 10}
                                                          for number in (5, 6)],
                                              "questions": ["is it"], "answers": [f"answer {number}" for number in range(100)]}}
    dense = [{"image_id": 5, "round_id": 2, "relevance": [0.25] * 100}, {"image_id": [5], "round_id": 2}]
    (tmp_path / "d.json").write_text(json.dumps(dense))
    assert "read" in fuzz(path, dialogues, lambda: read_dialogues(path, tmp_path / "d.json"), 8, 60)
    path.write_text(json.dumps(dialogues))
    assert "read" in fuzz(tmp_path / "d.json", dense, lambda: read_dialogues(path, tmp_path / "d.json"), 9, 60)
