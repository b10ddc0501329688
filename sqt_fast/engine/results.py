"""What passes between a run and its worker, and what a run has done in the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.probe import Probe


@dataclass(frozen=True)
class WeightsInfo:
    """What there is to know of the weights without holding them. See ``weights.Weights``."""

    name: str
    sha256: str
    labels: tuple[str, ...] | None
    labels_source: str
    meaningless: bool
    feature_channels: int


@dataclass(frozen=True)
class EarlierRun:
    """What rows that are there were made with, so that new ones agree.

    choice: fields of a Choice, None if there was none. whole: keep all of it, as an unfinished run does; else only the
    precision, as a table does.
    """

    choice: dict[str, Any] | None = None
    whole: bool = False


@dataclass
class RunCounters:
    """What a run has done so far. Seconds of probing and decoding add up over the decoders.

    packets_dropped: read but not decoded, since no wanted frame depends on them.
    """

    clips: int = 0
    packets_read: int = 0
    packets_dropped: int = 0
    frames_decoded: int = 0
    frames_wanted: int = 0
    video_s: float = 0.0
    probe_s: float = 0.0
    decode_s: float = 0.0
    squeeze_s: float = 0.0
    wait_s: float = 0.0
    network_s: float = 0.0

    def add(self, other: "RunCounters") -> None:
        """Add what another process, or the same one later, has done."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def count(self, report: DecodeReport, facts: Probe | None, seconds: Mapping[str, float]) -> None:
        """Add what the decoders did for one video. seconds: by stage."""
        for name in ("packets_read", "packets_dropped", "frames_decoded", "frames_wanted"):
            setattr(self, name, getattr(self, name) + getattr(report, name))
        self.video_s += 0.0 if facts is None else facts.duration_s
        self.probe_s += seconds["probe"]
        self.decode_s += seconds["decode"]
        self.squeeze_s += seconds["squeeze"]


@dataclass
class VideoResult:
    """Everything about one finished video."""

    video: VideoFile
    rows: list[Row]
    duration_s: float = 0.0

    @property
    def failure(self) -> Row | None:
        """The row that is not ok, if there is one."""
        return next((row for row in self.rows if row.status != "ok"), None)


@dataclass
class Summary:
    """What a run did. Counts are of this run; rows and failures of the whole table.

    failed_now: videos of this run that have a row that is not ok. other_files: left out for their suffix;
    links: to files that have another name here.
    """

    output: str
    videos: int = 0
    labelled: int = 0
    already_done: int = 0
    failed_now: int = 0
    vanished: int = 0
    pruned: int = 0
    other_files: int = 0
    links: int = 0
    rows: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    start_s: float = 0.0
    write_s: float = 0.0
    counters: RunCounters = field(default_factory=RunCounters)
    backend: str = ""
    labels_mean_nothing: bool = False

    def count(self, rows: int, statuses: Iterable[str]) -> None:
        """Take what the whole table holds. statuses: of the videos that are not ok."""
        counts = Counter(statuses)
        self.rows, self.failed, self.failures = rows, counts.total(), dict(counts.most_common())

    @property
    def limit(self) -> str:
        """What took the time: the stage that the others waited for, or getting ready."""
        waited = {"network": self.counters.network_s, "decode": self.counters.wait_s}
        stages = {"start": self.start_s, **waited, "write": self.write_s}
        return max(stages, key=lambda name: stages[name]) if self.counters.clips else "none"

    @property
    def labelling_s(self) -> float:
        """Wall seconds without loading and compiling the network."""
        return max(self.wall_s - self.start_s, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        numbers = asdict(self)
        numbers |= numbers.pop("counters")
        numbers["clips_per_s"] = self.counters.clips / self.labelling_s
        numbers["x_realtime"] = self.counters.video_s / self.labelling_s
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()} | {"limit": self.limit}
