"""Backends: the network's own numbers, whatever the neighbours in the batch, or one clear line why not."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.network import compiled
from sqt_fast.network.backends import Backend, load_backend
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS, SIMPLEST, BackendRecord

SIZE = 64
BATCH = 4


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn((BATCH, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def eager(model: SqueezeTime, precision: str = "fp32") -> Backend:
    return load_backend("eager", model, device="cpu", precision=precision, batch_size=BATCH, size=SIZE)


def test_every_name_can_be_imported() -> None:
    for record in BACKENDS.values():
        for target in (record.load, record.objection):
            module, _, name = (target or "sqt_fast.network.eager:eager_network").partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_a_backend_whose_library_is_missing_says_what_to_install(tiny_model: SqueezeTime) -> None:
    record = BackendRecord("nowhere:load", 9, "a_library_that_is_not_there:why_not")
    reason = "a_library_that_is_not_there is not installed (pip install 'sqt-fast[gpu]')"
    assert record.why_not("cpu", tiny_model) == reason


def test_a_new_backend_is_a_line(tiny_model: SqueezeTime, clips: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but its record knows its name."""
    monkeypatch.setitem(BACKENDS, "mine", BackendRecord("sqt_fast.network.eager:eager_network", 5))
    mine = load_backend("mine", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
    assert torch.equal(mine.run(clips)[0], eager(tiny_model).run(clips)[0])
    assert SIMPLEST == "eager"


def test_eager_equals_the_network(tiny_model: SqueezeTime, clips: Tensor) -> None:
    backend = eager(tiny_model)
    logits, embeddings = backend.run(clips)
    with torch.inference_mode():
        torch.testing.assert_close(logits, tiny_model.logits(clips), rtol=0, atol=1e-5)
        torch.testing.assert_close(embeddings, tiny_model.embed(clips), rtol=0, atol=1e-5)
    assert logits.dtype == embeddings.dtype == torch.float32
    assert logits.shape == (BATCH, 7)
    assert embeddings.shape == (BATCH, tiny_model.config.feature_channels)


def test_bf16_is_near(tiny_model: SqueezeTime, clips: Tensor) -> None:
    backend = eager(tiny_model, "bf16")
    assert backend.dtype == torch.bfloat16
    logits, embeddings = backend.run(clips.bfloat16())
    assert logits.dtype == embeddings.dtype == torch.float32
    with torch.inference_mode():
        truth = tiny_model.double().logits(clips.double()).float()
        tiny_model.float()
    assert (logits - truth).abs().max() < 0.05 * truth.abs().max()
    assert not torch.equal(logits, truth)


def test_the_model_is_left_as_it_was(tiny_model: SqueezeTime) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    eager(tiny_model, "bf16")
    for name, value in tiny_model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_clip_gives_the_same_bits_in_any_slot_with_any_neighbours(
    tiny_model: SqueezeTime, clips: Tensor, precision: str
) -> None:
    backend = eager(tiny_model, precision)
    clips = clips.to(backend.dtype)
    truth = backend.run(clips)
    for shift in range(1, BATCH):
        for ours, wanted in zip(backend.run(clips.roll(shift, 0)), truth, strict=True):
            assert torch.equal(ours.roll(-shift, 0), wanted)
    for neighbours in (0.0, 1e4, float("nan")):
        crowd = torch.full_like(clips, neighbours)
        crowd[2] = clips[0]
        for ours, wanted in zip(backend.run(crowd), truth, strict=True):
            assert torch.equal(ours[2], wanted[0])


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_odd_batches_are_near(tiny_model: SqueezeTime, batch_size: int) -> None:
    """Not the same bits: sigmoid rounds the tail otherwise where 16 channels x batch is no multiple of 32."""
    backend = load_backend("eager", tiny_model, device="cpu", precision="fp32", batch_size=batch_size, size=SIZE)
    clips = torch.randn((batch_size, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    for ours, wanted in zip(backend.run(clips.roll(1, 0)), backend.run(clips), strict=True):
        torch.testing.assert_close(ours.roll(-1, 0), wanted, rtol=1e-6, atol=1e-6)


def test_memory_format_does_not_matter(tiny_model: SqueezeTime, clips: Tensor) -> None:
    backend = eager(tiny_model)
    for ours, wanted in zip(
        backend.run(clips.contiguous(memory_format=torch.channels_last)), backend.run(clips), strict=True
    ):
        assert torch.equal(ours, wanted)


def test_a_backbone_alone_is_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        eager(model)


def test_clips_of_another_length_are_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=3, input_channels=24))
    with pytest.raises(ConfigError, match="want 24 channels, clips have 48"):
        eager(model)


# -- compile ----------------------------------------------------------------------------------------------------------


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tiny_model: SqueezeTime) -> None:
    monkeypatch.setattr("sqt_fast.network.compiled.shutil.which", lambda name: None)
    assert compiled.why_not("cuda:0", tiny_model) is None
    with pytest.raises(BackendError, match=r"needs a C\+\+ compiler .*--backend eager") as caught:
        load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=1, size=SIZE)
    assert "\n" not in str(caught.value)


def test_a_compiler_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: SqueezeTime
) -> None:
    """What torch says of it comes out as one line."""

    def broken(*args: object, **options: object) -> object:
        def run(clips: Tensor) -> object:
            raise torch._dynamo.exc.TorchDynamoException("g++ is broken\nline 2\nline 3")

        return run

    monkeypatch.setattr("sqt_fast.network.compiled.why_not", lambda device, model: None)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        BackendError, match=r"backend compile: compiling failed \(g\+\+ is broken\); use --backend eager"
    ) as caught:
        load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=1, size=SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports Inductor
def test_compile_equals_eager(tiny_model: SqueezeTime, clips: Tensor) -> None:
    if reason := compiled.why_not("cpu", tiny_model):
        pytest.skip(reason)
    backend = load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
    truth = eager(tiny_model).run(clips)
    for ours, wanted in zip(backend.run(clips), truth, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-5)
    for ours, wanted in zip(backend.run(clips.roll(2, 0)), backend.run(clips), strict=True):
        assert torch.equal(ours.roll(-2, 0), wanted)
