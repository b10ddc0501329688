"""What is read from the first bytes of packets: by hand, and against what FFmpeg's decoders make of real streams."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqt_fast.video.bitstream import INTRA_CODECS, packet_reader
from sqt_fast.video.packets import DROPPABLE, PacketKind
from tests.videos import KINDS, look, write

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

NOTHING, START, SPARE = PacketKind(), PacketKind(random_access=True), PacketKind(droppable=True)
HIDDEN = PacketKind(shown=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "kinds"


def kinds(codec: str, packets: Iterable[bytes], extradata: bytes | None = None) -> list[PacketKind]:
    """Read packets in their order; ``headers`` as 1, 2, ... in the order in which they come, 0 for none."""
    read = packet_reader(codec, extradata)
    found = [read(memoryview(packet)) for packet in packets]
    numbers = list(dict.fromkeys([0, *(kind.headers for kind in found)]))
    return [kind._replace(headers=numbers.index(kind.headers)) for kind in found]


# H.264 and HEVC: a unit is its header and some payload ---------------------------------------------------------------

IDR, KEY_REFRESH, P, B = b"\x65abc", b"\x41key", b"\x41abc", b"\x01abc"  # nal_ref_idc and nal_unit_type
SPS, OTHER_SPS, PPS, SEI, AUD = b"\x67sps", b"\x67SPS", b"\x68pps", b"\x06sei", b"\x09a"

START_CODES, LONG_CODES = "start codes", "long start codes"
FRAMINGS = [START_CODES, LONG_CODES, 1, 2, 4]


def framed(framing: str | int, *units: bytes) -> bytes:
    """Join units with start codes, or with lengths of so many bytes before each."""
    if isinstance(framing, int):
        return b"".join(len(unit).to_bytes(framing, "big") + unit for unit in units)
    return b"".join((b"\0\0\1" if framing == START_CODES else b"\0\0\0\1") + unit for unit in units)


def header(codec: str, framing: str | int, *units: bytes) -> bytes | None:
    """Return avcC or hvcC that holds ``units``, or units with start codes."""
    if not isinstance(framing, int):
        return framed(framing, *units) or None
    count = len(units)
    if codec == "h264":
        listed = b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)
        return bytes([1, 100, 0, 31, 0xFC | framing - 1, 0xE0 | count]) + listed
    arrays = [b"\x21\0\1" + len(unit).to_bytes(2, "big") + unit for unit in units]
    return bytes([1, *20 * [0], 0xFC | framing - 1, count]) + b"".join(arrays)


H264 = {
    "an IDR picture": ([IDR], START),
    "an IDR picture of slices": ([IDR, IDR, IDR], START),
    "behind other units": ([AUD, SEI, IDR], START),
    "with its headers": ([AUD, SPS, PPS, IDR], START._replace(headers=1)),
    "a picture that is referred to": ([P], NOTHING),
    "a recovery point": ([AUD, SEI, KEY_REFRESH], NOTHING),
    "a picture that is not referred to": ([B], SPARE),
    "not referred to, in slices": ([AUD, SEI, B, B], SPARE),
    "slices that disagree": ([B, P], NOTHING),
    "not referred to, with headers": ([SPS, B], NOTHING._replace(headers=1)),
    "not referred to, with picture parameters": ([PPS, B], NOTHING),
    "headers alone": ([SPS, PPS], NOTHING._replace(headers=1)),
    "no picture": ([AUD, SEI], NOTHING),
    "nothing": ([], NOTHING),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", H264)
def test_h264(name: str, framing: str | int) -> None:
    units, kind = H264[name]
    assert kinds("h264", [framed(framing, *units)], header("h264", framing)) == [kind]


def hevc_unit(kind: int, *, temporal_id: int = 0, layer: int = 0) -> bytes:
    """ITU-T H.265, 7.3.1.2."""
    return (kind << 9 | layer << 3 | temporal_id + 1).to_bytes(2, "big") + b"abc"


TRAIL_N, TRAIL_R, RADL_N, RASL_N, RASL_R, RESERVED_N = (hevc_unit(kind) for kind in (0, 1, 6, 8, 9, 14))
VPS, HEVC_SPS, HEVC_PPS, HEVC_SEI = (hevc_unit(kind) for kind in (32, 33, 34, 39))
HEVC = {
    **{f"a start of type {kind}": ([hevc_unit(kind)], START) for kind in range(16, 22)},
    "a reserved IRAP type": ([hevc_unit(22)], NOTHING),
    "with its headers": ([VPS, HEVC_SPS, HEVC_PPS, hevc_unit(20)], START._replace(headers=1)),
    "a picture that is referred to": ([TRAIL_R], NOTHING),
    "a picture that is not referred to": ([HEVC_SEI, TRAIL_N], SPARE),
    "leading pictures": ([RADL_N], SPARE),
    "leading pictures that refer to what came before": ([RASL_N], SPARE),
    "leading and referred to": ([RASL_R], NOTHING),
    "reserved, not referred to": ([RESERVED_N], SPARE),
    "slices that disagree": ([TRAIL_N, TRAIL_R], NOTHING),
    "a temporal layer": ([hevc_unit(2, temporal_id=2)], SPARE._replace(layer=2)),
    "another layer beside the base": ([TRAIL_N, hevc_unit(1, layer=1)], SPARE),
    "a start of another layer": ([TRAIL_R, hevc_unit(19, layer=1)], NOTHING),
    "not referred to, with headers": ([HEVC_PPS, TRAIL_N], NOTHING),
    "no picture": ([HEVC_SEI], NOTHING),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", HEVC)
def test_hevc(name: str, framing: str | int) -> None:
    units, kind = HEVC[name]
    assert kinds("hevc", [framed(framing, *units)], header("hevc", framing)) == [kind]


SETS: dict[str, tuple[list[list[bytes]], list[bool]]] = {
    "all apart": ([[IDR], [P], [IDR]], [True, False, True]),
    "each start brings its own": ([[SPS, PPS, IDR], [P], [SPS, PPS, IDR]], [True, False, True]),
    "once only, in the first packet": ([[SPS, PPS, IDR], [P], [IDR]], [True, False, False]),
    "changed on the way": ([[IDR], [SPS, PPS, IDR], [IDR]], [True, True, False]),
    "before the start, in a packet of their own": ([[SPS, PPS], [IDR]], [False, False]),
}


@pytest.mark.parametrize("name", SETS)
def test_a_start_brings_its_parameter_sets_if_any_are_sent(name: str) -> None:
    packets, starts = SETS[name]
    read = kinds("h264", [framed(4, *units) for units in packets], header("h264", 4, SPS))
    assert [kind.random_access for kind in read] == starts


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_headers_are_told_apart(codec: str, framing: str | int) -> None:
    """Those of the container count as the first packet's, unless that brings its own."""
    one, other = (SPS, OTHER_SPS) if codec == "h264" else (HEVC_SPS, HEVC_SPS + b"d")
    picture = IDR if codec == "h264" else hevc_unit(19)
    apart = header(codec, framing, one)

    def numbers(*packets: Sequence[bytes], extradata: bytes | None) -> list[int]:
        return [kind.headers for kind in kinds(codec, [framed(framing, *units) for units in packets], extradata)]

    assert numbers([picture], [picture], extradata=header(codec, framing)) == [0, 0]
    assert numbers([picture], [picture], extradata=apart) == [1, 0]
    assert numbers([picture], [one, picture], extradata=apart) == [1, 1]
    assert numbers([picture], [other, picture], extradata=apart) == [1, 2]
    assert numbers([other, picture], [one, picture], extradata=apart) == [1, 2]
    assert numbers([other, picture], [picture], [other, picture], extradata=apart) == [1, 0, 1]
    assert numbers([one, other, picture], [one, picture], extradata=header(codec, framing)) == [1, 2]


