"""What packets of AV1 are said to be, against what dav1d makes of the stream with some of them left out."""

import hashlib
from collections.abc import Collection, Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.video.av1 import Av1Reader
from sqt_fast.video.packets import PacketKind

SIZE, FPS = (128, 96), Fraction(25)
NOTHING = PacketKind()

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")


class Stream(NamedTuple):
    """decoder: FFmpeg's name. packets: presentation time and bytes, in decoding order."""

    decoder: str
    extradata: bytes | None
    packets: list[tuple[int, bytes]]


def encoded(folder: Path, encoder: str, num_frames: int, pix_fmt: str = "yuv420p", **options: str) -> Stream:
    """Encode a turning shape."""
    form = Format("mkv", encoder, pix_fmt, SIZE, FPS, options)
    frames = draw(random_scene("clockwise", 0), (i / 25 for i in range(num_frames)), SIZE)
    with encoding.silent_svt():
        encoding.encode_video(folder / "a.mkv", form, frames, range(num_frames + 1))
    return read_stream(folder / "a.mkv")


def read_stream(path: Path, limit: int | None = None) -> Stream:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        packets = [(p.pts, bytes(p)) for p in islice(container.demux(stream), limit) if p.pts is not None]
        return Stream(stream.codec_context.name, stream.codec_context.extradata, packets)


