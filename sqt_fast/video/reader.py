"""Fetch the packets of a segment from its file, reading or seeking whichever is shorter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, TypeAlias

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from sqt_fast.video.archive import VideoFile
from sqt_fast.video.container import demux, open_video
from sqt_fast.video.packets import NO_TIME, RANDOM_ACCESS
from sqt_fast.video.probe import Probe, Source
from sqt_fast.video.scan import open_to_probe, probe_stream
from sqt_fast.video.segments import Segment

# Reading on costs 6 us a packet, seeking 0.1 to 1 ms and what is read again from the start that it finds.
NEAR_PACKETS = 256

# A file so small is read once: its packets stay in memory from probe to decoding.
KEPT_BYTES = 16 << 20

Packet: TypeAlias = "av.Packet[Any]"


def _ticks(value: int) -> int | None:
    return None if value == NO_TIME else int(value)


class _Kept:
    """The packets of a small file, so that it is read once. packets: None when it is not small."""

    def __init__(self, progress: Callable[[], None]) -> None:
        self.progress = progress
        self.packets: list[Packet] | None = []
        self.size_bytes = 0

    def add(self, packet: Packet) -> None:
        self.progress()
        self.size_bytes += packet.size
        if self.size_bytes > KEPT_BYTES:
            self.packets = None
        if self.packets is not None:
            self.packets.append(packet)


class _Probed(NamedTuple):
    """An open file whose packets have all been read. kept: see ``_Kept``."""

    files: ExitStack
    container: InputContainer
    stream: VideoStream
    kept: list[Packet] | None


class PacketReader:
    """One open file. Segments are asked for in any order; those that follow one another cost no seek."""

    container: InputContainer
    stream: VideoStream
    _kept: list[Packet] | None  # all packets of a small file that was probed
    _next: Iterator[Packet]
    _rank: int | None  # of the packet that comes next; None: not known

    def __init__(
        self,
        source: Source,
        *,
        num_threads: int = 1,
        progress: Callable[[], None] = lambda: None,
        probed: "_Probed | None" = None,
    ) -> None:
        self.source, self.num_threads, self.progress = source, num_threads, progress
        self.packets_read = 0
        self._rank_of_last = -1
        self._last_start = -1
        self._files = ExitStack()
        if probed is None:
            self._open()
        else:
            self._files, self.container, self.stream, self._kept = probed
            self._next, self._rank = iter(()), None  # at its end

    @classmethod
    def probing(cls, video: VideoFile, progress: Callable[[], None] = lambda: None) -> "tuple[Probe, PacketReader]":
        """Probe ``video`` and go on with the open file: opening one takes as long as decoding some pictures.

        Raises VideoError.
        """
        kept = _Kept(progress)
        with ExitStack() as files:
            container, stream = files.enter_context(open_to_probe(video))
            facts = probe_stream(video.path, container, stream, kept.add)
            probed = _Probed(files.pop_all(), container, stream, kept.packets)
        reader = cls(facts.source, progress=progress, probed=probed)
        if not facts.packets.are(RANDOM_ACCESS)[0]:  # what came of the first packet may live on in the decoder
            reader._open()
        return facts, reader

    def __enter__(self) -> "PacketReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def _open(self) -> None:
        """Open the file at its start."""
        self._files.close()
        self._kept = None
        self.container, _ = self._files.enter_context(open_video(self.source.path))
        self.stream = self.container.streams[self.source.stream_index]  # type: ignore[assignment]
        self.stream.thread_type = "AUTO" if self.num_threads > 1 else "NONE"
        self.stream.codec_context.thread_count = self.num_threads
        self._next, self._rank = self._demux(), 0

    def forget(self) -> None:
        """Read packets from the file from now on, none that were kept."""
        self._kept = None

    def packets(self, segment: Segment) -> Iterator[Packet]:
        """Yield the packets of ``segment`` that are to be decoded.

        A segment recognised by rank gets it as its packets' presentation time, one with mended times gets those. Fewer
        packets come where reading fails, as it did for the probe. Raises VideoError when the file cannot be opened any
        more.
        """
        if segment.start <= self._last_start:  # back: the decoder must forget later headers
            self._open()
        self._last_start = segment.start
        for packet in self._all(segment):
            at = self._rank_of_last - segment.start
            if segment.keep[at]:
                if segment.by_rank:
                    packet.pts = packet.dts = self._rank_of_last
                elif segment.mended:
                    packet.pts, packet.dts = _ticks(segment.pts[at]), _ticks(segment.dts[at])
                yield packet
            if at + 1 == len(segment.keep):
                return

    def _all(self, segment: Segment) -> Iterator[Packet]:
        """Yield the packets from the start of ``segment`` on: those that were kept, or read again."""
        if self._kept is not None:
            for rank in range(segment.start, min(segment.end, len(self._kept))):
                self.packets_read += 1
                self._rank_of_last = rank
                yield self._kept[rank]
            return
        held = self._seek(segment)
        if held is None and (self._rank is None or self._rank > segment.start):
            self._open()
        yield from self._from(segment, held)

    def _from(self, segment: Segment, held: "Packet | None") -> Iterator[Packet]:
        """Yield the packets from the start of ``segment`` on, counting."""
        if held is not None:
            yield held
        while (packet := self._read()) is not None:
            if self._rank_of_last >= segment.start:
                yield packet

    def _seek(self, segment: Segment) -> "Packet | None":
        """Go to the start of ``segment`` if that is far and can be found; return its first packet if so."""
        near = self._rank is not None and self._rank <= segment.start <= self._rank + NEAR_PACKETS
        if near or segment.ticks is None or segment.by_rank or segment.mended:
            return None
        first = int(segment.pts[0]), int(segment.dts[0])
        for ticks in dict.fromkeys(t for t in first if t != NO_TIME):
            try:
                self.container.seek(ticks, stream=self.stream, backward=True)
            except av.error.FFmpegError:
                continue
            self._next, self._rank = self._demux(), None
            if (packet := self._find(*first)) is not None:
                self._rank_of_last, self._rank = segment.start, segment.start + 1
                return packet
        return None

    def _find(self, pts: int, dts: int) -> "Packet | None":
        """Read on to the packet of these times; None if it does not come before later ones."""
        while (packet := self._read()) is not None:
            if packet.pts == pts and (NO_TIME if packet.dts is None else packet.dts) == dts:
                return packet
            if packet.dts is not None and dts != NO_TIME and packet.dts > dts:
                return None
        return None

    def _read(self) -> "Packet | None":
        """Return the next packet that holds data, None at the end."""
        packet = next(self._next, None)
        if packet is None:
            self._rank = None  # FFmpeg may deliver more after an error; the probe stopped here
            return None
        self.packets_read += 1
        self.progress()
        if self._rank is not None:
            self._rank_of_last = self._rank
            self._rank += 1
        return packet

    def _demux(self) -> Iterator[Packet]:
        with suppress(av.error.FFmpegError):  # the probe stopped there too
            for packet in demux(self.container, self.stream):
                if packet.size:
                    yield packet
