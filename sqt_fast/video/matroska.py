"""What a walk over a Matroska file's elements tells that FFmpeg does not (RFC 8794, RFC 9559)."""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
BEHIND_PICTURES = frozenset({0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0xEC})  # Cues, Tags, and the like
UNKNOWN_SIZE = -1


class Walk(NamedTuple):
    """What there is to know of a file's end.

    is_cut_off: pictures may be missing there. last_header: where the last of joined files begins, 0 if it is one.
    A live recording states no sizes of Segment and Cluster: then the last block tells.
    """

    is_cut_off: bool
    last_header: int


def walk(path: str) -> Walk:
    """Go through a file from header to header. What is no Matroska at all is whole. Raises OSError."""
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        end = os.fstat(file.fileno()).st_size
        at = last_header = 0
        is_short = has_pictures = False
        for begin, element, stop, following in _elements(file, end):
            at, last_header = following, begin if element == EBML else last_header
            has_pictures |= element == CLUSTER
            if element == SEGMENT:
                is_short = stop > end
            elif stop > end:
                return Walk(not (has_pictures and element in BEHIND_PICTURES), last_header)
        # Of a header only a part may be there; if it is longer, it is something else.
        return Walk(is_short or 0 < end - at < 12, last_header)


def _elements(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield where an element begins, its ID, where it ends, and where the next header is, down to Segment's children.

    Of what states no size the children follow as well; it ends nowhere, which is 0.
    """
    at = 0
    while at < end and (header := _header(file, at)) is not None:
        element, start, size = header
        is_open = size == UNKNOWN_SIZE
        if (at == 0 and element != EBML) or (is_open and element not in (SEGMENT, CLUSTER)):
            return
        stop = 0 if is_open else start + size
        following = start if is_open or element == SEGMENT else stop
        yield at, element, stop, following
        at = following


def _header(file: BinaryIO, at: int) -> tuple[int, int, int] | None:
    """Return ID, start of the content and its size, of the element at ``at``; None if it is none, or not whole."""
    file.seek(at)
    data = file.read(12)
    if not data or not data[0] >> 4:
        return None
    id_length = 9 - data[0].bit_length()
    rest = data[id_length:]
    if not rest or not rest[0]:
        return None
    size_length = 9 - rest[0].bit_length()
    if len(rest) < size_length:
        return None
    unknown = (1 << 7 * size_length) - 1
    size = int.from_bytes(rest[:size_length]) & unknown
    start = at + id_length + size_length
    return int.from_bytes(data[:id_length]), start, UNKNOWN_SIZE if size == unknown else size
