"""Label videos in a process that may die: its work is then done again, and the file that kills it gets a row.

A worker holds CUDA, decoders, the network; any of them can take it down on a hostile file, when memory runs out, or
when the device is lost. The supervisor holds only what is wanted and what has come.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import BatchSizeChanged, Note, Report
from sqt_fast.engine.memory import Resources, plan_resources
from sqt_fast.engine.process import ChildError, ChildProcess
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.suspects import DEVICE_LOST_EXIT, LOST_DEVICE_ADVICE, Suspects, Verdicts, WorkerLostError
from sqt_fast.errors import BackendError, SqtError, system_reason
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import FFMPEG, CpuTools

# Videos in the worker's hands beyond one a decoder and those that wait for the network, of a clip each at least, for
# the batch that it runs and the next: enough that nothing waits, few to do again.
AHEAD = 4
# Each decoder may hang and be tried again before its worker has anything to report.
HANG_FACTOR = 5
# Getting ready shows progress while it computes or downloads. Compiling for an hour is no work but a hang.
START_LIMIT_S = 3600.0
# A worker that imports PyTorch and Triton from a slow disk has nothing to tell for a while.
START_SILENCE_S = 120.0
# What kept a worker from starting, such as another program's use of memory, may be over later.
START_AGAIN_AFTER_S = (1.0, 5.0, 25.0)

log = logging.getLogger(__name__)


class Labeller(Protocol):
    """What labels videos: a ``Supervisor``, or a ``worker.Worker`` in this very process."""

    def load(self) -> WeightsInfo:
        """Load the weights."""

    def open(self, earlier: EarlierRun, num_clips: int) -> dict[str, Any]:
        """Get ready and return the fields of the Choice."""

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video."""

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""

    def close(self) -> None:
        """Stop, whatever is being done."""


Launch = Callable[[IndexConfig, Report], Labeller]


