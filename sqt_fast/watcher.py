"""Who is told how a run goes: a terminal (``console.py``), a test, or nobody."""

from typing import Protocol

from sqt_fast.engine.results import VideoResult


class Watcher(Protocol):
    """Who is told how the run goes. See ``console.py``; tests use a silent one."""

    def note(self, text: str) -> None:
        """Say one line."""

    def begin(self, total: int, done: int) -> None:
        """``total`` videos, ``done`` of them in an earlier run."""

    def clips(self, count: int) -> None:
        """``count`` more clips are labelled."""

    def video(self, result: VideoResult) -> None:
        """One more video is finished."""


class SilentWatcher:
    """Nobody is told."""

    def note(self, text: str) -> None: ...

    def begin(self, total: int, done: int) -> None: ...

    def clips(self, count: int) -> None: ...

    def video(self, result: VideoResult) -> None: ...
