"""Training as a whole: what is frozen stays, a killed run continues to the same bits, bfloat16 and accumulation train too."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from fromage.core.config import ConfigError, Training
from fromage.core.folders import FolderHeld
from fromage.core.presets import MINI, change
from fromage.core.tensors import load_tensors
from fromage.model.checkpoint import load_checkpoint, load_model, new_model
from fromage.model.losses import make_batch
from fromage.model.model import Fromage, trained_parameters
from fromage.model.steps import backward_losses, make_optimizer, make_pairs, train_step
from fromage.model.training import fit, settle_run
from fromage.networks import opening
from fromage.networks.layers import recompute_layers
from fromage.networks.stand_ins import ARCHITECTURES, stand_in_language_model

CAPTIONS = ["a red car", "the old man in the house", "a cat .", "a blue river and the green grass"]


def random_batch(model):
    """Four captions with random features."""
    generator = torch.Generator().manual_seed(1)
    return make_batch([model.vocabulary.encode_caption(text, 24) for text in CAPTIONS], torch.randn(4, 24, generator=generator))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_is_trained_moves(architecture, tied):
    model = Fromage(*stand_in_language_model(architecture, tied=tied), 24, 2, 8)
    frozen = {name: value.clone() for name, value in model.language_model.state_dict().items()}
    before = {name: value.detach().clone() for name, value in trained_parameters(model).items()}
    training = Training(learning_rate=1e-2, warmup_steps=0)
    optimizer, batch = make_optimizer(model, training), random_batch(model)
    losses = [train_step(model, optimizer, batch, step % 2 == 1, training).total for step in range(8)]
    assert losses[-2] < losses[0]
    for name, value in model.language_model.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    assert {name for name, value in trained_parameters(model).items() if torch.equal(value, before[name])} == set()
    assert ("ret_output" in before) == (not tied)


def test_passes_accumulate_to_the_same_gradients():
    gradients = []
    for tokens in (4096, 8):
        torch.manual_seed(0)
        model = Fromage(*stand_in_language_model("opt", spare_rows=7), 24, 2, 8)
        training = Training(learning_rate=0.0, tokens_per_pass=tokens, gradient_clip=0.0)
        train_step(model, make_optimizer(model, training), random_batch(model), True, training)
        gradients.append({name: value.grad for name, value in trained_parameters(model).items()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_bfloat16_trains_float32_parameters(device):
    language_model, tokenizer = stand_in_language_model("llama")
    model = Fromage(language_model.bfloat16(), tokenizer, 24, 2, 8).to(device)
    training = Training(learning_rate=1e-2, warmup_steps=0)
    optimizer = make_optimizer(model, training)
    losses = [train_step(model, optimizer, random_batch(model), False, training).total for _ in range(8)]
    assert losses[-1] < losses[0]
    assert {value.dtype for value in trained_parameters(model).values()} == {torch.float32}
    assert {value.dtype for value in language_model.parameters()} == {torch.bfloat16}


CONFIG = change(MINI, batch_size=4, steps=40, visual_tokens=2, retrieval_dim=8, warmup_steps=2, validate_every=7, save_every=3)


def train_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after all steps of a small run in `folder`."""
    rng = np.random.default_rng(0)
    model = new_model(CONFIG, 24, *stand_in_language_model("opt", spare_rows=7))
    captions = [" ".join(rng.choice(["a", "red", "car", "the", "old", "man"], 4)) for _ in range(14)]
    pairs = make_pairs(model.vocabulary, rng.normal(size=(14, 24)).astype(np.float32), captions, 24)
    fit(model, pairs, pairs, CONFIG, folder)
    return {name: value.detach().clone() for name, value in trained_parameters(model).items()}


