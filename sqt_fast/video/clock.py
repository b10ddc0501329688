"""Mend times: clocks that jump back, stand still or tell nothing, and pictures that share a time.

A picture is its packet, wherever that stands in the file; its time is a property. Where the clock steps back
(recordings joined into one file, recorders that start anew, counters that wrap), all times from there on are moved so
that the pictures go on one frame behind those before, as a player shows them. Pictures of one time are spread over what
it lasts. A jump ahead is left as it is: nothing was recorded meanwhile.
"""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sqt_fast.video.packets import NO_TIME
from sqt_fast.video.sampling import Float64, Int64

# Containers that can be joined byte by byte, or whose clock a recorder may set. Matroska has no decoding times.
CLOCKED_FORMATS = frozenset({"flv", "mpeg", "mpegts", "matroska,webm"})
# H.264 and HEVC reorder by at most 16: a recording's earliest picture is among so many packets, and of those before a
# packet no more are shown behind it.
MAX_REORDER = 16
# A clock that steps back more often than once in so many packets tells nothing.
PACKETS_A_STEP = 16
# Pictures of a stream that reorders may share times up to this share: beyond it, times do not tell their order.
MAX_SHARED = 0.1


@dataclass(frozen=True)
class Clock:
    """The mended times of a stream's packets, and where its clock was found to jump.

    pts, dts: (P,) int64 stream ticks, NO_TIME where there is none. back: ranks of packets at which it jumps back.
    ahead: ranks at which it jumps ahead, by more than the pictures before it take together with a second.
    tells_nothing: it steps back again and again, as random times do, not recordings.
    """

    pts: Int64
    dts: Int64
    back: Int64
    ahead: Int64
    tells_nothing: bool = False

    def explains(self, rank: int, within: int = 3) -> bool:
        """Whether what FFmpeg calls a cut-off packet is only the last one before a jump."""
        jumps = np.concatenate((self.back, self.ahead))
        return bool(((jumps >= rank) & (jumps <= rank + within)).any())


def mend(pts: Int64, dts: Int64, ticks_a_second: float, *, has_dts: bool = True) -> Clock:
    """Find the jumps of a clock and mend those that go back. pts, dts: (P,) int64, NO_TIME where there is none.

    has_dts: decoding times are the file's, not FFmpeg's guess from presentation times.
    """
    known = np.flatnonzero(dts != NO_TIME)
    steps = np.diff(dts[known])
    back, ahead = known[1:][steps < 0], known[1:][steps > ticks_a_second]
    packets_a_step = PACKETS_A_STEP
    if not has_dts:
        back, packets_a_step = _steps_back(pts), packets_a_step + 2 * MAX_REORDER  # fewer of the steps are seen
    if not len(back):
        return Clock(pts, dts, back, ahead)
    tells_nothing = len(back) * packets_a_step > len(pts)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else 1
    pts, dts = pts.copy(), dts.copy()
    for start, end in pairwise([*back.tolist(), len(pts)]):
        last = pts[:start].max()
        first = pts[start : min(start + 2 * MAX_REORDER, end)]
        first = first[first != NO_TIME]
        if last == NO_TIME or not len(first):
            continue
        offset = last + usual - first.min()
        for column in (pts, dts):
            here = column[start:end]
            here[here != NO_TIME] += offset
    return Clock(pts, dts, back, ahead, tells_nothing)


def _steps_back(pts: Int64) -> Int64:
    """Return the ranks of packets that come too early to be reordered: they begin a recording of their own."""
    behind = MAX_REORDER + 1
    if (pts[behind:] >= np.maximum.accumulate(pts)[:-behind]).all():  # most files: at most MAX_REORDER overtake one
        return np.zeros(0, np.int64)
    back: list[int] = []
    latest: list[int] = []  # of the recording, a heap of MAX_REORDER + 1
    for rank, ticks in enumerate(pts.tolist()):
        if ticks == NO_TIME:
            continue
        if len(latest) <= MAX_REORDER:
            heapq.heappush(latest, ticks)
        elif ticks < latest[0]:
            back.append(rank)
            latest = [ticks]
        else:
            heapq.heappushpop(latest, ticks)
    return np.array(back, np.int64)


def shared(pts: Int64) -> int:
    """Return how many pictures share their time with one before."""
    return len(pts) - len(np.unique(pts))


def in_order(pts: Int64) -> tuple[Int64, Int64]:
    """Return presentation and decoding ticks that are all different: places in the order of ``pts``, then of the file.

    pts: (P,) int64, NO_TIME where there is none, which stays.
    """
    ranks = np.arange(len(pts), dtype=np.int64)
    places = np.empty_like(ranks)
    places[np.argsort(pts, kind="stable")] = ranks
    dts = ranks - (ranks - places).max(initial=0)
    return np.where(pts == NO_TIME, NO_TIME, places), dts


def spread(times_s: Float64, interval_s: float) -> Float64:
    """Spread times that are equal over the time up to the next, ``interval_s`` apart at most.

    times_s: (F,) float64, ascending. Returns them strictly ascending.
    """
    first = np.flatnonzero(np.append(True, np.diff(times_s) > 0))
    counts = np.diff(np.append(first, len(times_s)))
    room_s = np.append(np.diff(times_s[first]), np.inf) / counts
    within = np.arange(len(times_s)) - np.repeat(first, counts)
    spread_s: Float64 = times_s + within * np.repeat(np.minimum(room_s, interval_s), counts)
    return spread_s
