"""What one packet is to a decoder, read from its first bytes: may decoding start here, may it be left out.

Containers' own flags are not enough: they call recovery points of H.264 key frames, and hardly any says which pictures
others refer to. In doubt a packet is neither a start nor to be left out.
"""

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sqt_fast.video.av1 import Av1Reader
from sqt_fast.video.bits import Bits
from sqt_fast.video.packets import PacketKind
from sqt_fast.video.vp9 import read_vp9


class _Unit(NamedTuple):
    """The first two bytes of a NAL unit, understood."""

    is_picture: bool
    is_parameter_set: bool
    is_sequence_header: bool
    is_start: bool
    is_referred_to: bool
    layer: int


Reader = Callable[[memoryview], PacketKind]

NEEDED = PacketKind()
INTRA = PacketKind(random_access=True, droppable=True)
# Every packet holds one picture and all that it takes to decode it.
INTRA_CODECS = frozenset({"prores", "dnxhd", "rawvideo", "png", "huffyuv", "ffvhuff", "dvvideo", "v210", "jpeg2000"})


def packet_reader(codec: str, extradata: bytes | None) -> Reader:
    """Return a function of packets, to be called for each in the order of the file.

    codec: FFmpeg's canonical name. extradata: the headers that the container stores apart. A codec that is not known
    has no starts but the first packet, and nothing to leave out.
    """
    if codec == "h264":
        return _NalReader(_h264_unit, _length_size(extradata, 4), _avcc_units(extradata or b"")).read
    if codec == "hevc":
        return _NalReader(_hevc_unit, _length_size(extradata, 21), _hvcc_units(extradata or b"")).read
    if codec == "av1":
        return Av1Reader(extradata).read
    if codec == "mpeg4":
        return _Mpeg4Reader(extradata).read
    if codec in INTRA_CODECS:
        return lambda _: INTRA
    simple: dict[str, Reader] = {
        "vp9": read_vp9,
        "vp8": _read_vp8,
        "mjpeg": _read_mjpeg,
        "mpeg2video": _read_mpeg2,
        "mpeg1video": _read_mpeg2,
    }
    return simple.get(codec, lambda _: NEEDED)


@functools.cache
def _h264_unit(first: int, second: int) -> _Unit:
    """ITU-T H.264, 7.3.1 and table 7-1."""
    del second
    kind = first & 31
    return _Unit(1 <= kind <= 5, kind in (7, 8), kind == 7, kind == 5, bool(first >> 5 & 3), 0)


@functools.cache
def _hevc_unit(first: int, second: int) -> _Unit:
    """ITU-T H.265, 7.3.1.2 and table 7-1. Even types below 16 are not referred to within their temporal layer."""
    kind, layer = first >> 1 & 63, max(0, (second & 7) - 1)
    of_base = not (first & 1 or second >> 3)  # nuh_layer_id 0
    referred = kind >= 16 or bool(kind & 1)
    return _Unit(of_base and kind < 32, 32 <= kind <= 34, of_base and kind == 33, 16 <= kind <= 21, referred, layer)


class _NalReader:
    """H.264 and HEVC. A start must bring its parameter sets along if the stream has sent any outside the header.

    apart: the units in the container's header. Its sequence headers count as the first packet's if that has none.
    """

    def __init__(self, unit: Callable[[int, int], _Unit], length_size: int, apart: Iterable[bytes]) -> None:
        self.unit, self.length_size = unit, length_size
        self.sets_in_band = False
        self.headers_apart = 0
        for data in apart:
            if len(data) >= 2 and unit(data[0], data[1]).is_sequence_header:
                self.headers_apart = zlib.crc32(data.rstrip(b"\0"), self.headers_apart)

    def read(self, packet: memoryview) -> PacketKind:
        pictures = starts = referred = layer = headers = 0
        sets = False
        for start, end in _nal_units(packet, self.length_size):
            unit = self.unit(packet[start], packet[start + 1])
            if unit.is_picture:
                pictures, starts, layer = pictures + 1, starts + unit.is_start, unit.layer
                referred += unit.is_referred_to
            sets |= unit.is_parameter_set
            if unit.is_sequence_header:
                headers = zlib.crc32(bytes(packet[start:end]).rstrip(b"\0"), headers)
        random_access = starts > 0 and (sets or not self.sets_in_band)
        self.sets_in_band |= sets
        droppable = pictures > 0 and not referred and not sets
        headers, self.headers_apart = headers or self.headers_apart, 0
        return PacketKind(random_access, droppable, layer=layer, headers=headers)


