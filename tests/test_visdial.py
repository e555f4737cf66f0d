"""Candidate sums of the published implementation, by the quick scoring and by the evaluation."""

import numpy as np
import pytest
import torch
from test_golden import FOLDERS, Golden

from fromage.model.prompts import continue_text
from fromage.model.scoring import ReadPrompt, score, sum_log_probabilities
from fromage.visdial.answers import BEGINNINGS, CROPPED, SQUASHED, AnswerScorer, Beginning, part_number


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    return Golden(request.param)


@pytest.mark.parametrize("padding", ["tree", "right", "left"])
def test_sums_of_the_published_implementation(golden, padding):
    case, model = golden.expected["visdial"], golden.model("pretrained")
    context = ReadPrompt(model).read(golden.prompt(model, [case["image"], case["context"]], "first"))
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
    begun = found[BEGINNINGS.index(Beginning(boundary=True, extra_bos=True))]
    assert -begun[part_number(SQUASHED)] == pytest.approx(case["sum_ce_next_token"], rel=1e-5)
    assert -begun[part_number(CROPPED, next_token=False)] == pytest.approx(case["sum_ce_as_published_unshifted"], rel=1e-5)
    assert np.isfinite(found).all()


def test_the_boundary_moves_the_blank_in_front_of_opts_words(golden):
    """With the tokenizer of the released model's kind: a running text has no lone blank before an answer, the release does."""
    vocabulary, case = golden.model("pretrained").vocabulary, golden.expected["visdial"]
    line = case["context"][case["context"].rfind("\n") + 1:]
    assert line.endswith("A: ")
    for option in case["options"]:
        before, behind = continue_text(vocabulary, line, option)
        assert before + behind == vocabulary.encode(line + option, bos=False)
        assert vocabulary.decode(behind) == f" {option}"
    scorer = AnswerScorer(golden.model("pretrained"))
    assert vocabulary.decode(scorer.split(line, case["options"][0], Beginning(boundary=True))[0]).endswith(" ")
    assert not vocabulary.decode(scorer.split(line, case["options"][0], Beginning())[0]).endswith(" ")
