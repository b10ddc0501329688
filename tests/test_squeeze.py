"""Squeezing time into channels, against the formula in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from sqt_fast.kernels.launch import executing
from sqt_fast.kernels.squeeze import DTYPES, squeeze, squeeze_clips_reference
from sqt_fast.kernels.squeeze_host import MEAN, STD, squeeze_reference
from tests.test_squeeze_host import noise


@dataclass(frozen=True)
class Clips:
    """What ``squeeze`` is given but for a dtype."""

    frames: Tensor
    index: Tensor
    corners: Tensor
    size: int
    flip: Tensor | None = None
    colour: Tensor | None = None

    def on(self, device: str) -> dict[str, Any]:
        """Return the arguments, tensors moved to ``device``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def clips(
    frames: tuple[int, int, int],
    index: list[list[int]],
    corners: list[tuple[int, int]],
    size: int,
    *,
    flip: list[bool] | None = None,
    colour: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> Clips:
    maps = torch.randn(len(index), 3, 4, generator=torch.Generator().manual_seed(5)) * 0.2 + torch.eye(3, 4)
    return Clips(
        noise(*frames, 3),
        torch.tensor(index, dtype=index_dtype),
        torch.tensor(corners, dtype=torch.int32),
        size,
        None if flip is None else torch.tensor(flip),
        maps if colour else None,
    )


def clips_formula(case: Clips) -> NDArray[np.float64]:
    """What ``squeeze`` should return, in float64, one image at a time."""
    batch, num_frames = case.index.shape
    out = np.full((batch, 3 * num_frames, case.size, case.size), np.nan)
    for b, t in np.ndindex(batch, num_frames):
        top, left = case.corners[b].tolist()
        image = case.frames[case.index[b, t]].numpy().astype(np.float64)
        image = image[top : top + case.size, left : left + case.size]
        if case.flip is not None and case.flip[b]:
            image = image[:, ::-1]
        if case.colour is not None:
            affine = case.colour[b].numpy().astype(np.float64)
            image = image @ affine[:, :3].T + affine[:, 3]
        for c in range(3):
            out[b, c * num_frames + t] = (image[:, :, c] - MEAN[c]) / STD[c]
    return out


def assert_rounded_once(found: Tensor, exact: NDArray[np.float64]) -> None:
    """Every value is the nearest of its dtype, as far as float32 can tell; one that was never written is NaN."""
    bits = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}[found.dtype]
    spacing = np.exp2(np.floor(np.log2(np.abs(exact) + 1e-30)) - bits)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (np.abs(found.double().cpu().numpy() - exact) <= 0.5 * spacing + 2e-6).all()


