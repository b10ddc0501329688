"""From the scores of one video's clips to its rows, with the truth about what could not be decoded."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import VideoError
from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import ClipPlan, end_of

Float32 = NDArray[np.float32]

# A header may round; a file that ends this much before its promise has lost something.
LOST_SECONDS = 0.5
LOST_FRAMES = 2


@dataclass(frozen=True)
class Scored:
    """What the network said of one video.

    scores: (N, K) float32 softmax, mean over the crops of each clip. embeddings: (N, C) float32 likewise, or None.
    labelled: (N,) bool, whether enough of each clip could be decoded.
    """

    scores: Float32
    embeddings: Float32 | None
    labelled: NDArray[np.bool_]


@dataclass(frozen=True)
class RowStyle:
    """What rows hold: class names, how many best classes (None: all), one row a window or a video."""

    labels: tuple[str, ...]
    top_k: int | None
    per_window: bool


def failed_row(video: VideoFile, error: VideoError, probe: Probe | None = None) -> Row:
    """Return the row of a video that has no label."""
    return replace(_base(video, probe, None), status=error.status, error_message=str(error))


def video_rows(
    video: VideoFile, probe: Probe, plan: ClipPlan, scored: Scored, report: DecodeReport, style: RowStyle, decoder: str
) -> list[Row]:
    """Return the rows of one video: its labels, and one more that says what was lost if something was."""
    base = _base(video, probe, decoder)
    clips = np.flatnonzero(scored.labelled).tolist()
    rows = []
    if style.per_window:
        windows = ((i, plan.spans[i].tolist()) for i in clips)
        rows = [_labelled(replace(base, clip_index=i), probe, scored, style, [i], span) for i, span in windows]
    elif clips:
        rows = [_labelled(base, probe, scored, style, clips, [0, probe.num_frames])]
    lost = _damage(base, probe, report, complete=bool(scored.labelled.all()))
    return [*rows, lost] if lost is not None else rows


def _base(video: VideoFile, probe: Probe | None, decoder: str | None) -> Row:
    row = Row(path=video.name, size_bytes=video.size_bytes, mtime_ns=video.mtime_ns, decoder=decoder)
    if probe is None:
        return row
    return replace(
        row,
        duration_s=probe.duration_s,
        fps=probe.fps,
        num_frames=probe.num_frames,
        width=probe.source.width,
        height=probe.source.height,
        codec=probe.codec,
        is_vfr=probe.is_vfr,
        rotation=probe.source.orientation.rotation,
        clock_jumped=probe.clock_jumped,
    )


def _labelled(base: Row, probe: Probe, scored: Scored, style: RowStyle, clips: list[int], span: list[int]) -> Row:
    """Return the row of some clips, labelled by their mean. span: its first frame, and one past the last."""
    scores = scored.scores[clips].mean(axis=0)
    best = np.argsort(-scores, kind="stable")[: style.top_k]
    embeddings = scored.embeddings
    return replace(
        base,
        start_frame=span[0],
        end_frame=span[1],
        start_s=float(probe.times_s[span[0]]),
        end_s=_frame_time(probe, span[1]),
        label=style.labels[best[0]],
        label_id=int(best[0]),
        score=float(scores[best[0]]),
        topk_labels=[style.labels[i] for i in best],
        topk_ids=best.tolist(),
        topk_scores=scores[best].tolist(),
        embedding=None if embeddings is None else embeddings[clips].mean(axis=0).astype(np.float16),
    )


def _frame_time(probe: Probe, frame: int) -> float:
    """Return when what comes before frame number ``frame`` ends."""
    return end_of(probe.times_s, probe.end_s, frame - 1)


def _damage(base: Row, probe: Probe, report: DecodeReport, *, complete: bool) -> Row | None:
    """Return the row that says what was lost, None if nothing was. complete: every clip has a label."""
    if len(report.lost) == report.frames_wanted and not complete:
        return replace(base, status="no_decodable_frame", error_message="no decodable frame", decoder=None)
    found: list[tuple[str, float, float | None]] = []  # what, from when, until when; None: nobody knows
    # A frame may fail to appear in a sound file (hidden pictures); it is lost only where something went wrong.
    lost = sorted(report.lost) if report.rejected or not complete or probe.broken else []
    damaged = probe.numbers_of(report.damaged)
    for frames, story in (
        (lost, f"{len(lost)} of {report.frames_wanted} frames that clips need could not be decoded"),
        (damaged, f"{len(damaged)} of {probe.num_frames} frames are damaged"),
    ):
        if frames:
            found.append((story, float(probe.times_s[frames[0]]), _frame_time(probe, frames[-1] + 1)))
    if probe.cut_s is not None:
        found.append(("packets are cut off", *probe.cut_s))
    missing_end = _missing_end(probe)
    if missing_end is not None:
        found.append((missing_end[0], float(probe.end_s), missing_end[1]))
    if not found:
        return None
    stories, starts_s, ends_s = zip(*found, strict=True)
    end_s = None if None in ends_s else max(ends_s)
    return replace(base, status="damaged", error_message="; ".join(stories), start_s=min(starts_s), end_s=end_s)


def _missing_end(probe: Probe) -> tuple[str, float | None] | None:
    """Return what is missing after the last frame and when that would end, None if nothing is or nobody knows."""
    if probe.promised_end_s is not None and probe.promised_end_s - probe.end_s > LOST_SECONDS:
        story = f"the file is cut off: its header promises {probe.promised_end_s:.2f} s, it holds {probe.end_s:.2f} s"
        return story, probe.promised_end_s
    if probe.promised_frames is not None and probe.promised_frames - probe.num_frames > LOST_FRAMES:
        story = f"the file is cut off: its header promises {probe.promised_frames} frames, it holds {probe.num_frames}"
        return story, float(probe.times_s[0]) + probe.promised_frames / probe.fps
    if probe.broken:
        promised_s = probe.promised_end_s or 0.0
        return probe.broken, promised_s if promised_s > probe.end_s else None
    return None
