"""A segment on its way: what it checks, and what it says of memory."""

import numpy as np
import pytest

from sqt_fast.pipelines.sample import SegmentSample


def test_memory_is_that_of_the_wanted_frames_and_of_those_in_order() -> None:
    sample = SegmentSample(b"", np.array([1, 5], np.int32), (48, 64))
    assert sample.size_bytes == (2 * 2 + 8) * 48 * 64 * 3


@pytest.mark.parametrize("indices", [[], [3, 3], [4, 2], [-1, 2]])
def test_indices_ascend(indices: list[int]) -> None:
    with pytest.raises(AssertionError):
        SegmentSample(b"", np.array(indices, np.int32), (48, 64))
