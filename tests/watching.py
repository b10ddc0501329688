"""Those who are told how a run or its engine goes, and remember it."""

from sqt_fast.engine.events import ClipsLabelled, Event, Note, Report, VideoFinished


def notes_into(notes: list[str]) -> Report:
    """Return what keeps the notes of the engine and no other event."""

    def report(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return report


class Remembering:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]

    @property
    def finished(self) -> list[str]:
        """Names of videos, in the order in which they were finished."""
        return [event.name for event in self.events if isinstance(event, VideoFinished)]

    @property
    def num_clips(self) -> int:
        return sum(event.count for event in self.events if isinstance(event, ClipsLabelled))
