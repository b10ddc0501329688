"""Processes that end with their parent, whoever starts them, and do not hear what is meant for it."""

import contextlib
import ctypes
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

PR_SET_PDEATHSIG = 1  # of prctl(2)


def kill_with_parent() -> None:
    """Have this process killed when the thread that started it ends, whatever it does then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def starting_uninterrupted() -> Iterator[None]:
    """Let processes that libraries start meanwhile never hear Ctrl-C: it is for this one, which ends them."""
    resource_tracker.ensure_running()  # when multiprocessing starts it, it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
