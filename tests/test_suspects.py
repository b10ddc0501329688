"""Who is at fault: found by halving, and never more than those who are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.engine.results import VideoResult
from sqt_fast.engine.suspects import ATTEMPTS, Suspects, Verdicts, WorkerLostError
from sqt_fast.errors import BackendError
from sqt_fast.video.archive import VideoFile


def videos(count: int) -> list[VideoFile]:
    return [VideoFile(f"{i:03}", 1, 1) for i in range(count)]


@given(count=st.integers(1, 148), guilty=st.sets(st.integers(0, 147), max_size=3))
def test_the_culprits_are_found_and_nobody_else(count: int, guilty: set[int]) -> None:
    """A worker that had ``count`` videos in its hands dies over some of them, whenever it gets them."""
    everyone = videos(count)
    culprits = {everyone[i] for i in guilty if i < count}
    suspects, found, cleared, deaths = Suspects(), set(), set(), 0
    if culprits:
        suspects.take_back(everyone)
    while suspects.groups:
        group = suspects.groups[0]
        if culprits & set(group):
            deaths += 1
            if (culprit := suspects.take_back(group)) is not None:
                found.add(culprit)
        else:
            cleared |= set(group)
            suspects.cleared()
    assert found == culprits
    assert cleared == (set(everyone) - culprits if culprits else set())
    assert deaths <= len(culprits) * (count.bit_length() + ATTEMPTS)


LOST = WorkerLostError("the device was lost", device=True)


def test_a_verdict_over_the_device_waits_until_the_device_has_proved_itself() -> None:
    verdicts, (video,) = Verdicts(), videos(1)
    assert list(verdicts.judge(video, LOST)) == []
    (held,) = verdicts.came_through()
    assert isinstance(held, VideoResult)
    assert (held.rows[0].path, held.rows[0].status) == ("000", "crashed")
    assert verdicts.held is None


def test_two_in_a_row_are_the_devices_fault() -> None:
    verdicts, (one, other) = Verdicts(), videos(2)
    list(verdicts.judge(one, LOST))
    with pytest.raises(BackendError, match="again and again"):
        list(verdicts.judge(other, LOST))


def test_a_video_that_kills_the_process_is_judged_at_once() -> None:
    verdicts, (video,) = Verdicts(), videos(1)
    (result,) = verdicts.judge(video, WorkerLostError("worker was killed by SIGSEGV"))
    assert result.rows[0].error_message == f"worker was killed by SIGSEGV, {ATTEMPTS} times"


def test_losses_without_progress_end_the_run() -> None:
    verdicts = Verdicts()
    for _ in range(ATTEMPTS + 3):  # 7 in hand: halved three times
        verdicts.lost(LOST, 7)
    with pytest.raises(BackendError):
        verdicts.lost(LOST, 1)
    list(verdicts.came_through())
    verdicts.lost(LOST, 7)
