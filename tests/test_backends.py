"""Backends: the network's own numbers, whatever the neighbours in the batch, or one clear line why not."""

import importlib

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import ConfigError
from sqt_fast.network.backends import Backend, load_backend
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS

SIZE = 64
BATCH = 4


def eager(model: SqueezeTime, precision: str = "fp32") -> Backend:
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


def test_a_backbone_alone_is_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        eager(model)


def test_clips_of_another_length_are_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=3, input_channels=24))
    with pytest.raises(ConfigError, match="want 24 channels, clips have 48"):
        eager(model)
