"""Clips by OpenCV: the same as by DALI's operators, which do it on a GPU, and as by the formulas in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sqt_fast.kernels.squeeze_host import squeeze_reference
from sqt_fast.pipelines.host_clips import changed, colour_matrix, squeezed

Frames = NDArray[np.uint8]
RNG = np.random.default_rng(0)
FRAMES: Frames = np.stack([np.kron(RNG.integers(0, 256, (9, 12, 3)), np.ones((5, 5, 1))) for _ in range(20)]).astype(
    np.uint8
)
ORDER = np.array([0, 1, 2, 2, 5, 7, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19], np.int32)
BOX = np.array([2.25, 7.5, 42.75, 51.0], np.float32)
SIZE = 32
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def by_dali(jitter: tuple[float, ...] | None, colours: NDArray[np.float32] | None, box: NDArray[np.float32]) -> Frames:
    """Return what DALI's operators make of the frames."""
    pytest.importorskip("nvidia.dali", reason="DALI's operators are compared: pip install 'sqt-fast[train]'")
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    with Pipeline(batch_size=1, num_threads=1, device_id=None) as pipeline:
        frames = fn.external_source(source=lambda: [FRAMES[ORDER]], layout="FHWC")
        start, end = box[:2].tolist(), box[2:].tolist()
        size = [SIZE, SIZE]
        frames = fn.resize(
            frames, size=size, roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR, antialias=False
        )
        if colours is not None:
            frames = fn.coord_transform(frames, M=colours.flatten().tolist(), dtype=types.UINT8)
        if jitter is not None:
            brightness, contrast, saturation, hue = jitter
            frames = fn.color_twist(frames, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        pipeline.set_outputs(frames)
    pipeline.build()
    result: Frames = np.array(pipeline.run()[0].at(0))
    return result


def by_opencv(
    jitter: tuple[float, ...] | None, colours: NDArray[np.float32] | None = None, box: NDArray[np.float32] = BOX
) -> Frames:
    twist = None if jitter is None else np.array(jitter, np.float32)
    return changed(FRAMES, ORDER, box, SIZE, colours=colours, jitter=twist)


def difference(one: Frames, other: Frames) -> Any:
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize(
    "box", [BOX, np.array([0, 0, 45, 60], np.float32), np.array([10.5, 20.5, 31.5, 41.5], np.float32)], ids=str
)
def test_crops_between_pixels_are_dalis(box: NDArray[np.float32]) -> None:
    away = difference(by_opencv(None, box=box), by_dali(None, None, box))
    assert away.max() <= 1  # where a value lies between two bytes
    assert (away > 0).mean() < 0.02


@pytest.mark.parametrize(
    "jitter",
    [NEUTRAL, (0.6, 1, 1, 0), (1.4, 1, 1, 0), (1, 0.5, 1, 0), (1, 1.5, 1, 0), (1, 1, 0, 0), (1, 1, 1.5, 0),
     (1, 1, 1, 30), (1, 1, 1, -36), (0.8, 1.2, 0.7, 20)],
    ids=str,
)  # fmt: skip
def test_colours_change_as_dalis_do(jitter: tuple[float, ...]) -> None:
    away = difference(by_opencv(jitter), by_dali(jitter, None, BOX))
    assert away.max() <= 2
    assert away.mean() < 0.3


def test_colours_are_mended_first() -> None:
    """In one matrix: what the first step would have cut off is not."""
    matrix = np.array([[1.1, -0.1, 0], [0.05, 0.9, 0.05], [0, 0.1, 0.9]], np.float32)
    jitter = (0.9, 0.8, 0.9, 10.0)
    away = difference(by_opencv(jitter, matrix), by_dali(jitter, matrix, BOX))
    assert away.mean() < 0.6
    assert difference(by_opencv(None, matrix), by_dali(None, matrix, BOX)).max() <= 1


@given(st.tuples(*[st.floats(0.5, 1.5)] * 3, st.floats(-180, 180)))
def test_the_matrix_by_its_parts(jitter: tuple[float, float, float, float]) -> None:
    """Grey stays grey, at brightness * (128 + contrast * (level - 128)); without saturation all colours are grey."""
    matrix = colour_matrix(np.array(jitter))
    for level in (0.0, 77.0, 255.0):
        np.testing.assert_allclose(
            matrix @ [level, level, level, 1], jitter[0] * (128 + jitter[1] * (level - 128)), atol=1e-9
        )
    faded = colour_matrix(np.array([*jitter[:2], 0.0, jitter[3]]))
    assert np.ptp(faded @ [200, 30, 90, 1]) < 1e-9
    turned_back = (
        colour_matrix(np.array([1, 1, 1, jitter[3]]))[:, :3] @ colour_matrix(np.array([1, 1, 1, -jitter[3]]))[:, :3]
    )
    np.testing.assert_allclose(turned_back, np.eye(3), atol=1e-12)


def test_nothing_asked_for_is_the_crop_alone() -> None:
    assert np.array_equal(by_opencv(NEUTRAL), by_opencv(None))


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.data())
def test_squeezing_is_the_references(num_clips: int, height: int, width: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    clips = rng.integers(0, 256, (num_clips, 16, height, width, 3), dtype=np.uint8)
    flips = data.draw(st.lists(st.integers(0, 1), min_size=num_clips, max_size=num_clips))
    batch = squeezed(list(clips), flips)
    assert (batch.shape, batch.dtype) == ((num_clips, 48, height, width), torch.float32)
    assert batch.is_contiguous()
    for result, clip, flip in zip(batch, clips, flips, strict=True):
        wanted = squeeze_reference(torch.from_numpy(clip), dtype=torch.float64)
        torch.testing.assert_close(result.double(), wanted.flip(2) if flip else wanted, rtol=0, atol=1e-6)