def test_units_of_one_byte_and_lengths_beyond_the_end() -> None:
    """Broken packets claim nothing they do not show."""
    assert kinds("h264", [b"\0\0\0\1\x65"], header("h264", 4)) == [NOTHING]
    assert kinds("h264", [b"\0\0\0\0" + framed(4, IDR)], header("h264", 4)) == [START]
    assert kinds("h264", [b"\0\0\xff\xff" + B], header("h264", 4)) == [SPARE]
    assert kinds("h264", [b"\0\0\1\x65"]) == [NOTHING]


# Start codes of the older codecs -------------------------------------------------------------------------------------


def vop(coding_type: int) -> bytes:
    """MPEG-4 part 2: I, P, B, S."""
    return b"\0\0\1\xb6" + bytes([coding_type << 6 | 0x10]) + b"abc"


def vol(
    resolution: int, *, named: bool = False, shaped: bool = False, controlled: bool = False, buffered: bool = False
) -> bytes:
    """ISO 14496-2, 6.2.3, up to the resolution of time."""
    bits = "0" + "00000001" + ("1" + "0010001" if named else "0")
    bits += "1111" + "00000011" * 2 if shaped else "0001"
    bits += "1" + "01" + "1" + ("1" + "01" * 39 + "0" if buffered else "0") if controlled or buffered else "0"
    bits += "00" + "1" + f"{resolution:016b}"
    bits += "0" * (-len(bits) % 8)
    return b"\0\0\1\x20" + int(bits, 2).to_bytes(len(bits) // 8)


def not_coded(time_bits: int) -> bytes:
    """A P picture a second on (6.2.5), of which only vop_coded differs from those with times of another length."""
    bits = "01" + "10" + "1" + "1" * time_bits + "1" + "0"
    bits += "1" * (-len(bits) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8)


VOL, OTHER_VOL = vol(25), vol(30)
USER, GOV, OTHER_GOV = (b"\0\0\1" + unit for unit in (b"\xb2Lavc", b"\xb3\1\2\3", b"\xb3\4\5\6"))
I4, P4, B4, S4 = map(vop, range(4))
MPEG4: dict[str, tuple[list[bytes], list[PacketKind]]] = {
    "headers apart": ([I4, P4, B4, S4, I4], [START, NOTHING, SPARE, NOTHING, START]),
    "headers in each start": ([VOL + USER + I4, P4, VOL + USER + I4], [START, NOTHING, START]),
    "headers in the first only": ([VOL + I4, B4, I4], [START, SPARE, NOTHING]),
    "headers that change": ([VOL + I4, OTHER_VOL + I4], [START, NOTHING]),
    "times that change": ([VOL + GOV + I4, VOL + OTHER_GOV + I4], [START, START]),
    "packed": ([I4, P4 + B4, P4], [START, NOTHING, NOTHING]),
    "headers with a B picture": ([I4, USER + B4], [START, NOTHING]),
    "no picture": ([VOL, b"", b"abc"], [HIDDEN] * 3),
    "a picture cut off": ([b"\0\0\1\xb6"], [HIDDEN]),
    "packed, and filled up": ([I4, P4 + B4, b"\x7f", b"\x7f"], [START, NOTHING, NOTHING, HIDDEN]),
    "packed with two B pictures": (
        [VOL + I4, P4 + B4, B4, not_coded(5), not_coded(5)],
        [START, NOTHING, SPARE, NOTHING, HIDDEN],
    ),
    "coded, and as small": ([VOL + I4, not_coded(6)], [START, NOTHING]),
}


@pytest.mark.parametrize("how", [{}, *({name: True} for name in ("named", "shaped", "controlled", "buffered"))])
@pytest.mark.parametrize("resolution", [1, 2, 24, 25, 30000, 65535])
def test_a_picture_of_mpeg4_that_is_not_coded(how: dict[str, bool], resolution: int) -> None:
    time_bits = max(1, (resolution - 1).bit_length())
    for wrong in (-1, 0, 1):
        if time_bits + wrong:
            _, kind = kinds("mpeg4", [vol(resolution, **how) + I4, not_coded(time_bits + wrong)])
            assert kind.shown == (wrong != 0), wrong


@pytest.mark.parametrize("name", MPEG4)
def test_mpeg4(name: str) -> None:
    packets, wanted = MPEG4[name]
    assert [kind._replace(headers=0) for kind in kinds("mpeg4", packets)] == wanted


def picture(coding_type: int) -> bytes:
    """MPEG-1 and 2: I is 1, P is 2, B is 3; behind ten bits of temporal reference."""
    return b"\0\0\1\0" + bytes([0, coding_type << 3]) + b"ab"


SEQUENCE, GROUP, EXTENSION, MATRICES = b"\0\0\1\xb3size", b"\0\0\1\xb8t", b"\0\0\1\xb5\x80", b"\0\0\1\xb5\x30q"
I2, P2, B2 = map(picture, (1, 2, 3))
MPEG2: dict[str, tuple[bytes, PacketKind]] = {
    "a start": (SEQUENCE + EXTENSION + GROUP + I2 + EXTENSION, START),
    "an I picture alone": (GROUP + I2, NOTHING),
    "a P picture": (P2 + EXTENSION, NOTHING),
    "a B picture": (B2 + EXTENSION, SPARE),
    "two fields": (B2 + EXTENSION + B2 + EXTENSION, SPARE),
    "an I field and a P field": (SEQUENCE + I2 + P2, START),
    "a P field first": (SEQUENCE + P2 + I2, NOTHING),
    "a B picture and another": (B2 + P2, NOTHING),
    "a B picture behind a header": (SEQUENCE + B2, NOTHING),
    "a B picture that changes matrices": (B2 + MATRICES, NOTHING),
    "no picture": (SEQUENCE, NOTHING),
    "a picture cut off": (b"\0\0\1\0\0", NOTHING),
    "a start code cut off": (B2 + b"\0\0\1", SPARE),
    "nothing": (b"", NOTHING),
}


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("name", MPEG2)
def test_mpeg2(name: str, codec: str) -> None:
    packet, kind = MPEG2[name]
    assert kinds(codec, [packet]) == [kind]


VP8_KEY = b"\x10\0\0\x9d\1\x2a\x40\1\xf0\0rest"  # a key frame, shown, 320x240
VP8: dict[str, tuple[bytes, PacketKind]] = {
    "a key frame": (VP8_KEY, START._replace(headers=1)),
    "a hidden key frame": (b"\0" + VP8_KEY[1:], START._replace(shown=0, headers=1)),
    "an inter frame": (b"\x11" + bytes(20), NOTHING),
    "a hidden frame": (b"\x01" + bytes(20), NOTHING._replace(shown=0)),
    "a key frame cut off": (VP8_KEY[:9], NOTHING),
    "a short hidden frame": (b"\x01ab", NOTHING._replace(shown=0)),
    "nothing": (b"", NOTHING),
}


@pytest.mark.parametrize("name", VP8)
def test_vp8(name: str) -> None:
    packet, kind = VP8[name]
    assert kinds("vp8", [packet]) == [kind]


def test_sizes_of_vp8_are_told_apart() -> None:
    larger = VP8_KEY[:6] + b"\x80" + VP8_KEY[7:]
    assert [kind.headers for kind in kinds("vp8", [VP8_KEY, larger, VP8_KEY])] == [1, 2, 1]


def test_mjpeg_stands_alone_with_its_own_tables() -> None:
    tables, none = b"\xff\xd8\xff\xdb\0\x43" + bytes(80), b"\xff\xd8\xff\xc0" + bytes(80)
    assert kinds("mjpeg", [tables, none]) == [PacketKind(random_access=True, droppable=True), NOTHING]


def test_codecs_that_are_not_known_claim_nothing() -> None:
    assert kinds("msmpeg4v3", [IDR, b"", VP8_KEY]) == [NOTHING] * 3
    for codec in INTRA_CODECS:
        assert kinds(codec, [b"abc"]) == [PacketKind(random_access=True, droppable=True)]


CODECS = ["h264", "hevc", "av1", "mpeg4", "vp9", "vp8", "mjpeg", "mpeg2video", "mpeg1video", "prores", "unknown"]
PIECES = st.sampled_from([b"\0\0\1", b"\0\0\0\1", b"\0\0\0\5", b"\xff\xdb", b"\x65", b"\xb6", b"\xb3", b"\xb5\x30"])


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None)
@given(
    packets=st.lists(st.lists(PIECES | st.binary(max_size=12), max_size=8).map(b"".join), max_size=4),
    extradata=st.none() | st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: b"\1" + data),
)
def test_any_bytes_are_read(codec: str, packets: list[bytes], extradata: bytes | None) -> None:
    read = packet_reader(codec, extradata)
    for packet in packets:
        kind = read(memoryview(packet))
        assert isinstance(kind.random_access, bool)
        assert isinstance(kind.droppable, bool)
        assert 0 <= kind.shown <= len(packet) + 1
        assert kind.headers >= 0


