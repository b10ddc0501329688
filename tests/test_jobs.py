"""Jobs: who works on what next, and when all is done."""

import queue
import random
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.errors import VideoError
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.segments import Segment

EMPTY = np.zeros(0, np.int64)


def video(name: str) -> VideoFile:
    return VideoFile(name, 1, 1)


def segments(*starts: int) -> list[Segment]:
    return [Segment(start, EMPTY, EMPTY, np.zeros(0, np.bool_), EMPTY, None) for start in starts]


def take(jobs: Jobs, own: Job | None) -> tuple[Job, int | None]:
    """Take work that is there; a segment is named by its start."""
    work = jobs.take(own)
    assert work is not None
    return work[0], None if work[1] is None else work[1].start


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.stop()


class Asker(threading.Thread):
    """Asks for work on a thread of its own."""

    def __init__(self, jobs: Jobs, own: Job | None = None) -> None:
        super().__init__(daemon=True)
        self.jobs, self.own = jobs, own
        self.answer: queue.Queue[tuple[Job, Segment | None] | None] = queue.Queue()
        self.start()

    def run(self) -> None:
        self.answer.put(self.jobs.take(self.own))

    @property
    def waits(self) -> bool:
        self.join(0.1)
        return self.is_alive()


def test_own_segments_then_a_new_video_then_the_oldest_that_is_open(jobs: Jobs) -> None:
    jobs.add([video("a"), video("b"), video("c")])
    a, nothing = take(jobs, None)
    assert (a.video.path, nothing) == ("a", None)
    jobs.probed(a, segments(0, 10, 20, 30))
    assert take(jobs, a) == (a, 0)
    b, _ = take(jobs, None)
    assert b.video.path == "b"
    jobs.probed(b, segments(5, 15))
    assert take(jobs, b) == (b, 5)
    assert take(jobs, b) == (b, 15)  # not the new video c, though it waits
    c, _ = take(jobs, b)
    assert c.video.path == "c"
    jobs.probed(c, segments(7, 8))
    assert take(jobs, b) == (a, 10)  # b has no more, there is no new video: the oldest
    assert take(jobs, c) == (c, 7)
    assert take(jobs, a) == (a, 20)
    assert take(jobs, None) == (a, 30)
    assert take(jobs, None) == (c, 8)


def test_new_videos_come_before_help(jobs: Jobs) -> None:
    """So many videos keep their decoders to themselves."""
    jobs.add([video("a")])
    a, _ = take(jobs, None)
    jobs.probed(a, segments(0, 1))
    jobs.add([video("b")])
    assert take(jobs, None)[0].video.path == "b"


def test_segments_open_counts_what_is_not_decoded(jobs: Jobs) -> None:
    jobs.add([video("a")])
    a, _ = take(jobs, None)
    assert a.segments_open == 0
    jobs.probed(a, segments(0, 1, 2))
    take(jobs, a)
    assert (a.segments_open, len(a.waiting)) == (3, 2)


def test_it_waits_for_what_may_come(jobs: Jobs) -> None:
    asker = Asker(jobs)
    assert asker.waits
    jobs.add([video("a")])
    work = asker.answer.get(timeout=5)
    assert work is not None
    first = work[0]
    other = Asker(jobs)
    jobs.close()
    assert other.waits  # the video that is probed may have segments
    jobs.probed(first, segments(3))
    work = other.answer.get(timeout=5)
    assert work is not None
    assert work[0] is first
    last = Asker(jobs)
    assert last.waits  # what is in hand may be given back
    jobs.segment_done(first, crashed=False)
    assert last.answer.get(timeout=5) is None
    assert jobs.added == 1


def test_what_is_given_back_is_handed_out_again(jobs: Jobs) -> None:
    jobs.add([video("a")])
    jobs.close()
    a, _ = take(jobs, None)
    jobs.give_back(a, None)
    again, nothing = take(jobs, None)
    assert (again.video, nothing) == (a.video, None)
    jobs.probed(again, segments(0))
    work = jobs.take(again)
    assert work is not None
    jobs.give_back(*work)
    assert take(jobs, None) == (again, 0)
    assert jobs.segment_done(again, crashed=False)
    assert jobs.take(None) is None


