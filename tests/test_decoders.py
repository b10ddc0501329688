"""The decoders' threads: what is tried again, within which memory, and how all ends."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sqt_fast.clips.batches import CpuBatches, View
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST
from sqt_fast.engine import decoders as decoders_module
from sqt_fast.engine.decoder_process import DecoderProcess
from sqt_fast.engine.decoders import ATTEMPTS, ATTEMPTS_WHEN_HUNG, Decoders, DecoderSetup
from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.process import ChildError
from sqt_fast.errors import BackendError, VideoError
from sqt_fast.video.archive import VideoFile, find_videos

TOTAL = 1 << 30


def make(jobs: Jobs | None = None, put: Any = lambda job, view: None, num_decoders: int = 2) -> Decoders:
    resources = Resources(num_decoders, TOTAL, cores=4)
    batches = CpuBatches(FAST, torch.float32)
    return Decoders(jobs or Jobs(), Recipe(FAST), batches, DecoderSetup(resources), put)


class Trouble:
    """Fails so many times, then works. Remembers how much memory was free meanwhile."""

    def __init__(self, worker: Decoders, times: int, error: Exception) -> None:
        self.worker, self.times, self.error = worker, times, error
        self.free: list[int] = []

    def __call__(self) -> str:
        self.free.append(self.worker._budget._free)
        if len(self.free) <= self.times:
            raise self.error
        return "done"


@pytest.mark.parametrize("times", range(ATTEMPTS))
def test_what_is_killed_is_tried_again_alone_on_the_machine(times: int) -> None:
    """Memory may have run out."""
    worker = make()
    do = Trouble(worker, times, ChildError("decoder was killed by SIGKILL", killed=True))
    assert worker._attempt(do, 1000) == "done"
    assert do.free == [TOTAL - 1000] + [0] * times
    assert worker._budget._free == TOTAL


def test_what_always_dies_is_the_files_fault() -> None:
    worker = make()
    do = Trouble(worker, 99, ChildError("decoder was killed by SIGSEGV"))
    with pytest.raises(VideoError, match=r"^decoder was killed by SIGSEGV, 3 times$") as caught:
        worker._attempt(do, 1000)
    assert caught.value.status == "crashed"
    assert len(do.free) == ATTEMPTS
    assert worker._budget._free == TOTAL


@pytest.mark.parametrize("times", range(ATTEMPTS_WHEN_HUNG + 1))
def test_what_hangs_is_tried_once_more_beside_the_others(times: int) -> None:
    """Alone, it would hold up everybody for as long as it hangs."""
    worker = make()
    do = Trouble(worker, times, ChildError("decoder hung: it did nothing for 60 s", hung=True))
    if times < ATTEMPTS_WHEN_HUNG:
        assert worker._attempt(do, 1000) == "done"
    else:
        with pytest.raises(VideoError, match=r"^decoder hung: it did nothing for 60 s, 2 times$"):
            worker._attempt(do, 1000)
    assert set(do.free) == {TOTAL - 1000}


@pytest.mark.parametrize("room", [0, 1, 2])
def test_without_room_for_a_process_the_others_do_its_work(
    archive: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Whoever has none gives back what it took and leaves; when nobody is left, the run ends."""
    ended: list[str] = []
    jobs = Jobs()
    worker = make(jobs, lambda job, view: ended.append(job.video.path) if view is None else None, num_decoders=3)
    started: set[int] = set()
    start = DecoderProcess._start

    def sometimes(self: DecoderProcess) -> Any:
        if id(self) not in started and len(started) == room:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.add(id(self))
        return start(self)

    monkeypatch.setattr(DecoderProcess, "_start", sometimes)
    videos = find_videos([str(archive)])
    jobs.add(videos)
    jobs.close()
    worker.start()
    for thread in worker.threads:
        thread.join(60)
        assert not thread.is_alive()
    if room:
        assert worker.error is None
        assert sorted(ended) == sorted(video.path for video in videos)
    else:
        assert isinstance(worker.error, BackendError)
        assert str(worker.error) == "no decoder can be started: resource temporarily unavailable"


@pytest.mark.parametrize("error", [VideoError("error", "x"), BackendError("x"), ValueError("x")], ids=repr)
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    worker = make()
    do = Trouble(worker, 99, error)
    with pytest.raises(type(error)):
        worker._attempt(do, 1000)
    assert len(do.free) == 1
    assert worker._budget._free == TOTAL


