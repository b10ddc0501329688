"""What passes between a run and the process of a device."""

from dataclasses import dataclass, fields
from typing import Any

from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile


@dataclass(frozen=True)
class WeightsInfo:
    """What there is to know of the weights without holding them. See ``zoo.Weights``."""

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
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


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
