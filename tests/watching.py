"""A watcher of runs (``sqt_fast.index.Watcher``) that says nothing."""

from sqt_fast.engine.results import VideoResult


class Remembering:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.results: list[VideoResult] = []
        self.num_clips = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, total: int, done: int) -> None:
        pass

    def clips(self, count: int) -> None:
        self.num_clips += count

    def video(self, result: VideoResult) -> None:
        self.results.append(result)
