"""What a run did, and who is told while it does it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sqt_fast.engine.results import RunCounters, VideoResult


@dataclass
class Summary:
    """What a run did. Counts are of this run; rows and failures of the whole table."""

    output: str
    videos: int = 0
    labelled: int = 0
    already_done: int = 0
    vanished: int = 0
    rows: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    start_s: float = 0.0
    write_s: float = 0.0
    tally: RunCounters = field(default_factory=RunCounters)
    backend: str = ""
    labels_mean_nothing: bool = False

    @property
    def limit(self) -> str:
        """The stage that the others waited for."""
        stages = {"network": self.tally.network_s, "decode": self.tally.wait_s, "write": self.write_s}
        return max(stages, key=lambda name: stages[name]) if self.tally.clips else "none"

    @property
    def labelling_s(self) -> float:
        """Wall seconds without loading and compiling the network."""
        return max(self.wall_s - self.start_s, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        tally = asdict(self.tally)
        own = asdict(self)
        del own["tally"]
        rates = {
            "clips_per_s": self.tally.clips / self.labelling_s,
            "x_realtime": self.tally.video_s / self.labelling_s,
        }
        numbers = {**own, **tally, **rates}
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}
        return {**rounded, "limit": self.limit}


class Watcher(Protocol):
    """Who is told how the run goes. See ``report.py``; tests use a silent one."""

    def note(self, text: str) -> None:
        """Say one line."""

    def begin(self, total: int, done: int) -> None:
        """``total`` videos, ``done`` of them in an earlier run."""

    def clips(self, count: int) -> None:
        """``count`` more clips are labelled."""

    def video(self, result: VideoResult) -> None:
        """One more video is finished."""
