"""What a run and its engine report while they work. One callable takes every event."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # decoders report too, and know no tables
    from sqt_fast.engine.results import VideoResult


@dataclass(frozen=True, slots=True)
class Note:
    """One line that the user should read."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """Labelling begins. total: videos to label now; done: those of an earlier run."""

    total: int
    done: int


@dataclass(frozen=True, slots=True)
class VideoFinished:
    """One more video has its rows."""

    result: "VideoResult"


@dataclass(frozen=True, slots=True)
class ClipsLabelled:
    """So many more clips have been labelled."""

    count: int


@dataclass(frozen=True, slots=True)
class BatchSizeChanged:
    """Memory allows no more than so many clips at once; a run that goes on later should begin with it."""

    batch_size: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Work goes on, though nothing is finished yet: a sign of life for whoever watches for hangs."""


Event = Note | Begun | VideoFinished | ClipsLabelled | BatchSizeChanged | Alive
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing: for callers who do not watch."""
