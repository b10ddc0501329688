"""Whether a file ends where its container says: FFmpeg stops without a word where bytes are missing."""

import os
import re

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from sqt_fast.video.matroska import walk

JOINED = "another {} file is joined behind this one, which FFmpeg does not read: cut them apart"
TS_PACKET_SIZES = (188, 192, 204)
FLV_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09")  # of version 1, with sound, video, or both
FLV_TAGS = (8, 9, 18)  # sound, pictures, data
JOIN_BYTES = 1 << 20  # behind the last picture, where sound may follow before the second file


def why_cut_off(container: InputContainer, stream: VideoStream, packets_read: int, end: int) -> str | None:
    """Return why a file that has been read to its end holds less than it should, None if it does not.

    end: of the last packet, in bytes from the start of the file.
    """
    kind, size = container.format.name, container.size
    if "matroska" in kind:
        return _why_matroska_is_cut_off(container.name, end)
    if kind == "mpegts" and size > 0 and all(size % n for n in TS_PACKET_SIZES):
        return "the file is cut off inside a transport packet"
    if kind == "flv":
        return _why_flv_is_cut_off(container.name, end)
    if kind == "avi" and _ends_inside_movi(container.name, size):
        return "the file is cut off: it ends inside the list of its pictures"
    if not kind.startswith("mov"):
        return None
    if _last_ftyp(container.name, size) >= end:
        return JOINED.format("MP4")
    entries = stream.index_entries
    if not entries or entries[-1].pos + entries[-1].size <= size:
        return None
    return f"the file is cut off: its index names {len(entries)} pictures, it holds {packets_read}"


def _why_matroska_is_cut_off(path: str, end: int) -> str | None:
    is_cut_off, last_header = walk(path)
    if last_header >= end:
        return JOINED.format("Matroska")
    return "the file is cut off: it ends inside a block" if is_cut_off else None


def _last_ftyp(path: str, size: int) -> int:
    """Return where the last file begins of those that are joined in an MP4: 0 if it is one (ISO 14496-12, 4.2)."""
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        begins = at = 0
        while at < size:
            file.seek(at)
            header = file.read(16)
            begins = at if header[4:8] == b"ftyp" else begins
            length = int.from_bytes(header[:4])
            length = int.from_bytes(header[8:]) if length == 1 else length
            at = at + length if length >= 8 else size  # 0: to the end of the file
    return begins


def _why_flv_is_cut_off(path: str, end: int) -> str | None:
    """Look at the tags behind the last packet. A second file there is skipped as a tag of 5 MB."""
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        file.seek(end)
        rest = file.read(JOIN_BYTES)
        if FLV_HEADER.search(rest):
            return JOINED.format("FLV")
        at, size = 4, os.fstat(file.fileno()).st_size - end
    while at + 4 <= len(rest) and rest[at] in FLV_TAGS:
        at += 11 + int.from_bytes(rest[at + 1 : at + 4]) + 4
    return "the file is cut off inside a tag" if at > size else None


def _ends_inside_movi(path: str, size: int) -> bool:
    """Whether an AVI's list of pictures goes on behind the end of the file. Larger files than 1 GB hold several."""
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        at = 12
        while at < size:
            file.seek(at)
            header = file.read(12)
            end = at + 8 + int.from_bytes(header[4:8], "little")
            if header[:4] == b"LIST" and header[8:] == b"movi":
                return end > size
            at = end + end % 2
    return False


def promised_end_s(container: InputContainer, stream: VideoStream, *, is_broken: bool) -> float | None:
    """Return when the video should end, in seconds from the start of the file, None if nothing says so.

    Matroska and FLV are asked always, MP4 where something was cut off. Audio may be longer than the video: beside it,
    only what a Matroska track is tagged with counts, unless the file is broken.
    """
    kind, start_s = container.format.name, (container.start_time or 0) / av.time_base
    if is_broken and kind.startswith("mov") and stream.duration:
        return ((stream.start_time or 0) + stream.duration) * float(stream.time_base or 0) - start_s
    has_sound = any(s.type == "audio" for s in container.streams)
    may_say = "matroska" in kind or (kind == "flv" and (is_broken or not has_sound))
    if not container.duration or not may_say:
        return None
    end_s = container.duration / av.time_base
    if "matroska" in kind and has_sound:
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
        if clock is not None:
            end_s = min(end_s, int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]))
        elif not is_broken:
            return None
    return end_s - start_s