def pictures(stream: Stream, without: Collection[int] = (), start: int = 0) -> dict[int, list[bytes]]:
    """Decode packets number ``start`` and on but for some; return hashes of the pictures by presentation time.

    A packet that the decoder refuses shows nothing.
    """
    decoder = av.CodecContext.create(stream.decoder, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata, decoder.thread_count = stream.extradata, 1
    found: dict[int, list[bytes]] = {}
    wanted = [packet for i, packet in enumerate(stream.packets) if i >= start and i not in without]
    for pts, data in [*wanted, (0, b"")]:
        packet = av.Packet(data)
        packet.pts = packet.dts = pts
        try:
            frames = decoder.decode(packet if data else None)
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            assert frame.pts is not None
            found.setdefault(frame.pts, []).append(hashlib.sha256(frame.to_ndarray().tobytes()).digest())
    return found


def shown(stream: Stream, kinds: Iterable[PacketKind]) -> dict[int, int]:
    """Return how many pictures each packet is said to show, by presentation time."""
    return {pts: kind.shown for (pts, _), kind in zip(stream.packets, kinds, strict=True) if kind.shown}


def kinds_of(stream: Stream) -> list[PacketKind]:
    reader = Av1Reader(stream.extradata)
    return [reader.read(memoryview(data)) for _, data in stream.packets]


def droppable(kinds: Iterable[PacketKind]) -> list[int]:
    return [i for i, kind in enumerate(kinds) if kind.droppable]


def assert_the_rest_is_the_same(stream: Stream, kinds: list[PacketKind]) -> None:
    """Leave out all droppable packets, and five random halves of them; compare the other pictures, bit by bit."""
    whole, drop = pictures(stream), droppable(kinds)
    assert {pts: len(found) for pts, found in whole.items()} == shown(stream, kinds)
    for seed in range(6):
        without = [i for i in drop if seed == 0 or np.random.default_rng([seed, i]).random() < 0.5]
        gone = {stream.packets[i][0] for i in without}
        assert pictures(stream, without) == {pts: found for pts, found in whole.items() if pts not in gone}


SETTINGS = {  # options of SVT-AV1, and the least part of packets that can be left out
    "pyramid of 16": ("preset=10", 0.65),
    "pyramid of 32, key frames": ("preset=10:hierarchical-levels=5:keyint=40", 0.6),
    "pyramid of 8": ("preset=11:hierarchical-levels=3", 0.65),
    "low delay": ("preset=10:pred-struct=1", 0.45),
    "low delay at a constant rate": ("preset=10:pred-struct=1:rc=2:tbr=200", 0.45),
    "film grain": ("preset=10:film-grain=20", 0.65),
    "of a screen": ("preset=10:scm=1", 0.65),
    "overlays": ("preset=8:enable-overlays=1", 0.65),
    "open groups": ("preset=10:irefresh-type=1:keyint=32", 0.6),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_leaving_out_droppable_packets_changes_no_other_picture(name: str, tmp_path: Path) -> None:
    params, least = SETTINGS[name]
    stream = encoded(tmp_path, "libsvtav1", 90, **{"svtav1-params": f"{params}:lp=2"})
    kinds = kinds_of(stream)
    assert len(droppable(kinds)) >= least * len(kinds)
    assert_the_rest_is_the_same(stream, kinds)


def test_leaving_out_a_needed_packet_changes_other_pictures(tmp_path: Path) -> None:
    """The measure of the tests above: it does see what a reference is worth."""
    stream = encoded(tmp_path, "libsvtav1", 40, **{"svtav1-params": "preset=10:lp=2"})
    whole = pictures(stream)
    needed = [i for i, kind in enumerate(kinds_of(stream)) if not kind.droppable and i > 0]
    assert len(needed) >= 8
    for i in needed[:-2]:  # nothing follows the last ones that would refer to them
        changed = pictures(stream, [i])
        assert {pts: found for pts, found in whole.items() if pts != stream.packets[i][0]} != changed, i


def test_decoding_may_begin_at_every_start(tmp_path: Path) -> None:
    stream = encoded(tmp_path, "libsvtav1", 60, **{"svtav1-params": "preset=10:keyint=16:lp=2"})
    kinds, whole = kinds_of(stream), pictures(stream)
    starts = [i for i, kind in enumerate(kinds) if kind.random_access]
    assert starts == [0, 16, 32, 48]
    assert len({kinds[i].headers for i in starts}) == 1
    for start in starts:
        times = {pts for pts, _ in stream.packets[start:]}
        assert pictures(stream, start=start) == {pts: found for pts, found in whole.items() if pts in times}


def test_a_key_frame_without_its_sequence_header_is_no_start(tmp_path: Path) -> None:
    """Matroska allows to leave it out where it repeats the extradata, but dav1d then shows nothing."""
    stream = encoded(tmp_path, "libsvtav1", 10, **{"svtav1-params": "preset=10:lp=2"})
    pts, data = stream.packets[0]
    assert data[0] == SEQUENCE << 3 | 2
    stream.packets[0] = (pts, data[2 + data[1] :])
    assert not any(kind.random_access for kind in kinds_of(stream))
    assert pictures(stream) == {}


@pytest.mark.parametrize(
    ("name", "limit", "starts"),
    [
        ("androidx_long_180p_av1.mp4", 400, [0, 321]),
        ("torchcodec_av1_video.mkv", 200, [0]),
        ("androidx_hdr10-av1.mp4", 40, [0]),
    ],
)
def test_real_files(name: str, limit: int, starts: list[int], shared: Path) -> None:
    stream = read_stream(shared / "videos" / name, limit)
    kinds = kinds_of(stream)
    assert len(droppable(kinds)) > 0.45 * len(kinds)
    assert [i for i, kind in enumerate(kinds) if kind.random_access] == starts
    assert_the_rest_is_the_same(stream, kinds)


# Headers written field by field --------------------------------------------------------------------------------------

Field = tuple[int, int]  # value, bits
KEY, INTER, INTRA_ONLY, SWITCH = range(4)
DELIMITER, SEQUENCE, HEADER, TILES, METADATA, FRAME, REDUNDANT, PADDING = 2, 1, 3, 4, 5, 6, 7, 15


def packed(fields: Iterable[Field]) -> bytes:
    text = "".join(f"{value:0{count}b}" for value, count in fields if count)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def obu(kind: int, payload: bytes, *, layer: int | None = None, sized: bool = True) -> bytes:
    head = bytes([kind << 3 | (layer is not None) << 2 | sized << 1]) + (b"" if layer is None else bytes([layer << 3]))
    size, number = bytearray(), len(payload)
    while sized and (number > 127 or not size):
        size.append(number & 127 | 128)
        number >>= 7
    if sized and number:
        size.append(number)
    elif sized:
        size[-1] &= 127
    return head + bytes(size) + payload


class Layout(NamedTuple):
    """What a sequence header says of the frame headers that follow."""

    order_hint_bits: int = 7
    screen_content: int = 2  # 2: each frame says for itself
    integer_mv: int = 2
    timing: bool = False
    model: bool = False
    display_delay: bool = False
    numbers: bool = False
    reduced: bool = False
    points: tuple[int, ...] = (0,)  # operating_point_idc of each
    level: int = 8


def sequence_header(layout: Layout) -> bytes:
    """AV1 specification, 5.5."""
    fields: list[Field] = [(0, 3), (layout.reduced, 1), (layout.reduced, 1)]
    if layout.reduced:
        fields.append((layout.level, 5))
    else:
        fields.append((layout.timing, 1))
        if layout.timing:
            fields += [(1, 32), (25, 32), (1, 1), (0b00101, 5), (layout.model, 1)]
            fields += [(9, 5), (1, 32), (11, 5), (13, 5)] if layout.model else []
        fields += [(layout.display_delay, 1), (len(layout.points) - 1, 5)]
        for i, point in enumerate(layout.points):
            fields += [(point, 12), (layout.level, 5), (0, int(layout.level > 7))]
            if layout.timing and layout.model:
                fields += [(1, 1), (5, 10), (7, 10), (0, 1)] if i == 0 else [(0, 1)]
            fields += [(1, 1), (3, 4)] if layout.display_delay else []
    fields += [(6, 4), (5, 4), (127, 7), (47, 6)]
    if not layout.reduced:
        fields += [(layout.numbers, 1), (0b1010_101, 7 * layout.numbers)]
    fields.append((0b101, 3))
    if not layout.reduced:
        fields += [(0b0110, 4), (layout.order_hint_bits > 0, 1), (0b01, 2 * (layout.order_hint_bits > 0))]
        fields += [(1, 1)] if layout.screen_content == 2 else [(0, 1), (layout.screen_content, 1)]
        if layout.screen_content:
            fields += [(1, 1)] if layout.integer_mv == 2 else [(0, 1), (layout.integer_mv, 1)]
        fields.append((layout.order_hint_bits - 1, 3 * (layout.order_hint_bits > 0)))
    return packed([*fields, (0xFFFF, 16)])


class Picture(NamedTuple):
    """A frame header's fields. screen_content: where the frame says so for itself."""

    frame_type: int = INTER
    is_shown: bool = True
    error_resilient: bool = False
    screen_content: bool = False
    order_hint: int = 5
    refreshed: int = 0


def frame_header(picture: Picture, layout: Layout = Layout()) -> bytes:  # noqa: B008 - immutable
    """AV1 specification, 5.9.2, up to refresh_frame_flags, and some bytes more. Neither model nor numbers."""
    kind, full = picture.frame_type, picture.frame_type == SWITCH or (picture.frame_type == KEY and picture.is_shown)
    fields: list[Field] = [(0, 1), (kind, 2), (picture.is_shown, 1), (1, int(not picture.is_shown))]
    fields += [(picture.error_resilient, int(not full)), (1, 1)]
    content = layout.screen_content
    if content == 2:
        content = picture.screen_content
        fields.append((content, 1))
    if content and layout.integer_mv == 2:
        fields.append((1, 1))
    fields += [(0, int(kind != SWITCH)), (picture.order_hint % 2**layout.order_hint_bits, layout.order_hint_bits)]
    if kind in (INTER, SWITCH) and not (picture.error_resilient or full):
        fields.append((6, 3))
    fields.append((picture.refreshed, 0 if full else 8))
    return packed([*fields, (0xFFFFFFFFFFFFFFFF, 64)])


def show_existing(slot: int) -> bytes:
    return packed([(1, 1), (slot, 3), (1, 1)])


def reader_of(layout: Layout = Layout()) -> Av1Reader:  # noqa: B008 - immutable
    """Return a reader that has seen a key frame."""
    reader = Av1Reader()
    start = obu(SEQUENCE, sequence_header(layout)) + obu(FRAME, frame_header(Picture(KEY), layout))
    kind = reader.read(memoryview(start))
    assert kind._replace(headers=0) == PacketKind(random_access=True, droppable=False, shown=1)
    assert kind.headers != 0
    return reader


LAYOUTS = st.builds(
    Layout,
    order_hint_bits=st.integers(0, 8),
    screen_content=st.integers(0, 2),
    integer_mv=st.integers(0, 2),
    timing=st.booleans(),
    model=st.just(False),
    numbers=st.just(False),
    reduced=st.just(False),
    display_delay=st.booleans(),
    points=st.lists(st.sampled_from([0, 0x101, 0x103]), min_size=1, max_size=4).map(tuple),
    level=st.sampled_from([0, 7, 8, 31]),
)
PICTURES = st.builds(
    Picture,
    frame_type=st.integers(0, 3),
    is_shown=st.booleans(),
    error_resilient=st.booleans(),
    screen_content=st.booleans(),
    order_hint=st.integers(0, 255),
    refreshed=st.sampled_from([0, 0, 0, 1, 128, 255]),
)


@given(LAYOUTS, PICTURES)
def test_every_layout_of_headers(layout: Layout, picture: Picture) -> None:
    kind = reader_of(layout).read(memoryview(obu(FRAME, frame_header(picture, layout))))
    passes = picture.refreshed == 0 and not picture.error_resilient and picture.frame_type in (INTER, INTRA_ONLY)
    assert kind == PacketKind(random_access=False, droppable=passes, shown=int(picture.is_shown))


PASSING, LASTING, HIDDEN = (
    obu(FRAME, frame_header(picture)) for picture in (Picture(), Picture(refreshed=4), Picture(is_shown=False))
)
DROP, KEEP = PacketKind(droppable=True), PacketKind()
PACKETS = {
    "a temporal delimiter before": (obu(DELIMITER, b"") + PASSING, DROP),
    "metadata and padding": (obu(METADATA, b"abc") + PASSING + obu(PADDING, b"0" * 300), DROP),
    "header and tiles apart": (obu(HEADER, frame_header(Picture())) + 2 * obu(TILES, b"abc"), DROP),
    "no size in the last": (obu(DELIMITER, b"") + obu(FRAME, frame_header(Picture()), sized=False), DROP),
    "a temporal layer": (obu(FRAME, frame_header(Picture()), layer=4), DROP),
    "two pictures": (PASSING + PASSING, DROP._replace(shown=2)),
    "one hidden": (HIDDEN, DROP._replace(shown=0)),
    "hidden and shown": (HIDDEN + PASSING, DROP),
    "one of two lasts": (PASSING + LASTING, KEEP._replace(shown=2)),
    "a header again": (PASSING + obu(REDUNDANT, frame_header(Picture())), KEEP),
    "a list of tiles": (PASSING + obu(8, b"abc"), KEEP),
    "a reserved kind": (PASSING + obu(12, b"abc"), KEEP),
    "a delimiter alone": (obu(DELIMITER, b""), KEEP._replace(shown=0)),
    "nothing": (b"", KEEP._replace(shown=0)),
    "cut off": (PASSING[:-1], NOTHING),
    "no OBU": (b"\xff" + PASSING, NOTHING),
    "a header cut off": (obu(FRAME, frame_header(Picture())[:2]), NOTHING),
}


@pytest.mark.parametrize("name", PACKETS)
def test_packets_of_several_parts(name: str) -> None:
    data, kind = PACKETS[name]
    assert reader_of().read(memoryview(data)) == kind


@pytest.mark.parametrize(
    "layout",
    [Layout(timing=True, model=True), Layout(numbers=True), Layout(points=(0x303, 0x101))],
    ids=["decoder model", "frame numbers", "spatial layers"],
)
def test_nothing_is_droppable_in_special_streams(layout: Layout) -> None:
    reader = reader_of(layout)
    assert reader.read(memoryview(PASSING)) == KEEP
    assert reader.read(memoryview(obu(HEADER, show_existing(3)))) == KEEP
    assert reader.read(memoryview(HIDDEN + PASSING)) == KEEP
    assert reader.read(memoryview(HIDDEN)) == KEEP._replace(shown=0)


def test_spatial_layers_show_one_picture() -> None:
    assert reader_of(Layout(points=(0x303,))).read(memoryview(PASSING + PASSING)) == KEEP


def test_a_key_frame_that_is_shown_later_fills_all_slots() -> None:
    reader = reader_of()
    show = {slot: memoryview(obu(HEADER, show_existing(slot))) for slot in (2, 3, 4)}
    assert reader.read(show[2]) == KEEP  # the key frame of the beginning
    reader.read(memoryview(obu(FRAME, frame_header(Picture(refreshed=0xFF)))))
    assert [reader.read(show[slot]) for slot in (2, 3, 4)] == 3 * [DROP]
    hidden_key = obu(FRAME, frame_header(Picture(KEY, is_shown=False, refreshed=1 << 3)))
    assert reader.read(memoryview(hidden_key)) == KEEP._replace(shown=0)
    assert [reader.read(show[slot]) for slot in (2, 4)] == 2 * [DROP]
    assert reader.read(show[3]) == KEEP
    assert reader.read(show[2]) == KEEP  # holds the key frame now
    reader.read(memoryview(obu(FRAME, frame_header(Picture(SWITCH)))))
    assert reader.read(show[2]) == DROP
    assert reader.read(memoryview(b"\xff")) == NOTHING  # after damage anything may be in the slots
    assert reader.read(show[2]) == KEEP


def test_a_start_has_a_shown_key_frame_first_and_its_own_sequence_header() -> None:
    sequence = obu(SEQUENCE, sequence_header(Layout()))
    key, hidden_key = (obu(FRAME, frame_header(Picture(KEY, is_shown=is_shown))) for is_shown in (True, False))
    extradata = b"\x81\x00\x0c\x00" + sequence
    for data, start in {
        sequence + key: True,
        obu(DELIMITER, b"") + sequence + key + PASSING: True,
        key: False,
        sequence + hidden_key: False,
        sequence + LASTING + key: False,
        key + sequence: False,
    }.items():
        assert Av1Reader(extradata).read(memoryview(data)).random_access == start
    assert Av1Reader(extradata).read(memoryview(PASSING)) == DROP
    assert Av1Reader(sequence).read(memoryview(PASSING)) == DROP
    assert Av1Reader().read(memoryview(PASSING)) == NOTHING


def test_a_still_picture() -> None:
    still = Layout(reduced=True, order_hint_bits=0)
    data = obu(SEQUENCE, sequence_header(still)) + obu(FRAME, b"\xff\xff")
    kind = Av1Reader().read(memoryview(data))
    assert kind._replace(headers=0) == PacketKind(random_access=True, droppable=False, shown=1)


def test_headers_tell_sequences_apart() -> None:
    one, two = (obu(SEQUENCE, sequence_header(Layout(order_hint_bits=bits))) for bits in (7, 6))
    reader = reader_of()
    first, again, other = (reader.read(memoryview(data)) for data in (one, one + PASSING, two + PASSING))
    assert first.headers == again.headers != other.headers
    assert not again.droppable
    assert reader.read(memoryview(PASSING)).headers == 0


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_any_bytes_are_read(extradata: bytes, data: bytes) -> None:
    Av1Reader(extradata).read(memoryview(data))
    reader_of().read(memoryview(data))
    reader_of().read(memoryview(obu(FRAME, data)))
    reader_of().read(memoryview(obu(SEQUENCE, data) + PASSING))


def test_cut_packets_are_not_droppable(tmp_path: Path) -> None:
    stream = encoded(tmp_path, "libsvtav1", 40, **{"svtav1-params": "preset=10:lp=2"})
    reader = Av1Reader(stream.extradata)
    for _, data in stream.packets:
        for size in {*range(1, min(len(data), 40)), len(data) - 1}:
            kind = reader.read(memoryview(data)[:size])
            assert not kind.droppable
            assert not kind.random_access
        reader.read(memoryview(data))
