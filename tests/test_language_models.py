"""Language models and tokenizers as users have them: exact, or refused in one line that names the cause."""

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from fromage.chat.conversation import Conversation
from fromage.chat.dialogue import CHAT, Dialogue, ask
from fromage.chat.pictures import image_file, read_picture
from fromage.core.config import Training
from fromage.core.presets import MODERN, change, get_preset
from fromage.model import generation
from fromage.model.architectures import tiny_config, tiny_model
from fromage.model.checkpoint import new_model
from fromage.model.conformance import check_model, examine, plain_logits, training_distance
from fromage.model.generation import Decoding, check_room, generate, generate_captions, stop_ids
from fromage.model.losses import make_batch
from fromage.model.model import Fromage
from fromage.model.prompts import Prompt, build_prompt
from fromage.model.steps import make_optimizer, train_step
from fromage.networks.backbones import BackboneError, freeze, load_language_model
from fromage.networks.demands import count_ids, longest_text
from fromage.networks.opening import open_vision_tower
from fromage.networks.shapes import LANGUAGE_SHAPES
from fromage.networks.stand_ins import stand_in_language_model, stand_in_tokenizer
from fromage.networks.towers import check_architecture
from fromage.scale import footprint


def word_tokenizer(ids: dict[str, int], split: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with the ids as given."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="</s>")


def test_the_largest_id_decides_where_a_tokenizer_has_holes() -> None:
    """Four entries, the largest 40: [RET] takes no living token's id, and the token keeps its own row."""
    tokenizer = word_tokenizer({"<unk>": 0, "</s>": 1, "red": 7, "car": 40})
    assert (len(tokenizer), count_ids(tokenizer)) == (4, 41)
    language_model = freeze(AutoModelForCausalLM.from_config(tiny_config("llama", 41)), "cpu")
    model = Fromage(language_model, tokenizer, 24).eval()
    assert (model.vocabulary.image_id, model.vocabulary.ret_id) == (41, 42)
    ids = model.vocabulary.encode("red car [RET]", bos=False)
    assert ids == [7, 40, 42]
    with torch.no_grad():
        found = plain_logits(model, Prompt(ids[:2], []))[:, :41]
        assert torch.allclose(found, language_model(torch.tensor([ids[:2]])).logits[0], atol=1e-5)
    check_model(model)


def test_entries_behind_the_table_are_no_obstacle_until_a_text_holds_one() -> None:
    """A tokenizer with an added entry that the table lacks: exact, and a text that holds it is refused by name."""
    language_model, tokenizer = stand_in_language_model("llama")
    rows = language_model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens(["<never>"], special_tokens=True)
    model = Fromage(language_model, tokenizer, 24, visual_tokens=2).eval()
    assert (count_ids(tokenizer), model.kept, model.vocabulary.ret_id) == (rows + 1, rows, rows + 2)
    assert all(finding.passed for finding in examine(model))
    with pytest.raises(ValueError, match=f"'<never>', number {rows} of the tokenizer"):
        model.vocabulary.encode("a red <never>")


def test_a_checkpoint_of_several_modalities_gives_its_text_model() -> None:
    """Gemma3ForConditionalGeneration answers a text as it does by itself."""
    tokenizer = stand_in_tokenizer()
    config = tiny_config("gemma3", len(tokenizer))
    torch.manual_seed(0)
    language_model = freeze(AutoModelForImageTextToText.from_config(config), "cpu")
    assert type(language_model).__name__ == "Gemma3ForConditionalGeneration"
    model = Fromage(language_model, tokenizer, 24, visual_tokens=2).eval()
    assert all(finding.passed for finding in examine(model))


@pytest.mark.parametrize(("change", "cause"), [
    ({"hidden_size": 64}, "config.json is of another model than the weights: .* should be"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}, "GPTQ .*allowed are weights in 32 or 16 bits")])