def test_who_is_to_stop_tries_nothing_again() -> None:
    worker = make()
    worker.jobs.stop()
    do = Trouble(worker, 99, ChildError("decoder was killed by SIGKILL"))
    with pytest.raises(VideoError, match="stopped"):
        worker._attempt(do, 1000)
    assert len(do.free) == 1


def test_stop_ends_those_who_wait_for_memory(archive: Path) -> None:
    """They get their turn when others are ended, and must not begin then."""
    jobs = Jobs()
    worker = make(jobs, num_decoders=3)
    held = threading.Event()

    def hold() -> None:
        with worker._budget.take(TOTAL):
            held.set()
            while not jobs.stopped:
                held.wait(0.01)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    jobs.add(find_videos([str(archive)]))
    worker.start()
    worker.stop()
    holder.join()
    for thread in worker.threads:
        thread.join(5)
        assert not thread.is_alive()
    assert all(process._child is None for process in worker.processes)
    assert worker.error is None


@pytest.mark.parametrize(("long_segment", "num_threads"), [(600, 1), (10, 4)], ids=["short", "long"])
def test_long_segments_get_ffmpegs_own_threads(
    archive: Path, monkeypatch: pytest.MonkeyPatch, long_segment: int, num_threads: int
) -> None:
    """As many as there are cores, whatever else there is to do: results must not depend on that."""
    monkeypatch.setattr(decoders_module, "LONG_SEGMENT", long_segment)
    seen: set[int] = set()
    frames = DecoderProcess.frames

    def spy(self: DecoderProcess, *args: Any, num_threads: int) -> Any:
        seen.add(num_threads)
        return frames(self, *args, num_threads=num_threads)

    monkeypatch.setattr(DecoderProcess, "frames", spy)
    views, job = run([next(v for v in find_videos([str(archive)]) if "/mkv/" in v.path)])
    assert seen == {num_threads}
    assert len(views) == 2
    assert job.report.frames_decoded > 0
    assert job.decoders == {"cpu"}
    assert min(job.seconds.values()) > 0


@pytest.mark.parametrize(("num_videos", "num_begun"), [(2, 1), (12, 1), (16, 4), (100, 4)])
def test_few_videos_start_few_processes_and_many_start_all(
    num_videos: int, num_begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first decoder has not done anything yet."""
    begun: set[str] = set()
    everyone, go_on = threading.Event(), threading.Event()

    def probe(self: Decoders, job: Job, process: DecoderProcess) -> None:
        begun.add(threading.current_thread().name)
        if len(begun) == num_begun:
            everyone.set()
        assert go_on.wait(600), "longer than all that waits below"
        self.jobs.probed(job, [])

    monkeypatch.setattr(Decoders, "_probe", probe)
    jobs = Jobs()
    jobs.add(VideoFile(f"{i}.mp4", 1, 1) for i in range(num_videos + 1))  # the first decoder takes one
    jobs.close()
    worker = make(jobs, num_decoders=4)
    worker.start()
    try:
        assert everyone.wait(30)
        time.sleep(0.5)
        assert len(begun) == num_begun
    finally:
        go_on.set()
    for thread in worker.threads:
        thread.join(60)
    worker.stop()
    assert worker.error is None


def test_a_decoders_thread_computes_alone(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A team of threads for every decoder, as many as cores, would wait for each other; the caller keeps its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: set[int] = set()
    views = CpuBatches.views

    def spy(self: CpuBatches, clip: Any) -> Any:
        seen.add(torch.get_num_threads())
        return views(self, clip)

    monkeypatch.setattr(CpuBatches, "views", spy)
    try:
        run([next(v for v in find_videos([str(archive)]) if "/mkv/" in v.path)])
        assert seen == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def run(videos: list[VideoFile]) -> tuple[list[View], Job]:
    """Return the views of one video, and its job when it ended."""
    jobs, views, ended = Jobs(), [], threading.Event()
    last: list[Job] = []

    def put(job: Job, view: View | None) -> None:
        if view is None:
            last.append(job)
            ended.set()
        else:
            assert not ended.is_set(), "a view after the end"
            views.append(view)

    jobs.add(videos)
    jobs.close()
    worker = make(jobs, put)
    worker.start()
    assert ended.wait(60)
    worker.stop()
    assert worker.error is None
    (job,) = last
    return views, job
