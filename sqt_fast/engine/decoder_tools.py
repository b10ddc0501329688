"""What works inside a decoder's process: probing and decoding with FFmpeg, or what a test puts in its place."""

from collections.abc import Callable, Iterator
from typing import Protocol

from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport, Frames, NewBuffer
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import Segment


class Tools(Protocol):
    """What works inside the process. Tests put something else in its place."""

    def probe(self, video: VideoFile, progress: Callable[[], None]) -> tuple[Probe, PacketReader]:
        """Return what there is to know of ``video``, and the open file."""

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        """Decode ``segment`` into buffers."""


class CpuTools:
    """The real ones."""

    def probe(self, video: VideoFile, progress: Callable[[], None]) -> tuple[Probe, PacketReader]:
        return PacketReader.probing(video, progress)

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        return CpuDecoder(new_buffer).frames(reader, segment, report)


ToolsFactory = Callable[[], Tools]