def test_a_folder_that_does_not_fit_is_named_in_one_line(tmp_path: Path, change: dict, cause: str) -> None:
    """A configuration of another width, and packed weights."""
    for part in stand_in_language_model("llama"):
        part.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BackboneError, match=cause) as found:
        load_language_model(str(tmp_path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", ["mistral", "gpt_neo"])
def test_a_row_longer_than_the_window_is_refused_in_training(kind: str) -> None:
    """Within the window a step is the plain loop's; a longer row is refused with the window's size."""
    tokenizer = stand_in_tokenizer()
    more = {"attention_types": [[["global", "local"], 1]], "window_size": 8} if kind == "gpt_neo" else {"sliding_window": 8}
    config = AutoConfig.for_model(kind, **{name: value for name, value in tiny_config(kind, len(tokenizer)).to_dict().items()
                                           if name not in ("model_type", "attention_layers")} | more)
    model = Fromage(freeze(AutoModelForCausalLM.from_config(config), "cpu"), tokenizer, 24).eval()
    assert model.window == 8
    with pytest.raises(ValueError, match="window of this language model's attention, which has 8 columns"):
        training_distance(model)
    with pytest.raises(BackboneError, match="8 columns"):
        check_model(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "exact"), [("xglm", True), ("gemma", True), ("mpt", False), ("gemma2", False), ("dory", False)])
def test_half_precision_hides_no_fault(kind: str, exact: bool, dtype: torch.dtype) -> None:
    """The bounds of each precision pass the rounding of kinds that are exact and none of those that are wrong."""
    tokenizer = stand_in_tokenizer()
    torch.manual_seed(0)
    language_model = tiny_model(kind, len(tokenizer)).to(dtype)
    try:
        check_model(Fromage(language_model, tokenizer, 24, visual_tokens=2).eval())
    except ValueError as reason:
        assert not exact, reason
    else:
        assert exact


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT has it: words in pieces, white space only between them, so that a newline has no id at all."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "red", "car", "##s", "a", "q", ":", "what", "is", "it", "?"]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")


def test_a_tokenizer_whose_newline_has_no_id_trains_and_answers() -> None:
    """WordPiece drops a newline: texts end at [RET], bos or eos, captions are made, a step is taken."""
    tokenizer = wordpiece_tokenizer()
    assert tokenizer("\n", add_special_tokens=False).input_ids == []
    torch.manual_seed(0)
    model = Fromage(freeze(AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))), "cpu"), tokenizer, 24).eval()
    check_model(model)
    vocabulary = model.vocabulary
    assert stop_ids(model) == {vocabulary.ret_id, vocabulary.bos_id, vocabulary.eos_id}
    captions = [[vocabulary.bos_id, *vocabulary.encode(text, bos=False), vocabulary.ret_id] for text in ("a red car", "red cars")]
    batch, training = make_batch(captions, torch.randn(2, 24)), Training(batch_size=2)
    losses = train_step(model, make_optimizer(model, training), batch, False, training)
    assert 0 < losses.total < 1000
    assert len(generate_captions(model, batch.features, max_tokens=6)) == 2
    reply, = generate(model, [build_prompt(model, ["Q: what is it?\nA:"])], Decoding(max_new_tokens=4))
    assert "\n" not in reply.text


def test_a_text_longer_than_mpt_takes_is_refused_in_one_line() -> None:
    """MPT calls its limit `max_seq_len`; a model of its kind is refused at loading too, since its batches are not exact."""
    tokenizer = stand_in_tokenizer()
    model = Fromage(tiny_model("mpt", len(tokenizer)), tokenizer, 24).eval()
    most = longest_text(model.language_config)
    assert most == model.language_config.max_seq_len
    prompt = Prompt([number % 50 for number in range(most)], [])
    with pytest.raises(ValueError, match=f"this language model takes {most} in all"):
        check_room(model, [prompt], 1)
    with pytest.raises(BackboneError):
        check_model(model)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_nothing_deprecated_is_called(kind: str) -> None:
    """Loading, scoring, decoding and a step of training, as the check does them all, without a warning of transformers."""
    model = Fromage(*stand_in_language_model(kind), 24).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        assert all(finding.passed for finding in examine(model))


