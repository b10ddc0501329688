"""What packets of VP9 are said to be, against what FFmpeg's decoder makes of them."""

from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.video.packets import PacketKind
from sqt_fast.video.vp9 import read_vp9
from tests.test_av1 import SIZE, Stream, encoded, packed, pictures, read_stream, shown

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

NOTHING = PacketKind()
# Alternate references are hidden frames; in one pass libvpx makes them only for live encoding with a look-ahead.
HIDDEN = {"deadline": "realtime", "cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1", "b": "300k"}
LAYERS = (
    "ts_number_layers=3:ts_target_bitrate=100,200,400:ts_rate_decimator=4,2,1:"
    "ts_periodicity=4:ts_layer_id=0,2,1,2:ts_layering_mode=3"
)


def kinds_of(stream: Stream) -> list[PacketKind]:
    return [read_vp9(memoryview(data)) for _, data in stream.packets]


def frames_of(stream: Stream, folder: Path) -> list[bytes]:
    """Let FFmpeg take the superframes apart."""
    with av.open(str(folder / "a.mkv")) as container:
        split = av.bitstream.BitStreamFilterContext("vp9_superframe_split", container.streams.video[0])
        packets = [frame for packet in container.demux() for frame in split.filter(packet if packet.size else None)]
        return [bytes(packet) for packet in packets]


SETTINGS: dict[str, dict[str, str]] = {
    "hidden frames": HIDDEN,
    "low delay": {"lag-in-frames": "0"},
    "constant rate": {"lag-in-frames": "0", "b": "200k", "minrate": "200k", "maxrate": "200k"},
    "error resilient": {"error-resilient": "1"},
    "tiles and threads": {"tile-columns": "1", "row-mt": "1", "frame-parallel": "1"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_packet_shows_what_is_said(name: str, tmp_path: Path) -> None:
    stream = encoded(tmp_path, "libvpx-vp9", 60, **SETTINGS[name])
    kinds = kinds_of(stream)
    assert {pts: len(found) for pts, found in pictures(stream).items()} == shown(stream, kinds)
    assert not any(kind.droppable for kind in kinds)
    assert [kind.random_access for kind in kinds] == [True] + 59 * [False]


def test_hidden_frames_by_themselves(tmp_path: Path) -> None:
    """Taken apart, the frames of superframes are packets that show one picture or none."""
    stream = encoded(tmp_path, "libvpx-vp9", 60, **HIDDEN)
    apart = Stream(stream.decoder, None, list(enumerate(frames_of(stream, tmp_path))))
    kinds = kinds_of(apart)
    assert [kind.shown for kind in kinds].count(0) == len(kinds) - 60 >= 3
    assert {pts: len(found) for pts, found in pictures(apart).items()} == shown(apart, kinds)


def test_a_slot_that_is_shown_again(tmp_path: Path) -> None:
    stream = encoded(tmp_path, "libvpx-vp9", 10, **HIDDEN)
    stream.packets[4:4] = [(1000 + slot, bytes([0b10_00_1_000 | slot])) for slot in (0, 1)]
    kinds = kinds_of(stream)
    assert kinds[4:6] == 2 * [PacketKind(shown=1)]
    assert {pts: len(found) for pts, found in pictures(stream).items()} == shown(stream, kinds)


def test_decoding_may_begin_at_every_start(tmp_path: Path) -> None:
    stream = encoded(tmp_path, "libvpx-vp9", 60, **HIDDEN, g="16", keyint_min="16")
    kinds, whole = kinds_of(stream), pictures(stream)
    starts = [i for i, kind in enumerate(kinds) if kind.random_access]
    assert len(starts) >= 4
    assert len({kinds[i].headers for i in starts}) == 1
    for start in starts:
        times = {pts for pts, _ in stream.packets[start:]}
        assert pictures(stream, start=start) == {pts: found for pts, found in whole.items() if pts in times}


@pytest.mark.parametrize("error_resilient", [False, True])
def test_frames_that_nothing_refers_to_are_needed(error_resilient: bool, tmp_path: Path) -> None:
    """Every second frame is in the highest temporal layer, and yet what it leaves behind is used by the next frame.

    Unless that is error resilient; to see this takes a look at the next frame, and such streams are rare in files.
    """
    options = {"ts-parameters": LAYERS, "error-resilient": str(int(error_resilient)), "lag-in-frames": "0"}
    stream = encoded(tmp_path, "libvpx-vp9", 40, **options)
    whole, half = pictures(stream), pictures(stream, without=range(1, 40, 2))
    changed = sum(whole[pts] != found for pts, found in half.items())
    assert len(half) == 20
    assert changed == 0 if error_resilient else changed > 10


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "gbrp"])
def test_profiles_of_8_bits(pix_fmt: str, tmp_path: Path) -> None:
    kinds = kinds_of(encoded(tmp_path, "libvpx-vp9", 9, pix_fmt, g="4", keyint_min="4", **{"lag-in-frames": "0"}))
    assert [kind.random_access for kind in kinds] == [i % 4 == 0 for i in range(9)]
    assert [kind.shown for kind in kinds] == 9 * [1]
    (headers,) = {kind.headers for kind in kinds if kind.random_access}
    assert headers != 0
    if pix_fmt != "gbrp":  # it has three bits less before the size
        assert headers & 0xFFFFFFFF == (SIZE[0] - 1) << 16 | SIZE[1] - 1


