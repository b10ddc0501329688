"""The network against the official release's numbers, names and shapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.errors import ConfigError
from sqt_fast.network.checkpoint import build, canonical_name, read_checkpoint
from sqt_fast.network.model import DEPTHS, ModelConfig, SqueezeTime

MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])
TINY = 1 / 32

# Allowed difference, as a part of the largest value. The release ran in float32, and its golden numbers are up to
# 6.3e-5 of the largest away from a float64 run of the same weights (torch 2.13, x86); ours in float32 may add as much.
# With the batch and the CPU kernels of that run, ours are the same bits.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


def golden_model(shared: Path, name: str, dtype: torch.dtype) -> SqueezeTime:
    path = shared / "golden" / f"{name}.pth"
    return build(read_checkpoint(path), source=path.name).to(dtype)


def golden(shared: Path, name: str) -> Any:
    return np.load(shared / "golden" / f"{name}.npz")


def demo_views(shared: Path, dtype: torch.dtype) -> Tensor:
    """Return the four views, (4, 3, 16, 224, 224), normalised in float32 as the release does."""
    clips = torch.from_numpy(golden(shared, "demo_clips")["clips"]).float()
    return ((clips - MEAN[:, None, None, None]) / STD[:, None, None, None]).to(dtype)


def assert_equals_release(got: Tensor, wanted: Any) -> None:
    wanted = torch.from_numpy(wanted).to(got.dtype)
    torch.testing.assert_close(got, wanted, atol=TOLERANCE[got.dtype] * wanted.abs().max().item(), rtol=0)


def tiny(**settings: Any) -> SqueezeTime:
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(**{"width": TINY, "num_classes": 5, "pos_dim": (8, 4, 2, 1), **settings})).eval()


@DTYPES
@pytest.mark.parametrize("name", ["r50_w025", "r18_w025"])
@torch.inference_mode()
def test_features_and_logits_equal_the_release(shared: Path, name: str, dtype: torch.dtype) -> None:
    model, wanted = golden_model(shared, name, dtype), golden(shared, name)
    features = model.features(demo_views(shared, dtype))
    assert_equals_release(features.mean(dim=(2, 3)), wanted["features_mean"])
    assert_equals_release(features[..., :2, :2], wanted["features_corner"])
    assert_equals_release(model.classify(features.mean(dim=(2, 3))), wanted["logits"])


@DTYPES
@pytest.mark.parametrize("name", ["r50_w025", "r18_w025"])
@torch.inference_mode()
def test_logits_of_a_small_oblong_clip_equal_the_release(shared: Path, name: str, dtype: torch.dtype) -> None:
    clips = torch.from_numpy(golden(shared, "demo_clips")["small_input"]).to(dtype)
    assert_equals_release(golden_model(shared, name, dtype)(clips), golden(shared, name)["small_logits"])


@DTYPES
@torch.inference_mode()
def test_ava_features_equal_the_release(shared: Path, dtype: torch.dtype) -> None:
    model, wanted = golden_model(shared, "ava_r50_w025", dtype), golden(shared, "ava_r50_w025")
    features = model.features(demo_views(shared, dtype)[:1])
    unsqueezed = features.reshape(1, -1, 16, *features.shape[2:])  # as for AVA's region head
    assert tuple(unsqueezed.shape) == tuple(wanted["shape"])
    assert_equals_release(unsqueezed.mean(dim=(3, 4)), wanted["out_mean"])
    assert_equals_release(unsqueezed[..., :2, :2], wanted["out_corner"])


def test_names_and_shapes_are_those_of_the_release(shared: Path) -> None:
    release = json.loads((shared / "golden" / "k400_r50_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in SqueezeTime().state_dict().items()}
    assert {canonical_name(name): shape for name, shape in release.items()} == ours
    assert len(ours) == len(release) == 757


def test_the_full_network_has_the_parameters_of_the_release() -> None:
    with torch.device("meta"):
        counts = {name: parameter.numel() for name, parameter in SqueezeTime().named_parameters()}
    head = sum(count for name, count in counts.items() if name.startswith("fc."))
    assert round(head / 1e6, 3) == 0.820
    assert round((sum(counts.values()) - head) / 1e6, 3) == 28.887


@pytest.mark.parametrize("depth", DEPTHS)
@torch.inference_mode()
def test_every_depth_runs(depth: int) -> None:
    model = tiny(depth=depth)
    logits = model(torch.randn(2, 3, 16, 32, 32))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    bottleneck, blocks = DEPTHS[depth]
    assert [len(model.get_submodule(f"layer{i}")._modules) for i in (1, 2, 3, 4)] == list(blocks)
    assert (
        model.config.feature_channels == model.embed(torch.zeros(1, 48, 32, 32)).shape[1] == (64 if bottleneck else 16)
    )


@torch.inference_mode()
def test_channel_is_colour_times_16_plus_frame() -> None:
    model, clips = tiny(depth=18), torch.randn(2, 3, 16, 32, 40)
    squeezed = torch.stack([clips[:, channel // 16, channel % 16] for channel in range(48)], dim=1)
    assert torch.equal(model(clips), model(squeezed))
    frames_first = clips.transpose(1, 2).flatten(1, 2)
    assert not torch.allclose(model(clips), model(frames_first))


@torch.inference_mode()
def test_a_non_contiguous_clip_gives_the_same() -> None:
    model, clips = tiny(depth=18), torch.randn(2, 16, 3, 32, 32)
    torch.testing.assert_close(model(clips.transpose(1, 2)), model(clips.transpose(1, 2).contiguous()))


@pytest.mark.parametrize(("height", "width"), [(29, 29), (33, 47), (64, 29)])
@torch.inference_mode()
def test_odd_input_sizes_run(height: int, width: int) -> None:
    assert tiny(depth=18)(torch.randn(1, 48, height, width)).isfinite().all()


@torch.inference_mode()
def test_29_pixels_are_the_fewest() -> None:
    """28 become 14, 7, 3, 1 and then none: the down-sampling takes whole 2x2 squares only."""
    with pytest.raises(RuntimeError, match="Kernel size"):
        tiny(depth=18)(torch.randn(1, 48, 28, 64))


@pytest.mark.parametrize("shape", [(1, 47, 32, 32), (3, 16, 32), (1, 3, 15, 32, 32), (1, 1, 3, 16, 32, 32)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"clips of shape .*give \(B, 3, 16, H, W\)"):
        tiny(depth=10)(torch.zeros(shape))


def test_a_backbone_alone_gives_features_and_says_why_no_logits() -> None:
    model = tiny(depth=10, num_classes=None)
    assert model.fc is None
    assert model.features(torch.zeros(1, 48, 32, 32)).shape == (1, 16, 1, 1)
    with pytest.raises(ConfigError, match="backbone alone"):
        model(torch.zeros(1, 48, 32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 49}, "depth 49.*choose one of 10, 18"),
        ({"width": 0.001}, "width 0.001"),
        ({"pos_dim": (56, 28, 14)}, "pos_dim"),
        ({"spatial_stride": (0, 2, 2, 2)}, "spatial_stride"),
        ({"num_classes": 0}, "num_classes 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


def test_train_and_eval_return_the_network_and_gradients_reach_every_parameter() -> None:
    model = tiny(depth=50)
    assert model.train() is model
    model(torch.randn(2, 48, 64, 64)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.eval() is model
