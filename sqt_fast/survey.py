"""Look at an archive without labelling it: what ``--dry-run`` prints, and how much work there is."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig
from sqt_fast.engine.decoder_process import DecoderProcess
from sqt_fast.engine.memory import MAX_DECODERS, usable_cores
from sqt_fast.engine.process import ChildError
from sqt_fast.errors import BackendError, SqtError, VideoError, system_reason
from sqt_fast.video.archive import LeftOut, VideoFile, find_videos
from sqt_fast.video.cpu_decoder import FFMPEG, CpuTools
from sqt_fast.video.probe import Probe

# Enough to guess the length of an archive's videos, few enough to cost a second.
ESTIMATE_FROM = 16
# The pixels of a window take at least so much, at the lowest rates in use; so many bytes hold few windows.
WINDOW_BYTES = 64 << 10
SHORT_BYTES = 24 * WINDOW_BYTES


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
            names = ("container", "codec", "fps", "is_vfr", "num_frames", "duration_s", "broken")
            source = self.facts.source
            result |= {"width": source.width, "height": source.height, "rotation": source.orientation.rotation}
            result |= {name: getattr(self.facts, name) for name in names}
            result |= {"clips": self.num_clips}
        return result


def videos_of(config: IndexConfig, stdin: Iterable[str], left_out: LeftOut | None = None) -> list[VideoFile]:
    """Return the videos that a run is asked for. left_out: is told what inputs name beside them. Raises ConfigError."""
    found = find_videos(
        config.inputs,
        path_col=config.path_col,
        stdin=stdin,
        null=config.null,
        all_links=config.all_links,
        left_out=left_out,
    )
    return found[: config.limit]


def survey(
    videos: Sequence[VideoFile], recipe: Recipe, *, tools: CpuTools = FFMPEG, hang_s: float = 60.0
) -> Iterator[Finding]:
    """Probe every video, several at once, and yield the findings in the order of ``videos``.

    Each is opened in a process that may die of it, or hang for hang_s.
    """
    num_processes = max(1, min(usable_cores(), MAX_DECODERS, len(videos)))
    processes = [DecoderProcess(tools=tools, hang_s=hang_s) for _ in range(num_processes)]
    idle = deque(processes)

    def look(video: VideoFile) -> Finding:
        process = idle.popleft()  # there are as many as threads
        try:
            return _look(video, recipe, process)
        finally:
            idle.append(process)

    try:
        with ThreadPoolExecutor(num_processes, thread_name_prefix="probe") as pool:
            try:
                yield from pool.map(look, videos)
            finally:
                for process in processes:
                    process.stop()
    finally:  # behind the threads: one that was idle is dead, and nobody has waited for it
        for process in processes:
            process.close()


def estimate_clips(videos: Sequence[VideoFile], recipe: Recipe) -> int:
    """Guess how many views the network will have to label, from a few videos spread over the list.

    A job that is short by the size of its files is not looked at: that would take as long as some of it.
    """
    size_bytes = sum(video.size_bytes or 0 for video in videos)
    if size_bytes <= SHORT_BYTES and recipe.stride_s is None:
        return (len(videos) + size_bytes // WINDOW_BYTES) * recipe.protocol.num_crops * (recipe.protocol.num_clips or 1)
    step = max(1, len(videos) // ESTIMATE_FROM)
    some = list(videos[::step])[:ESTIMATE_FROM]
    return round(sum(f.num_clips for f in survey(some, recipe)) / len(some) * len(videos))


@dataclass
class Totals:
    """The sums that end a dry run, added up as findings come: an archive may hold more than memory does."""

    already_done: int = 0
    videos: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    duration_s: float = 0.0
    size_bytes: int = 0
    codecs: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Take in one more file."""
        self.videos += 1
        self.size_bytes += finding.video.size_bytes or 0
        if finding.error is not None:
            self.failures[finding.error.status] += 1
        if finding.facts is not None:
            self.clips += finding.num_clips
            self.duration_s += finding.facts.duration_s
            self.codecs[finding.facts.codec] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run --json`` prints of all files."""
        counts = {name: dict(getattr(self, name).most_common()) for name in ("failures", "codecs")}
        return asdict(self) | counts | {"failed": sum(self.failures.values())}


def _look(video: VideoFile, recipe: Recipe, process: DecoderProcess) -> Finding:
    try:
        facts = process.probe(video)
        return Finding(video, facts, num_clips=len(process.plan(recipe).clips) * recipe.protocol.num_crops)
    except VideoError as error:
        return Finding(video, error=error)
    except ChildError as error:
        return Finding(video, error=VideoError("crashed", str(error)))
    except SqtError:
        raise
    except OSError as error:
        raise BackendError(f"no decoder can be started: {system_reason(error)}") from error
    except Exception as error:  # noqa: BLE001 - whatever one file does, the others must be looked at
        return Finding(video, error=VideoError.unforeseen(error))