class Supervisor:
    """Has the interface of ``worker.Worker`` and runs one in a process of its own. sleep: waits between starts."""

    def __init__(
        self,
        config: IndexConfig,
        resources: Resources,
        report: Report,
        tools: CpuTools = FFMPEG,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.resources, self.report, self.tools, self.sleep = config, resources, report, tools, sleep
        self._counters = RunCounters()
        self._child: ChildProcess | None = None
        self._choice: dict[str, Any] | None = None
        self._labelling = False

    def load(self) -> WeightsInfo:
        """Load the weights. Raises SqtError."""
        loaded: WeightsInfo = self._ask("load")
        return loaded

    def open(self, earlier: EarlierRun, num_clips: int) -> dict[str, Any]:
        """Decide how to run, get ready, and return the fields of the Choice. Raises SqtError."""
        self._choice = self._ask("open", earlier, num_clips)
        return self._choice

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""
        counters, self._counters = self._counters, RunCounters()
        return counters

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished.

        Raises BackendError when workers do not come up any more or lose their device one after the other.
        """
        todo, suspects, in_hand = deque(videos), Suspects(), dict[str, VideoFile]()
        verdicts = Verdicts()
        good: VideoFile | None = None
        while todo or suspects.groups or in_hand:
            try:
                self._feed(todo, suspects, in_hand)
                result = self._result()
            except WorkerLostError as error:
                self.close()
                self.report(Note(f"{error}; starting another"))
                verdicts.lost(error, len(in_hand))
                culprit = suspects.take_back(list(in_hand.values()))
                in_hand.clear()
                if culprit is not None:
                    yield from verdicts.judge(culprit, error)
                continue
            if result is not None:
                del in_hand[result.video.path]
                if suspects.groups and not in_hand:
                    suspects.cleared()
                yield from verdicts.came_through()
                good = result.video
                yield result
        if verdicts.held is not None:
            yield self._proven(verdicts, good)
        self._finish()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child, self._labelling = None, False

    # -- the worker's work --------------------------------------------------------------------------------------------

    def _feed(self, todo: deque[VideoFile], suspects: Suspects, in_hand: dict[str, VideoFile]) -> None:
        """Give the worker as much as it should have: a group of suspects alone, or some videos when there is none."""
        if suspects.groups:
            coming = [] if in_hand else suspects.groups[0]
        else:
            room = self.resources.num_decoders + AHEAD + 2 * self._batch_size() - len(in_hand)
            coming = [todo.popleft() for _ in range(min(room, len(todo)))]
        if coming:
            in_hand.update((video.path, video) for video in coming)
            self._start_labelling()
            self._send(coming)

    def _result(self) -> VideoResult | None:
        """Wait for the next news; return it if it is a result."""
        kind, value = self._receive(HANG_FACTOR * self.resources.hang_s)
        if kind != "result":
            return None
        result: VideoResult
        result, counters = value
        self._counters.add(counters)
        return result

    def _proven(self, verdicts: Verdicts, good: VideoFile | None) -> VideoResult:
        """Return the verdict that is left when all is done, once a video that came through before does so again."""
        assert verdicts.held is not None
        reason = verdicts.held.rows[0].error_message
        if good is None:
            raise BackendError(f"{reason}, and nothing else could be labelled; {LOST_DEVICE_ADVICE}")
        try:
            self._start_labelling()
            self._send([good])
            while self._result() is None:
                pass
        except WorkerLostError as error:
            raise BackendError(f"{reason}, and {error}; {LOST_DEVICE_ADVICE}") from error
        return verdicts.held

    def _batch_size(self) -> int:
        return 0 if self._choice is None else int(self._choice["batch_size"])

    def _finish(self) -> None:
        """Say that no more comes and take the rest of the counts; whatever fails now, all results are here."""
        try:
            if self._labelling:
                self._send(None)
                while (news := self._receive(self.resources.hang_s))[0] != "answer":
                    pass
                self._counters.add(news[1])
        except (WorkerLostError, SqtError):
            log.debug("the worker died when it was done", exc_info=True)
        self.close()

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start_labelling(self) -> None:
        if self._child is None:
            self._start_again()
        if not self._labelling:
            self._send(("label",))
            self._labelling = True

    def _start_again(self) -> None:
        """Be ready as before, with pauses between attempts. Raises BackendError when it stays impossible."""
        for pause_s in START_AGAIN_AFTER_S:
            try:
                self._get_ready()
            except BackendError as error:
                self.report(Note(f"{error}; starting again in {pause_s:.0f} s"))
                self.close()
                self.sleep(pause_s)
            else:
                return
        self._get_ready()

    def _get_ready(self) -> None:
        self._ask("load")
        self._ask("open", EarlierRun(self._choice, whole=True), 0)

    def _ask(self, *request: Any) -> Any:
        deadline = time.monotonic() + START_LIMIT_S
        try:
            self._send(request)
            while (news := self._receive(START_SILENCE_S))[0] != "answer":
                if time.monotonic() > deadline:
                    self.close()
                    raise BackendError(f"the worker was not ready after {START_LIMIT_S / 60:.0f} minutes")
        except WorkerLostError as error:
            self.close()
            advice = LOST_DEVICE_ADVICE if error.device else "is there enough memory?"
            raise BackendError(f"{error} while it made ready; {advice}") from error
        return news[1]

    # -- messages -----------------------------------------------------------------------------------------------------

    def _send(self, message: Any) -> None:
        try:
            if self._child is None:
                level = logging.getLogger().level
                args = self.config, self.resources, self.tools, level
                self._child = ChildProcess("sqt_fast.engine.worker:serve", *args, title="worker")
            self._child.send(message)
        except ChildError as error:
            raise _lost(error) from error
        except OSError as error:  # the machine has no room for one more process now
            raise BackendError(f"no worker can be started: {system_reason(error)}") from error

    def _receive(self, timeout_s: float) -> tuple[str, Any]:
        """Return the next news; events have been passed on. Raises WorkerLostError, or what the worker raised."""
        assert self._child is not None
        try:
            kind, value = self._child.receive(timeout_s)
        except ChildError as error:
            raise _lost(error) from error
        if kind == "event":
            if isinstance(value, BatchSizeChanged) and self._choice is not None:
                self._choice["batch_size"] = value.batch_size
            self.report(value)
        elif kind == "lost":
            raise WorkerLostError(f"the device was lost ({value})", device=True)
        elif kind == "error":
            assert isinstance(value, SqtError)
            raise value
        return kind, value


def supervised(config: IndexConfig, report: Report) -> Labeller:
    """Return a labeller in a process of its own."""
    return Supervisor(config, plan_resources(config.memory_bytes), report)


def _lost(error: ChildError) -> WorkerLostError:
    """Return what the end of a worker's process means."""
    if error.exit_code == DEVICE_LOST_EXIT:
        return WorkerLostError("the device was lost", device=True)
    return WorkerLostError(str(error))
