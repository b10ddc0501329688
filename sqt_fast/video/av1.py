"""Where decoding of AV1 can begin and which packets can be left out, from the first bytes of their headers.

All that an AV1 frame leaves to later ones (pixels, motion vectors, probabilities, segment map, loop filter deltas, film
grain, order hints) is kept in the eight reference slots, and ``refresh_frame_flags`` says which of them it fills. A
frame that fills none can be left out, and so can one that only shows a slot, unless the slot holds a key frame: that is
then put into all slots (AV1 specification, 5.9.2, 7.20 and 7.21: https://aomediacodec.github.io/av1-spec/).
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sqt_fast.video.bits import Bits
from sqt_fast.video.packets import PacketKind

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # obu_type
_PASSING = frozenset({2, 4, 5, 15})  # temporal delimiter, tile group, metadata, padding: nothing that later frames use
_KEY, _INTER, _INTRA_ONLY, _SWITCH = range(4)  # frame_type
_SELECT = 2  # each frame says for itself
_ALL_SLOTS = 0xFF


class Av1Reader:
    """Read the packets of one stream, all of them, in decoding order.

    extradata: the av1C box of MP4 and Matroska, or OBUs alone, where the container has them. They do not make a key
    frame without a sequence header of its own a start: FFmpeg does not pass them on to dav1d, which forgets the last
    header when it is flushed.
    """

    def __init__(self, extradata: bytes | None = None) -> None:
        self._sequence: _Sequence | None = None
        self._slots_with_key = _ALL_SLOTS  # one bit a slot that holds a key frame or may do so
        head = memoryview(extradata or b"")
        self.read(head[4:] if head and head[0] & 0x80 else head)  # av1C begins with a bit that no OBU has

    def read(self, packet: memoryview) -> PacketKind:
        """Return the kind of the next packet; of one that cannot be read, the kind that claims nothing."""
        try:
            return self._read(packet)
        except ValueError:
            self._slots_with_key = _ALL_SLOTS
            return PacketKind()

    def _read(self, packet: memoryview) -> PacketKind:
        frames = shown = headers = 0
        has_sequence = random_access = lasts = False
        for kind, payload in _obus(packet):
            if kind in (_FRAME, _FRAME_HEADER):
                frame = self._frame(payload)
                random_access |= has_sequence and frames == 0 and frame.restarts
                lasts |= frame.lasts
                shown += frame.shown
                frames += 1
            elif kind == _SEQUENCE_HEADER:
                self._begin(bytes(payload))
                headers = zlib.crc32(payload, headers)
                has_sequence = lasts = True
            elif kind not in _PASSING:
                lasts = True
        if self._sequence is not None and self._sequence.spatial_layers:
            shown, lasts = min(shown, 1), True  # of a picture in several sizes one comes out
        return PacketKind(random_access, frames > 0 and not lasts, shown, headers=headers)

    def _begin(self, payload: bytes) -> None:
        if self._sequence is None or self._sequence.payload != payload:
            self._sequence, self._slots_with_key = None, _ALL_SLOTS
            self._sequence = _read_sequence(payload)

    def _frame(self, payload: memoryview) -> "_Frame":
        """Read a frame header up to ``refresh_frame_flags``."""
        sequence = self._sequence
        if sequence is None:
            raise ValueError("a frame before the sequence header")
        if sequence.reduced_still:
            return _Frame(shown=True, lasts=True, restarts=True)
        bits = Bits(payload[:8])  # 29 bits at most
        if bits.read(1):  # show_existing_frame
            is_key = bool(self._slots_with_key >> bits.read(3) & 1)
            if is_key:
                self._slots_with_key = _ALL_SLOTS
            return _Frame(shown=True, lasts=is_key or sequence.is_special, restarts=False)
        frame_type, shown = bits.read(2), bool(bits.read(1))
        if frame_type == _SWITCH or (frame_type == _KEY and shown):
            refreshed, lasts = _ALL_SLOTS, True
        elif sequence.is_special:
            refreshed, lasts = 0, True
        else:
            bits.read(not shown)  # showable_frame
            error_resilient = bits.read(1)
            bits.read(1)  # disable_cdf_update
            screen_content = bits.read(1) if sequence.screen_content == _SELECT else sequence.screen_content
            if screen_content and sequence.integer_mv == _SELECT:
                bits.read(1)  # force_integer_mv
            bits.read(1 + sequence.order_hint_bits)  # frame_size_override_flag, order_hint
            if frame_type == _INTER and not error_resilient:
                bits.read(3)  # primary_ref_frame
            refreshed = bits.read(8)
            # After losses an error resilient frame makes its decoder replace references whose order hints are wrong.
            lasts = refreshed != 0 or bool(error_resilient) or frame_type == _KEY
        self._slots_with_key &= ~refreshed
        if frame_type == _KEY:
            self._slots_with_key |= refreshed
        return _Frame(shown, lasts, restarts=frame_type == _KEY and shown)


class _Frame(NamedTuple):
    """lasts: it changes what later frames are decoded from. restarts: it needs nothing before it, nor do later ones."""

    shown: bool
    lasts: bool
    restarts: bool


class _Sequence(NamedTuple):
    """What of a sequence header the frame headers depend on.

    is_special: with a decoder model or frame numbers, which lengthen frame headers and limit gaps; nothing is dropped.
    """

    payload: bytes
    reduced_still: bool
    is_special: bool
    spatial_layers: bool
    screen_content: int
    integer_mv: int
    order_hint_bits: int


def _obus(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of every open bitstream unit."""
    at, end = 0, len(packet)
    while at < end:
        head = packet[at]
        if head & 0x80:
            raise ValueError("not an OBU")
        at += 2 if head & 4 else 1  # obu_extension_flag
        size = end - at
        if head & 2:  # obu_has_size_field
            size, at = _leb128(packet, at)
        if not 0 <= size <= end - at:
            raise ValueError("cut off")
        yield head >> 3 & 15, packet[at : at + size]
        at += size


