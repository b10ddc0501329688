"""Which frames make which clip: pure arithmetic on frame numbers and times.

A clip is 16 frame numbers. ``official`` reproduces mmaction2's test sampling; ``tile`` covers a video with windows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NUM_FRAMES = 16
FRAME_INTERVAL = 4
WINDOW_FRAMES = NUM_FRAMES * FRAME_INTERVAL
# Nothing was recorded for so long, and for so many times the usual interval: no window spans it.
GAP_S = 1.0
GAP_INTERVALS = 8
# A picture may stand for 64 windows of a higher rate, as in a slide show; beyond that its time is no time.
MAX_TICKS_A_FRAME = 64 * WINDOW_FRAMES

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ClipPlan:
    """The clips of one video.

    frames: (N, 16) int64, frame numbers of each clip, in playing order but for clips that wrap round.
    spans: (N, 2) int64, first frame and one past the last frame that each clip speaks for.
    """

    frames: Int64
    spans: Int64

    @property
    def wanted(self) -> Int64:
        """Every frame number that some clip needs, once, ascending: (F,) int64."""
        frames: Int64 = np.unique(self.frames)
        return frames

    def __len__(self) -> int:
        return len(self.frames)


def official(num_frames: int, num_clips: int, *, clip_len: int = NUM_FRAMES, interval: int = FRAME_INTERVAL) -> Int64:
    """Return the frame numbers that mmaction2's ``SampleFrames(test_mode=True)`` picks, (num_clips, clip_len) int64.

    Clips are spread evenly from the first to the last possible start. A video shorter than a clip wraps round.
    Source: mmaction2 1.x, mmaction/datasets/transforms/loading.py; golden data holds 171 cases.
    """
    _check_frames(num_frames)
    last_start = max(num_frames - ((clip_len - 1) * interval + 1), 0)
    if num_clips > 1:
        starts = np.round(np.arange(num_clips) * (last_start / (num_clips - 1)))
    else:
        starts = np.array([last_start // 2])
    return _frames_from(starts.astype(np.int64), num_frames, clip_len, interval)


def tile_starts(num_frames: int) -> Int64:
    """Return the first frames of windows of 64 frames that cover ``num_frames`` frames, (N,) int64.

    Windows follow one another. What is left at the end gets a window of its own that is moved back to end with the
    video, and so overlaps the one before; a rest shorter than the frame interval belongs to the window before it.
    """
    _check_frames(num_frames)
    starts = list(range(0, max(num_frames - WINDOW_FRAMES, 0) + 1, WINDOW_FRAMES))
    if num_frames - (starts[-1] + WINDOW_FRAMES) >= FRAME_INTERVAL:
        starts.append(num_frames - WINDOW_FRAMES)
    return np.array(starts, np.int64)


def stride_starts(times_s: Float64, end_s: float, stride_s: float) -> Int64:
    """Return the first frames of windows that start every ``stride_s`` seconds, (N,) int64.

    times_s: (F,) presentation times, ascending. A window starts with the frame that is on screen at its time, moved to
    the nearest multiple of the frame interval unless windows follow one another more closely than that: so overlapping
    windows share their frames, and decoding costs what it costs without overlap. Windows that would run past the end
    are replaced by one that ends with the video, or less than the interval before.
    """
    last = max(len(times_s) - WINDOW_FRAMES, 0)
    # From the frames to the moments: a file may claim any time, but it holds only so many frames.
    number = np.maximum(np.ceil((times_s - times_s[0] - 1e-9) / stride_s), 0)  # of the first moment at or after each
    on_screen = times_s[0] + number * stride_s + 1e-9 < np.append(times_s[1:], max(end_s, times_s[-1] + 2e-9))
    on_screen[0] |= not on_screen.any()  # so large a time that a frame's duration is lost beside it
    starts = np.flatnonzero(on_screen)
    if len(starts) > 1 and np.median(np.diff(starts)) >= FRAME_INTERVAL:
        starts = FRAME_INTERVAL * ((starts + FRAME_INTERVAL // 2) // FRAME_INTERVAL)
        last -= last % FRAME_INTERVAL
    return np.unique(np.minimum(starts, last)).astype(np.int64)


def frames_at_rate(times_s: Float64, end_s: float, target_fps: float) -> Int64:
    """Return the frame on screen at every tick of ``target_fps``, (F',) int64: what playing at that rate would show.

    times_s: (F,) presentation times, ascending; end_s: when the last frame ends.
    """
    moments = times_s[0] + np.arange(_num_ticks(times_s, end_s, target_fps)) / target_fps
    frames: Int64 = (np.searchsorted(times_s, moments + 1e-9, side="right") - 1).astype(np.int64)
    return frames


def _num_ticks(times_s: Float64, end_s: float, target_fps: float) -> int:
    """Return how many ticks of ``target_fps`` a video lasts, as its frames bound it, whatever its times claim."""
    return max(1, round(min(float(end_s - times_s[0]) * target_fps, MAX_TICKS_A_FRAME * len(times_s))))


def gaps(times_s: Float64) -> Int64:
    """Return the numbers of the frames behind a gap, ascending. times_s: (F,) presentation times, ascending."""
    intervals = np.diff(times_s)
    if not len(intervals):
        return np.zeros(0, np.int64)
    limit = max(GAP_S, GAP_INTERVALS * float(np.median(intervals)))
    return np.flatnonzero(intervals > limit) + 1


def end_of(times_s: Float64, end_s: float, frame: int) -> float:
    """Return when frame number ``frame`` ends: when the next begins, or after the usual interval if a gap follows."""
    if frame + 1 >= len(times_s):
        return float(end_s)
    if times_s[frame + 1] - times_s[frame] > GAP_S and frame + 1 in gaps(times_s):  # the median of all takes its time
        return float(times_s[frame] + np.median(np.diff(times_s)))
    return float(times_s[frame + 1])


def plan_clips(
    times_s: Float64,
    end_s: float,
    *,
    num_clips: int | None = None,
    stride_s: float | None = None,
    target_fps: float | None = None,
) -> ClipPlan:
    """Plan the clips of one video.

    times_s: (F,) float64 presentation times of its frames, ascending; end_s: when the last one ends. num_clips: spread
    that many clips (the official protocol); None covers the video with windows, one after the other or every stride_s
    seconds; a gap in the times ends a window, and the next begins behind it. target_fps: pretend that the video has
    this frame rate.
    """
    behind = gaps(times_s)
    if num_clips is None and len(behind):
        parts = []
        for first, last in pairwise([0, *behind.tolist(), len(times_s)]):
            part_end_s = end_of(times_s, end_s, last - 1)
            part = plan_clips(times_s[first:last], part_end_s, stride_s=stride_s, target_fps=target_fps)
            parts.append(ClipPlan(part.frames + first, part.spans + first))
        return ClipPlan(np.concatenate([p.frames for p in parts]), np.concatenate([p.spans for p in parts]))
    if target_fps is not None:
        source = frames_at_rate(times_s, end_s, target_fps)
        ticks = times_s[0] + np.arange(len(source) + 1) / target_fps
        virtual = plan_clips(ticks[:-1], float(ticks[-1]), num_clips=num_clips, stride_s=stride_s)
        return ClipPlan(source[virtual.frames], _source_spans(virtual.spans, source, len(times_s)))
    num_frames = len(times_s)
    if num_clips is not None:
        frames = official(num_frames, num_clips)
        return ClipPlan(frames, np.tile(np.array([[0, num_frames]], np.int64), (num_clips, 1)))
    starts = tile_starts(num_frames) if stride_s is None else stride_starts(times_s, end_s, stride_s)
    ends = np.minimum(starts + WINDOW_FRAMES, num_frames)
    if num_frames - ends[-1] < FRAME_INTERVAL:
        ends[-1] = num_frames
    frames = _frames_from(starts, num_frames, NUM_FRAMES, FRAME_INTERVAL)
    return ClipPlan(frames, np.stack([starts, ends], axis=1))


def _frames_from(starts: Int64, num_frames: int, clip_len: int, interval: int) -> Int64:
    frames: Int64 = (starts[:, None] + np.arange(clip_len, dtype=np.int64) * interval) % num_frames
    return frames


def _source_spans(spans: Int64, source: Int64, num_frames: int) -> Int64:
    """Translate spans of ticks to spans of frames: each runs to where the next tick's frame begins."""
    bounds = np.append(source, num_frames)
    first, end = source[spans[:, 0]], bounds[spans[:, 1]]
    return np.stack([first, np.maximum(end, first + 1)], axis=1)


def _check_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames {num_frames}: a video without frames has no clips")
