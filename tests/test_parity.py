"""The measure: an error beside PyTorch's own, which tells rounding from mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network import parity
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.parity import MAX_RATIO, compare, drawn_clips, normalised, onnx_parity
from tests.exports import SIZE, ExportedOnce


def logits(seed: int = 0) -> Tensor:
    return torch.randn(8, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", parity.FLOORS, ids=str)
def test_what_rounds_as_pytorch_does_holds(dtype: torch.dtype) -> None:
    truth = logits()
    found = compare(truth.to(dtype), truth.to(dtype), truth, dtype)
    assert found.holds
    assert found.ratio <= 1
    assert (found.top1, found.clips) == (1.0, 8)
    assert found.cosine > 0.999


@pytest.mark.parametrize("dtype", parity.FLOORS, ids=str)
def test_errors_many_times_as_large_do_not_hold(dtype: torch.dtype) -> None:
    truth = logits()
    own_error = (truth.to(dtype).double() - truth).abs().mean()
    allowed = max(own_error.item(), parity.FLOORS[dtype] * truth.abs().max().item())
    for times, holds in ((0.9 * MAX_RATIO, True), (1.2 * MAX_RATIO, False)):
        found = compare(truth + times * allowed, truth.to(dtype), truth, dtype)
        assert found.ratio == pytest.approx(times)
        assert found.holds == holds


def test_a_network_that_is_worse_in_itself_is_given_more() -> None:
    truth = logits()
    noisy = truth + 0.1 * logits(1)
    assert compare(truth + 0.1 * logits(2), noisy, truth, torch.float32).holds
    assert not compare(truth + 0.1 * logits(2), truth, truth, torch.float32).holds


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_never_holds(value: float) -> None:
    wrong = logits()
    wrong[3, 2] = value
    found = compare(wrong, logits(), logits(), torch.float16)
    assert not found.holds
    assert str(found) == "NaN or infinity among the logits"
    json.dumps(found.as_dict(), allow_nan=False)


def test_logits_that_are_all_zero_can_be_compared() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert compare(zero, zero, zero, torch.float32).holds
    assert not compare(zero + 1e-9, zero, zero, torch.float32).holds


def test_other_classes_are_counted() -> None:
    truth = torch.eye(4, dtype=torch.float64)
    found = compare(truth[[0, 1, 3, 2]], truth, truth, torch.float32)
    assert (found.top1, found.cosine) == (0.5, 0.0)
    assert "same best class in 50% of 4 clips" in str(found)


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_are_the_same_every_time_and_each_is_another() -> None:
    clips = drawn_clips(3, 40)
    assert (clips.shape, clips.dtype) == ((3, 48, 40, 40), torch.uint8)
    assert torch.equal(clips, drawn_clips(3, 40))
    assert len({clip.numpy().tobytes() for clip in clips}) == 3
    assert not torch.equal(clips[0, 0], clips[0, 15]), "frames of a clip move"


def test_clips_are_normalised_by_colour() -> None:
    """Channel = colour x frames + frame; ImageNet's means and deviations, as mmaction2 has them."""
    clips = torch.full((1, 48, 2, 2), 124, dtype=torch.uint8)
    wanted = [(124 - mean) / std for mean, std in ((123.675, 58.395), (116.28, 57.12), (103.53, 57.375))]
    assert normalised(clips)[0, :, 0, 0].tolist() == pytest.approx([each for each in wanted for _ in range(16)])


# -- ONNX Runtime -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_network_holds(exported: ExportedOnce, precision: str) -> None:
    network, path = exported(precision)
    found = onnx_parity(exported.model, network.config, path, drawn_clips(3, SIZE))
    assert found is not None
    assert found.holds, str(found)
    assert found.own_error > 0


def test_one_that_takes_bytes_holds_at_an_odd_size(exported: ExportedOnce) -> None:
    """Feature maps of 36, 18, 9, 5 and 3 pixels."""
    network, path = exported("fp32", size=72, kind="uint8")
    found = onnx_parity(exported.model, network.config, path, drawn_clips(2, 72))
    assert found is not None
    assert found.holds, str(found)


def test_other_weights_do_not_hold(exported: ExportedOnce) -> None:
    """PyTorch's own error is the model's, not that of the network that was exported, whose mistakes it would share."""
    network, path = exported("fp32")
    other = SqueezeTime(exported.model.config).eval()
    other.load_state_dict(exported.model.state_dict())
    with torch.no_grad():
        other.get_submodule("fc").get_parameter("bias")[0] += 0.01
    clips = drawn_clips(2, SIZE)
    found = onnx_parity(other, network.config, path, clips)
    assert found is not None
    assert found.error == pytest.approx(0.01 / 7, rel=0.01)
    assert not found.holds


def test_bfloat16_is_not_run(exported: ExportedOnce) -> None:
    network, path = exported("bf16")
    assert onnx_parity(exported.model, network.config, path, drawn_clips(1, SIZE)) is None


def test_a_runtime_that_is_missing_or_fails_is_one_line(
    exported: ExportedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clips = exported("fp32")[0].config, drawn_clips(1, SIZE)
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(BackendError, match=r"^ONNX Runtime cannot run the exported network \(.*\)$") as caught:
        onnx_parity(exported.model, config, tmp_path / "x.onnx", clips)
    assert "\n" not in str(caught.value)
    found: Any = None
    monkeypatch.setattr(parity, "find_spec", lambda name: found)
    with pytest.raises(BackendError, match=r"onnxruntime is not installed \(pip install 'sqt-fast\[onnx\]'\)"):
        onnx_parity(exported.model, config, tmp_path / "x.onnx", clips)