T16 = [3, 0, 0, 1, 2, 2, 2, 4, 4, 3, 1, 0, 4, 4, 4, 2]
KINDS = {
    "whole frames": clips((5, 6, 6), [T16], [(0, 0)], 6),
    "odd sizes, corners of the frame": clips((5, 9, 13), [T16] * 4, [(0, 0), (0, 6), (2, 0), (2, 6)], 7),
    "edges of the frame": clips((5, 8, 11), [T16] * 4, [(0, 3), (3, 0), (3, 6), (1, 6)], 5),
    "one pixel": clips((5, 3, 4), [T16, T16[::-1]], [(2, 3), (0, 0)], 1),
    "a frame of one pixel": clips((1, 1, 1), [[0]], [(0, 0)], 1),
    "one frame again and again": clips((1, 4, 5), [[0] * 16] * 2, [(0, 1), (0, 0)], 4),
    "few frames": clips((4, 5, 7), [[3, 1, 2], [0, 0, 3]], [(0, 2), (1, 0)], 4),
    "int32": clips((5, 5, 7), [T16], [(0, 2)], 5, index_dtype=torch.int32),
    "mirrored or not": clips((5, 9, 13), [T16] * 3, [(0, 0), (2, 6), (1, 3)], 7, flip=[True, False, True]),
    "colour": clips((5, 9, 13), [T16] * 2, [(0, 6), (2, 0)], 7, colour=True),
    "mirrored, colour, few frames": clips(
        (5, 6, 8), [[4, 1, 1, 0, 2]] * 2, [(0, 4), (2, 1)], 4, flip=[False, True], colour=True
    ),
    "more pixels than a tile": clips((2, 17, 19), [[1, 0] * 8], [(0, 2)], 17, flip=[True]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_the_kernel_equals_the_formula(case: Clips, dtype: torch.dtype, kernel_device: str) -> None:
    assert_rounded_once(squeeze(**case.on(kernel_device), dtype=dtype), clips_formula(case))


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_the_reference_equals_the_formula(case: Clips) -> None:
    found = squeeze_clips_reference(**case.on("cpu"), dtype=torch.float64)
    np.testing.assert_allclose(found.numpy(), clips_formula(case), rtol=1e-12, atol=1e-12)


def test_the_references_agree() -> None:
    frames = noise(5, 6, 6, 3)
    whole = squeeze_clips_reference(
        frames, torch.tensor([T16]), corners=torch.zeros(1, 2, dtype=torch.int32), size=6, dtype=torch.float32
    )
    assert torch.equal(whole[0], squeeze_reference(frames[T16]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_level_is_rounded_once(dtype: torch.dtype, kernel_device: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    case = Clips(levels, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int32), 16)
    assert_rounded_once(squeeze(**case.on(kernel_device), dtype=dtype), clips_formula(case))


@st.composite
def any_clips(draw: st.DrawFn) -> Clips:
    number, height, width = draw(st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)))
    size = draw(st.integers(1, min(height, width)))
    num_frames, batch = draw(st.integers(1, 16)), draw(st.integers(1, 3))

    def each(strategy: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(strategy, min_size=batch, max_size=batch))

    return clips(
        (number, height, width),
        each(st.lists(st.integers(0, number - 1), min_size=num_frames, max_size=num_frames)),
        each(st.tuples(st.integers(0, height - size), st.integers(0, width - size))),
        size,
        flip=draw(st.none() | st.just(each(st.booleans()))),
        colour=draw(st.booleans()),
        index_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
    )


@settings(max_examples=60, deadline=None)
@given(any_clips(), st.sampled_from([1, 5, 16, 80]))
def test_any_clips_in_any_tiles(kernel_device: str, case: Clips, block_m: int) -> None:
    with executing(lambda problem: problem.launch(problem.heuristic._replace(block_m=block_m))()):
        found = squeeze(**case.on(kernel_device), dtype=torch.float32)
    assert_rounded_once(found, clips_formula(case))


@contextmanager
def watched_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NDArray[np.uint64]]]:
    """Yield the addresses that the interpreter reads, as they come."""
    reads: list[NDArray[np.uint64]] = []
    load = InterpreterBuilder.create_masked_load

    def noted(self: Any, pointers: Any, mask: Any, *more: Any) -> Any:
        reads.append(pointers.data[mask.data])
        return load(self, pointers, mask, *more)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", noted)
        yield reads


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_clips(), st.integers(0, 17), st.sampled_from([5, 42, 80]))
def test_frames_at_any_address_are_read_and_nothing_beside_them(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch, case: Clips, offset: int, block_m: int
) -> None:
    """Views that begin and end anywhere in a larger tensor, so that chunks of 16 bytes reach over both ends."""
    size = case.frames.numel()
    memory = torch.full((offset + size + 17,), 255, dtype=torch.uint8, device=kernel_device)
    frames = memory[offset : offset + size].view(case.frames.shape)
    frames.copy_(case.frames)
    arguments = case.on(kernel_device) | {"frames": frames}
    with (
        watched_reads(monkeypatch) as reads,
        executing(lambda problem: problem.launch(problem.heuristic._replace(block_m=block_m))()),
    ):
        found = squeeze(**arguments, dtype=torch.float32)
    assert_rounded_once(found, clips_formula(case))
    if kernel_device == "cpu":
        places = np.concatenate([each.ravel() for each in reads]).astype(np.int64) - memory.data_ptr()
        near = places[(places >= 0) & (places < memory.numel())]
        assert near.min() >= offset
        assert near.max() < offset + size


