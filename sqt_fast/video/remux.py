"""Write a segment's packets as a file of their own, in memory: what a GPU's decoder is given."""

import io

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import Segment


def remux(reader: PacketReader, segment: Segment, *, uncropped: tuple[int, int] | None = None) -> bytes:
    """Return the packets of ``segment`` as a file of their own: WebM for VP8, MP4 for all else.

    No edit list, times from 0. One packet is one frame of it, in presentation order ``segment.indices`` are the wanted.
    uncropped: (height, width) as coded; H.264 and HEVC then say that all of it is to be shown, which lets NVDEC use a
    decoder again that it has (DALI compares what is shown with what is coded).
    """
    buffer = io.BytesIO()
    reader.forget()  # packets are changed on their way
    packets = reader.packets(segment)
    packet = next(packets, None)  # opens the file
    stream = reader.stream
    codec = stream.codec_context.codec.canonical_name
    with av.open(buffer, "w", format="webm" if codec == "vp8" else "mp4") as out:
        target = out.add_stream_from_template(stream, opaque=True)
        rewrite = None
        if uncropped is not None:
            crop = "crop_left=0:crop_right=0:crop_top=0:crop_bottom=0"
            rewrite = BitStreamFilterContext(f"{codec}_metadata={crop}", in_stream=stream, out_stream=target)
            target.codec_context.height, target.codec_context.width = uncropped
        first = None if packet is None else packet.dts if packet.dts is not None else packet.pts
        while packet is not None:
            packet.pts = None if packet.pts is None else packet.pts - (first or 0)
            packet.dts = None if packet.dts is None else packet.dts - (first or 0)
            for ready in [packet] if rewrite is None else rewrite.filter(packet):
                ready.stream = target
                out.mux(ready)
            packet = next(packets, None)
        for ready in [] if rewrite is None else rewrite.filter(None):
            ready.stream = target
            out.mux(ready)
    return buffer.getvalue()


def is_cropped_at_end(whole: bytes, cropped: bytes) -> bool:
    """Return whether the first picture of ``cropped`` is the upper left of that of ``whole``."""
    pictures = []
    for data in (whole, cropped):
        with av.open(io.BytesIO(data), "r") as container:
            frame = next(container.decode(video=0))
            pictures.append(np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(frame.height, -1))
            sample_bytes = frame.format.components[0].bits > 8
            width = frame.width << sample_bytes
    return bool((pictures[0][: len(pictures[1]), :width] == pictures[1][:, :width]).all())
