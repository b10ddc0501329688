"""What child processes run in tests: decoders that fail on some files, devices that are not there, and simple talk.

Everything here is found by its name in another process (``sqt_fast.engine.process``).
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sqt_fast.clips.recipe import Recipe
from sqt_fast.engine.events import Alive, ClipsLabelled, Note
from sqt_fast.engine.process import shared_memory, start_heartbeat
from sqt_fast.engine.results import RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.suspects import DEVICE_LOST_EXIT
from sqt_fast.errors import BackendError, CheckpointError
from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import CpuTools, DecodeReport, Frames, NewBuffer
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.segments import Segment

# -- decoders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison(CpuTools):
    """Tools whose process comes to harm on files with ``name`` in their path.

    how: a signal that it sends to itself, or hang, memory, value; else it ends with code 3. at: the wanted frame before
    which it happens, None while probing. once: a file that remembers that it has happened; then it never does again.
    """

    how: str
    at: int | None = None
    name: str = "poison"
    once: str | None = None

    def strikes(self, path: str) -> bool:
        """Whether it is to happen now."""
        return self.name in path and not (self.once is not None and Path(self.once).exists())

    def strike(self) -> NoReturn:
        """Come to harm."""
        if self.once is not None:
            Path(self.once).touch()
        if self.how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.how])
        elif self.how == "hang":
            time.sleep(1000)
        elif self.how == "memory":
            raise MemoryError
        elif self.how == "value":
            raise ValueError("what nobody foresaw")
        os._exit(3)

    def probe(self, video: VideoFile, progress: Callable[[], None]) -> tuple[Probe, PacketReader]:
        if self.at is None and self.strikes(video.path):
            self.strike()
        return super().probe(video, progress)

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        at = self.at if self.at in segment.numbers.tolist() and self.strikes(reader.source.path) else None
        for chunk in super().frames(reader, segment, report, new_buffer):
            if at is not None and chunk.numbers[-1] >= at:
                if before := sum(number < at for number in chunk.numbers):
                    yield Frames(chunk.numbers[:before], chunk.images[:before])
                self.strike()
            yield chunk


@dataclass(frozen=True)
class PoisonedRecipe(Recipe):
    """Cannot plan files with ``name`` in their path: it raises, or asks for more memory than there is."""

    name: str = ""
    how: str = "error"

    def plan(self, facts: Probe) -> ClipPlan:
        if self.name in facts.source.path:
            if self.how == "memory":
                np.ones(1 << 44)
            raise IndexError("beyond the end")
        return super().plan(facts)


@dataclass(frozen=True)
class Slow(CpuTools):
    """Tools that take their time before every probe and segment; ticking: they say that they are at work."""

    seconds: float
    ticking: bool = False
    name: str = ""

    def probe(self, video: VideoFile, progress: Callable[[], None]) -> tuple[Probe, PacketReader]:
        end = time.monotonic() + self.seconds * (self.name in video.path)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1) if self.ticking else left)
            progress()
        return super().probe(video, progress)

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        if self.name in reader.source.path:
            time.sleep(self.seconds)
        yield from super().frames(reader, segment, report, new_buffer)


@dataclass(frozen=True)
class Deaf(CpuTools):
    """Tools that pass over wanted frames from number ``first`` on, without a word."""

    first: int

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        for chunk in super().frames(reader, segment, report, new_buffer):
            keep = [number for number in chunk.numbers if number < self.first]
            report.lost += chunk.numbers[len(keep) :]
            if keep:
                yield Frames(keep, chunk.images[: len(keep)])


@dataclass(frozen=True)
class Concealing(CpuTools):
    """Tools that call frames ``first`` to ``last`` - 1 concealed."""

    first: int
    last: int

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        is_concealed = (segment.numbers >= self.first) & (segment.numbers < self.last)
        report.damaged += (segment.numbers if segment.ticks is None else segment.ticks)[is_concealed].tolist()
        yield from super().frames(reader, segment, report, new_buffer)


@dataclass(frozen=True)
class Unfit(CpuTools):
    """Tools that do not survive the journey to their process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise RuntimeError("no tools today")


# -- devices ----------------------------------------------------------------------------------------------------------

LOADED = WeightsInfo("fake", "0" * 64, ("a", "b"), "nowhere", False, 8)
CHOICE = {"backend": "eager", "precision": "fp32", "device": "cpu", "batch_size": 1, "reason": "as asked"}