def _length_size(extradata: bytes | None, at: int) -> int:
    """Return how many bytes of length precede a NAL unit (avcC, hvcC); 0 where start codes separate them."""
    if not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def _avcc_units(extradata: bytes) -> Iterator[bytes]:
    """Yield the NAL units of an avcC box (ISO 14496-15, 5.3.3.1), of start codes where there are such."""
    if extradata[:1] != b"\1":
        yield from (extradata[start:end] for start, end in _nal_units(memoryview(extradata), 0))
    elif len(extradata) > 6:
        yield from _with_lengths(extradata, 6, extradata[5] & 31)


def _hvcc_units(extradata: bytes) -> Iterator[bytes]:
    """Yield the NAL units of an hvcC box (ISO 14496-15, 8.3.3.1), of start codes where there are such."""
    if extradata[:1] != b"\1":
        yield from (extradata[start:end] for start, end in _nal_units(memoryview(extradata), 0))
        return
    at = 23
    while at + 3 <= len(extradata):
        units = list(_with_lengths(extradata, at + 3, int.from_bytes(extradata[at + 1 : at + 3], "big")))
        yield from units
        at += 3 + sum(2 + len(unit) for unit in units)


def _with_lengths(data: bytes, at: int, count: int) -> Iterator[bytes]:
    """Yield ``count`` units, each behind two bytes of length, or those that there are."""
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            return
        yield data[at + 2 : end]
        at = end


def _nal_units(packet: memoryview, length_size: int) -> Iterator[tuple[int, int]]:
    """Yield where each NAL unit of at least two bytes starts and ends."""
    size = len(packet)
    if length_size:
        at = 0
        while at + length_size + 1 < size:
            length = int.from_bytes(packet[at : at + length_size], "big")
            at += length_size
            if length >= 2:
                yield at, at + length
            at += length
        return
    starts = [at for at in _start_codes(bytes(packet)) if at + 1 < size]
    yield from zip(starts, [*(at - 3 for at in starts[1:]), size], strict=False)  # there may be none


def _start_codes(data: bytes) -> Iterator[int]:
    """Yield where the byte after each 00 00 01 is."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        yield at + 3
        at = data.find(b"\0\0\1", at + 3)


VOP = b"\0\0\1\xb6"  # start code of a picture
# Of a picture that is not coded, in bytes: start code, type, time, and hardly anything else.
MAX_NOT_CODED = 19
MAX_VOL = 32  # bytes of a video object layer's header, up to the resolution of its time


class _Mpeg4Reader:
    """MPEG-4 part 2 (ISO 14496-2, 6.2): a start repeats the headers of the first packet.

    FFmpeg chooses its inverse transform by the encoder's name among them. DivX packs a B picture behind the one that it
    needs; so that packets stay as many as pictures, one follows that holds none, or one that is not coded. Such a
    packet shows the B picture that is held, if there is one.

    extradata: the headers that the container stores apart.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self.headers: bytes | None = None
        self.time_bits = _time_bits(extradata or b"")
        self.held = 0  # pictures of packets before that are yet to be shown

    def read(self, packet: memoryview) -> PacketKind:
        data = bytes(packet)
        if len(data) <= MAX_NOT_CODED and self._is_not_coded(data):
            return self._holds_none()
        if self.headers is not None and len(data) > 4 and data.startswith(VOP) and data.find(VOP, 4) < 0:
            coding_type = data[4] >> 6  # most packets: one picture and nothing else
            return PacketKind(coding_type == 0 and not self.headers, coding_type == 2)
        pictures = [at for at in _start_codes(data) if data[at : at + 1] == b"\xb6" and at + 1 < len(data)]
        if not pictures:
            return self._holds_none()
        if len(pictures) > 1:
            self.held += len(pictures) - 1
            return NEEDED
        headers = b"".join(_without_time(data, at) for at in _start_codes(data) if at < pictures[0])
        if self.headers is None:
            self.headers = headers
        if headers:
            self.time_bits = _time_bits(data) or self.time_bits
        coding_type = data[pictures[0] + 1] >> 6
        starts = coding_type == 0 and headers == self.headers
        return PacketKind(starts, coding_type == 2 and not headers, headers=zlib.crc32(headers) if headers else 0)

    def _holds_none(self) -> PacketKind:
        shown = min(self.held, 1)
        self.held -= shown
        return NEEDED._replace(shown=shown)

    def _is_not_coded(self, data: bytes) -> bool:
        """ISO 14496-2, 6.2.5: type (2 bits), seconds passed (ones, a zero), a marker, the time, a marker, vop_coded."""
        if not data.startswith(VOP) or not self.time_bits:
            return False
        bits = Bits(data[4:])
        try:
            bits.read(2)
            while bits.read(1):
                continue
            bits.read(1 + self.time_bits + 1)
            return not bits.read(1)
        except ValueError:
            return False