def test_the_end_is_told_to_all_who_wait(jobs: Jobs) -> None:
    jobs.add([video("a")])
    a, _ = take(jobs, None)
    askers = [Asker(jobs) for _ in range(3)]
    jobs.close()
    assert all(asker.waits for asker in askers)
    jobs.probed(a, [])  # nothing can be decoded of it
    assert [asker.answer.get(timeout=5) for asker in askers] == [None] * 3


def test_work_that_is_there_is_done_after_closing(jobs: Jobs) -> None:
    jobs.add([video("a"), video("b")])
    jobs.close()
    a, _ = take(jobs, None)
    jobs.probed(a, segments(0))
    b, _ = take(jobs, None)
    jobs.probed(b, segments(0))
    assert take(jobs, b) == (b, 0)
    assert take(jobs, b) == (a, 0)
    assert jobs.segment_done(b, crashed=False)
    assert jobs.segment_done(a, crashed=False)
    assert jobs.take(b) is None


def test_stop_ends_at_once_whatever_is_left(jobs: Jobs) -> None:
    jobs.add([video("a")])
    a, _ = take(jobs, None)
    asker = Asker(jobs)
    jobs.probed(a, [])
    assert asker.waits
    jobs.add([video("b")])
    jobs.stop()
    assert jobs.stopped
    asker.answer.get(timeout=5)
    assert jobs.take(a) is None


@pytest.mark.parametrize("seed", range(5))
def test_everything_is_given_out_once(jobs: Jobs, seed: int) -> None:
    """Threads that probe and decode at random, while videos are still added."""
    dice = random.Random(seed)
    sizes = {f"v{i}": dice.choice([0, 0, 1, 2, 9]) for i in range(60)}
    given: queue.Queue[tuple[str, int | None]] = queue.Queue()

    def work() -> None:
        own = None
        while (taken := jobs.take(own)) is not None:
            own, segment = taken
            given.put((own.video.path, None if segment is None else segment.start))
            if segment is None:
                jobs.probed(own, segments(*range(sizes[own.video.path])))
            else:
                jobs.segment_done(own, crashed=False)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    names = iter(sizes)
    for _ in range(12):
        jobs.add([video(next(names)) for _ in range(5)])
    jobs.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    seen = Counter(given.queue)
    assert seen == Counter([(name, i) for name, size in sizes.items() for i in (None, *range(size))])
    assert jobs.added == 60


def test_the_first_error_is_kept() -> None:
    job = Job(video("a"))
    job.fail(VideoError("crashed", "first"))
    job.fail(VideoError("error", "second"))
    assert str(job.error) == "first"


def test_a_job_that_crashes_again_and_again_is_given_up(jobs: Jobs) -> None:
    """Its other segments are never handed out: each might cost a minute of silence."""
    jobs.add([video("a"), video("b")])
    a, _ = take(jobs, None)
    jobs.probed(a, segments(0, 10, 20, 30, 40))
    assert take(jobs, a) == (a, 0)
    assert not jobs.segment_done(a, crashed=True)
    assert take(jobs, a) == (a, 10)
    assert take(jobs, a) == (a, 20)  # another decoder helps
    assert not jobs.segment_done(a, crashed=True)
    b, _ = take(jobs, a)
    assert b.video.path == "b"
    assert jobs.segment_done(a, crashed=False)


def test_one_crash_costs_one_segment(jobs: Jobs) -> None:
    jobs.add([video("a")])
    a, _ = take(jobs, None)
    jobs.probed(a, segments(0, 10))
    assert take(jobs, a) == (a, 0)
    assert not jobs.segment_done(a, crashed=True)
    assert take(jobs, a) == (a, 10)
    assert jobs.segment_done(a, crashed=False)
