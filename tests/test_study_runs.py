"""The runs around a rating study, where there is nothing to analyse or nobody is left, and what is refused before any story is told."""

import json
from pathlib import Path

import pytest
from fromage.core.config import resolve_path
from fromage.study.answers import export_table, read_ratings
from fromage.study.blinding import ensure_practice
from fromage.study.folder import Study, open_key
from fromage.study.session import header_of, ratings_path
from fromage.study.tables import NOBODY_LEFT
from papermill_runs import run_notebook


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return ensure_practice(tmp_path_factory.mktemp("practice") / "study", secret="fixed")


def analyse(study: Study, folder: Path, **parameters: object) -> dict:
    """The variables of `analyse_ratings` over people's answers."""
    places = {"study": str(study.folder), "output": str(folder / "analysis"), "report": str(folder / "report")}
    return run_notebook("analyse_ratings", simulated=False, **places | parameters)


def answer_in_haste(study: Study, folder: Path) -> None:
    """Answers of every rater, each too quick for the rules."""
    folder.mkdir()
    for code, visits in study.plan.items():
        lines = [{"kind": "answer", "item": visit.item, "criterion": each.name, "value": visit.options[place % 3], "place": place,
                  "options": visit.options, "revision": 0, "seconds": 0.1, "time": ""}
                 for place, visit in enumerate(visits) for each in study.specification.criteria]
        (folder / ratings_path(study, code).name).write_text(
            "".join(json.dumps(line) + "\n" for line in [header_of(study, code), *lines]))


def test_no_answers_are_an_error(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no answer to a rated item is left"):
        analyse(study, tmp_path, ratings=str(tmp_path))


@pytest.mark.parametrize("given", [{"label_studio": "none.json"}, {"answers": "none.csv"}])
def test_a_file_that_is_not_there_is_named(study: Study, tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given.values()))}: no "):
        analyse(study, tmp_path, **given)


def test_results_over_excluded_raters_say_so(study: Study, tmp_path: Path) -> None:
    """The answers come from a table that was exported, so that this way is tried too."""
    answer_in_haste(study, tmp_path / "ratings")
    answers, _ = read_ratings(study, open_key(study), tmp_path / "ratings")
    found = analyse(study, tmp_path, answers=str(export_table(answers, tmp_path / "answers.csv")))
    assert "Nobody is left" in found["warning"] and all(code in found["warning"] for code in study.plan)
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert metrics and all(name.startswith(NOBODY_LEFT) for name in metrics)
    assert (tmp_path / "analysis" / "tables.tex").read_text().count(NOBODY_LEFT) >= 3


@pytest.mark.parametrize("old, new, message", [
    ("gold_items = 2", "gold_item = 2", "unknown parameter 'gold_item'"),
    ("FROMAGe, 5th image, greedy", "FROMAGe, 6th image, greedy", "no story by 'FROMAGe, 6th image, greedy'; there are human"),
    ("FROMAGe, 5th image, greedy", "human, whole story", "equally many sentences"),
    ("items = 24", "items = 7", "13 stories are needed and there are 12"), ("", "", "holds answers to a study")])
def test_a_study_that_cannot_be_made_stops_before_any_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str,
                                                           message: str) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a story is told")
    monkeypatch.setattr("fromage.vist.telling.tell_stories", refuse)
    path = tmp_path / "specification.toml"
    path.write_text(resolve_path("data/studies/paper.toml").read_text().replace(old, new, 1))
    if not old:
        (tmp_path / "study" / "ratings").mkdir(parents=True)
        (tmp_path / "study" / "ratings" / "ABC-DEF.jsonl").touch()
    with pytest.raises(ValueError, match=message):
        run_notebook("tell_stories", specification=str(path), output=str(tmp_path), report=str(tmp_path / "report"))
