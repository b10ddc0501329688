"""Whether a file ends where its container says: FFmpeg stops without a word where bytes are missing."""

import re

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from sqt_fast.video.matroska import is_cut_off

TS_PACKET_SIZES = (188, 192, 204)
FLV_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09")  # of version 1, with sound, video, or both
JOIN_BYTES = 1 << 20  # behind the last picture, where sound may follow before the second file


def why_cut_off(container: InputContainer, stream: VideoStream, packets_read: int, end: int) -> str | None:
    """Return why a file that has been read to its end holds less than it should, None if it does not.

    end: of the last packet, in bytes from the start of the file.
    """
    kind, size = container.format.name, container.size
    if "matroska" in kind and is_cut_off(container.name):
        return "the file is cut off: it ends inside a block"
    if kind == "mpegts" and size > 0 and all(size % n for n in TS_PACKET_SIZES):
        return "the file is cut off inside a transport packet"
    if kind == "flv" and _holds_another_flv(container.name, end):
        return "another FLV file is joined behind this one, which FFmpeg does not read: cut them apart"
    entries = stream.index_entries
    if not entries or not kind.startswith("mov") or entries[-1].pos + entries[-1].size <= size:
        return None
    return f"the file is cut off: its index names {len(entries)} pictures, it holds {packets_read}"


def _holds_another_flv(path: str, end: int) -> bool:
    """Whether a second file begins behind the last packet: its header is skipped as a tag of 5 MB."""
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        file.seek(end)
        return FLV_HEADER.search(file.read(JOIN_BYTES)) is not None


def promised_end_s(container: InputContainer, stream: VideoStream, *, is_broken: bool) -> float | None:
    """Return when the video should end, in seconds from the start of the file, None if nothing says so.

    Matroska is asked always, FLV and MP4 where something was cut off. Audio may be longer than the video: beside it,
    only what the track is tagged with counts, unless the file is broken.
    """
    kind, start_s = container.format.name, (container.start_time or 0) / av.time_base
    if is_broken and kind.startswith("mov") and stream.duration:
        return ((stream.start_time or 0) + stream.duration) * float(stream.time_base or 0) - start_s
    may_say = "matroska" in kind or (is_broken and kind == "flv")
    if not container.duration or not may_say:
        return None
    end_s = container.duration / av.time_base
    if "matroska" in kind and any(s.type == "audio" for s in container.streams):
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
        if clock is not None:
            end_s = min(end_s, int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]))
        elif not is_broken:
            return None
    return end_s - start_s
