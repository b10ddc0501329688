"""Who is told how a run goes."""

from sqt_fast.console import ConsoleWatcher
from sqt_fast.engine.results import VideoResult
from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile
from sqt_fast.watcher import SilentWatcher, Watcher
from tests.watching import Remembering


def test_all_can_be_told_everything() -> None:
    video = VideoFile("a.mp4", 1, 1)
    watchers: list[Watcher] = [SilentWatcher(), ConsoleWatcher(quiet=True), Remembering()]
    for watcher in watchers:
        watcher.begin(2, 1)
        watcher.note("a line")
        watcher.clips(3)
        watcher.video(VideoResult(video, [Row("a.mp4", "damaged", "half of it")]))
