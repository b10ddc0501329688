"""Wanted frames from segments, bit by bit against a decode of the whole file, and what a plan leaves out."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqt_fast.video import reader as reader_module
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import DecodeReport, _wanted
from sqt_fast.video.packets import DROPPABLE, NO_TIME, RANDOM_ACCESS, SHOWN, Packets
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.sampling import Int64
from sqt_fast.video.segments import Segment, plan_segments
from tests.videos import KINDS, look, write

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

# Pictures that nothing refers to, in a stream whose times tell pictures apart.
DROPPING = [
    *("h264", "h264 open", "h264 intra refresh", "h264 ts", "h264 mkv", "h264 varying rate", "h264 edit list"),
    *("hevc", "hevc open", "hevc open ts", "hevc open mkv", "hevc open edit list", "hevc radl", "hevc layers"),
    *("av1", "av1 open", "mpeg4", "mpeg4 ts", "mpeg2 ts", "mpeg2 ps", "mpeg1 ps"),
]
COUNTED = ("h264 raw", "h264 two sizes raw", "mpeg4 avi", "mpeg4 packed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "kinds"


def digest(frame: av.VideoFrame) -> bytes:
    return hashlib.sha256(frame.to_ndarray().tobytes()).digest()


@cache
def known(path: Path, until: int | None = None) -> tuple[Probe, dict[int, bytes]]:
    """Return the facts, and digests of all frames (numbers below ``until``) by one decode from start to end.

    Counted or by time, as ``Probe.pts`` has it; of two frames of the same time the first.
    """
    facts = look(path)
    found: dict[int, bytes] = {}
    counted = 0
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams[facts.source.stream_index]
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            for frame in packet.decode():
                number = counted if facts.pts is None else facts.pts.tolist().index(frame.pts)
                found.setdefault(number, digest(frame))
                counted += 1
            if until is not None and until in found:
                break
    return facts, found


def fetched(reader: PacketReader, segments: Iterable[Segment]) -> dict[int, bytes]:
    """Decode ``segments`` one after the other; return digests of their wanted frames."""
    found: dict[int, bytes] = {}
    with reader:
        for segment in segments:
            mine: dict[int, bytes] = {}
            numbers = set(segment.numbers.tolist())
            for number, frame in _wanted(reader, segment, DecodeReport()):
                if number in numbers:
                    mine.setdefault(number, digest(frame))
            assert not set(mine) & set(found)
            found |= mine
    return found


def check(facts: Probe, wanted: Int64, segments: list[Segment]) -> None:
    """Assert what holds for every plan."""
    packets = facts.packets
    assert sorted(n for segment in segments for n in segment.numbers.tolist()) == wanted.tolist()
    assert all(a.start < b.start for a, b in pairwise(segments))
    for segment in segments:
        assert 0 <= segment.start < segment.end <= len(packets)
        assert segment.start == 0 or packets.are(RANDOM_ACCESS)[segment.start]
        here = slice(segment.start, segment.end)
        assert segment.pts.tolist() == packets.pts[here].tolist()
        assert segment.dts.tolist() == packets.dts[here].tolist()
        assert (np.diff(segment.numbers) > 0).all()
        indices = segment.indices
        assert indices.dtype == np.int32
        assert (np.diff(indices) > 0).all()
        assert indices.min() >= 0
        assert segment.start == 0 or segment.keep[0]
        assert not (segment.keep & ~segment.whole().keep).any()
        if segment.ticks is None:
            continue
        assert indices.max() < segment.num_kept
        assert segment.keep[-1], "nothing is read past the last wanted packet"
        if segment.by_rank:
            assert segment.ticks[-1] == segment.end - 1
            continue
        assert facts.pts is not None
        assert segment.pts[-1] in segment.ticks
        assert segment.ticks.tolist() == facts.pts[segment.numbers].tolist()
        assert np.sort(segment.pts[segment.keep])[indices].tolist() == segment.ticks.tolist()


@st.composite
def choices(draw: st.DrawFn, num_frames: int) -> Int64:
    """Frame numbers as clips and tests may want them: all, a grid, a window of a grid, or a few."""
    kind = draw(st.sampled_from(["all", "grid", "window", "window", "few"]))
    if kind == "few":
        numbers = draw(st.sets(st.integers(0, num_frames - 1), min_size=1, max_size=5))
        return np.array(sorted(numbers), np.int64)
    stride = 1 if kind == "all" else draw(st.integers(1, 11))
    start = 0 if kind != "window" else draw(st.integers(0, num_frames - 1))
    end = num_frames if kind != "window" else min(num_frames, start + draw(st.integers(1, 120)))
    return np.arange(start, end, stride, dtype=np.int64)


def assert_equal_to_the_whole(
    facts: Probe, truth: dict[int, bytes], wanted: Int64, max_wanted: int, order: int | None, near: int
) -> None:
    """order: the seed of a shuffle of the segments, None for the order of the file. near: see NEAR_PACKETS."""
    segments = plan_segments(facts, wanted, max_wanted=max_wanted)
    check(facts, wanted, segments)
    if order is not None:
        np.random.default_rng(order).shuffle(segments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "NEAR_PACKETS", near)
        found = fetched(PacketReader(facts.source), segments)
    assert found == {n: truth[n] for n in wanted.tolist() if n in truth}


MAX_WANTED = st.sampled_from([1, 7, 128])
ORDERS = st.none() | st.integers(0, 9)
NEAR = st.sampled_from([0, 5, 1000])


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), max_wanted=MAX_WANTED, order=ORDERS, near=NEAR)
def test_wanted_frames_are_those_of_a_full_decode(
    name: str, folder: Path, data: st.DataObject, max_wanted: int, order: int | None, near: int
) -> None:
    facts, truth = known(write(name, folder))
    assert sorted(truth) == list(range(facts.num_frames))
    wanted = data.draw(choices(facts.num_frames))
    assert_equal_to_the_whole(facts, truth, wanted, max_wanted, order, near)


@pytest.mark.parametrize("name", ["h264", "hevc open", "vp9 hidden", "av1", "mpeg2 ts"])
def test_threads_change_nothing(name: str, folder: Path) -> None:
    facts, truth = known(write(name, folder))
    segments = plan_segments(facts, np.arange(0, facts.num_frames, 4), max_wanted=7)
    assert len(segments) > 1
    found = fetched(PacketReader(facts.source, num_threads=3), segments[::-1])
    assert found == {n: truth[n] for n in range(0, facts.num_frames, 4)}


@pytest.mark.parametrize("near", [0, 1000], ids=["seeking", "reading on"])
@pytest.mark.parametrize("name", KINDS)
def test_a_reader_goes_on_where_the_probe_ended(
    name: str, near: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "NEAR_PACKETS", near)
    (video,) = find_videos([str(write(name, folder))])
    _, truth = known(Path(video.path))
    facts, reader = PacketReader.probing(video)
    segments = plan_segments(facts, np.arange(0, facts.num_frames, 4), max_wanted=1)
    assert fetched(reader, [*segments[2:], *segments[:2]]) == {n: truth[n] for n in range(0, facts.num_frames, 4)}


# What is left out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DROPPING)
def test_packets_that_nothing_wanted_needs_are_left_out(name: str, folder: Path) -> None:
    facts = look(write(name, folder))
    segments = plan_segments(facts, np.arange(0, facts.num_frames, 4))
    num_packets = sum(segment.end - segment.start for segment in segments)
    assert sum(segment.num_kept for segment in segments) <= 0.75 * num_packets


@pytest.mark.parametrize("name", ["prores", "mjpeg"])
def test_of_codecs_without_references_only_wanted_packets_are_decoded(name: str, folder: Path) -> None:
    facts = look(write(name, folder))
    segments = plan_segments(facts, np.arange(0, facts.num_frames, 4))
    assert sum(segment.num_kept for segment in segments) == len(range(0, facts.num_frames, 4))


@pytest.mark.parametrize("name", ["h264 interlaced", "mpeg2 interlaced", *COUNTED])
def test_nothing_is_left_out_where_that_is_not_safe(name: str, folder: Path) -> None:
    facts = look(write(name, folder))
    assert facts.packets.are(DROPPABLE).any() or name == "mpeg4 packed"
    segments = plan_segments(facts, np.arange(facts.num_frames), max_wanted=1)
    assert len(segments) == (1 if name in COUNTED else facts.packets.are(RANDOM_ACCESS).sum())
    assert all((segment.keep == segment.whole().keep).all() for segment in segments)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_read_past_the_last_wanted_packet(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "NEAR_PACKETS", 1000)
    facts = look(write(name, folder))
    for last in (0, 7, 40):
        segments = plan_segments(facts, np.arange(last % 4, last + 1, 4))
        with PacketReader(facts.source) as reader:
            for segment in segments:
                assert sum(1 for _ in reader.packets(segment)) == segment.num_kept
                assert reader.packets_read == segment.end


def test_nothing_is_left_out_of_a_broken_file(folder: Path) -> None:
    """What the decoder conceals with may be any picture, and it may not say that it did."""
    facts = replace(look(write("h264 ts", folder)), broken="the file is cut off inside a transport packet")
    segments = plan_segments(facts, np.arange(0, 80, 4), max_wanted=1)
    assert len(segments) == 4
    assert all(segment.keep.all() for segment in segments)


def test_only_groups_with_wanted_frames_are_decoded(folder: Path) -> None:
    """Groups of 24: the first three of the first and of the third, as two segments."""
    facts = look(write("h264", folder))
    segments = plan_segments(facts, np.array([0, 1, 2, 48, 49, 50]))
    assert [segment.start for segment in segments] == [0, 48]
    assert [segment.numbers.tolist() for segment in segments] == [[0, 1, 2], [48, 49, 50]]
    assert all(segment.end - segment.start <= 6 for segment in segments)


def test_a_segment_ends_at_the_next_start_once_it_has_enough(folder: Path) -> None:
    facts = look(write("h264", folder))

    def counts(max_wanted: int) -> list[int]:
        return [len(segment.numbers) for segment in plan_segments(facts, np.arange(80), max_wanted=max_wanted)]

    assert counts(1) == counts(24) == [24, 24, 24, 8]
    assert counts(25) == counts(48) == [48, 32]
    assert counts(1000) == [80]


def test_leading_pictures_belong_to_the_segment_before(folder: Path) -> None:
    """They are decoded with the start that they follow, and are no part of the segment that begins with it."""
    facts = look(write("hevc open", folder))
    packets = facts.packets
    start = int(np.flatnonzero(packets.are(RANDOM_ACCESS))[1])
    assert packets.pts[start + 1] < packets.pts[start], "this start is followed by a leading picture"
    assert facts.pts is not None
    leading, at_start = np.searchsorted(facts.pts, [packets.pts[start + 1], packets.pts[start]]).tolist()
    (segment,) = plan_segments(facts, np.array([leading]), max_wanted=1)
    assert (segment.start, segment.end) == (0, start + 2)
    assert segment.keep[start]
    (segment,) = plan_segments(facts, np.array([at_start + 1]), max_wanted=1)
    assert segment.start == start
    assert segment.keep[0]
    assert not segment.keep[segment.pts < segment.pts[0]].any()
    assert not segment.whole().keep[segment.pts < segment.pts[0]].any()


def test_the_start_of_an_open_group_of_h264_is_no_start(folder: Path) -> None:
    """NVDEC shows nothing before an IDR picture, and FFmpeg conceals."""
    for name in ("h264 open", "h264 open ts", "h264 intra refresh"):
        facts = look(write(name, folder))
        assert np.flatnonzero(facts.packets.are(RANDOM_ACCESS)).tolist() == [0]
        (segment,) = plan_segments(facts, np.array([79]), max_wanted=1)
        assert segment.start == 0


def test_frames_of_codecs_without_references_are_found_by_rank(folder: Path) -> None:
    """AVI has no times that can be trusted, and does not need them here."""
    facts = look(write("mjpeg", folder))
    assert facts.pts is None
    (segment,) = plan_segments(facts, np.array([8, 40, 64]))
    assert (segment.start, segment.end, segment.num_kept) == (8, 65, 3)


def test_nothing_wanted_is_no_segment(folder: Path) -> None:
    assert plan_segments(look(write("h264", folder)), np.array([], np.int64)) == []


# Packets by hand -----------------------------------------------------------------------------------------------------


def by_hand(facts: Probe, pts: Iterable[int], *, starts: Iterable[int], droppable: Iterable[int] = ()) -> Probe:
    """Return facts of a stream of these times, in decoding order; all packets are shown."""
    times = np.array(list(pts), np.int64)
    flags = np.full(len(times), SHOWN, np.uint8)
    flags[list(starts)] |= RANDOM_ACCESS
    flags[list(droppable)] |= DROPPABLE
    packets = Packets(times, np.arange(len(times), dtype=np.int64), np.ones(len(times), np.int32), flags)
    return replace(facts, packets=packets, pts=np.unique(times), times_s=np.unique(times).astype(np.float64))


@pytest.fixture(scope="module")
def facts(folder: Path) -> Probe:
    return look(write("h264", folder))


def test_a_long_video_is_planned_packet_by_packet(facts: Probe) -> None:
    """Three hours, groups of 30, every second picture can be left out."""
    num = 300_000
    long = by_hand(facts, range(num), starts=range(0, num, 30), droppable=range(1, num, 2))
    wanted = np.arange(0, num, 4)
    segments = plan_segments(long, wanted)
    check(long, wanted, segments)
    per_group = np.bincount(wanted // 30)
    assert len(segments) == sum(1 for _ in _greedy(per_group.tolist(), 128))
    assert max(len(segment.numbers) for segment in segments) < 128 + 8
    assert all((segment.keep == (np.arange(len(segment.keep)) % 2 == 0)).all() for segment in segments)
    (few, last) = plan_segments(long, np.array([7, num - 1]))
    assert (few.start, few.end, last.start, last.end) == (0, 8, num - 30, num)


def _greedy(per_group: list[int], max_wanted: int) -> Iterable[int]:
    count = 0
    for wanted in per_group:
        count += wanted
        if count >= max_wanted:
            yield count
            count = 0
    if count:
        yield count


def test_times_that_step_back_at_every_start_take_no_quadratic_time(facts: Probe) -> None:
    """Each start is refuted only when the one after it has been: one by one it would take minutes."""
    num_groups = 100_000
    pts = [time for k in range(num_groups) for time in (4 * (num_groups - k), 4 * (num_groups - k) + 1)]
    wild = by_hand(facts, [*pts, 0], starts=range(0, len(pts), 2))
    wanted = np.arange(0, wild.num_frames, 4)
    (segment,) = plan_segments(wild, wanted)
    check(wild, wanted, [segment])
    assert segment.start == 0


def test_a_start_with_strays_is_no_start(facts: Probe) -> None:
    """Packet 6 comes after trailing pictures of the start 3, and is shown before it: it may refer to anything."""
    odd = by_hand(facts, [0, 1, 2, 5, 6, 7, 3, 9, 10], starts=[0, 3, 7])
    segments = plan_segments(odd, np.array([3, 5, 7]), max_wanted=1)
    check(odd, np.array([3, 5, 7]), segments)
    assert [(segment.start, segment.end) for segment in segments] == [(0, 7), (7, 8)]


def test_leading_pictures_of_the_first_packet_are_kept(facts: Probe) -> None:
    """A file may begin with the start of an open group; what its leading pictures show is the decoder's affair."""
    odd = by_hand(facts, [2, 0, 1, 3, 4], starts=[0, 3], droppable=[1, 2])
    (segment,) = plan_segments(odd, np.array([0, 2]), max_wanted=9)
    assert segment.keep.tolist() == [True, True]
    assert segment.whole().keep.all()


