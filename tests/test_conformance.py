"""Twelve kinds of language models, built tiny: each is exact, or refused with its reason; `make conformance` tries all."""

import pytest

from fromage.model.architectures import try_kind

EXACT = ("biogpt", "bloom", "falcon", "gemma", "gpt_neox", "codegen", "llama", "mllama")
REFUSED = {"gemma2": "caps its logits", "mpt": "unequal lengths", "bert": "more layers behind its last state",
           "lfm2": "running state"}


@pytest.mark.parametrize("kind", EXACT)
def test_a_kind_is_exact(kind):
    found = try_kind(kind)
    assert (found.outcome, found.reason) == ("exact", "")
    assert found.distance < 1e-4


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_is_refused_with_its_reason(kind):
    found = try_kind(kind)
    assert found.outcome == "refused"
    assert REFUSED[kind] in found.reason
