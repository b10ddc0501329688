"""Write times into the packets of a file, whatever a muxer would say to them: as recorders with broken clocks do."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

# From the rank of a video packet in the file and its decoding time in seconds (presentation time in Matroska, which
# stores no other) to the time it gets. Presentation keeps its distance to decoding.
Stamp = Callable[[int, float], float]

# Headers of video packets up to the first byte of a time: ISO 13818-1, 2.4.3.6, and of MPEG-1's packets, which FFmpeg
# writes into .mpg, ISO 11172-1, 2.4.3.3.
PES_HEADER = re.compile(
    rb"\x00\x00\x01\xe0..(?:[\x80-\xbf][\x80-\xff].|\xff*(?:[\x40-\x7f].)?)(?=[\x21-\x3f])", re.DOTALL
)
PES_TICKS = 90_000
MILLISECONDS = 1000


def restamp(path: Path, stamp: Stamp) -> None:
    """Change the times of the video packets of ``path``, made by FFmpeg: one video stream, nothing else.

    MP4 stores differences that are never negative: a time before that of the packet in front becomes equal to it.
    """
    data = bytearray(path.read_bytes())
    change = {".ts": _pes, ".mpg": _pes, ".flv": _flv, ".mkv": _matroska, ".webm": _matroska, ".mp4": _mp4}
    change[path.suffix](data, stamp)
    path.write_bytes(data)


def _pes(data: bytearray, stamp: Stamp) -> None:
    for rank, found in enumerate(list(PES_HEADER.finditer(data))):
        at = found.end()
        has_dts = data[at] >> 4 == 3
        pts = _read_33(data, at)
        dts = _read_33(data, at + 5) if has_dts else pts
        new = round(stamp(rank, dts / PES_TICKS) * PES_TICKS)
        _write_33(data, at, new + pts - dts)
        if has_dts:
            _write_33(data, at + 5, new)


def _read_33(data: bytearray, at: int) -> int:
    second, third = (int.from_bytes(data[i : i + 2]) >> 1 for i in (at + 1, at + 3))
    return (data[at] >> 1 & 7) << 30 | second << 15 | third


def _write_33(data: bytearray, at: int, ticks: int) -> None:
    ticks %= 1 << 33
    data[at] = data[at] & 0xF1 | ticks >> 30 << 1
    data[at + 1 : at + 3] = ((ticks >> 15 & 0x7FFF) << 1 | 1).to_bytes(2)
    data[at + 3 : at + 5] = ((ticks & 0x7FFF) << 1 | 1).to_bytes(2)


def _flv(data: bytearray, stamp: Stamp) -> None:
    """Adobe's FLV specification, version 10.1, E.4: tags, each with the time in milliseconds, upper byte last."""
    at, rank = 13, 0
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4])
        if data[at] == 9 and (data[at + 11] & 15 != 7 or data[at + 12] == 1):  # of H.264, a picture, no header
            old = int.from_bytes(data[at + 4 : at + 7]) | data[at + 7] << 24
            new = round(stamp(rank, old / MILLISECONDS) * MILLISECONDS) % (1 << 32)
            data[at + 4 : at + 8] = (new & 0xFFFFFF).to_bytes(3) + bytes([new >> 24])
            rank += 1
        at += 11 + size + 4


def _matroska(data: bytearray, stamp: Stamp) -> None:
    """RFC 9559: clusters have a time, blocks one of 16 bits beside it; both in milliseconds."""
    cluster_ms = rank = 0
    for element, start, end in matroska_elements(data):
        if element == 0xE7:  # Timestamp
            cluster_ms = int.from_bytes(data[start:end])
        elif element in (0xA3, 0xA1):  # SimpleBlock, Block; behind the number of the track, one byte
            old = cluster_ms + int.from_bytes(data[start + 1 : start + 3], signed=True)
            new = round(stamp(rank, old / MILLISECONDS) * MILLISECONDS) - cluster_ms
            data[start + 1 : start + 3] = new.to_bytes(2, signed=True)
            rank += 1


def matroska_elements(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield the elements down to those of Segment, Cluster and BlockGroup: ID, start and end of the content."""
    at = 0
    while at < len(data):
        id_length = 9 - data[at].bit_length()
        element = int.from_bytes(data[at : at + id_length])
        at += id_length
        size_length = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + size_length]) & (1 << 7 * size_length) - 1
        at += size_length
        yield element, at, at + size
        if element not in (0x18538067, 0x1F43B675, 0xA0):
            at += size


def _mp4(data: bytearray, stamp: Stamp) -> None:
    """ISO 14496-12, 8.6.1.2: stts holds runs of (count, duration). It keeps its place, so runs must stay as many."""
    if (edits := data.find(b"edts")) >= 0:
        data[edits : edits + 4] = b"free"  # they would hide what lies outside of the times before
    at = data.index(b"stts") + 4
    count, scale = int.from_bytes(data[at + 4 : at + 8]), _timescale(data)
    runs = [
        (int.from_bytes(data[i : i + 4]), int.from_bytes(data[i + 4 : i + 8]), i)
        for i in range(at + 8, at + 8 + 8 * count, 8)
    ]
    rank, time, before = 0, 0, round(stamp(0, 0.0) * scale)
    for length, ticks, i in runs:
        rank, time = rank + length, time + length * ticks
        after = max(before, round(stamp(rank, time / scale) * scale))
        data[i + 4 : i + 8] = ((after - before) // length).to_bytes(4)
        before = after


def _timescale(data: bytearray) -> int:
    at = data.index(b"mdhd") + 4
    return int.from_bytes(data[at + 12 : at + 16] if data[at] == 0 else data[at + 20 : at + 24])
