"""Frame numbers: the official protocol against recorded results, the rest against brute force and properties."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sqt_fast.video.sampling import (
    ClipPlan,
    Float64,
    end_of,
    frames_at_rate,
    gaps,
    official,
    plan_clips,
    stride_starts,
    tile_starts,
)

COUNTS = st.integers(1, 2000)


def steady(num_frames: int, fps: float, start_s: float = 0.0) -> tuple[Float64, float]:
    """Times of a steady video and when it ends."""
    return start_s + np.arange(num_frames) / fps, start_s + num_frames / fps


@st.composite
def timelines(draw: st.DrawFn, max_frames: int = 300) -> tuple[Float64, float]:
    """Times of a video whose frames last 1 to 9 ticks of a millisecond clock, starting anywhere."""
    ticks = draw(st.lists(st.integers(1, 9), min_size=1, max_size=max_frames))
    start = draw(st.integers(0, 5000))
    edges = (start + np.concatenate([[0], np.cumsum(ticks)])) * draw(st.sampled_from([0.001, 0.01, 1 / 90]))
    return edges[:-1], float(edges[-1])


def on_screen(times_s: Float64, moment_s: float) -> int:
    """Return the last frame that has begun, looked up one by one."""
    return max([i for i, t in enumerate(times_s) if t <= moment_s + 1e-9], default=0)


def check(plan: ClipPlan, num_frames: int) -> None:
    """Assert what holds for every plan."""
    assert plan.frames.shape == (len(plan), 16)
    assert plan.spans.shape == (len(plan), 2)
    assert plan.frames.dtype == plan.spans.dtype == np.int64
    assert len(plan) >= 1
    assert plan.frames.min() >= 0
    assert plan.frames.max() < num_frames
    assert (plan.spans[:, 0] < plan.spans[:, 1]).all()
    assert plan.spans.min() >= 0
    assert plan.spans.max() <= num_frames
    assert (np.diff(plan.spans, axis=0) >= 0).all()
    assert plan.wanted.tolist() == sorted({n for clip in plan.frames.tolist() for n in clip})


# The official protocol -----------------------------------------------------------------------------------------------


def test_official_equals_mmaction2(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "sample_frames.json").read_text())["cases"]
    assert len(cases) == 171
    for case in cases:
        frames = official(
            case["total_frames"], case["num_clips"], clip_len=case["clip_len"], interval=case["frame_interval"]
        )
        assert frames.tolist() == case["frame_inds"], case


@pytest.mark.parametrize(
    ("num_frames", "num_clips", "starts"),
    [
        pytest.param(280, 10, [0, 24, 49, 73, 97, 122, 146, 170, 195, 219], id="ten clips"),
        pytest.param(280, 1, [109], id="one clip: the middle"),
        pytest.param(280, 2, [0, 219], id="two clips: both ends"),
        pytest.param(61, 3, [0, 0, 0], id="exactly one clip"),
        pytest.param(62, 3, [0, 0, 1], id="half is rounded to even"),
        pytest.param(64, 3, [0, 2, 3], id="half is rounded to even, upwards"),
    ],
)
def test_official_spreads_starts(num_frames: int, num_clips: int, starts: list[int]) -> None:
    frames = official(num_frames, num_clips)
    assert frames.tolist() == [[start + 4 * t for t in range(16)] for start in starts]


@given(num_frames=st.integers(1, 60), num_clips=st.integers(1, 12))
def test_official_wraps_short_videos(num_frames: int, num_clips: int) -> None:
    assert official(num_frames, num_clips).tolist() == [[4 * t % num_frames for t in range(16)]] * num_clips


@pytest.mark.parametrize("call", [lambda: official(0, 1), lambda: tile_starts(0)], ids=["official", "tile"])
def test_no_frames_are_a_mistake_of_the_caller(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="num_frames 0"):
        call()


def test_official_plan_speaks_for_the_whole_video() -> None:
    plan = plan_clips(*steady(100, 25), num_clips=10)
    check(plan, 100)
    assert plan.spans.tolist() == [[0, 100]] * 10
    assert plan.frames.tolist() == official(100, 10).tolist()


# Windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "starts", "spans"),
    [
        (1, [0], [[0, 1]]),
        (63, [0], [[0, 63]]),
        (64, [0], [[0, 64]]),
        (67, [0], [[0, 67]]),
        (68, [0, 4], [[0, 64], [4, 68]]),
        (128, [0, 64], [[0, 64], [64, 128]]),
        (131, [0, 64], [[0, 64], [64, 131]]),
        (132, [0, 64, 68], [[0, 64], [64, 128], [68, 132]]),
    ],
)
def test_tiles_at_the_edges(num_frames: int, starts: list[int], spans: list[list[int]]) -> None:
    assert tile_starts(num_frames).tolist() == starts
    assert plan_clips(*steady(num_frames, 25)).spans.tolist() == spans


@given(num_frames=COUNTS, fps=st.sampled_from([1.0, 23.976, 25.0, 60.0]))
def test_tiles_cover_every_frame_once_but_for_the_end(num_frames: int, fps: float) -> None:
    plan = plan_clips(*steady(num_frames, fps))
    check(plan, num_frames)
    covered = np.zeros(num_frames, np.int64)
    for start, end in plan.spans.tolist():
        covered[start:end] += 1
    assert covered.min() == 1
    assert covered.max() <= 2
    assert plan.spans[-1, 1] == num_frames
    assert (np.diff(plan.spans[:, 0]) > 0).all()
    assert (plan.spans[:-1, 0] == 64 * np.arange(len(plan) - 1)).all()
    assert ((plan.spans[:, 1] - plan.spans[:, 0]) <= 67).all()


@given(num_frames=COUNTS)
def test_tiles_read_inside_their_window(num_frames: int) -> None:
    plan = plan_clips(*steady(num_frames, 25))
    for frames, (start, end) in zip(plan.frames.tolist(), plan.spans.tolist(), strict=True):
        if num_frames >= 64:
            assert frames == [start + 4 * t for t in range(16)]
            assert frames[-1] < end
            assert end - frames[-1] <= 7, "the last frames of the window are seen by nobody"
        else:
            assert frames == [4 * t % num_frames for t in range(16)]


# Every so many seconds -----------------------------------------------------------------------------------------------


def exact_starts(times_s: Float64, end_s: float, stride_s: float) -> list[int]:
    """Return the frame on screen at every multiple of the stride, looked up one by one."""
    count = max(1, int(np.ceil((end_s - times_s[0]) / stride_s)))
    return [on_screen(times_s, times_s[0] + k * stride_s) for k in range(count)]


@given(timeline=timelines(), stride_s=st.sampled_from([0.011, 0.07, 0.5, 2.56, 100.0]))
def test_stride_starts_with_the_frame_on_screen(timeline: tuple[Float64, float], stride_s: float) -> None:
    """Or one or two frames beside it, on a grid of 4, unless most windows are closer than that to the next."""
    times_s, end_s = timeline
    last = max(len(times_s) - 64, 0)
    exact = exact_starts(times_s, end_s, stride_s)
    on_grid = len(exact) > 1 and np.median(np.diff(exact)) >= 4
    moved = [4 * ((start + 2) // 4) for start in exact] if on_grid else exact
    assert all(abs(a - b) <= 2 for a, b in zip(moved, exact, strict=True))
    wanted = sorted({min(start, last - last % 4 if on_grid else last) for start in moved})
    assert stride_starts(times_s, end_s, stride_s).tolist() == wanted
    plan = plan_clips(times_s, end_s, stride_s=stride_s)
    check(plan, len(times_s))
    assert plan.spans[:, 0].tolist() == wanted


@given(num_frames=st.integers(64, 2000), fps=st.sampled_from([23.976, 25.0, 30.0, 59.94]), stride_s=st.floats(0.2, 2.0))
def test_overlapping_windows_share_their_frames(num_frames: int, fps: float, stride_s: float) -> None:
    """Every frame that is needed is a multiple of 4."""
    plan = plan_clips(*steady(num_frames, fps), stride_s=stride_s)
    assert len(plan) == 1 or not (plan.wanted % 4).any()


@pytest.mark.parametrize(
    ("num_frames", "stride_s", "starts"),
    [
        pytest.param(250, 2.56, [0, 64, 128, 184], id="as long as a window"),
        pytest.param(250, 1.0, [0, 24, 52, 76, 100, 124, 152, 176, 184], id="overlapping"),
        pytest.param(250, 4.0, [0, 100, 184], id="gaps"),
        pytest.param(80, 0.16, [0, 4, 8, 12, 16], id="every fourth frame"),
        pytest.param(80, 0.12, [0, 3, 6, 9, 12, 15, 16], id="closer than that"),
        pytest.param(80, 0.04, list(range(17)), id="every frame"),
        pytest.param(250, 100.0, [0], id="longer than the video"),
        pytest.param(30, 0.5, [0], id="shorter than a window"),
    ],
)
def test_stride_examples(num_frames: int, stride_s: float, starts: list[int]) -> None:
    assert stride_starts(*steady(num_frames, 25.0), stride_s).tolist() == starts


@given(num_frames=COUNTS, stride_s=st.floats(0.05, 2.56), start_s=st.floats(0, 100))
def test_stride_up_to_a_window_covers_every_frame(num_frames: int, stride_s: float, start_s: float) -> None:
    plan = plan_clips(*steady(num_frames, 25.0, start_s), stride_s=stride_s)
    check(plan, num_frames)
    covered = np.zeros(num_frames, bool)
    for start, end in plan.spans.tolist():
        covered[start:end] = True
    assert covered.all()


# At another frame rate -----------------------------------------------------------------------------------------------


@given(timeline=timelines(), target_fps=st.sampled_from([0.7, 5.0, 24.0, 29.97, 120.0]))
def test_rate_shows_the_frame_on_screen(timeline: tuple[Float64, float], target_fps: float) -> None:
    times_s, end_s = timeline
    frames = frames_at_rate(times_s, end_s, target_fps)
    assert len(frames) == max(1, round((end_s - times_s[0]) * target_fps))
    assert frames.tolist() == [on_screen(times_s, times_s[0] + k / target_fps) for k in range(len(frames))]


@pytest.mark.parametrize("fps", [23.976, 25.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("start_s", [0.0, 1 / 3, 1e4 + 0.1])
def test_the_videos_own_rate_changes_nothing(fps: float, start_s: float) -> None:
    times_s, end_s = steady(500, fps, start_s)
    assert frames_at_rate(times_s, end_s, fps).tolist() == list(range(500))
    plan, plain = plan_clips(times_s, end_s, target_fps=fps), plan_clips(times_s, end_s)
    assert plan.frames.tolist() == plain.frames.tolist()
    assert plan.spans.tolist() == plain.spans.tolist()


def test_half_the_rate_takes_every_second_frame() -> None:
    plan = plan_clips(*steady(256, 50.0), target_fps=25.0)
    assert plan.frames.tolist() == [[start + 8 * t for t in range(16)] for start in (0, 128)]
    assert plan.spans.tolist() == [[0, 128], [128, 256]]


def test_twice_the_rate_shows_frames_twice() -> None:
    plan = plan_clips(*steady(64, 12.5), target_fps=25.0)
    assert plan.frames.tolist() == [[start + 2 * t for t in range(16)] for start in (0, 32)]
    assert plan.spans.tolist() == [[0, 32], [32, 64]]


def test_windows_shorter_than_a_frame_speak_for_that_frame() -> None:
    """A slide show: two pictures of ten seconds, 250 ticks each."""
    plan = plan_clips(np.array([0.0, 10.0]), 20.0, target_fps=25.0)
    assert plan.spans.tolist() == [[0, 1]] * 3 + [[0, 1]] + [[1, 2]] * 4
    assert plan.frames.tolist() == [[0] * 16] * 3 + [[0] * 15 + [1]] + [[1] * 16] * 4


@settings(max_examples=200)
@given(
    timeline=timelines(),
    target_fps=st.sampled_from([0.7, 5.0, 24.0, 29.97, 120.0, 700.0]),
    stride_s=st.sampled_from([None, 0.05, 0.7]),
    num_clips=st.sampled_from([None, 3]),
)
def test_any_plan_at_any_rate_is_sound(
    timeline: tuple[Float64, float], target_fps: float, stride_s: float | None, num_clips: int | None
) -> None:
    times_s, end_s = timeline
    plan = plan_clips(times_s, end_s, num_clips=num_clips, stride_s=stride_s, target_fps=target_fps)
    check(plan, len(times_s))
    assert set(plan.wanted.tolist()) <= set(frames_at_rate(times_s, end_s, target_fps).tolist())
    if stride_s is None:  # windows meet: nothing is left out
        assert plan.spans[0, 0] == 0
        assert plan.spans[-1, 1] == len(times_s)
        assert (plan.spans[1:, 0] <= plan.spans[:-1, 1]).all()
    if num_clips is not None:
        assert len(plan) == num_clips


# -- gaps, and times that are none ------------------------------------------------------------------------------------


def test_no_window_spans_a_gap() -> None:
    times_s = np.concatenate([np.arange(100) / 25, 3600 + np.arange(70) / 25])
    plan = plan_clips(times_s, 3602.8)
    assert plan.spans.tolist() == [[0, 64], [36, 100], [100, 164], [106, 170]]
    assert end_of(times_s, 3602.8, 99) == pytest.approx(4.0)
    assert end_of(times_s, 3602.8, 98) == 3.96
    assert end_of(times_s, 3602.8, 169) == 3602.8


def test_pictures_between_gaps_wrap_round_as_short_videos_do() -> None:
    times_s = np.concatenate([np.arange(70) / 25, [60.0], 100 + np.arange(10) / 25])
    plan = plan_clips(times_s, 100.4)
    assert plan.spans.tolist() == [[0, 64], [6, 70], [70, 71], [71, 81]]
    assert set(plan.frames[2].tolist()) == {70}
    assert set(plan.frames[3].tolist()) <= set(range(71, 81))


def test_slow_and_uneven_videos_have_no_gaps() -> None:
    assert gaps(np.linspace(0.0, 270.0, 10)).tolist() == []  # a frame every half minute
    assert gaps(np.array([0.0, 0.9, 1.0, 1.8])).tolist() == []
    assert gaps(np.array([5.0])).tolist() == []


def test_the_official_protocol_knows_no_gaps() -> None:
    """It spreads its clips over the frames, as mmaction2 does."""
    times_s = np.concatenate([np.arange(100) / 25, 3600 + np.arange(100) / 25])
    plan = plan_clips(times_s, 3604.0, num_clips=10)
    assert plan.frames.tolist() == official(200, 10).tolist()


CLAIMS = st.lists(st.floats(0, 1e12), min_size=1, max_size=30, unique=True).map(lambda values: np.array(sorted(values)))


@given(
    times_s=CLAIMS,
    stride_s=st.sampled_from([None, 0.001, 0.5, 1e9]),
    target_fps=st.sampled_from([None, 30.0, 1000.0]),
)
@example(times_s=np.array([0.0, 2e-132, 1e-45, 7e-31, 8388608.0, 8388610.0]), stride_s=0.001, target_fps=None)
def test_plans_are_bounded_by_the_frames_that_exist(
    times_s: NDArray[np.float64], stride_s: float | None, target_fps: float | None
) -> None:
    """A file of a few KB may claim any time."""
    plan = plan_clips(times_s, float(times_s[-1]) + 1.0, stride_s=stride_s, target_fps=target_fps)
    assert 0 < len(plan) <= len(times_s) * (64 if target_fps else 1) * (1 if stride_s is None or not target_fps else 64)
    assert plan.frames.min() >= 0
    assert plan.frames.max() < len(times_s)


@given(
    intervals=st.lists(st.floats(0.001, 0.9), min_size=1, max_size=300),
    stride_s=st.floats(0.02, 5.0),
)
def test_strides_are_those_of_the_clock(intervals: list[float], stride_s: float) -> None:
    """Every moment of the stride finds the frame that is on screen then, as one search a moment does."""
    times_s = np.concatenate([[0.0], np.cumsum(intervals)])
    end_s = float(times_s[-1]) + 0.04
    moments = np.arange(max(1, int(np.ceil(end_s / stride_s)))) * stride_s
    assume(np.abs(moments[1:, None] - np.append(times_s, end_s)).min(initial=1.0) > 1e-6)  # rounding cannot decide
    shown = np.unique(np.searchsorted(times_s, moments + 1e-9, side="right") - 1)
    last = max(len(times_s) - 64, 0)
    if len(shown) > 1 and np.median(np.diff(shown)) >= 4:
        shown, last = 4 * ((shown + 2) // 4), last - last % 4
    assert stride_starts(times_s, end_s, stride_s).tolist() == np.unique(np.minimum(shown, last)).tolist()
