"""The shipped tower for drawings is the one that its record tells of, and its text side can be read."""

import json

import pytest
from house_rules import ROOT

from fromage.networks.towers import VisionTower, load_vision_tower


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return load_vision_tower("data/emoji/tower")


def test_the_record_tells_of_this_tower(tower: VisionTower) -> None:
    record = json.loads((ROOT / "reports/pretrain_tower-drawings.json").read_text())
    assert record["metrics"]["tower"] == tower.fingerprint
    assert record["config"]["pictures"] == "made" and not record["git"]["dirty"]


def test_its_text_side_reads_names_of_drawings(tower: VisionTower) -> None:
    read, cut = tower.encode_text(["dog face", "dog", "flag of Chad", "accordion"])
    assert cut == 0
    assert (read @ read.T)[0, 1] > (read @ read.T)[0, 2]
