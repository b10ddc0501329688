"""What the engine reports while it works. One callable takes every event, so that nothing else is threaded through."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One line that the user should read."""

    text: str


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


Event = Note | ClipsLabelled | BatchSizeChanged | Alive
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing: for callers who do not watch."""
