"""Mutated files and parameters by the thousand, properties over generated values, and kills: success, or one clear line."""

import json
import random
from pathlib import Path

import pytest
from attacking import Found, attack_all, judge, make_targets, mutate_bytes, peak_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from fromage.core.boundaries import Misshapen, check_shape
from fromage.core.journals import parse_line, write_line
from fromage.data.sources import BadImage, resolve_inside

CASES, MOST_MEMORY = 2000, 2048  # MiB
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)


def test_mutated_files_and_parameters(tmp_path: Path) -> None:
    """Every reader and the parameters of every run."""
    tally = attack_all(make_targets(tmp_path / "targets"), CASES)
    assert sum(tally.cases.values()) == CASES and min(tally.cases.values()) > 50
    assert all(tally.lines.values()) and sum(map(len, tally.lines.values())) > 100
    assert tally.found == {}
    assert peak_memory() < MOST_MEMORY


def test_what_is_no_clear_line_is_found() -> None:
    """A raw error, several lines, and the name of an error in a line."""
    for error in (KeyError("x"), ValueError("one\ntwo"), ValueError("KeyError: x"), MemoryError()):
        def read() -> None:
            raise error
        with pytest.raises(Found):
            judge(read)
    assert judge(lambda: int("x")).startswith("invalid literal") and judge(lambda: None) == "read"


def test_mutations_differ() -> None:
    data = b'{"a": 10, "b": [1, 2, 3]}\n' * 20
    assert len({mutate_bytes(data, random.Random(seed)) for seed in range(300)} - {data}) > 200


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
