"""Clocks that jump: every picture keeps its place in the file, and times go on as a player's do."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.video.clock import MAX_REORDER, mend
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.packets import NO_TIME
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import plan_clips
from tests.file_kinds import frames_of
from tests.restamp import PES_HEADER
from tests.videos import look

TICKS = 90_000.0
FRAMES = 100


@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=5),
    starts=st.lists(st.integers(0, 2**33), min_size=5, max_size=5),
    depth=st.integers(0, 3),
)
def test_pictures_keep_their_order_and_their_number(lengths: list[int], starts: list[int], depth: int) -> None:
    """Recordings of any length joined, whatever their clocks showed; each with B pictures of a certain depth."""
    step = 3600
    parts = [np.arange(n, dtype=np.int64) * step + start for n, start in zip(lengths, starts, strict=False)]
    orders = [np.arange(n) // (depth + 1) * (depth + 1) + (-np.arange(n)) % (depth + 1) for n in lengths]
    pts = np.concatenate([p[0] + (o + depth) * step for p, o in zip(parts, orders, strict=True)])
    dts = np.concatenate(parts)
    clock = mend(pts, dts, TICKS)
    assert len(np.unique(clock.pts)) == len(np.unique(pts)) or len(clock.back)
    rank = 0
    for number, (n, order) in enumerate(zip(lengths, orders, strict=True)):
        here = clock.pts[rank : rank + n]
        assert np.array_equal(here - here.min(), (order - order.min()) * step)  # within a recording nothing changes
        if rank in clock.back:
            assert here.min() > clock.pts[:rank].max(), number
        rank += n


def test_what_never_steps_back_is_left_as_it_is() -> None:
    pts = np.array([0, 3600, NO_TIME, 10_800, 10**9], np.int64)
    clock = mend(pts, pts.copy(), TICKS)
    assert clock.pts is pts
    assert (clock.back.tolist(), clock.ahead.tolist()) == ([], [4])


def test_a_wrapped_counter_goes_on() -> None:
    """33 bits at 90 kHz: every 26.5 hours."""
    true = np.arange(2**33 - 7200, 2**33 + 7201, 3600, dtype=np.int64)
    clock = mend(true % 2**33, true % 2**33, TICKS)
    assert np.diff(clock.pts).tolist() == [3600] * 4


@given(st.lists(st.integers(0, 400), max_size=120), st.sampled_from([0, 1, 3, 40]))
def test_without_decoding_times_a_recording_begins_where_a_packet_comes_too_late(jitter: list[int], step: int) -> None:
    """More than 16 packets of the recording are shown behind it, though they come first."""
    pts = np.array(jitter, np.int64) + step * 10 * np.arange(len(jitter))
    begins, back = 0, []
    for rank, ticks in enumerate(pts.tolist()):
        if sum(before > ticks for before in pts[begins:rank].tolist()) > MAX_REORDER:
            begins = rank
            back.append(rank)
    assert mend(pts, pts, TICKS, has_dts=False).back.tolist() == back


# -- files ------------------------------------------------------------------------------------------------------------


def recording(path: Path, container: str, motion: str, size: tuple[int, int] = (96, 64)) -> Path:
    codec = "mpeg2video" if container == "mpg" else "libx264"
    form = Format(container, codec, "yuv420p", size, Fraction(25), {"g": "25", "bf": "2"})
    frames = draw(random_scene(motion, 1), (i / 25 for i in range(FRAMES)), size)
    encoding.encode_video(path, form, frames, list(range(FRAMES + 1)))
    return path


def joined(folder: Path, container: str, **options: Any) -> Path:
    """Two recordings, one behind the other in one file, as recorders and ``cat`` make them."""
    parts = [recording(folder / f"{motion}.{container}", container, motion, **options) for motion in ("right", "down")]
    path = folder / f"joined.{container}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def pictures(facts: Probe) -> dict[int, Any]:
    return frames_of(facts, DecodeReport())


@pytest.mark.usefixtures("quiet_ffmpeg")
@pytest.mark.parametrize("container", ["ts", "mpg"])
def test_joined_recordings_lose_no_picture(tmp_path: Path, container: str) -> None:
    facts = look(joined(tmp_path, container))
    assert facts.num_frames == 2 * FRAMES
    assert facts.broken is None
    assert np.allclose(np.diff(facts.times_s), 0.04, atol=1e-4)
    found = pictures(facts)
    assert sorted(found) == list(range(2 * FRAMES))
    for first, motion in ((0, "right"), (FRAMES, "down")):
        with av.open(str(tmp_path / f"{motion}.{container}")) as single:
            for i, frame in enumerate(single.decode(video=0)):
                assert np.array_equal(found[first + i], frame.to_ndarray(format="rgb24")), (motion, i)


@pytest.mark.usefixtures("quiet_ffmpeg")
def test_the_file_says_that_its_clock_jumped(tmp_path: Path) -> None:
    assert look(joined(tmp_path, "ts")).clock_jumped
    assert not look(tmp_path / "right.ts").clock_jumped


@pytest.mark.usefixtures("quiet_ffmpeg")
def test_flv_recordings_that_a_recorder_appends_lose_no_picture(tmp_path: Path) -> None:
    """Tag behind tag, without a second header."""
    first, second = (recording(tmp_path / f"{motion}.flv", "flv", motion) for motion in ("right", "down"))
    path = tmp_path / "joined.flv"
    path.write_bytes(first.read_bytes() + second.read_bytes()[13:])
    facts = look(path)
    assert (facts.num_frames, facts.clock_jumped, facts.broken) == (2 * FRAMES, True, None)
    assert np.allclose(np.diff(facts.times_s), 0.04, atol=1e-4)
    assert sorted(pictures(facts)) == list(range(2 * FRAMES))


@pytest.mark.usefixtures("quiet_ffmpeg")
def test_a_second_flv_file_that_ffmpeg_does_not_read_is_said(tmp_path: Path) -> None:
    facts = look(joined(tmp_path, "flv"))
    assert facts.num_frames == FRAMES
    assert facts.broken is not None
    assert facts.broken.startswith("another FLV file is joined")
    assert look(tmp_path / "right.flv").broken is None


def wrapping(path: Path, source: Path, start_s: str) -> set[int]:
    """Write ``source`` anew with a clock that starts then. Returns the highest bits of its stored times of pictures."""
    with av.open(str(source)) as original, av.open(str(path), "w", options={"output_ts_offset": start_s}) as out:
        stream = out.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = path.read_bytes()
    return {data[found.end()] >> 3 & 1 for found in PES_HEADER.finditer(data)}


@pytest.mark.usefixtures("quiet_ffmpeg")
@pytest.mark.parametrize("container", ["ts", "mpg"])
def test_a_clock_that_wraps_in_a_file(tmp_path: Path, container: str) -> None:
    """33 bits at 90 kHz are 95443.7 s: FFmpeg counts on, and so do we."""
    source = recording(tmp_path / f"right.{container}", container, "right")
    for start_s in ("95441", "95441.5", "95442", "95442.5", "95443", "95443.3"):
        path = tmp_path / f"wrapping at {start_s}.{container}"
        if wrapping(path, source, start_s) == {0, 1}:  # some pictures before it, some behind
            break
    else:
        pytest.fail("no file of these wraps")
    facts, whole = look(path), look(source)
    assert (facts.num_frames, facts.broken) == (whole.num_frames, None)
    assert np.allclose(np.diff(facts.times_s), 0.04, atol=1e-4)
    found, wanted = pictures(facts), pictures(whole)
    assert sorted(found) == list(range(FRAMES))
    assert all(np.array_equal(found[i], wanted[i]) for i in range(FRAMES))


FIELD = {"joined.ts": (200, True), "reschange.ts": (175, True), "gap1h.ts": (200, False)}


@pytest.mark.usefixtures("quiet_ffmpeg")
@pytest.mark.parametrize(("name", "frames", "jumped"), [(n, *values) for n, values in FIELD.items()])
def test_files_from_the_field(shared: Path, name: str, frames: int, jumped: bool) -> None:
    facts = look(shared / "field" / name)
    assert (facts.num_frames, facts.clock_jumped, facts.broken) == (frames, jumped, None)
    assert len(pictures(facts)) == frames
    plan = plan_clips(facts.times_s, facts.end_s)
    lengths = facts.times_s[plan.spans[:, 1] - 1] - facts.times_s[plan.spans[:, 0]]
    assert lengths.max() < 2.6  # no window spans the hour
    assert set(np.concatenate([np.arange(a, b) for a, b in plan.spans.tolist()])) == set(range(frames))
