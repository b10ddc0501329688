"""The whole network on the kernels, against PyTorch's own run of the same folded network."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sqt_fast.errors import BackendError
from sqt_fast.kernels.launch import dtype_name
from sqt_fast.network import fused
from sqt_fast.network import model as model_module
from sqt_fast.network.eager import LogitsAndEmbeddings
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import ModelConfig, SqueezeTime
from tests.accuracy import FLOOR, assert_error_at_most_twice, products_alike, without_tf32

AVA = (1, 2, 2, 1)


def trained(config: ModelConfig) -> SqueezeTime:
    """Return a network with random weights, whose batch norms have the statistics of no fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SqueezeTime(config).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1)
                nn.init.normal_(module.bias, std=0.1)
    return model


def noise(batch: int, height: int, width: int) -> Tensor:
    """Return clips (B, 48, H, W), channels last."""
    clips = torch.randn((batch, 48, height, width), generator=torch.Generator().manual_seed(batch + height + width))
    return clips.to(memory_format=torch.channels_last)


@torch.no_grad()
def assert_equals_eager(device: str, model: SqueezeTime, dtype: torch.dtype, *batches: Tensor) -> None:
    """Check logits and embeddings of batches, float32, in ``dtype``."""
    model = model.to(device)
    network, eager = FusedNetwork(model, device=device, dtype=dtype), LogitsAndEmbeddings(model).to(dtype)
    exact = copy.deepcopy(model).double()
    for clips in (batch.to(device) for batch in batches):
        embeddings = exact.embed(clips.double())
        truth = exact.classify(embeddings), embeddings
        with without_tf32():
            own = eager(clips.to(dtype))
        for part, eager_part, true_part in zip(network(clips.to(dtype)), own, truth, strict=True):
            assert part.is_contiguous()
            assert_error_at_most_twice(part, eager_part, true_part, floor=FLOOR[dtype])


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A network of five bottlenecks: quick, and every kind of block is there."""
    monkeypatch.setitem(model_module.DEPTHS, 50, (True, (2, 1, 1, 1)))
    return ModelConfig(depth=50, width=0.25, num_classes=10)


# depth, dtype, height and width of clips, spatial stride: every map of odd sizes somewhere
CASES = {
    "50 fp32": (50, torch.float32, (48, 48), (1, 2, 2, 2)),
    "50 bf16 oblong": (50, torch.bfloat16, (36, 56), (1, 2, 2, 2)),
    "18 fp16 oblong": (18, torch.float16, (56, 36), (1, 2, 2, 2)),
    "10 fp32 AVA": (10, torch.float32, (44, 36), AVA),
    "10 bf16": (10, torch.bfloat16, (48, 48), (1, 2, 2, 2)),
}


@pytest.mark.parametrize(("depth", "dtype", "size", "stride"), CASES.values(), ids=CASES)
def test_equals_eager(
    kernel_device: str, depth: int, dtype: torch.dtype, size: tuple[int, int], stride: tuple[int, int, int, int]
) -> None:
    model = trained(ModelConfig(depth=depth, width=0.25, num_classes=10, spatial_stride=stride))
    assert_equals_eager(kernel_device, model, dtype, noise(1, *size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_wide_blocks_close_in_a_kernel_of_their_own(
    kernel_device: str, shallow: ModelConfig, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(fused, "can_close", lambda columns, dtype: False)
    model = trained(dataclasses.replace(shallow, spatial_stride=AVA))
    assert_equals_eager(kernel_device, model, dtype, noise(2, 44, 36))


def test_position_embeddings_as_they_are_and_stretched(kernel_device: str, shallow: ModelConfig) -> None:
    """One network sees clips of the size that its embeddings are made for, and of others with as many pixels."""
    model = trained(dataclasses.replace(shallow, pos_dim=(10, 5, 2, 1)))
    assert_equals_eager(
        kernel_device, model, torch.bfloat16, *(noise(1, *size) for size in ((40, 40), (32, 50), (50, 32)))
    )


@pytest.mark.parametrize("depth", [10, 50], ids=["basic", "bottleneck"])
@products_alike()
def test_a_clip_is_the_same_in_any_company(kernel_device: str, shallow: ModelConfig, depth: int) -> None:
    """Up to rounding: PyTorch sums in another order in batches of other sizes. Runs have batches of one size."""
    model = trained(dataclasses.replace(shallow, depth=depth))
    network = FusedNetwork(model, device=kernel_device, dtype=torch.bfloat16)
    clips = noise(2, 36, 32).to(kernel_device, torch.bfloat16)
    with torch.no_grad():
        together, alone = network(clips), network(clips[1:])
    for part, whole in zip(alone, together, strict=True):
        torch.testing.assert_close(part, whole[1:], rtol=0, atol=FLOOR[torch.bfloat16] * whole.abs().max().item())


def test_no_clips_at_all(kernel_device: str, shallow: ModelConfig) -> None:
    network = FusedNetwork(trained(shallow), device=kernel_device, dtype=torch.float32)
    logits, embeddings = network(torch.zeros(0, 48, 40, 40, device=kernel_device))
    assert logits.shape == (0, 10)
    assert embeddings.shape == (0, 512)


def test_the_network_given_is_left_alone(shallow: ModelConfig) -> None:
    model = trained(shallow).train()
    before = copy.deepcopy(model.state_dict())
    network = FusedNetwork(model, device="cpu", dtype=torch.bfloat16)
    network.fc_weight.fill_(7)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (ModelConfig(depth=10, width=1 / 8, num_classes=3), 8),
        (ModelConfig(depth=50, width=0.3, num_classes=3), 19),
        (ModelConfig(depth=10, width=0.25, num_classes=3, input_channels=24), 24),
    ],
    ids=["narrow", "odd", "eight frames"],
)
def test_widths_that_the_kernels_cannot_run(config: ModelConfig, channels: int) -> None:
    with pytest.raises(BackendError) as caught:
        FusedNetwork(SqueezeTime(config), device="cpu", dtype=torch.float32)
    assert "multiples of 16 channels" in str(caught.value)
    assert f"this network has {channels};" in str(caught.value)


def test_golden_weights(kernel_device: str, shared: Path) -> None:
    """Weights of the release's form, on a piece of a clip that it has seen."""
    pytest.importorskip("safetensors", reason="weights are read with it")
    from sqt_fast.network.weights import load_weights

    model = load_weights(str(shared / "golden" / "r50_w025.pth")).model
    clips = torch.from_numpy(np.load(shared / "golden" / "demo_clips.npz")["small_input"]).flatten(1, 2)
    assert_equals_eager(kernel_device, model, torch.bfloat16, clips[:1, :, 30:70, 20:68])
