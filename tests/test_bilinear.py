"""Resizing in fixed point: the reference against OpenCV, the kernel against both, in every orientation."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.clips.colour import from_bt601, from_nvdec
from sqt_fast.clips.resize import upright
from sqt_fast.kernels.bilinear import bilinear, bilinear_reference
from sqt_fast.video.probe import Orientation
from tests.test_squeeze_host import noise

SIDES = st.integers(1, 400)
SIZES = {  # (H, W), (h, w)
    "down": ((60, 80), (24, 32)),
    "down by half": ((48, 64), (24, 32)),
    "up": ((20, 30), (46, 69)),
    "portrait": ((90, 51), (43, 24)),
    "odd": ((37, 53), (23, 33)),
    "more than a tile, not a multiple": ((33, 47), (31, 45)),
    "the right size already": ((24, 33), (24, 33)),
    "wider and lower": ((30, 20), (11, 50)),
    "from one pixel": ((1, 1), (5, 7)),
    "from one row": ((1, 40), (7, 17)),
    "from one column": ((40, 1), (17, 7)),
    "to one pixel": ((21, 34), (1, 1)),
}
ORIENTATIONS = [
    Orientation(0, transpose=transpose, flip_x=flip_x, flip_y=flip_y)
    for transpose in (False, True)
    for flip_x in (False, True)
    for flip_y in (False, True)
]
MATRICES = {
    "none": from_bt601(2),
    "BT.709": from_bt601(1),
    "BT.601 of a GPU": from_nvdec(2, full_range=False),
    "BT.2020 of a GPU": from_nvdec(9, full_range=True),
}


def opencv(frames: Tensor, size: tuple[int, int]) -> Tensor:
    images = [cv2.resize(f, size[::-1], interpolation=cv2.INTER_LINEAR) for f in frames.contiguous().numpy()]
    return torch.from_numpy(np.stack(images).reshape(len(frames), *size, 3))


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_reference_equals_opencv_at_any_size(height: int, width: int, new_height: int, new_width: int) -> None:
    frames = noise(1, height, width, 3)
    assert torch.equal(bilinear_reference(frames, (new_height, new_width)), opencv(frames, (new_height, new_width)))


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (576, 720), (240, 426), (1920, 1080), (512, 682)], ids=str)
def test_reference_equals_opencv_at_common_sizes(size: tuple[int, int]) -> None:
    frames = noise(1, *size, 3)
    for short_side in (224, 256):
        new = tuple(int(side * short_side / min(size) + 0.5) for side in size)
        assert torch.equal(bilinear_reference(frames, (new[0], new[1])), opencv(frames, (new[0], new[1])))


@pytest.mark.parametrize(("old", "new"), SIZES.values(), ids=SIZES)
def test_kernel_equals_opencv(old: tuple[int, int], new: tuple[int, int], kernel_device: str) -> None:
    frames = noise(2, *old, 3)
    images = bilinear(frames.to(kernel_device), new)
    assert images.is_contiguous()
    assert torch.equal(images.cpu(), opencv(frames, new))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("left", [False, True], ids=["centred", "left"])
@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_cropped_turned_and_put_right_before(
    orientation: Orientation, name: str, kernel_device: str, *, left: bool
) -> None:
    """In one pass, out of frames that are larger, the same as one after the other. left: where chroma lies."""
    matrix, new = MATRICES[name], (17, 29)
    decoded = noise(2, 44, 52, 3)
    shown = decoded[:, :40, :50]
    whole, axis = (shown.shape[1], shown.shape[2]), 2 if left else None
    truth = opencv(upright(bilinear_reference(shown, whole, matrix=matrix, chroma_axis=axis), orientation), new)
    options: dict[str, Any] = {"flip_x": orientation.flip_x, "flip_y": orientation.flip_y, "matrix": matrix}
    options["chroma_axis"] = 1 if left and orientation.transpose else axis
    for function, device in ((bilinear_reference, "cpu"), (bilinear, kernel_device)):
        there = decoded.to(device)[:, :40, :50]
        images = function(there.transpose(1, 2) if orientation.transpose else there, new, **options)
        assert torch.equal(images.cpu(), truth)
    assert (matrix is None) == torch.equal(bilinear_reference(shown, whole, matrix=matrix), shown)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_chroma_is_moved_as_the_formula_says(axis: int, side: int, kernel_device: str) -> None:
    """In floating point, rounded once. Where a byte is 0 or 255, colours stay where they are."""
    shape = (1, side, 6, 3) if axis == 1 else (1, 6, side, 3)
    frames = noise(*shape)
    levels = np.moveaxis(frames[0].numpy().astype(np.float64), axis - 1, 0)  # the axis first
    luma = levels @ [0.299, 0.587, 0.114]
    chroma = levels - luma[..., None]
    wanted = levels.copy()
    for x in range(side):
        other = min(max(x - 1 if x % 2 == 0 else x + 1, 0), side - 1)
        clipped = ((levels[[x, other]] % 255) == 0).any(axis=(0, -1))
        moved = (3 * chroma[x] - chroma[other]) / 2 if x % 2 == 0 else (chroma[x] + chroma[other]) / 2
        wanted[x] = np.where(clipped[:, None], levels[x], luma[x][:, None] + moved)
    wanted = np.moveaxis(wanted, 0, axis - 1).clip(0, 255)
    same = torch.eye(3, 4, dtype=torch.int32) * 65536
    for function, device in ((bilinear_reference, "cpu"), (bilinear, kernel_device)):
        images = function(frames.to(device), shape[1:3], matrix=same, chroma_axis=axis)
        assert np.abs(images[0].cpu().numpy() - wanted).max() <= 0.501


def test_colours_equal_exact_arithmetic(kernel_device: str) -> None:
    """Rounded once; where the byte is 0 or 255, nothing is added. Against integers of any size."""
    matrix = torch.tensor([[65536, 0, 0, -57068], [6000, 53000, 6536, 34707], [-9000, -20000, 131000, 900000]])
    levels = [0, 1, 2, 127, 128, 253, 254, 255]
    pixels = [(r, g, b) for r in levels for g in levels for b in levels]
    frames = torch.tensor(pixels, dtype=torch.uint8).view(1, 16, 32, 3)

    def exact(pixel: tuple[int, ...], row: list[int], own: int) -> int:
        level = sum(m * p for m, p in zip(row[:3], pixel, strict=True)) + row[3] * (0 < own < 255)
        return min(max(level + 32768 >> 16, 0), 255)

    wanted = [[exact(pixel, row, own) for row, own in zip(matrix.tolist(), pixel, strict=True)] for pixel in pixels]
    for function, device in ((bilinear_reference, "cpu"), (bilinear, kernel_device)):
        images = function(frames.to(device), (16, 32), matrix=matrix.int())
        assert images.cpu().view(-1, 3).tolist() == wanted


def test_no_frames(kernel_device: str) -> None:
    none = torch.empty((0, 8, 8, 3), dtype=torch.uint8)
    for images in (bilinear(none.to(kernel_device), (4, 4)), bilinear_reference(none, (4, 4))):
        assert images.shape == (0, 4, 4, 3)


@pytest.mark.parametrize(
    ("frames", "size", "message"),
    [
        (torch.zeros((8, 8, 3), dtype=torch.uint8), (4, 4), r"frames of shape \(8, 8, 3\)"),
        (torch.zeros((1, 8, 8, 4), dtype=torch.uint8), (4, 4), r"give \(F, H, W, 3\)"),
        (torch.zeros((1, 3, 8, 8), dtype=torch.uint8).permute(0, 2, 3, 1), (4, 4), "colours dense"),
        (torch.zeros((1, 0, 8, 3), dtype=torch.uint8), (4, 4), r"shape \(1, 0, 8, 3\)"),
        (torch.zeros((1, 8, 8, 3)), (4, 4), r"frames of torch.float32: give torch.uint8"),
        (torch.zeros((1, 8, 8, 3), dtype=torch.uint8), (0, 4), "a size of 0 x 4: give 1 x 1 or more"),
    ],
    ids=["three dimensions", "four colours", "planes", "no rows", "floats", "no size"],
)
def test_what_cannot_be_resized_is_refused(frames: Tensor, size: tuple[int, int], message: str) -> None:
    for function in (bilinear, bilinear_reference):
        with pytest.raises(ValueError, match=message):
            function(frames, size)
