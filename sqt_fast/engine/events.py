"""What a run and its engine report while they work. One callable takes every event: a terminal, a test, or nobody."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One line that the user should read."""

    text: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are there. labels: the names of their K classes, by number."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """So many videos are about to be labelled, beside those ``done`` in an earlier run."""

    total: int
    done: int


@dataclass(frozen=True, slots=True)
class ClipsLabelled:
    """So many more clips have been labelled."""

    count: int


@dataclass(frozen=True, slots=True)
class VideoFinished:
    """One more video has its rows. failure: its name and what is wrong with it, None if nothing is."""

    name: str
    duration_s: float
    failure: str | None


@dataclass(frozen=True, slots=True)
class BatchSizeChanged:
    """Memory allows no more than so many clips at once; a run that goes on later should begin with it."""

    batch_size: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Work goes on, though nothing is finished yet: a sign of life for whoever watches for hangs."""


Event = Note | Loaded | Begun | ClipsLabelled | VideoFinished | BatchSizeChanged | Alive
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing: for callers who do not watch."""