@dataclass(frozen=True)
class Script:
    """What a device that is not there does. Passed where tools would be.

    log: a file that remembers what every process was given. deadly: names of videos that kill it, silent: that hang it,
    lost: over which it loses its device. times: how often that happens in all (None: always). stuck: a request at which
    it hangs, broken: at which it dies, refused: at which it raises ``BackendError``.
    """

    log: Path
    deadly: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    stuck: str = ""
    times: int | None = None
    broken: str = ""
    refused: str = ""

    def say(self, line: str) -> None:
        """Remember."""
        with self.log.open("a") as file:
            file.write(line + "\n")

    def strikes(self, what: str) -> bool:
        """Say whether it happens this time."""
        self.say(what)
        return self.times is None or self.log.read_text().splitlines().count(what) <= self.times


def serve_script(
    connection: "Connection[Any, Any]", config: object, resources: object, script: Script, log_level: int
) -> None:
    """Stand in for ``device.serve``."""
    script.say("start")
    while True:
        name, *args = connection.recv()
        script.say(name)
        if name == script.broken and script.strikes(f"{name} broke"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == script.stuck:
            time.sleep(1000)
        if name == script.refused:
            connection.send(("error", BackendError("no such luck")))
        if name == "label":
            break
        connection.send(("event", Note(f"{name} with {len(args)}")))
        connection.send(("answer", LOADED if name == "load" else CHOICE))
    while (videos := connection.recv()) is not None:
        script.say("given " + " ".join(video.path for video in videos))
        for video in videos:
            if video.path in script.deadly and script.strikes(f"died of {video.path}"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if video.path in script.lost and script.strikes(f"lost the device over {video.path}"):
                connection.send(("lost", "CUDA error: an illegal memory access was encountered"))
                os._exit(DEVICE_LOST_EXIT)
            if video.path in script.silent and script.strikes(f"hung on {video.path}"):
                time.sleep(1000)
            if video.path == "refused":
                connection.send(("error", CheckpointError("not these")))
            connection.send(("event", Alive()))
            connection.send(("event", ClipsLabelled(2)))
            result = VideoResult(video, [Row(video.path)], 1.0)
            connection.send(("result", (result, RunCounters(clips=2, video_s=1.0, network_s=0.5))))
    script.say("finished")
    connection.send(("answer", RunCounters(wait_s=0.25)))


# -- talk -------------------------------------------------------------------------------------------------------------


def echo(connection: "Connection[Any, Any]", *args: Any) -> None:
    """Answer every message with the arguments and the message."""
    while True:
        connection.send((*args, connection.recv()))


def die(connection: "Connection[Any, Any]", how: str) -> None:
    """Say hello and end."""
    connection.send("hello")
    if how != "nothing":
        Poison(how).strike()


def hang(connection: "Connection[Any, Any]") -> None:
    """Say who it is, and then nothing any more, whatever comes."""
    connection.send(os.getpid())
    time.sleep(1000)


def tell_limits(connection: "Connection[Any, Any]") -> None:
    """Send what the kernel says of this process."""
    connection.send((Path("/proc/self/limits").read_text(), Path("/proc/self/status").read_text()))
    time.sleep(1000)


def tell_environment(connection: "Connection[Any, Any]") -> None:
    """Send the environment of this process."""
    connection.send(dict(os.environ))
    time.sleep(1000)


def work_with_heartbeat(connection: "Connection[Any, Any]", work: str) -> None:
    """Compute, or wait, for ever, beside a heart that beats ten times a second."""
    connection.send("begun")
    start_heartbeat(lambda: connection.send("alive"), lambda: True, every_s=0.1)
    while work == "compute":
        sum(range(1000))
    time.sleep(1000)


def fill(connection: "Connection[Any, Any]") -> None:
    """Add one to every byte of the shared memory."""
    memory = shared_memory()
    while True:
        connection.recv()
        memory[:] = bytes((byte + 1) % 256 for byte in memory[:])
        connection.send(len(memory))


# -- processes --------------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor dead and not yet buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """Return all living processes below ``pid``, children before grandchildren."""
    below: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        below += children
        for child in children:
            below += descendants(child)
    return [child for child in below if is_alive(child)]


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Wait for something; return whether it came."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
