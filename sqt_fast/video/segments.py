"""Which packets must be decoded for the wanted frames: runs that can be decoded by themselves, on any decoder.

A segment starts where decoding may start: an IDR picture of H.264, an IRAP of HEVC, a key frame elsewhere. Pictures
that follow such a start in the file but are shown before it (leading pictures) may refer to what came earlier; they
belong to the segment before, which then also decodes that start. Packets that nothing wanted depends on are left out,
and nothing is read past the last wanted one. Time and memory are linear in packets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqt_fast.video.bitstream import INTRA_CODECS
from sqt_fast.video.packets import DROPPABLE, NO_TIME, RANDOM_ACCESS, SHOWN, Packets
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import Int64

# A wanted frame costs memory, a start costs time: about 17 s of video at interval 4.
MAX_WANTED = 128
# A start that is found wrong may show that the one before it is.
MAX_ROUNDS = 64


@dataclass(frozen=True)
class Segment:
    """Packets to decode for some wanted frames.

    start: rank of the first packet in the file. pts, dts: (P,) int64 stream ticks of the packets from there on. keep:
    (P,) bool, which of them to decode. numbers: (F,) int64 wanted frame numbers, ascending. ticks: (F,) int64 their
    presentation times, None where the container's are not to be trusted: then every packet is decoded and frames are
    counted. by_rank: frames are recognised by the rank of their packet, for codecs without references. mended: the
    file's own times are others than pts and dts.
    """

    start: int
    pts: Int64
    dts: Int64
    keep: NDArray[np.bool_]
    numbers: Int64
    ticks: Int64 | None
    by_rank: bool = False
    mended: bool = False

    @property
    def end(self) -> int:
        """Rank after the last packet."""
        return self.start + len(self.keep)

    @property
    def num_kept(self) -> int:
        """How many packets are decoded."""
        return int(self.keep.sum())

    def whole(self) -> "Segment":
        """Return the segment with every packet that its pictures may depend on."""
        if self.by_rank:
            return self
        leading = (self.pts < self.pts[0]) & ~self.keep & (self.start > 0)
        return replace(self, keep=~leading)

    @property
    def indices(self) -> NDArray[np.int32]:
        """Return where the wanted frames are among the segment's, in presentation order: (F,) unique, ascending."""
        if self.ticks is None:
            return self.numbers.astype(np.int32)
        return np.searchsorted(np.sort(self.pts[self.keep]), self.ticks).astype(np.int32)


def plan_segments(facts: Probe, wanted: Int64, *, max_wanted: int = MAX_WANTED) -> list[Segment]:
    """Return the segments of a video in the order of the file.

    wanted: (F,) frame numbers, ascending, unique, in range. max_wanted: a segment with so many ends at the next start.
    """
    if not len(wanted):
        return []
    packets = facts.packets
    if facts.pts is None:
        if facts.codec in INTRA_CODECS or (facts.codec == "mjpeg" and packets.are(RANDOM_ACCESS).all()):
            ranks = np.flatnonzero(packets.are(SHOWN))
            return [_of_ranks(packets, ranks[wanted], wanted)]
        whole = np.ones(len(packets), np.bool_)
        return [Segment(0, packets.pts, packets.dts, whole, wanted, None)]
    if packets.are(RANDOM_ACCESS).all() and facts.codec != "hevc":  # HEVC's may count on from the one before
        segments = _cut_intra(packets, facts.pts, wanted, max_wanted)
        return [replace(segment, mended=facts.clock_jumped) for segment in segments]
    may_drop = packets.are(DROPPABLE)
    if facts.is_interlaced or facts.broken:  # a field goes only with its other; concealment takes what came before
        may_drop[:] = False
    segments = _cut(packets, facts.pts, wanted, may_drop, max_wanted)
    return [replace(segment, mended=facts.clock_jumped) for segment in segments]


def _of_ranks(packets: Packets, ranks: Int64, wanted: Int64) -> Segment:
    """Return the packets of ``ranks``, each of which is a frame."""
    start, end = int(ranks[0]), int(ranks[-1]) + 1
    keep = np.zeros(end - start, np.bool_)
    keep[ranks - start] = True
    return Segment(start, packets.pts[start:end], packets.dts[start:end], keep, wanted, ranks, by_rank=True)


