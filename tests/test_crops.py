"""Where the network looks: the crops of mmaction2."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.clips.crops import centre, crop_corners


def mmaction_crops(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int, int, int]]:
    """Return (left, top, right, bottom) as CenterCrop and ThreeCrop of mmaction2 1.x compute them."""
    if num_crops == 1:
        left, top = (width - size) // 2, (height - size) // 2
        return [(left, top, left + size, top + size)]
    if size == height:
        w_step = (width - size) // 2
        offsets = [(0, 0), (2 * w_step, 0), (w_step, 0)]
    else:
        assert size == width
        h_step = (height - size) // 2
        offsets = [(0, 0), (0, 2 * h_step), (0, h_step)]
    return [(x, y, x + size, y + size) for x, y in offsets]


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        pytest.param(224, 298, [(0, 0), (0, 74), (0, 37)], id="landscape"),
        pytest.param(224, 299, [(0, 0), (0, 74), (0, 37)], id="landscape, odd rest"),
        pytest.param(298, 224, [(0, 0), (74, 0), (37, 0)], id="portrait"),
        pytest.param(224, 224, [(0, 0), (0, 0), (0, 0)], id="square"),
    ],
)
def test_three_crops(height: int, width: int, corners: list[tuple[int, int]]) -> None:
    assert crop_corners(height, width, 224, 3) == corners


@pytest.mark.parametrize(
    ("height", "width", "corner"),
    [((256), 340, (16, 58)), (341, 256, (58, 16)), (257, 256, (16, 16)), (224, 224, (0, 0)), (225, 299, (0, 37))],
)
def test_one_crop_is_the_centre(height: int, width: int, corner: tuple[int, int]) -> None:
    assert crop_corners(height, width, 224, 1) == [corner]


@given(longer=st.integers(0, 300), size=st.integers(1, 300), portrait=st.booleans())
def test_three_crops_are_mmaction2s(longer: int, size: int, portrait: bool) -> None:
    height, width = (size + longer, size) if portrait else (size, size + longer)
    ours = [(left, top, left + size, top + size) for top, left in crop_corners(height, width, size, 3)]
    assert ours == mmaction_crops(height, width, size, 3)


@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_the_centre_as_slices(height: int, width: int) -> None:
    size = min(height, width)
    ((left, top, right, bottom),) = mmaction_crops(height, width, size, 1)
    pixels = np.arange(height * width).reshape(height, width)
    assert np.array_equal(pixels[centre(height, width, size)], pixels[top:bottom, left:right])
