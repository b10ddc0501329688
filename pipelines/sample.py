"""A segment on its way to be decoded: a value, which imports no DALI."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sqt_fast.video.probe import Orientation


@dataclass(frozen=True, eq=False)
class SegmentSample:
    """One segment to decode.

    data: a whole file in memory. indices: (F,) int32, places among the file's frames in presentation order, ascending,
    each once (DALI would decode from the start again). coded_size: (height, width) of the frames that the decoder
    writes, to plan memory. display_size: (height, width), what of them is shown, from the upper left corner; None for
    all. orientation: how they are then turned. colorspace: the matrix of ITU-T H.273 that their colours ask for;
    full_range: whether their luma goes from 0 to 255; left_chroma: whether their chroma lies on the left of its two
    pixels, not between them.
    """

    data: bytes | bytearray | memoryview | NDArray[np.uint8]
    indices: NDArray[np.int32]
    coded_size: tuple[int, int]
    display_size: tuple[int, int] | None = None
    orientation: Orientation = field(default_factory=Orientation)
    colorspace: int = 2
    full_range: bool = False
    left_chroma: bool = False

    def __post_init__(self) -> None:
        assert self.indices.dtype == np.int32
        assert len(self.indices) > 0
        assert (np.diff(self.indices, prepend=np.int32(-1)) > 0).all()

    @property
    def size_bytes(self) -> int:
        """About the device memory that decoding takes: RGB of the wanted frames, and DALI's 8 to reorder.

        Counted twice, for one batch may still be held by DALI when the next is decoded.
        """
        height, width = self.coded_size
        return (2 * len(self.indices) + 8) * height * width * 3
