"""A Python process of ours at the other end of a pipe: started clean, watched, and killed when it hangs.

Not multiprocessing's: its spawn imports the caller's main module again, its fork copies running threads and CUDA. Not a
pool: pools give a crashed task back without saying which of the pool's processes was at fault, and cannot hand memory
over. A child ends when the thread that started it does, at the latest: the kernel, and the pipe, say so.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

from sqt_fast.signals import kill_with_parent

KILL_S = 5.0
# At a barrier, GNU OpenMP spins 300 000 times before it sleeps. When a decoder, or another program, holds the core of
# the thread that is waited for, that is a time slice lost at every layer (docs/experiments.md has the numbers).
OPENMP_SPINS = "20000"
# Each thread that allocates would get a heap of its own, and buffers of 10 to 20 MB come and go in all of them: with
# one heap the worker's largest size is 160 MB less (docs/experiments.md).
HEAPS = "1"
# linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
HEARTBEAT_S = 1.0
# Of one core, in the time between two heartbeats: a process that uses less waits for something.
BUSY_SHARE = 0.05


class ChildError(Exception):
    """A child process died or hangs. It is gone; start another.

    hung: it was silent for too long and was killed for that. killed: somebody else killed it, most likely the kernel,
    because memory ran out. exit_code: of one that ended by itself.
    """

    def __init__(self, message: str, *, hung: bool = False, killed: bool = False, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.hung, self.killed, self.exit_code = hung, killed, exit_code


@dataclass(frozen=True)
class Limits:
    """What a process that parses hostile files may have at most; it also gets no new privileges and dumps no core."""

    address_space_bytes: int
    open_files: int = 256

    def apply(self) -> None:
        """Limit this process, for good."""
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for kind, most in (
            (resource.RLIMIT_AS, self.address_space_bytes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (allowed, allowed))


class ChildProcess:
    """Runs ``target(connection, *args)`` in a new process. target: ``module:function``; args are pickled.

    memory_bytes: memory that both sides see; the child gets it as ``shared_memory()``. limits: what it may have.
    decode: reads its messages, which are then bytes; without it they are pickled, as is right for a process that is
    trusted. One thread may receive while others send.
    """

    def __init__(
        self,
        target: str,
        *args: Any,
        title: str,
        memory_bytes: int = 0,
        limits: Limits | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.title, self._decode = title, decode
        self._send_lock = threading.Lock()
        ours, theirs = Pipe()
        memory_fd = os.memfd_create(f"sqt-fast {title}") if memory_bytes else -1
        try:
            if memory_bytes:
                os.ftruncate(memory_fd, memory_bytes)
            fds = [theirs.fileno(), *([memory_fd] if memory_bytes else [])]
            path = os.pathsep.join(p or os.getcwd() for p in sys.path)  # noqa: PTH109 - a text is wanted
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-P", "-c", "from sqt_fast.engine.process import main; main()", *map(str, fds), title],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **thread_settings(), "PYTHONPATH": path},
                process_group=0,  # Ctrl-C in a terminal is for the parent, which ends the child
            )
            self.memory = mmap.mmap(memory_fd, memory_bytes) if memory_bytes else None
        finally:
            theirs.close()
            if memory_bytes:
                os.close(memory_fd)
        self.connection: Connection[Any, Any] = ours
        self.send((target, args, limits))

    def send(self, message: Any) -> None:
        """Send any object that can be pickled. Raises ChildError when the child is gone."""
        try:
            with self._send_lock:
                self.connection.send(message)
        except OSError as error:
            raise self._died() from error

    def receive(self, timeout_s: float | None = None) -> Any:
        """Return the next message.

        Raises ChildError when the child is gone, or silent for ``timeout_s``: then it is killed.
        """
        try:
            if not self.connection.poll(timeout_s):
                self.kill()
                raise ChildError(f"{self.title} hung: it did nothing for {timeout_s:.0f} s", hung=True)
            return self.connection.recv() if self._decode is None else self._decode(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died() from error
        except ValueError as error:
            self.kill()
            raise ChildError(f"{self.title} sent {error}") from error

    def kill(self) -> None:
        """End it at once. It holds nothing that must be saved."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel's hands, on a dead disk
            self.process.wait(KILL_S)
        with self._send_lock:
            self.connection.close()
        self.memory = None  # freed with the last array that looks at it; closed, such an array would crash us

    def _died(self) -> ChildError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        code = self.process.returncode
        self.kill()
        if code is None or code >= 0:
            return ChildError(f"{self.title} ended unasked (exit code {code})", exit_code=code)
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return ChildError(f"{self.title} was killed by {name}", killed=-code == signal.SIGKILL)


def thread_settings() -> dict[str, str]:
    """Return the environment in which OpenMP spins briefly and threads share a heap, unless the user has decided."""
    decided = "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ
    openmp = {} if decided else {"GOMP_SPINCOUNT": OPENMP_SPINS}
    return {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", HEAPS), **openmp}


def shared_memory() -> mmap.mmap:
    """Return the memory that the parent gave this child."""
    return mmap.mmap(int(sys.argv[2]), 0)


def main() -> None:
    """Be a child: do what the parent asks for until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kill_with_parent()
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        target, args, limits = connection.recv()
        if limits is not None:
            limits.apply()
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(connection, *args)


def serve_requests(
    connection: "Connection[Any, Any]",
    answers: Mapping[str, Callable[..., Any]],
    send: Callable[[Any], None],
    in_words: Callable[[Exception], Any],
) -> NoReturn:
    """Answer (name, arguments...) by ``answers`` until the parent is gone. in_words: makes an exception an answer."""
    while True:
        name, *args = connection.recv()
        try:
            answer = answers[name](*args)
        except Exception as error:  # noqa: BLE001 - the parent must hear of it, whatever it is
            answer = in_words(error)
        send(answer)


def start_heartbeat(beat: Callable[[], None], is_wanted: Callable[[], bool], every_s: float = HEARTBEAT_S) -> None:
    """Call ``beat`` from a thread while this process computes: work that is long is not taken for a hang.

    A process that only waits, for a lock or a device, stays silent. is_wanted: asked before every beat.
    """

    def loop() -> None:
        before = time.process_time()
        with contextlib.suppress(OSError):  # the parent is gone
            while True:
                time.sleep(every_s)
                now = time.process_time()
                if is_wanted() and now - before > BUSY_SHARE * every_s:
                    beat()
                before = now

    threading.Thread(target=loop, name="heartbeat", daemon=True).start()


def _end_with_parent(fd: int) -> None:
    """Wait until the other end of the pipe is closed: so it is when the parent died before it could be watched."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always told
    poll.poll()
    os._exit(1)
