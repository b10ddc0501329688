"""What a VP9 packet shows and whether decoding can begin with it, from its first bytes and its superframe index.

Specification: https://www.webmproject.org/vp9/ (6.2 frame header, annex B superframes).
"""

from collections.abc import Iterator

from sqt_fast.video.packets import PacketKind

_HEAD_BYTES = 10  # of a key frame, up to its height
_SYNC_CODE = 0x498342


def read_vp9(packet: memoryview) -> PacketKind:
    """Return the kind of a packet; of one that cannot be read, the kind that claims nothing. None is droppable.

    Even a frame that is stored in no reference slot leaves its motion vectors to the frame decoded after it, and may
    leave it segment map, loop filter deltas and probabilities (libvpx, ``use_prev_frame_mvs``). Measured: of a stream
    in temporal layers, leaving out the layer that nothing refers to changes other pictures (tests/test_vp9.py).
    """
    try:
        frames = [_frame(data) for data in _frames(packet)]
        first = frames[0]
    except (IndexError, ValueError):
        return PacketKind()
    num_shown = sum(frame.shown for frame in frames)
    return PacketKind(first.random_access, shown=num_shown, headers=first.headers, hides=len(frames) > 1)


def _frame(data: memoryview) -> PacketKind:
    """Read the head of one frame."""
    if data[0] >> 6 != 2:  # frame_marker
        raise ValueError("not a VP9 frame")
    profile = data[0] >> 5 & 1 | data[0] >> 3 & 2
    bits = int.from_bytes(bytes(data[:_HEAD_BYTES]).ljust(_HEAD_BYTES, b"\0"), "big")
    left = 8 * _HEAD_BYTES - (9 if profile == 3 else 8)  # behind profile 3 is a reserved bit
    if bits >> left & 8:  # show_existing_frame
        return PacketKind()
    shown = bits >> left + 1 & 1
    if bits >> left & 4:  # frame_type: not a key frame
        return PacketKind(shown=shown)
    left -= 24
    if len(data) < _HEAD_BYTES or bits >> left & 0xFFFFFF != _SYNC_CODE:
        raise ValueError("not a VP9 key frame")
    size = 36 + (profile >= 2) + 3 * (profile & 1)  # bit depth, colour space and range, subsampling, width, height
    headers = profile << size | bits >> left - size & (1 << size) - 1
    return PacketKind(random_access=True, shown=shown, headers=headers)


def _frames(packet: memoryview) -> Iterator[memoryview]:
    """Yield the frames of a packet: of a superframe those that its index lists, else the packet itself."""
    last = packet[-1]
    num_frames, size_bytes = (last & 7) + 1, (last >> 3 & 3) + 1
    start = len(packet) - 2 - num_frames * size_bytes
    if last >> 5 != 6 or start < 0 or packet[start] != last:
        yield packet
        return
    at = 0
    for i in range(start + 1, len(packet) - 1, size_bytes):
        size = int.from_bytes(packet[i : i + size_bytes], "little")
        if size > start - at:
            raise ValueError("cut off")
        if size:
            yield packet[at : at + size]
        at += size