@pytest.mark.parametrize("profile", range(4))
@given(width=st.integers(1, 65536), height=st.integers(1, 65536), is_shown=st.booleans(), rest=st.binary(max_size=9))
def test_key_frames_of_every_profile(profile: int, width: int, height: int, is_shown: bool, rest: bytes) -> None:
    """VP9 specification, 6.2: the size ends the number that tells headers apart, whatever comes after it."""
    fields = [(0b10, 2), (profile & 1, 1), (profile >> 1, 1), (0, int(profile == 3)), (0, 2), (is_shown, 1), (0, 1)]
    fields += [(0x498342, 24), (1, int(profile >= 2)), (2, 3), (0, 1), (0b000, 3 * (profile & 1))]
    fields += [(width - 1, 16), (height - 1, 16), (0, 8), *((byte, 8) for byte in rest)]
    kind = read_vp9(memoryview(packed(fields) + b"\1"))  # no superframe ends in 1
    assert kind._replace(headers=0) == PacketKind(random_access=True, shown=int(is_shown))
    assert kind.headers & 0xFFFFFFFF == (width - 1) << 16 | height - 1
    assert kind.headers >> 32 == [0b010_0, 0b1_010_0_000, 0b10_1_010_0, 0b11_1_010_0_000][profile]


def test_a_real_file(shared: Path) -> None:
    stream = read_stream(shared / "videos" / "androidx_bbb_642x642_768kbps_30fps_vp9.webm")
    kinds = kinds_of(stream)
    assert [i for i, kind in enumerate(kinds) if kind.random_access] == [0, 30, 60]
    assert {pts: len(found) for pts, found in pictures(stream).items()} == shown(stream, kinds)


KEY = bytes([0b10_00_0_0_1_0, 0x49, 0x83, 0x42, 0, 0, 0, 0, 0, 0, 0, 0])
SHOWN, UNSEEN, AGAIN = bytes([0b10_00_0_1_1_0]) + b"abc", bytes([0b10_00_0_1_0_0]) + b"abc", bytes([0b10_00_1_010])


def superframe(*frames: bytes, size_bytes: int = 2) -> bytes:
    """VP9 specification, annex B."""
    marker = bytes([0b110_00_000 | (size_bytes - 1) << 3 | len(frames) - 1])
    return b"".join(frames) + marker + b"".join(len(f).to_bytes(size_bytes, "little") for f in frames) + marker


START, ON = PacketKind(random_access=True), PacketKind()
PACKETS = {
    "a key frame": (KEY, START),
    "a hidden key frame": (bytes([KEY[0] & ~2]) + KEY[1:], START._replace(shown=0)),
    "a shown frame": (SHOWN, ON),
    "a hidden frame": (UNSEEN, ON._replace(shown=0)),
    "shown again": (AGAIN, ON),
    "shown again, profile 3": (bytes([0b10_11_0_1_01, 0]), ON),
    "hidden, profile 3": (bytes([0b10_11_0_0_1_0, 0]), ON._replace(shown=0)),
    "hidden and shown": (superframe(UNSEEN, SHOWN), ON._replace(hides=True)),
    "key, hidden and shown again": (superframe(KEY, UNSEEN, AGAIN, size_bytes=4), START._replace(shown=2, hides=True)),
    "two hidden": (superframe(UNSEEN, UNSEEN, size_bytes=1), ON._replace(shown=0, hides=True)),
    "an empty frame": (superframe(b"", UNSEEN), ON._replace(shown=0)),
    "key not first": (superframe(SHOWN, KEY), ON._replace(shown=2, hides=True)),
    "nothing": (b"", NOTHING),
    "no frame": (b"\0" + KEY, NOTHING),
    "no sync code": (KEY[:2] + b"\0" + KEY[3:], NOTHING),
    "a key frame cut off": (KEY[:9], NOTHING),
    "only an index": (superframe(b""), NOTHING),
    "an index cut off": (bytes([0b10_00_0_1_0_0, 0b110_00_001, 0b110_00_001]), ON._replace(shown=0)),
    "frames beyond the packet": (SHOWN + SHOWN[:-1] + superframe(SHOWN, SHOWN)[2 * len(SHOWN) :], NOTHING),
}


@pytest.mark.parametrize("name", PACKETS)
def test_packets_field_by_field(name: str) -> None:
    data, kind = PACKETS[name]
    assert read_vp9(memoryview(data)) == kind


@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), min_size=1, max_size=8), st.integers(1, 4))
def test_any_bytes_are_read(data: bytes, frames: list[bytes], size_bytes: int) -> None:
    for packet in (data, KEY[:1] + data, superframe(*frames, size_bytes=size_bytes), data + superframe(*frames)):
        assert not read_vp9(memoryview(packet)).droppable
