"""Open a file as a video, or say in words what it is instead."""

import codecs
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from sqt_fast.errors import VideoError, system_reason

# A picture may ask for any amount of memory: 16384 x 8192 is beyond every camera and 400 MB of RGB.
MAX_PIXELS = 16384 * 8192
# A long thin picture becomes far larger when its short side is resized.
MAX_ASPECT = 64
ATTACHED_PICTURE = 0x400
# Files that only name others, which may be anywhere: opened, they would be followed.
PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})


@cache
def _options() -> dict[str, str]:
    """Return what keeps FFmpeg to this one file: playlists are refused before they are opened."""
    formats = sorted(set(av.formats_available) - PLAYLISTS)
    return {"protocol_whitelist": "file", "format_whitelist": ",".join(formats)}


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open ``path`` and pick its video stream as FFmpeg would, ready to decode within memory limits.

    Raises VideoError: not_a_video, no_video_stream, too_large, unsupported_codec, unreadable.
    """
    try:
        # FFmpeg takes what is before a colon for a protocol, unless a slash comes first.
        container = av.open(os.path.abspath(path), metadata_errors="replace", options=_options())  # noqa: PTH100 - keeps links
    except av.error.InvalidDataError as error:
        raise VideoError("not_a_video", _why_not_a_video(path)) from error
    except OSError as error:
        if error.errno == errno.EIO and _can_be_read(path):  # what a demuxer says of a header that makes no sense
            raise VideoError("not_a_video", "not a video: its header makes no sense") from error
        raise VideoError("unreadable", f"cannot be read: {system_reason(error)}") from error
    except av.error.ArgumentError as error:  # a format that is not allowed
        reason = "not a video: a playlist that names other files, or a header that makes no sense"
        raise VideoError("not_a_video", reason) from error
    except av.error.EOFError as error:
        raise VideoError("not_a_video", "not a video: it ends behind its header") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("not_a_video", f"not a video: {system_reason(error)}") from error
    with container:
        stream = _pick_stream(container)
        context = stream.codec_context
        _check_size(context.width, context.height)
        context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def demux(container: InputContainer, stream: VideoStream) -> Iterator["av.Packet[Any]"]:
    """Yield the packets of ``stream``, an empty one last. Raises FFmpegError where reading fails."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # PyAV's, behind the last packet, where reading has found more streams
            return
        yield packet


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise VideoError("too_large", f"{width}x{height} pixels: more than {MAX_PIXELS} are not decoded")
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise VideoError("too_large", f"{width}x{height} pixels: longer than {MAX_ASPECT} times its other side")


def _pick_stream(container: InputContainer) -> VideoStream:
    candidates = [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
    if not candidates:
        kinds = sorted({"cover picture" if s.type == "video" else str(s.type) for s in container.streams})
        raise VideoError("no_video_stream", f"no video stream (the file holds {', '.join(kinds) or 'nothing'})")
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in candidates else candidates[0]
    if stream.codec_context is None:
        raise VideoError("unsupported_codec", "the codec of the video stream is unknown")
    return stream


def _why_not_a_video(path: str) -> str:
    """Say in words what a file is that FFmpeg does not know."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
            head = file.read(4096)
    except OSError:
        return "not a video"
    if head.startswith(b"version https://git-lfs"):
        return "not a video: a Git LFS pointer, the real file was never fetched (git lfs pull)"
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide", b"free"):
        return "not a video that can be opened: an MP4 without its index (moov), cut off or never finished"
    if _is_text(head):
        return "not a video: a text file"
    return "not a video: no known container"


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def _can_be_read(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as FFmpeg would
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True