def test_packets_without_a_time_are_no_starts(facts: Probe) -> None:
    odd = by_hand(facts, [0, 1, 2, 3], starts=[0, 2])
    pts = odd.packets.pts.copy()
    pts[2] = NO_TIME
    odd = replace(odd, packets=replace(odd.packets, pts=pts))
    (segment,) = plan_segments(odd, np.array([3]))
    assert segment.start == 0


def test_a_file_may_begin_anywhere(facts: Probe) -> None:
    """Without any start the first packet is one."""
    odd = by_hand(facts, [0, 2, 1, 3], starts=[], droppable=[2])
    (segment,) = plan_segments(odd, np.array([3]))
    assert (segment.start, segment.keep.tolist()) == (0, [True, True, False, True])


def test_a_time_that_comes_twice_is_one_frame(facts: Probe) -> None:
    odd = by_hand(facts, [0, 1, 2, 3, 1, 2, 3], starts=[0])
    (segment,) = plan_segments(odd, np.array([1, 3]))
    assert segment.numbers.tolist() == [1, 3]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), max_wanted=MAX_WANTED)
def test_any_order_of_times_is_planned(facts: Probe, data: st.DataObject, max_wanted: int) -> None:
    """Broken files: whatever the times, each wanted frame is in one segment, and segments are sound."""
    pts = data.draw(st.permutations(range(data.draw(st.integers(1, 24)))))
    ranks = st.sets(st.integers(0, len(pts) - 1))
    starts, droppable = data.draw(ranks), data.draw(ranks)
    odd = by_hand(facts, pts, starts=starts, droppable=droppable - starts)
    wanted = data.draw(choices(len(pts)))
    segments = plan_segments(odd, wanted, max_wanted=max_wanted)
    check(odd, wanted, segments)
    for segment in segments:  # only what may be dropped, or was shown before the start and came after it, is left out
        may_go = (segment.pts < segment.pts[0]) | odd.packets.are(DROPPABLE)[segment.start : segment.end]
        assert (segment.keep | may_go).all() or odd.packets.are(RANDOM_ACCESS).all()  # these need no other