@pytest.mark.parametrize("name", MODERN)
def test_a_modern_preset_names_what_is_known(name: str) -> None:
    names = get_preset(name).backbones
    check_architecture(names.vision_model, names.vision_pretrained)
    assert names.language_model in LANGUAGE_SHAPES and names.precision == "auto"


def test_a_modern_preset_trains_and_replies_at_its_true_shape(monkeypatch) -> None:
    """SmolLM2-135M beside SigLIP's ViT-B/16: a picture, two steps, a search and a reply."""
    monkeypatch.setattr(footprint, "new_model", partial(new_model, check=False))  # its kind is checked above
    config = change(get_preset("smollm2-135m"), weights="random", device="cpu", batch_size=2)
    tower = open_vision_tower(config.backbones, "cpu")
    assert (tower.width, tower.image_size) == (768, (224, 224))
    way = tower.preprocessing
    assert (way["mean"], way["std"], way["resize_mode"]) == ((0.5,) * 3, (0.5,) * 3, "squash")
    monkeypatch.setattr(footprint, "open_vision_tower", lambda *given: tower)
    stages = [*footprint.use(config)]
    assert stages[1::2] == ["8 pictures through it", "2 steps of 2", "reply"]


TURNS = ("{{ bos_token }}{% for each in messages %}<turn>{{ each.role }}\n{{ each.content | trim }}<end>\n{% endfor %}"
         "{% if add_generation_prompt %}<turn>assistant\n{% endif %}")


@pytest.fixture
def talk() -> Conversation:
    """A conversation with a random model whose tokenizer marks turns by tokens that no text shows."""
    language_model, tokenizer = stand_in_language_model("llama", spare_rows=8)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = TURNS
    model = Fromage(language_model, tokenizer, 24, 2).eval()
    return Conversation(SimpleNamespace(model=model, encode=lambda image: torch.zeros(24)))


def test_a_prompt_has_the_very_ids_of_the_chat_template(talk: Conversation) -> None:
    """Also where people write what a template reads; two tokens of a picture stand where it was put."""
    tokenizer = talk.assistant.model.vocabulary.tokenizer
    dialogue = Dialogue(template=CHAT)
    messages = []
    for question, reply in (("a {{ red }} car", "the old man."), ("is it {% big %} ?", None)):
        dialogue = ask(dialogue, question)
        messages.append({"role": "user", "content": question})
        if reply:
            dialogue = replace(dialogue, exchanges=(replace(dialogue.exchanges[0], answer=(reply,)),))
            messages.append({"role": "assistant", "content": reply})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    found, left_out = talk.prompt(dialogue, 8)
    assert found.ids == tokenizer(expected, add_special_tokens=False).input_ids and left_out == 0
    image = talk.assistant.model.vocabulary.image_id
    seen = talk.prompt(ask(Dialogue(template=CHAT), "a car", [read_picture("grey.png", image_file(8, 8))]), 8)[0]
    begin = tokenizer("</s><turn>user\n", add_special_tokens=False).input_ids
    assert seen.ids[:len(begin) + 2] == [*begin, image, image] and len(seen.features) == 1


@pytest.mark.parametrize("end", ["<end>", "</s>"])
def test_an_answer_ends_with_the_turn_and_not_with_a_line(talk: Conversation, monkeypatch, end: str) -> None:
    tokenizer = talk.assistant.model.vocabulary.tokenizer
    script = tokenizer(f"the man\nthe car{end}a cat", add_special_tokens=False).input_ids
    told = iter(script)
    monkeypatch.setattr(generation, "choose_ids", lambda logits, *rest: torch.full(logits.shape[:1], next(told)))
    asked = ask(Dialogue(template=CHAT), "who is it?")
    answered = talk.respond(asked, Decoding(max_new_tokens=len(script)), mode="words").exchanges[0]
    assert answered.answer == ("the man\nthe car",)
    told = iter(script)
    assert talk.respond(replace(asked, template="{images}{text}{reply}"), Decoding(max_new_tokens=len(script)),
                        mode="words").exchanges[0].answer == ("the man",)
