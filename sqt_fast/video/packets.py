"""The packets of a video stream as columns: all that planning needs to know, a few bytes a packet."""

from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqt_fast.video.sampling import Int64

NO_TIME = -(2**63)  # FFmpeg's AV_NOPTS_VALUE

RANDOM_ACCESS = 1
DROPPABLE = 2
SHOWN = 4
NEW_HEADERS = 8


class PacketKind(NamedTuple):
    """What a planner may rely on; the defaults claim nothing.

    random_access: decoding may begin here; every later picture comes out as if it had begun before (but for those
    that are shown before this one). droppable: without this packet every other picture is the same to the bit. shown:
    the pictures that come out of it, 0 where it only holds hidden ones. layer: temporal layer; a packet can be left
    out only in the highest of its stream. headers: a number that changes with the headers (size, format) that the
    packet carries, 0 where it carries none. hides: it holds several pictures, some of which are only referred to.
    """

    random_access: bool = False
    droppable: bool = False
    shown: int = 1
    layer: int = 0
    headers: int = 0
    hides: bool = False


@dataclass(frozen=True)
class Packets:
    """One stream's packets in the order of the file, which is that of decoding.

    pts, dts: (P,) int64 stream ticks, NO_TIME where there is none. size: (P,) int32 bytes. flags: (P,) uint8, a sum of
    RANDOM_ACCESS (decoding may start here), DROPPABLE (no other picture refers to it), SHOWN (a player shows it: it is
    neither hidden nor cut off by an edit list) and NEW_HEADERS (size or format may change here).
    """

    pts: Int64
    dts: Int64
    size: NDArray[np.int32]
    flags: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pts)

    def are(self, flag: int) -> NDArray[np.bool_]:
        """Return (P,) bool: whether each packet has ``flag``."""
        has: NDArray[np.bool_] = (self.flags & flag) != 0
        return has


class PacketColumns:
    """Packets as they are read, 21 bytes each."""

    def __init__(self) -> None:
        self.pts, self.dts, self.size = array("q"), array("q"), array("i")
        self.flags, self.layer = array("B"), array("B")
        self.headers: int | None = None

    def __len__(self) -> int:
        return len(self.pts)

    def add(self, pts: int | None, dts: int | None, size: int, kind: PacketKind, *, discarded: bool) -> None:
        """Take the next packet. discarded: an edit list cuts it off."""
        flags = RANDOM_ACCESS * kind.random_access + DROPPABLE * kind.droppable
        flags += SHOWN * (kind.shown > 0 and not discarded)
        if kind.headers:
            flags += NEW_HEADERS * (self.headers not in (None, kind.headers))
            self.headers = kind.headers
        self.pts.append(NO_TIME if pts is None else pts)
        self.dts.append(NO_TIME if dts is None else dts)
        self.size.append(size)
        self.flags.append(flags)
        self.layer.append(kind.layer)

    def finish(self) -> Packets:
        """Return the columns. Only in the highest temporal layer is a packet that nothing refers to left out."""
        flags, layer = np.array(self.flags, np.uint8), np.array(self.layer, np.uint8)
        if len(layer):
            flags[layer < layer.max()] &= ~np.uint8(DROPPABLE)
        return Packets(np.array(self.pts, np.int64), np.array(self.dts, np.int64), np.array(self.size, np.int32), flags)