def test_writes_into_out_and_nowhere_else(kernel_device: str) -> None:
    case = KINDS["mirrored or not"]
    memory = torch.full((5, 7, 7, 48), 9.0, device=kernel_device)
    out = memory[1:4].permute(0, 3, 1, 2)
    assert squeeze(**case.on(kernel_device), dtype=torch.float32, out=out) is out
    assert_rounded_once(out, clips_formula(case))
    assert (memory[[0, 4]] == 9).all()


def test_no_clips(kernel_device: str) -> None:
    empty = clips((2, 4, 4), [[0]], [(0, 0)], 3)
    empty = replace(empty, index=empty.index[:0], corners=empty.corners[:0])
    assert squeeze(**empty.on(kernel_device), dtype=torch.float16).shape == (0, 3, 3, 3)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "grey": ({"frames": noise(4, 6, 8, 1)}, r"frames of shape \(4, 6, 8, 1\): give \(F, H, W, 3\)"),
    "floats": ({"frames": noise(4, 6, 8, 3).float()}, "frames of torch.float32: give torch.uint8"),
    "a view": ({"frames": noise(4, 6, 9, 3)[:, :, :8]}, "frames with strides .*: call contiguous"),
    "17 frames": ({"index": torch.zeros(2, 17, dtype=torch.int64)}, r"index of shape \(2, 17\): give .* 1 to 16"),
    "index of floats": ({"index": torch.zeros(2, 3)}, "index of torch.float32: give torch.int32 or torch.int64"),
    "too large": ({"size": 7}, "crops of 7 from frames of 6 x 8: give 1 to 6"),
    "no size": ({"size": 0}, "crops of 0 from frames of 6 x 8: give 1 to 6"),
    "one corner": ({"corners": torch.zeros(1, 2, dtype=torch.int32)}, r"corners of shape \(1, 2\): give \(2, 2\)"),
    "long corners": ({"corners": torch.zeros(2, 2, dtype=torch.int64)}, "corners of torch.int64: give torch.int32"),
    "flip of bytes": ({"flip": torch.zeros(2, dtype=torch.uint8)}, "flip of torch.uint8: give torch.bool"),
    "no offset": ({"colour": torch.zeros(2, 3, 3)}, r"colour of shape \(2, 3, 3\): give \(2, 3, 4\)"),
    "double": ({"dtype": torch.float64}, "clips of torch.float64: give one of torch.float32, torch.float16"),
    "out too small": ({"out": torch.zeros(1, 9, 4, 4)}, r"out of shape \(1, 9, 4, 4\): give \(2, 9, 4, 4\)"),
    "out contiguous": ({"out": torch.zeros(2, 9, 4, 4)}, "out, channels last, with strides"),
    "elsewhere": ({"corners": torch.zeros(2, 2, dtype=torch.int32, device="meta")}, "corners on meta: move it to cpu"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    right = clips((4, 6, 8), [[0, 1, 2], [3, 2, 1]], [(0, 0), (1, 1)], 4).on("cpu") | {"dtype": torch.float32}
    with pytest.raises(ValueError, match=message):
        squeeze(**right | changed)


def test_too_much_for_32_bits_is_refused() -> None:
    frames = torch.empty(1, 30000, 30000, 3, dtype=torch.uint8, device="meta")
    index = torch.empty(1, 16, dtype=torch.int64, device="meta")
    corners = torch.empty(1, 2, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"frames of 30000 x 30000, crops of 7: .* under 2\^31"):
        squeeze(frames, index, corners=corners, size=7, dtype=torch.float16)
