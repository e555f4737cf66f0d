"""A record is made again and compared: a changed figure is found, and the run fails; what is as it was is told as such."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fromage.core.records import RunRecord, load_record
from fromage.core.reruns import compare_figures, rerun
from house_rules import ROOT
from papermill_runs import execute


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The record of the quickest run, made now: nothing that went in is another."""
    place = tmp_path_factory.mktemp("fresh") / "claims.json"
    record = rerun(load_record(ROOT / "reports/claims.json"), threads=1)
    record.save(place)
    return load_record(place)


def test_a_changed_figure_is_found(fresh: RunRecord, tmp_path: Path) -> None:
    name, claim = next(iter(fresh.metrics["claims"].items()))
    tampered = {**fresh.metrics["claims"], name: {**claim, "value": {**claim["value"], "value": claim["value"]["high"] + 1}}}
    path = replace(fresh, metrics={**fresh.metrics, "claims": tampered}).save(tmp_path / "claims.json")
    outcome = execute("verify", tmp_path / "out.ipynb", {"record": str(path), "report": str(tmp_path / "verify")})
    assert outcome.status != 0 and "claims is not reproduced: of " in outcome.log and f"(claims, {name}, value)" in outcome.log
    told = json.loads((tmp_path / "verify.json").read_text())
    assert told["metrics"]["verdict"] == "not reproduced" and told["metrics"]["outcomes"]["different"] == 1
    assert [each["name"] for each in told["metrics"]["not equal"]] == [f"claims, {name}, value"]


def test_a_tampered_figure_of_any_record_is_found() -> None:
    """One digit of each kind of figure, in each record; a time aside."""
    for path in (ROOT / "reports").glob("*.json"):
        record = load_record(path)
        assert {each.outcome for each in compare_figures(record, record)} <= {"equal", "a time"}
        names = [each.name for each in compare_figures(record, record) if each.outcome == "equal"]
        for place in (0, len(names) // 2, -1):
            changed = change_figure(record, names[place])
            outcomes = {each.name: each.outcome for each in compare_figures(changed, record)}
            assert outcomes.pop(names[place]) == "different" and "different" not in outcomes.values(), (path.name, names[place])


def change_figure(record: RunRecord, name: str) -> RunRecord:
    """A copy of a record with one figure, by its name, moved out of its interval."""
    def walk(value, here: str):
        if here == name:
            if isinstance(value, dict) and value.get("high") is not None:
                return {**value, "value": value["high"] + abs(value["high"]) / 10 + 1}
            return value * 1.01 + 1 if isinstance(value, (int, float)) and not isinstance(value, bool) else ["tampered"]
        if isinstance(value, dict):
            return {key: walk(part, f"{here}, {key}" if here else key) for key, part in value.items()}
        return value
    return replace(record, metrics=walk(record.metrics, ""), problems=walk({"not used": record.problems}, "")["not used"])
