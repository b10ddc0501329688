"""A Python process of ours at the other end of a pipe: started clean, watched, and killed when it hangs.

Not multiprocessing's: its spawn imports the caller's main module again, its fork copies running threads and CUDA. Not a
pool: pools give a crashed task back without saying which of the pool's processes was at fault, and cannot hand memory
over. A child ends when the thread that started it does, at the latest: the kernel, and the pipe, say so.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from typing import Any

KILL_S = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildError(Exception):
    """A child process died or hangs. It is gone; start another."""


class ChildProcess:
    """Runs ``target(connection, *args)`` in a new process. target: ``module:function``; args are pickled.

    memory_bytes: memory that both sides see; the child gets it as ``shared_memory()``. One thread may receive while
    others send.
    """

    def __init__(self, target: str, *args: Any, title: str, memory_bytes: int = 0) -> None:
        self.title = title
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
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C in a terminal is for the parent, which ends the child
            )
            self.memory = mmap.mmap(memory_fd, memory_bytes) if memory_bytes else None
        finally:
            theirs.close()
            if memory_bytes:
                os.close(memory_fd)
        self.connection: Connection[Any, Any] = ours
        self.send((target, args))

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
                raise ChildError(f"{self.title} hung: it did nothing for {timeout_s:.0f} s")
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

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
            return ChildError(f"{self.title} ended unasked (exit code {code})")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return ChildError(f"{self.title} was killed by {name}")


def shared_memory() -> mmap.mmap:
    """Return the memory that the parent gave this child."""
    return mmap.mmap(int(sys.argv[2]), 0)


def main() -> None:
    """Be a child: do what the parent asks for until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with the thread that started it, whatever it does then
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        target, args = connection.recv()
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(connection, *args)


def _end_with_parent(fd: int) -> None:
    """Wait until the other end of the pipe is closed: so it is when the parent died before it could be watched."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always told
    poll.poll()
    os._exit(1)
