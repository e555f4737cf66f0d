"""Candidate sums of the published implementation, by the quick scoring and by the evaluation."""

import numpy as np
import pytest
import torch
from test_golden import FOLDERS, Golden

from fromage.model.scoring import Context, score, sum_log_probabilities
from fromage.visdial.answers import FORMS, PARTS, AnswerScorer


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    return Golden(request.param)


@pytest.mark.parametrize("padding", ["tree", "right", "left"])
def test_sums_of_the_published_implementation(golden, padding):
    case, model = golden.expected["visdial"], golden.model("pretrained")
    context = Context(model).read(golden.prompt(model, [case["image"], case["context"]], "first"))
    sequences = [model.vocabulary.encode(option) for option in case["options"]]
    shifted, unshifted = sum_log_probabilities(context, sequences, shifts=(1, 0), padding=padding)
    assert -shifted.numpy() == pytest.approx(case["sum_ce_next_token"], rel=1e-5)
    assert -unshifted.numpy() == pytest.approx(case["sum_ce_as_published_unshifted"], rel=1e-5)


def test_the_public_call(golden):
    case, model = golden.expected["visdial"], golden.model("pretrained")
    found = score(model, [golden.features[case["image"]], case["context"]], case["options"], bos=True)
    assert -found.log_likelihoods.numpy() == pytest.approx(case["sum_ce_next_token"], rel=1e-5)


def test_the_evaluation_scores_the_same(golden):
    case, model = golden.expected["visdial"], golden.model("pretrained")
    image = golden.features[case["image"]]
    found = AnswerScorer(model).score_round(case["context"], case["options"], torch.stack([image, image]))
    begun = found[FORMS.index("extra_bos")]
    assert -begun[PARTS.index("squash, next token")] == pytest.approx(case["sum_ce_next_token"], rel=1e-5)
    assert -begun[PARTS.index("crop, same token")] == pytest.approx(case["sum_ce_as_published_unshifted"], rel=1e-5)
    assert np.isfinite(np.delete(found, FORMS.index("blank_in_answer"), 0)).all()
