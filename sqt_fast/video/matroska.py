"""Whether a Matroska file ends before its last element does (RFC 8794, RFC 9559): FFmpeg then stops without a word."""

import os
from typing import BinaryIO

EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
BEHIND_PICTURES = frozenset({0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0xEC})  # Cues, Tags, and the like
UNKNOWN_SIZE = -1


def is_cut_off(path: str) -> bool:
    """Return whether pictures may be missing at the end of ``path``. What is no Matroska at all is not judged.

    A live recording states no sizes of Segment and Cluster: then the last block tells. Raises OSError.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - surrogates in the name
        end = os.fstat(file.fileno()).st_size
        at, is_short, has_pictures = 0, False, False
        while at < end:
            header = _header(file, at)
            if at == 0 and (header is None or header[0] != EBML):
                return False
            if header is None:
                return end - at < 12  # of a header only a part is there; longer, it is something else
            element, start, size = header
            has_pictures |= element == CLUSTER
            if size == UNKNOWN_SIZE:
                if element not in (SEGMENT, CLUSTER):
                    return False
                at = start  # its children follow, and what comes behind them
            elif element == SEGMENT:
                at, is_short = start, start + size > end
            elif start + size > end:
                return not (has_pictures and element in BEHIND_PICTURES)
            else:
                at = start + size
        return is_short


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
