"""Who is at fault when workers die: a video in their hands, found by halving, or the device, and then no video."""

from collections import deque
from collections.abc import Generator

from sqt_fast.engine.results import VideoResult
from sqt_fast.errors import BackendError, VideoError
from sqt_fast.table.rows import failed_row
from sqt_fast.video.archive import VideoFile

# A worker that dies over the same video alone so often will not label it.
ATTEMPTS = 3
# With this code a worker ends that has lost its device: its last words may be lost with it.
DEVICE_LOST_EXIT = 77
LOST_DEVICE_ADVICE = "check the GPU, or use --device cpu"


class WorkerLostError(Exception):
    """The worker's process is gone. device: because it lost its device."""

    def __init__(self, message: str, *, device: bool = False) -> None:
        super().__init__(message)
        self.device = device


class Suspects:
    """Videos that a dead worker had in its hands, in groups that are tried one after the other.

    A group over which it dies again is halved until the culprit is alone.
    """

    def __init__(self) -> None:
        self.groups: deque[list[VideoFile]] = deque()
        self.attempts = 0  # of the first group, if it is one video

    def take_back(self, videos: list[VideoFile]) -> VideoFile | None:
        """Take what a dead worker had. Returns the culprit when it was alone once too often."""
        if self.groups:
            self.groups.popleft()
        if not videos:  # it died with nothing in its hands
            return None
        if len(videos) == 1:
            self.attempts += 1
            if self.attempts == ATTEMPTS:
                self.attempts = 0
                return videos[0]
            self.groups.appendleft(videos)
            return None
        middle = len(videos) // 2
        self.groups.extendleft((videos[middle:], videos[:middle]))
        return None

    def cleared(self) -> None:
        """Say that the first group came through."""
        self.groups.popleft()
        self.attempts = 0


class Verdicts:
    """Decides whose fault it is when workers die: a video's, or the device's.

    A video over which the process dies, alone, every time, gets a row. One over which the device is lost does, too, but
    only once the device has proved that it works, with a video that comes through after it. Workers that lose their
    device one after the other, with nothing labelled between, end the run.
    """

    def __init__(self) -> None:
        self.lost_in_a_row = 0
        self.allowed = ATTEMPTS
        self.held: VideoResult | None = None

    def lost(self, error: WorkerLostError, in_hand: int) -> None:
        """Count a loss. Raises BackendError after one too many."""
        if not error.device:
            return
        if not self.lost_in_a_row:
            self.allowed = ATTEMPTS + in_hand.bit_length()  # halving down to the culprit, and trying that
        self.lost_in_a_row += 1
        if self.lost_in_a_row > self.allowed:
            self._give_up(error)

    def judge(self, culprit: VideoFile, error: WorkerLostError) -> Generator[VideoResult, None, None]:
        """Yield the row of a video that is the culprit, or hold it back until the device has proved itself."""
        verdict = VideoError("crashed", f"{error}, {ATTEMPTS} times")
        result = VideoResult(culprit, [failed_row(culprit, verdict)])
        if not error.device:
            yield result
        elif self.held is not None:
            self._give_up(error)
        else:
            self.held, self.lost_in_a_row = result, 0

    def came_through(self) -> Generator[VideoResult, None, None]:
        """Note that the device works, and yield what was held back."""
        self.lost_in_a_row = 0
        if self.held is not None:
            held, self.held = self.held, None
            yield held

    def _give_up(self, error: WorkerLostError) -> None:
        raise BackendError(f"{error} again and again, with nothing labelled between; {LOST_DEVICE_ADVICE}")
