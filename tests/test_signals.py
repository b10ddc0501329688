"""Processes that end with their parent, and do not hear what is meant for it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqt_fast.signals import starting_uninterrupted

ROOT = Path(__file__).parents[1]


def test_a_process_ends_with_its_parent() -> None:
    child = (
        "import time; from sqt_fast.signals import kill_with_parent; kill_with_parent(); "
        "print(1, flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print(p.pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent, child], capture_output=True, text=True, cwd=ROOT, check=True)
    status = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not status.exists()


def test_what_libraries_start_never_hears_ctrl_c() -> None:
    """Also the first time, when multiprocessing starts its tracker, which lets the signal through again."""
    code = """if True:
        import multiprocessing, os, signal, sys
        from sqt_fast.signals import starting_uninterrupted
        if __name__ == "__main__":
            with starting_uninterrupted():
                child = multiprocessing.get_context("spawn").Process(target=input)
                child.start()
            print(open(f"/proc/{child.pid}/status").read().partition("SigBlk:")[2].split()[0])
            print(open("/proc/self/status").read().partition("SigBlk:")[2].split()[0])
            child.kill()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    interrupt = 1 << (signal.SIGINT - 1)
    child, parent = (int(line, 16) for line in done.stdout.split())
    assert child & interrupt
    assert not parent & interrupt
    assert done.stderr == ""


@pytest.mark.usefixtures("heard_ctrl_c")
def test_the_signal_is_heard_again_afterwards() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with pytest.raises(KeyboardInterrupt), starting_uninterrupted():
        signal.raise_signal(signal.SIGINT)
        assert signal.SIGINT in signal.sigpending()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