# Real files ----------------------------------------------------------------------------------------------------------

LONG = {"androidx_long_180p_av1.mp4": 900, "intel_one-by-one-person-detection.mp4": 300}  # frames to look at
REAL = [
    "androidx_bbb_176x144_192kbps_15fps_mpeg4.mp4",
    "androidx_bbb_642x642_768kbps_30fps_vp9.webm",
    "androidx_bbb_800x640_avc_non_reference_3b.mp4",
    "androidx_bbb_800x640_avc_pyramid_3b.mp4",
    "androidx_hdr10-av1.mp4",
    "androidx_iibbibb_editlist_videoonly.mp4",
    "androidx_internal_emulator_transformer_output_270_rotated.mp4",
    "androidx_long_180p_av1.mp4",
    "androidx_pixel-motion-photo-2-hevc-tracks.mp4",
    "androidx_sample_edit_list.mp4",
    "decord_flipping_a_pancake.mkv",
    "decord_unordered.mov",
    "intel_asl_walk.mkv",
    "intel_one-by-one-person-detection.mp4",
    "mma_demo.mp4",
    "mma_test.avi",
    "mma_test.mp4",
    "mp4parser_count-video.mp4",
    "mp4parser_foreman-hevc-384.mp4",
    "muxjs_sintel-captions.ts",
    "torchcodec_av1_video.mkv",
    "tv_RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "tv_v_SoccerJuggling_g23_c01.avi",
    "vpf_test_res_change.h264",
    "vpl_cars_320x240_mjpeg.avi",
]


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, shared: Path) -> None:
    until = LONG.get(name)
    facts, truth = known(shared / "videos" / name, until)
    num_frames = until or facts.num_frames
    for wanted, max_wanted, order in (
        (np.arange(0, num_frames, 4), 128, None),
        (np.arange(num_frames // 3, num_frames, 7), 16, 1),
    ):
        assert_equal_to_the_whole(facts, truth, wanted, max_wanted, order, 5 if order else 256)
