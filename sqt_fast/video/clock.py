"""Mend clocks that jump back: recordings joined into one file, recorders that start anew, counters that wrap.

A picture is its packet, wherever that stands in the file; its time is a property. Where decoding times step back, all
times from there on are moved so that the pictures go on one frame behind those before, as a player shows them. A jump
ahead is left as it is: nothing was recorded meanwhile.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sqt_fast.video.packets import NO_TIME
from sqt_fast.video.sampling import Int64

# Containers that can be joined byte by byte, or whose clock a recorder may set: elsewhere an index holds the times.
CLOCKED_FORMATS = frozenset({"flv", "mpeg", "mpegts"})
# A recording's first packets, among which its earliest picture is; H.264 reorders by at most 16.
FIRST_PACKETS = 32
FALLBACK_STEP = 1


@dataclass(frozen=True)
class Clock:
    """The mended times of a stream's packets, and where its clock was found to jump.

    pts, dts: (P,) int64 stream ticks, NO_TIME where there is none. back: ranks of packets at which it jumps back.
    ahead: ranks at which it jumps ahead, by more than the pictures before it take together with a second.
    """

    pts: Int64
    dts: Int64
    back: Int64
    ahead: Int64

    def explains(self, rank: int, within: int = 3) -> bool:
        """Whether what FFmpeg calls a cut-off packet is only the last one before a jump."""
        jumps = np.concatenate((self.back, self.ahead))
        return bool(((jumps >= rank) & (jumps <= rank + within)).any())


def mend(pts: Int64, dts: Int64, ticks_a_second: float) -> Clock:
    """Find the jumps of a clock and mend those that go back. pts, dts: (P,) int64, NO_TIME where there is none."""
    known = np.flatnonzero(dts != NO_TIME)
    steps = np.diff(dts[known])
    back, ahead = known[1:][steps < 0], known[1:][steps > ticks_a_second]
    if not len(back):
        return Clock(pts, dts, back, ahead)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else FALLBACK_STEP
    pts, dts = pts.copy(), dts.copy()
    for start, end in pairwise([*back.tolist(), len(pts)]):
        last = pts[:start].max()
        first = pts[start : min(start + FIRST_PACKETS, end)]
        first = first[first != NO_TIME]
        if last == NO_TIME or not len(first):
            continue
        offset = last + usual - first.min()
        for column in (pts, dts):
            here = column[start:end]
            here[here != NO_TIME] += offset
    return Clock(pts, dts, back, ahead)