def _cut_intra(packets: Packets, frame_pts: Int64, wanted: Int64, max_wanted: int) -> Iterator[Segment]:
    """Yield the segments of a stream of which every packet can be decoded by itself."""
    number = np.searchsorted(frame_pts, packets.pts)
    is_wanted = np.zeros(len(frame_pts) + 1, np.bool_)
    is_wanted[wanted] = True
    ranks = np.flatnonzero(packets.are(SHOWN) & is_wanted[number])
    for first in range(0, len(ranks), max_wanted):
        mine = ranks[first : first + max_wanted]
        here = slice(int(mine[0]), int(mine[-1]) + 1)
        keep = np.zeros(here.stop - here.start, np.bool_)
        keep[mine - here.start] = True
        ticks = np.unique(packets.pts[mine])
        yield Segment(here.start, packets.pts[here], packets.dts[here], keep, np.searchsorted(frame_pts, ticks), ticks)


def _cut(
    packets: Packets, frame_pts: Int64, wanted: Int64, may_drop: NDArray[np.bool_], max_wanted: int
) -> Iterator[Segment]:
    """Yield the segments of a stream whose times can be trusted."""
    pts = packets.pts
    starts, group = _groups(packets)
    leading = _leading(pts, starts, group)
    home = group - leading  # the group that a packet is decoded with
    number = np.searchsorted(frame_pts, pts)
    is_wanted = np.zeros(len(frame_pts), np.bool_)
    is_wanted[wanted] = True
    want = packets.are(SHOWN) & is_wanted[np.minimum(number, len(frame_pts) - 1)]
    per_group = np.bincount(home[want], minlength=len(starts))
    last_of_group = np.full(len(starts), -1)
    ranks = np.flatnonzero(want)
    np.maximum.at(last_of_group, home[ranks], ranks)
    for first, last in _runs(per_group, max_wanted):
        begin, end = int(starts[first]), int(last_of_group[first : last + 1].max()) + 1
        here = slice(begin, end)
        mine = want[here] & (home[here] >= first) & (home[here] <= last)
        keep = mine | (~may_drop[here] & ~(leading[here] & (home[here] < first)))
        ticks = np.unique(pts[here][mine])
        numbers = np.searchsorted(frame_pts, ticks)
        yield Segment(begin, pts[here], packets.dts[here], keep, numbers, ticks)


def _groups(packets: Packets) -> tuple[Int64, Int64]:
    """Return (G,) ranks where decoding may start, the first packet always, and (P,) the group of each packet.

    A start whose leading pictures do not all come right after it has times that are wrong: it is no start.
    """
    is_start = packets.are(RANDOM_ACCESS) & (packets.pts != NO_TIME)
    if len(is_start):
        is_start[0] = True
    starts = np.flatnonzero(is_start)
    for _ in range(MAX_ROUNDS):
        group = np.cumsum(is_start) - 1
        leading = _leading(packets.pts, starts, group)
        after_leading = np.flatnonzero(~leading & ~is_start)
        first_trailing = np.full(len(starts), len(packets))
        np.minimum.at(first_trailing, group[after_leading], after_leading)
        strays = leading & (np.arange(len(packets)) > first_trailing[group])
        bad = np.setdiff1d(np.unique(group[strays]), [0])
        if not len(bad):
            return starts, group
        is_start[starts[bad]] = False
        starts = np.delete(starts, bad)
    return starts[:1], np.zeros_like(group)  # times that step back again and again tell nothing


def _leading(pts: Int64, starts: Int64, group: Int64) -> NDArray[np.bool_]:
    """Return (P,) bool: shown before the start that they follow. What leads the file has no segment before."""
    leading: NDArray[np.bool_] = (pts < pts[starts][group]) & (group > 0)
    return leading


def _runs(per_group: NDArray[np.int64], max_wanted: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) group of each segment: neighbours that all hold wanted frames, not too many of them."""
    first, count = -1, 0
    for i, wanted in enumerate(per_group.tolist()):
        if first >= 0 and (not wanted or count >= max_wanted):
            yield first, i - 1
            first, count = -1, 0
        if wanted:
            first = i if first < 0 else first
            count += wanted
    if first >= 0:
        yield first, len(per_group) - 1
