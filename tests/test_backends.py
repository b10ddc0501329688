"""Backends: the network's own numbers, whatever the neighbours in the batch, or one clear line why not."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast import load_model
from sqt_fast.errors import ConfigError
from sqt_fast.network.backends import InferenceModel, load_backend
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS

SIZE = 64
BATCH = 4


def eager(model: SqueezeTime, precision: str = "fp32") -> InferenceModel:
    return load_backend("eager", model, device="cpu", precision=precision, batch_size=BATCH, size=SIZE)


def test_every_name_can_be_imported() -> None:
    for record in BACKENDS.values():
        for target in (record.load, record.objection):
            module, _, name = (target or "sqt_fast.network.eager:eager_network").partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_bf16_is_near(tiny_model: SqueezeTime, network_clips: Tensor) -> None:
    backend = eager(tiny_model, "bf16")
    assert backend.dtype == torch.bfloat16
    logits, embeddings = backend.run(network_clips.bfloat16())
    assert logits.dtype == embeddings.dtype == torch.float32
    with torch.inference_mode():
        truth = tiny_model.double().logits(network_clips.double()).float()
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
    tiny_model: SqueezeTime, network_clips: Tensor, precision: str
) -> None:
    backend = eager(tiny_model, precision)
    network_clips = network_clips.to(backend.dtype)
    truth = backend.run(network_clips)
    for shift in range(1, BATCH):
        for ours, wanted in zip(backend.run(network_clips.roll(shift, 0)), truth, strict=True):
            assert torch.equal(ours.roll(-shift, 0), wanted)
    for neighbours in (0.0, 1e4, float("nan")):
        crowd = torch.full_like(network_clips, neighbours)
        crowd[2] = network_clips[0]
        for ours, wanted in zip(backend.run(crowd), truth, strict=True):
            assert torch.equal(ours[2], wanted[0])


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_odd_batches_are_near(tiny_model: SqueezeTime, batch_size: int) -> None:
    """Not the same bits: sigmoid rounds the tail otherwise where 16 channels x batch is no multiple of 32."""
    backend = load_backend("eager", tiny_model, device="cpu", precision="fp32", batch_size=batch_size, size=SIZE)
    clips = torch.randn((batch_size, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    for ours, wanted in zip(backend.run(clips.roll(1, 0)), backend.run(clips), strict=True):
        torch.testing.assert_close(ours.roll(-1, 0), wanted, rtol=1e-6, atol=1e-6)


def test_memory_format_does_not_matter(tiny_model: SqueezeTime, network_clips: Tensor) -> None:
    backend = eager(tiny_model)
    for ours, wanted in zip(
        backend.run(network_clips.contiguous(memory_format=torch.channels_last)),
        backend.run(network_clips),
        strict=True,
    ):
        assert torch.equal(ours, wanted)


def test_on_a_cpu_results_are_there_at_once(tiny_model: SqueezeTime, network_clips: Tensor) -> None:
    backend = eager(tiny_model)
    started = backend.start(network_clips)
    assert started.event is None
    for ours, wanted in zip(started.results(), backend(network_clips), strict=True):
        assert torch.equal(ours, wanted)


def test_on_a_gpu_results_are_waited_for_when_they_are_asked_for(
    tiny_model: SqueezeTime, network_clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the copies, which wait for nobody, on the network's stream; and nothing is given back before."""
    said: list[str] = []
    event = SimpleNamespace(record=said.append, synchronize=lambda: said.append("waited"))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"recorded on {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("all waited for"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("given back"))

    class There(Tensor):
        def to(self, *args: Any, **options: Any) -> Tensor:
            if args[0] != "cpu":
                return self
            said.append(f"copied to the CPU, {options}")
            return self.as_subclass(Tensor)

    backend = eager(tiny_model)
    backend.device = "cuda:1"
    del backend.network
    backend.network = lambda clips: (clips, clips)
    started = backend.start(network_clips.as_subclass(There))
    assert said == ["copied to the CPU, {'non_blocking': True}"] * 2 + ["recorded on cuda:1"]
    assert torch.equal(started.results()[0], network_clips)
    assert said[3:] == ["waited"]
    backend.release_memory()
    assert said[4:] == ["all waited for", "given back"]


