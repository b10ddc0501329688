"""Label videos in a process that may die: its work is then done again, and the file that kills it gets a row.

A device's process holds CUDA, decoders, the network; any of them can take it down on a hostile file or when memory runs
out. The supervisor holds only what is wanted and what has come.
"""

import logging
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from sqt_fast.config import IndexConfig
from sqt_fast.engine.decoder_process import CpuTools, ToolsFactory
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.process import ChildError, ChildProcess
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.summary import Watcher
from sqt_fast.errors import BackendError, SqtError, VideoError
from sqt_fast.table.rows import failed_row
from sqt_fast.video.archive import VideoFile

# Videos in the process's hands beyond one a decoder and those that wait for the network, of a clip each at least, for
# the batch that it runs and the next: enough that nothing waits, few to do again.
AHEAD = 4
# A process that dies over the same video alone so often will not label it.
ATTEMPTS = 3
# Silence is allowed for as long as all its decoders may hang, each as often as it may try.
HANG_FACTOR = 5


class Supervisor:
    """Has the interface of ``device.Worker`` and runs one in a process of its own.

    When the process dies, every video in its hands is suspect: each is then tried alone.
    """

    def __init__(
        self, config: IndexConfig, resources: Resources, watcher: Watcher, tools: ToolsFactory = CpuTools
    ) -> None:
        self.config, self.resources, self.watcher, self.tools = config, resources, watcher, tools
        self.tally = RunCounters()
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

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished."""
        todo, suspects, in_hand = deque(videos), deque[VideoFile](), dict[str, VideoFile]()
        attempts: dict[str, int] = {}
        while todo or suspects or in_hand:
            try:
                self._feed(todo, suspects, in_hand)
                result = self._result()
            except ChildError as error:
                yield from self._bury(error, suspects, in_hand, attempts)
                continue
            if result is not None:
                del in_hand[result.video.path]
                if suspects:
                    suspects.popleft()
                yield result
        self._finish()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child, self._labelling = None, False

    def _feed(self, todo: deque[VideoFile], suspects: deque[VideoFile], in_hand: dict[str, VideoFile]) -> None:
        """Give the process as much as it should have: the first suspect alone, or some videos when there is none."""
        if suspects:
            coming = [] if in_hand else [suspects[0]]
        else:
            room = self.resources.num_decoders + AHEAD + 2 * self._batch_size() - len(in_hand)
            coming = [todo.popleft() for _ in range(min(room, len(todo)))]
        if coming:
            in_hand.update((video.path, video) for video in coming)
            self._start_labelling()
            self._send(coming)

    def _bury(
        self, error: ChildError, suspects: deque[VideoFile], in_hand: dict[str, VideoFile], attempts: dict[str, int]
    ) -> Generator[VideoResult, None, None]:
        """Take back what a dead process had in its hands. Yields the result of a video that keeps killing it."""
        self.close()
        self.watcher.note(f"{error}; starting another")
        if not suspects:
            suspects.extend(in_hand.values())
        if len(in_hand) == 1:
            path = suspects[0].path
            attempts[path] = attempts.get(path, 0) + 1
            if attempts[path] == ATTEMPTS:
                video = suspects.popleft()
                yield VideoResult(video, [failed_row(video, VideoError("crashed", f"{error}, {ATTEMPTS} times"))])
        in_hand.clear()

    def _result(self) -> VideoResult | None:
        """Wait for the next news; return it if it is a result."""
        kind, value = self._receive(HANG_FACTOR * self.resources.hang_s)
        if kind != "result":
            return None
        result: VideoResult
        result, tally = value
        self.tally.add(tally)
        return result

    def _start_labelling(self) -> None:
        if self._child is None:
            self._start_again()
        if not self._labelling:
            self._send(("label",))
            self._labelling = True

    def _start_again(self, attempts: int = ATTEMPTS) -> None:
        """Be ready as before. What killed the process may not be over at once, as another's use of memory."""
        try:
            self._ask("load")
            self._ask("open", EarlierRun(self._choice, whole=True), 0)
        except BackendError:
            if attempts == 1:
                raise
            self._start_again(attempts - 1)

    def _batch_size(self) -> int:
        return 0 if self._choice is None else int(self._choice["batch_size"])

    def _finish(self) -> None:
        """Say that no more comes and take the rest of the counts; whatever happens now, all results are here."""
        try:
            if self._labelling:
                self._send(None)
                while (news := self._receive(self.resources.hang_s))[0] != "answer":
                    pass
                self.tally.add(news[1])
        except ChildError:
            logging.getLogger(__name__).debug("the worker died when it was done", exc_info=True)
        self.close()

    def _ask(self, *request: Any) -> Any:
        try:
            self._send(request)
            while (news := self._receive(None))[0] != "answer":
                pass
        except ChildError as error:
            self.close()
            raise BackendError(f"{error} while it made ready; is there enough memory?") from error
        return news[1]

    def _send(self, message: Any) -> None:
        if self._child is None:
            level = logging.getLogger().level
            self._child = ChildProcess(
                "sqt_fast.engine.worker:serve", self.config, self.resources, self.tools, level, title="worker"
            )
        self._child.send(message)

    def _receive(self, timeout_s: float | None) -> tuple[str, Any]:
        """Return the next news; those that are for the watcher have been told. Raises what the process raised."""
        assert self._child is not None
        kind, value = self._child.receive(timeout_s)
        if kind == "note":
            self.watcher.note(value)
        elif kind == "clips":
            self.watcher.clips(value)
        elif kind == "error":
            assert isinstance(value, SqtError)
            raise value
        return kind, value
