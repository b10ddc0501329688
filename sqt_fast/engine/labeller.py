"""What labels videos, however many processes that takes: the one thing that a run knows of the engine."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import Report
from sqt_fast.engine.memory import plan_resources
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.supervisor import Supervisor
from sqt_fast.video.archive import VideoFile


class Labeller(Protocol):
    """What labels videos: a ``supervisor.Supervisor``, or a ``worker.Worker`` in this very process."""

    def load(self) -> WeightsInfo:
        """Load the weights."""

    def open(self, earlier: EarlierRun, num_clips: int) -> dict[str, Any]:
        """Get ready and return the fields of the Choice."""

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video."""

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""

    def close(self) -> None:
        """Stop, whatever is being done."""


Launch = Callable[[IndexConfig, Report], Labeller]


def supervised(config: IndexConfig, report: Report) -> Labeller:
    """Return a labeller in a process of its own."""
    return Supervisor(config, plan_resources(config.memory_bytes), report)
