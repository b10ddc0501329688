"""A watcher of runs (``sqt_fast.run.Watcher``) that says nothing."""

from sqt_fast.engine.events import ClipsLabelled, Event, Note, Report
from sqt_fast.engine.results import VideoResult


def notes_into(notes: list[str]) -> Report:
    """Return what keeps the notes of the engine and no other event."""

    def report(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return report


class Remembering:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.results: list[VideoResult] = []
        self.num_clips = 0
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Take what a labeller reports, as a run does."""
        self.events.append(event)
        if isinstance(event, Note):
            self.note(event.text)
        elif isinstance(event, ClipsLabelled):
            self.clips(event.count)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, total: int, done: int) -> None:
        pass

    def clips(self, count: int) -> None:
        self.num_clips += count

    def video(self, result: VideoResult) -> None:
        self.results.append(result)