def _time_bits(headers: bytes) -> int:
    """Return how many bits a picture's time takes, by a video object layer's header (6.2.3), 0 without a whole one."""
    found = re.search(rb"\x00\x00\x01[\x20-\x2f]", headers)
    if found is None:
        return 0
    bits = Bits(headers[found.end() : found.end() + MAX_VOL])
    try:
        bits.read(9)  # random_accessible_vol, video_object_type_indication
        if bits.read(1):  # is_object_layer_identifier
            bits.read(7)  # verid, priority
        if bits.read(4) == 15:  # aspect_ratio_info: extended_PAR
            bits.read(16)
        if bits.read(1):  # vol_control_parameters
            bits.read(3)  # chroma_format, low_delay
            if bits.read(1):
                bits.read(79)  # vbv_parameters
        bits.read(3)  # video_object_layer_shape, marker
        return max(1, (bits.read(16) - 1).bit_length())
    except ValueError:
        return 0


def _without_time(data: bytes, at: int) -> bytes:
    """Return the header that starts at ``at``, nothing of a group-of-VOP header (B3): it counts time."""
    if data[at] == 0xB3:
        return b""
    end = data.find(b"\0\0\1", at)
    return data[at : end if end >= 0 else len(data)]


def _read_mpeg2(packet: memoryview) -> PacketKind:
    """MPEG-1 and 2 video (ISO 13818-2, 6.2): picture header 00, sequence header B3, quantiser matrices in B5 3x."""
    data = bytes(packet)
    types = []
    has_sequence = changes_state = False
    for at in _start_codes(data):
        code = data[at] if at < len(data) else -1
        if code == 0 and at + 2 < len(data):
            types.append(data[at + 2] >> 3 & 7)
        has_sequence |= code == 0xB3
        changes_state |= code == 0xB5 and at + 1 < len(data) and data[at + 1] >> 4 == 3
    starts = has_sequence and bool(types) and types[0] == 1
    droppable = bool(types) and set(types) == {3} and not has_sequence and not changes_state
    return PacketKind(starts, droppable)


def _read_vp8(packet: memoryview) -> PacketKind:
    """VP8 stores pictures that are only referred to in packets of their own (RFC 6386, 9.1: show_frame)."""
    if len(packet) < 10:
        return NEEDED._replace(shown=packet[0] >> 4 & 1 if len(packet) else 1)
    is_key = not packet[0] & 1
    size = int.from_bytes(packet[6:10], "little") if is_key else 0
    return PacketKind(random_access=is_key, droppable=False, shown=packet[0] >> 4 & 1, headers=size)


def _read_mjpeg(packet: memoryview) -> PacketKind:
    """A picture that brings its own quantiser tables (marker DQT) stands alone."""
    return INTRA if b"\xff\xdb" in bytes(packet[:2048]) else NEEDED
