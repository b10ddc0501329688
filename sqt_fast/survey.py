"""Look at an archive without labelling it: what ``--dry-run`` prints, and how much work there is."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqt_fast.archive import VideoFile
from sqt_fast.errors import VideoError
from sqt_fast.probe import Probe, probe
from sqt_fast.worker import Recipe

# Enough to guess the length of an archive's videos, few enough to cost a second.
ESTIMATE_FROM = 16


@dataclass(frozen=True)
class Finding:
    """One file of a survey: its facts and how many clips it would give, or what is wrong with it."""

    video: VideoFile
    facts: Probe | None = None
    num_clips: int = 0
    error: VideoError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run --json`` prints of this file."""
        result: dict[str, Any] = {
            "path": self.video.name,
            "status": "ok" if self.error is None else self.error.status,
            "error_message": None if self.error is None else str(self.error),
            "size_bytes": self.video.size_bytes,
        }
        if self.facts is not None:
            names = ("container", "codec", "width", "height", "fps", "is_vfr", "num_frames", "duration_s", "broken")
            result |= {name: getattr(self.facts, name) for name in names}
            result |= {"rotation": self.facts.orientation.rotation, "clips": self.num_clips}
        return result


def survey(videos: Sequence[VideoFile], recipe: Recipe) -> Iterator[Finding]:
    """Probe every video, several at once, and yield the findings in the order of ``videos``."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="probe") as pool:
        yield from pool.map(lambda video: _look(video, recipe), videos)


def estimate_clips(videos: Sequence[VideoFile], recipe: Recipe) -> int:
    """Guess how many views the network will have to label, from a few videos spread over the list."""
    if not videos:
        return 0
    step = max(1, len(videos) // ESTIMATE_FROM)
    some = list(videos[::step])[:ESTIMATE_FROM]
    return round(sum(f.num_clips for f in survey(some, recipe)) / len(some) * len(videos))


def totals(findings: Sequence[Finding], *, already_done: int = 0) -> dict[str, Any]:
    """Return the sums that end a dry run. already_done: videos that an earlier run labelled."""
    good = [f for f in findings if f.facts is not None]
    return {
        "videos": len(findings),
        "already_done": already_done,
        "failed": len(findings) - len(good),
        "failures": dict(Counter(f.error.status for f in findings if f.error is not None).most_common()),
        "clips": sum(f.num_clips for f in good),
        "duration_s": sum(f.facts.duration_s for f in good if f.facts is not None),
        "size_bytes": sum(f.video.size_bytes or 0 for f in findings),
        "codecs": dict(Counter(f.facts.codec for f in good if f.facts is not None).most_common()),
    }


def _look(video: VideoFile, recipe: Recipe) -> Finding:
    try:
        facts = probe(video)
    except VideoError as error:
        return Finding(video, error=error)
    except Exception as error:  # noqa: BLE001 - whatever one file does, the others must be looked at
        return Finding(video, error=VideoError("error", f"{type(error).__name__}: {error}"))
    return Finding(video, facts, num_clips=len(recipe.plan(facts)) * recipe.protocol.num_crops)