def _leb128(packet: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at ``at``, and where it ends."""
    number = 0
    for i, byte in enumerate(packet[at : at + 8]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError("cut off")


def _read_sequence(payload: bytes) -> _Sequence:
    """Read a sequence header up to ``order_hint_bits_minus_1`` (AV1 specification, 5.5)."""
    bits = Bits(payload)
    bits.read(4)  # seq_profile, still_picture
    reduced_still = bool(bits.read(1))
    has_model, layers = (False, 0) if reduced_still else _read_operating_points(bits)
    if reduced_still:
        bits.read(5)  # seq_level_idx
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits + height_bits)
    has_numbers = not reduced_still and bool(bits.read(1))
    if has_numbers:
        bits.read(7)
    bits.read(3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    screen_content = integer_mv = _SELECT
    order_hint_bits = 0
    if not reduced_still:
        bits.read(4)  # enable_interintra_compound, _masked_compound, _warped_motion, _dual_filter
        has_order_hint = bits.read(1)
        bits.read(2 * has_order_hint)  # enable_jnt_comp, enable_ref_frame_mvs
        screen_content = _SELECT if bits.read(1) else bits.read(1)
        if screen_content and not bits.read(1):
            integer_mv = bits.read(1)
        order_hint_bits = bits.read(3) + 1 if has_order_hint else 0
    return _Sequence(
        payload, reduced_still, has_model or has_numbers, layers > 1, screen_content, integer_mv, order_hint_bits
    )


def _read_operating_points(bits: Bits) -> tuple[bool, int]:
    """Read from ``timing_info_present_flag`` on: is there a decoder model, and bits of point 0's spatial layers."""
    has_model, delay_bits = False, 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)  # num_units_in_display_tick, time_scale
        if bits.read(1):  # equal_picture_interval
            _skip_uvlc(bits)
        has_model = bool(bits.read(1))
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(42)  # num_units_in_decoding_tick, buffer_removal_time_length, frame_presentation_time_length
    has_display_delay = bits.read(1)
    layers = []
    for _ in range(bits.read(5) + 1):
        layers.append(bits.read(12) >> 8)  # operating_point_idc
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)  # seq_tier
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
    return has_model, layers[0]


def _skip_uvlc(bits: Bits) -> None:
    zeros = 0
    while not bits.read(1):
        zeros += 1
    if zeros < 32:
        bits.read(zeros)
