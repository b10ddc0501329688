"""Models for inference on any backend: the network's own numbers, in float32, whatever the precision inside."""

import pytest
import torch

from sqt_fast import load_model
from sqt_fast.errors import ConfigError
from sqt_fast.network.inference import InferenceModel
from sqt_fast.network.model import ModelConfig, SqueezeTime

SIZE = 32


@pytest.mark.parametrize("backend", ["eager", "triton"])
@torch.no_grad()
def test_load_model_with_a_backend(
    backend: str, tiny_weights: tuple[str, str], tiny_model: SqueezeTime, kernel_device: str
) -> None:
    model = load_model(tiny_weights[0], backend=backend, device=kernel_device)
    clips = torch.randn((1, 3, 16, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    logits, embeddings = model(clips)
    torch.testing.assert_close(logits.cpu(), tiny_model.logits(clips), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(embeddings.cpu(), tiny_model.embed(clips), rtol=1e-3, atol=1e-5)


def test_clips_may_be_squeezed_already(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((2, 3, 16, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.logits(clips.flatten(1, 2)), model.logits(clips))
    assert torch.equal(model.embed(clips), model(clips)[1])


def test_precision_is_the_models_inside_only(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager", precision="bf16")
    exact = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((1, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    assert model.logits(clips).dtype == torch.float32
    assert not torch.equal(model.logits(clips), exact.logits(clips))
    torch.testing.assert_close(model.logits(clips), exact.logits(clips), rtol=0.1, atol=0.05)


def test_what_there_is_not_is_named(tiny_model: SqueezeTime, tiny_weights: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="backend tensorflow: no such backend; choose one of eager, triton, compile"):
        load_model(tiny_weights[0], backend="tensorflow")
    with pytest.raises(ConfigError, match="precision fp8: no such precision; choose one of fp32, bf16, fp16"):
        load_model(tiny_weights[0], backend="eager", precision="fp8")
    backbone = SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        InferenceModel(backbone, "eager", device="cpu", precision="fp32")
    with pytest.raises(ValueError, match=r"clips of shape \(2, 3, 32, 32\): give \(B, 3, 16, H, W\)"):
        InferenceModel(tiny_model, "eager", device="cpu", precision="fp32").logits(torch.zeros(2, 3, 32, 32))