# Real streams --------------------------------------------------------------------------------------------------------

# Streams whose droppable packets are all those that FFmpeg calls non-references.
NON_REFERENCES = [
    *("h264", "h264 without b", "h264 open", "h264 intra refresh", "h264 interlaced", "h264 slices", "h264 ts"),
    *("hevc", "hevc open", "hevc open ts", "hevc radl", "mpeg4", "mpeg4 ts", "mpeg2 ts", "mpeg2 ps", "mpeg1 ps"),
]


def decoded(path: Path, *, skip: str, without: Iterable[int] = ()) -> dict[int, bytes]:
    """Decode, and let the decoder skip pictures or leave packets out; return native pixels by time."""
    left_out, found = set(without), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.skip_frame = skip  # type: ignore[assignment]  # takes names
        for rank, packet in enumerate(container.demux(stream)):
            for frame in packet.decode() if rank not in left_out else []:
                assert frame.pts is not None
                found[frame.pts] = frame.to_ndarray().tobytes()
    return found


@pytest.mark.parametrize("name", NON_REFERENCES)
def test_droppable_packets_are_those_that_ffmpeg_skips(name: str, folder: Path) -> None:
    path = write(name, folder)
    packets = look(path).packets
    kept = decoded(path, skip="NONREF")
    assert sorted(kept) == sorted(packets.pts[~packets.are(DROPPABLE)].tolist())


