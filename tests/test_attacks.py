"""Mutated files and parameters by the thousand, and properties over generated values: success, or one clear line."""

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from attacking import Case, Found, Tally, attack_all, attack_on, attempt_case, judge, make_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import BYTES, mutate_bytes

from fromage.core.boundaries import Misshapen, check_shape
from fromage.core.journals import parse_line, write_line
from fromage.data.sources import BadImage, resolve_inside

CASES = 2000
GOING_ON = ("pairs", "pictures", "shards", "training state")  # a bad example is counted, a damaged state has an earlier one
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)


def test_mutated_files_and_parameters(tmp_path: Path) -> None:
    """Every reader and the parameters of every run, with every kind of mutation."""
    tally = attack_all(make_targets(tmp_path / "targets"), CASES)
    assert tally.found == []
    summary = tally.summary()
    assert len(tally.cases) == CASES and min(each["cases"] for each in summary["readers"].values()) > 50
    assert all(each["refused"] for name, each in summary["readers"].items() if name not in GOING_ON) and sum(tally.refusals().values()) > 100
    assert set(summary["kinds"]) >= {*BYTES, "an odd value", "a value left out", "a name that is none"}
    assert min(each["cases"] for each in summary["kinds"].values()) > 5


def test_what_is_no_clear_line_is_found() -> None:
    """A raw error, several lines, and the name of an error in a line."""
    for error in (KeyError("x"), ValueError("one\ntwo"), ValueError("KeyError: x"), MemoryError()):
        def read() -> None:
            raise error
        with pytest.raises(Found):
            judge(read)
    assert judge(lambda: int("x")).startswith("invalid literal") and judge(lambda: None) == "read"


def wait(seconds: float, error: Exception | None = None) -> None:
    """A reader that waits, swallows whatever interrupts it, and ends in words or well."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except Exception:
            pass
    if error:
        raise error


@pytest.mark.parametrize("error", [None, ValueError("clear"), ValueError("un\nclear")])
def test_a_wait_is_found_though_it_takes_no_time_of_the_processor(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    monkeypatch.setattr("attacking.PATIENCE", 0.3)
    for seconds in (0.5, 5):  # behind the limit, and long behind it
        begun = time.monotonic()
        with pytest.raises(Found, match="still running after 0.3 s"):
            judge(lambda: wait(seconds, error))
        assert time.monotonic() - begun < 2


def test_a_wait_that_cannot_be_interrupted_is_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that swallows everything: the time it took tells."""
    monkeypatch.setattr("attacking.PATIENCE", 0.2)

    def stubborn() -> None:
        for _ in range(3):
            try:
                time.sleep(0.3)
            except BaseException:
                pass
        raise ValueError("un\nclear")
    with pytest.raises(Found):
        judge(stubborn)


@pytest.mark.parametrize("inside", [True, False], ids=["itself", "a child"])
def test_memory_is_of_the_case_and_of_its_children(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """What was held before counts for nothing, and what is given back before the end counts."""
    monkeypatch.setattr("attacking.MOST_MEMORY", 150)
    ballast = np.ones(25 * 2**20)  # 200 MiB that this process holds
    code = "import os; held = b'1' * {} * 2**20"

    def take(size: int) -> None:
        if inside:
            np.ones(size * 2**17)
        else:
            subprocess.run([sys.executable, "-c", code.format(size)], check=True)
    assert judge(lambda: take(20)) == "read" and ballast.any()
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 2**10
    with pytest.raises(Found, match="MiB"):
        judge(lambda: take(800 if inside else largest + 800))  # a child that has ended counts where it was larger than this process ever


def test_mutations_differ() -> None:
    data = b'{"a": 10, "b": [1, 2, 3]}\n' * 20
    made = [mutate_bytes(data, random.Random(seed)) for seed in range(300)]
    assert len({mutated for mutated, _ in made} - {data}) > 200 and {kind for _, kind in made} == {*BYTES}


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """The same cases end in the same way, and none is made twice."""
    first = attack_on(40, str(tmp_path), tmp_path / "first")
    made = []
    whole = attack_all(make_targets(tmp_path / "whole"), 60, note=made.append)
    [journal] = tmp_path.glob("mutations-*.jsonl")
    lines = journal.read_bytes()
    on = attack_on(60, str(tmp_path), tmp_path / "second")
    assert journal.read_bytes().startswith(lines) and len(made) == 60 and on.cases[:40] == first.cases

    def told(tally: Tally) -> list[tuple[str, str, str]]:
        return [(case.target, case.kind, case.ended) for case in tally.cases]
    assert told(on) == told(whole)


def test_a_case_keeps_what_happened() -> None:
    def fail() -> str:
        raise Found("KeyError: 'x'")
    tally = Tally([attempt_case("a", "cut off", lambda: "read", 0), attempt_case("a", "cut off", lambda: "row 3 of 'x'", 1),
                   attempt_case("a", "a bit flipped", fail, 2)])
    assert [case.ended for case in tally.cases] == ["read", "refused", "found"] and isinstance(tally.cases[0], Case)
    assert tally.found == ["a, a bit flipped, case 2: KeyError: 'x'"]
    kinds = tally.summary()["readers"]["a"]["kinds"]
    assert kinds == {"a bit flipped": {"cases": 1, "read": 0, "refused": 0, "found": 1},
                     "cut off": {"cases": 2, "read": 1, "refused": 1, "found": 0}}


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=5).filter(lambda value: "crc32" not in value))
def test_lines_of_a_journal_come_back(value: dict) -> None:
    line = write_line(value)  # which says something: no journal has an empty object
    assert line.endswith(b"\n") and parse_line(line[:-1], True) == json.loads(json.dumps(value))


@settings(max_examples=300, deadline=None)
@given(VALUES, st.sampled_from([str, int, float, bool, [int], {"a": int}, {str: [str]}, (str, type(None)), {"a?": [float]}]))
def test_a_shape_fits_or_the_place_is_named(value: object, shape: object) -> None:
    try:
        assert check_shape(value, shape) is value
    except Misshapen as error:
        assert "allowed is" in str(error)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "", "b.png", "/etc", "~", "\0", "\ud800", "a/../.."]) | st.text(max_size=5), max_size=6))
def test_no_name_leads_out(parts: list[str]) -> None:
    folder = Path(__file__).parent
    try:
        assert resolve_inside(folder, "/".join(parts)).is_relative_to(folder.resolve())
    except BadImage as error:
        assert "\n" not in str(error)