def start_process(folder: Path) -> subprocess.Popen:
    """The same run in a process of its own."""
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from test_training import *; train_in(Path({str(folder)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[1])


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    """SIGKILL at whatever step it is at, twice; a third start finishes. No temporary file is taken for a state."""
    state = tmp_path / "killed" / "state.safetensors"
    reached = []
    for _ in range(2):
        seen, process = state.stat().st_mtime_ns if state.exists() else 0, start_process(state.parent)
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == seen):
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(len(load_tensors(state, "training state")[1]["history"]))
    assert 0 < reached[0] <= reached[1] < CONFIG.training.steps
    resumed, whole = train_in(state.parent), train_in(tmp_path / "whole")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert (state.parent / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()


def test_a_second_run_in_the_folder_is_refused_and_told_who_has_it(tmp_path):
    """Two processes, one folder: the first ends as if alone, the second names it and leaves nothing of its own."""
    shared, whole = tmp_path / "shared", train_in(tmp_path / "whole")
    process = start_process(shared)
    while process.poll() is None and not (shared / "state.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # as long as the second needs to be told
    assert process.poll() is None, "the run ended before another could ask"
    try:
        with pytest.raises(FolderHeld, match=f"process {process.pid} of .* writes this folder"):
            train_in(shared)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    for name in ("best.safetensors", "state.safetensors"):
        assert (shared / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (shared / ".holder.json").exists() and whole


def machine(patch: pytest.MonkeyPatch, **seconds: float) -> None:
    """A machine whose products take so long in each precision."""
    patch.setattr(opening, "product_seconds", seconds.__getitem__)
    opening.fast_precision.cache_clear()


@pytest.fixture
def machines(monkeypatch):
    yield lambda **seconds: machine(monkeypatch, **seconds)
    opening.fast_precision.cache_clear()


@pytest.mark.parametrize("slower, taken", [(7.0, "bfloat16"), (2.0, "bfloat16"), (1.2, "float32"), (1.0, "float32"), (0.15, "float32")])
def test_auto_is_what_the_machine_multiplies_fast(machines, slower: float, taken: str) -> None:
    machines(float32=slower, bfloat16=1.0)
    assert opening.fast_precision() == taken
    model = new_model(change(MINI, precision="auto"), 8, check=False)
    assert str(model.language_model.dtype) == f"torch.{taken}"
    assert {value.dtype for value in trained_parameters(model).values()} == {torch.float32}


@pytest.mark.parametrize("capability, taken", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_on_a_gpu_goes_by_its_capability(machines, monkeypatch, capability: tuple[int, int], taken: str) -> None:
    machines()  # nothing is timed
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert opening.settle_precision(change(MINI, precision="auto", device="cuda:1")).backbones.precision == taken


def test_a_machine_is_asked_once(machines, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(opening, "product_seconds", lambda precision: asked.append(precision) or 1.0)
    assert [opening.fast_precision(), opening.fast_precision()] == ["float32"] * 2 and len(asked) == 2


def test_a_run_that_was_left_to_the_machine_keeps_what_it_began_with(machines, tmp_path) -> None:
    """Begun where bfloat16 is fast, gone on where it is slow: state, checkpoint and weights are those of a run on one machine."""
    asked = change(CONFIG, precision="auto", visual_tokens=2, steps=4, save_every=1)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 8)).astype(np.float32)

    def go_on(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        config = settle_run(change(asked, steps=steps), folder)
        model = new_model(config, 8, check=False)
        pairs = make_pairs(model.vocabulary, features, ["a red ball on the grass"] * 6 + ["two blue boxes"] * 6, 16)
        fit(model, pairs, pairs, config, folder)
        return trained_parameters(model)

    machines(float32=7.0, bfloat16=1.0)
    whole = go_on(tmp_path / "whole", 4)
    go_on(tmp_path / "parts", 2)
    machines(float32=1.0, bfloat16=7.0)
    assert all(torch.equal(value, whole[name]) for name, value in go_on(tmp_path / "parts", 4).items())
    checkpoint = load_checkpoint(tmp_path / "parts" / "best.safetensors")
    assert checkpoint.config.backbones.precision == "bfloat16" and load_model(checkpoint).language_model.dtype == torch.bfloat16
    assert settle_run(asked, tmp_path / "new").backbones.precision == "float32"
    (tmp_path / "parts" / "state.safetensors").write_bytes(b"damaged")  # the one before it says the same
    assert settle_run(asked, tmp_path / "parts").backbones.precision == "bfloat16"


def test_a_loop_takes_no_open_question(tmp_path) -> None:
    model = new_model(CONFIG, 24, *stand_in_language_model("opt"))
    with pytest.raises(ConfigError, match="settle_run settles it"):
        fit(model, None, None, change(CONFIG, precision="auto"), tmp_path)


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_half_precision_goes_back_by_products_as_exactly_as_by_pytorch(architecture: str, monkeypatch) -> None:
    """The same losses to the last bit; gradients as near to those of float32; recomputed layers give the same ones."""
    def gradients(recompute: bool = False, half: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
        language_model, tokenizer = stand_in_language_model(architecture)
        language_model = language_model.to(torch.bfloat16).to(torch.bfloat16 if half else torch.float32)
        torch.manual_seed(0)
        model = Fromage(recompute_layers(language_model) if recompute else language_model, tokenizer, 24, 2, 8)
        losses = backward_losses(model, random_batch(model), True, Training(), False)
        return losses["captioning"], {name: value.grad.flatten() for name, value in trained_parameters(model).items()}

    def apart(found: dict[str, torch.Tensor]) -> float:
        return max(((value - exact[name]).norm() / exact[name].norm()).item() for name, value in found.items())

    exact = gradients(half=False)[1]
    loss, quick = gradients()
    again = gradients(recompute=True)[1]
    assert all(torch.equal(value, again[name]) for name, value in quick.items())
    monkeypatch.setattr("fromage.model.model.quick_kernels", lambda device, weights: nullcontext())
    same, usual = gradients()
    assert loss == same and any(not torch.equal(value, usual[name]) for name, value in quick.items())
    assert apart(quick) < 1.5 * apart(usual)