@pytest.mark.parametrize("name", [*NON_REFERENCES, "hevc layers", "av1", "av1 open", "h264 mkv", "h264 varying rate"])
def test_without_droppable_packets_all_others_are_the_same(name: str, folder: Path) -> None:
    """All of them, and random halves."""
    path = write(name, folder)
    packets, whole = look(path).packets, decoded(path, skip="DEFAULT")
    spare = np.flatnonzero(packets.are(DROPPABLE))
    assert len(spare) > 0 or name == "h264 without b"
    for seed in range(4):
        without = spare[np.random.default_rng(seed).random(len(spare)) < 0.5] if seed else spare
        gone = set(packets.pts[without].tolist())
        assert decoded(path, skip="DEFAULT", without=without.tolist()) == {
            pts: pixels for pts, pixels in whole.items() if pts not in gone
        }


def test_of_hevc_in_layers_only_the_highest_is_dropped(folder: Path) -> None:
    """FFmpeg skips more: what is not referred to within any layer, though pictures of higher layers may."""
    path = write("hevc layers", folder)
    packets = look(path).packets
    skipped = set(packets.pts.tolist()) - set(decoded(path, skip="NONREF"))
    dropped = set(packets.pts[packets.are(DROPPABLE)].tolist())
    assert dropped
    assert dropped <= skipped


def test_every_kind_has_a_known_codec() -> None:
    names = {av.codec.Codec(kind.encoder, "w").canonical_name for kind in KINDS.values()}
    assert names - {"ffv1"} <= {*CODECS, *INTRA_CODECS}