def test_memory_is_lent_where_the_network_has_some(tiny_model: SqueezeTime) -> None:
    backend = eager(tiny_model)
    assert backend.input((BATCH, 48, SIZE, SIZE)) is None
    memory = torch.zeros(1)
    del backend.network
    backend.network = SimpleNamespace(input={(BATCH, 48, SIZE, SIZE): memory}.get)  # type: ignore[assignment]
    assert backend.input((BATCH, 48, SIZE, SIZE)) is memory
    assert backend.input((1, 48, SIZE, SIZE)) is None


def test_clips_in_lent_memory_reach_the_network_as_they_are(tiny_model: SqueezeTime) -> None:
    """A graph knows them by their memory; a copy on the way would cost what was saved."""
    backend, seen = eager(tiny_model), []

    def network(clips: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(clips)
        return clips, clips

    del backend.network
    backend.network = network
    memory = torch.zeros(BATCH, 48, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    backend(memory)
    assert seen[0].is_set_to(memory)


def test_a_backbone_alone_is_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        eager(model)


def test_clips_of_another_length_are_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=3, input_channels=24))
    with pytest.raises(ConfigError, match="want 24 channels, clips have 48"):
        eager(model)


# -- models for inference in Python programs: any backend, clips in, tensors out on the same device --------------------


@pytest.mark.parametrize("backend", ["eager", "triton"])
@torch.no_grad()
def test_load_model_with_a_backend(
    backend: str, tiny_weights: tuple[str, str], tiny_model: SqueezeTime, kernel_device: str
) -> None:
    model = load_model(tiny_weights[0], backend=backend, device=kernel_device)
    clips = torch.randn((1, 3, 16, 32, 32), generator=torch.Generator().manual_seed(2))
    logits, embeddings = model(clips)
    torch.testing.assert_close(logits.cpu(), tiny_model.logits(clips), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(embeddings.cpu(), tiny_model.embed(clips), rtol=1e-3, atol=1e-5)


def test_clips_may_be_squeezed_already(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((2, 3, 16, 32, 32), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.logits(clips.flatten(1, 2)), model.logits(clips))
    assert torch.equal(model.embed(clips), model(clips)[1])


def test_precision_is_the_models_inside_only(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager", precision="bf16")
    exact = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((1, 48, 32, 32), generator=torch.Generator().manual_seed(3))
    assert model.logits(clips).dtype == torch.float32
    assert not torch.equal(model.logits(clips), exact.logits(clips))
    torch.testing.assert_close(model.logits(clips), exact.logits(clips), rtol=0.1, atol=0.05)


def test_what_there_is_not_is_named(tiny_model: SqueezeTime, tiny_weights: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="backend tensorflow: no such backend; choose one of eager, triton, compile"):
        load_model(tiny_weights[0], backend="tensorflow")
    with pytest.raises(
        ConfigError, match="precision fp8: not one of backend eager's; use --backend tensorrt or tensorrt-rtx"
    ):
        load_model(tiny_weights[0], backend="eager", precision="fp8")
    with pytest.raises(ConfigError, match="precision fp4: no such precision; choose one of fp32, bf16, fp16"):
        load_model(tiny_weights[0], backend="eager", precision="fp4")
    backbone = SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        InferenceModel(backbone, "eager", device="cpu", precision="fp32")
    with pytest.raises(ValueError, match=r"clips of shape \(2, 3, 32, 32\): give \(B, 3, 16, H, W\)"):
        InferenceModel(tiny_model, "eager", device="cpu", precision="fp32").logits(torch.zeros(2, 3, 32, 32))
