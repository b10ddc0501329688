"""ChildProcess processes: what is said is heard, whatever ends one is told in words, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sqt_fast.engine.messages import decode
from sqt_fast.engine.process import ChildError, ChildProcess, Limits
from tests.poison import is_alive, wait_until


@pytest.fixture
def children() -> Iterator[list[ChildProcess]]:
    """Children to be ended."""
    started: list[ChildProcess] = []
    yield started
    for child in started:
        child.kill()
        assert not is_alive(child.process.pid)


def test_messages_and_arguments(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:echo", 1, {"two": np.arange(3)}, title="echo")
    children.append(child)
    child.send("three")
    one, two, three = child.receive(30)
    assert (one, list(two["two"]), three) == (1, [0, 1, 2], "three")
    child.send(b"x" * 10_000_000)  # more than a pipe holds
    assert len(child.receive(30)[2]) == 10_000_000


def test_one_thread_receives_while_others_send(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:echo", title="echo")
    children.append(child)

    def send(k: int) -> None:
        for _ in range(50):
            child.send((k, b"x" * 50_000))

    threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    seen = [child.receive(30)[0][0] for _ in range(200)]
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted([0, 1, 2, 3] * 50)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("SIGSEGV", "x was killed by SIGSEGV"),
        ("SIGKILL", "x was killed by SIGKILL"),
        ("SIGABRT", "x was killed by SIGABRT"),
        ("exit", r"x ended unasked \(exit code 3\)"),
        ("nothing", r"x ended unasked \(exit code 0\)"),
    ],
)
def test_death_is_told_in_words(how: str, said: str, children: list[ChildProcess]) -> None:
    """What was sent before is still heard; afterwards every call says the same."""
    child = ChildProcess("tests.poison:die", how, title="x")
    children.append(child)
    assert child.receive(30) == "hello"
    with pytest.raises(ChildError, match=f"^{said}$"):
        child.receive(30)
    with pytest.raises(ChildError, match=said):
        child.receive(30)
    with pytest.raises(ChildError, match=said):
        child.send("anyone there?")


def test_death_is_noticed_when_sending(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:die", "SIGKILL", title="x")
    children.append(child)
    child.process.wait(30)
    with pytest.raises(ChildError, match="x was killed by SIGKILL"):
        for _ in range(3):
            child.send("anyone there?")


def test_a_bug_is_an_exit_code(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:nobody", title="x")
    children.append(child)
    with pytest.raises(ChildError, match=r"^x ended unasked \(exit code 1\)$"):
        child.receive(30)


def test_silence_is_ended(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:hang", title="x")
    children.append(child)
    pid = child.receive(30)
    started = time.monotonic()
    with pytest.raises(ChildError, match=r"^x hung: it did nothing for 1 s$"):
        child.receive(1.0)
    assert 0.9 < time.monotonic() - started < 3
    assert not is_alive(pid)


def test_memory_that_both_see(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:fill", title="x", memory_bytes=100_000)
    children.append(child)
    assert child.memory is not None
    child.memory[:3] = b"\1\2\xff"
    for _ in range(2):
        child.send("go")
        assert child.receive(30) == 100_000
    assert child.memory[:4] == b"\3\4\1\2"
    view = np.ndarray((4,), np.uint8, child.memory)
    child.kill()
    assert view.tolist() == [3, 4, 1, 2]  # who still looks at it may


def test_files_are_not_inherited(children: list[ChildProcess]) -> None:
    """Else a child would hold another's pipe open, and its death would go unnoticed."""
    first, second = (ChildProcess("tests.poison:hang", title=title) for title in ("first", "second"))
    children += [first, second]
    assert first.receive(30) == first.process.pid
    assert second.receive(30) == second.process.pid
    first.process.kill()
    with pytest.raises(ChildError, match="first was killed by SIGKILL"):
        first.receive(5)


def test_ctrl_c_is_for_the_parent(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:echo", title="x")
    children.append(child)
    child.send(1)
    assert child.receive(30) == (1,)
    child.process.send_signal(signal.SIGINT)
    child.send(2)
    assert child.receive(30) == (2,)
    assert os.getpgid(child.process.pid) != os.getpgid(0)


@pytest.mark.parametrize("target", ["echo", "hang"], ids=["waiting", "in a call that never returns"])
def test_no_child_outlives_its_parent(target: str) -> None:
    code = (
        "import time; from sqt_fast.engine.process import ChildProcess; "
        f"child = ChildProcess('tests.poison:{target}', title='x', memory_bytes=4096); "
        "child.send(1); child.receive(30); print(child.process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    assert wait_until(lambda: not is_alive(pid), 5)


# -- limits, heartbeats, plain data -----------------------------------------------------------------------------------


def test_limits_are_set(children: list[ChildProcess]) -> None:
    child = ChildProcess(
        "tests.poison:tell_limits", title="x", limits=Limits(address_space_bytes=3 << 30, open_files=99)
    )
    children.append(child)
    limits, status = child.receive(30)
    lines = {line[:25].strip(): line[25:].split()[:2] for line in limits.splitlines()}
    assert lines["Max address space"] == [str(3 << 30)] * 2
    assert lines["Max open files"] == ["99"] * 2
    assert lines["Max core file size"] == ["0"] * 2
    assert "NoNewPrivs:\t1" in status


def test_without_limits_there_are_none(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:tell_limits", title="x")
    children.append(child)
    _, status = child.receive(30)
    assert "NoNewPrivs:\t0" in status


def test_what_a_child_sends_is_not_unpickled_where_it_is_not_trusted(children: list[ChildProcess]) -> None:
    child = ChildProcess("tests.poison:echo", title="decoder", decode=decode)
    children.append(child)
    child.send("what comes back is a pickle")
    with pytest.raises(ChildError, match=r"^decoder sent not a message"):
        child.receive(30)
    assert not is_alive(child.process.pid)


def test_who_was_killed_and_who_hung_is_known(children: list[ChildProcess]) -> None:
    for how, killed in (("SIGKILL", True), ("SIGSEGV", False), ("exit", False)):
        child = ChildProcess("tests.poison:die", how, title="x")
        children.append(child)
        assert child.receive(30) == "hello"
        with pytest.raises(ChildError) as caught:
            child.receive(30)
        assert (caught.value.killed, caught.value.hung) == (killed, False)
    child = ChildProcess("tests.poison:hang", title="x")
    children.append(child)
    child.receive(30)
    with pytest.raises(ChildError) as caught:
        child.receive(0.1)
    assert (caught.value.killed, caught.value.hung) == (False, True)


@pytest.mark.parametrize(("work", "beats"), [("compute", True), ("wait", False)])
def test_the_heart_beats_while_it_computes(children: list[ChildProcess], work: str, beats: bool) -> None:
    """Long work is no hang; a process that waits, for a lock or a dead disk, is silent."""
    child = ChildProcess("tests.poison:work_with_heartbeat", work, title="x")
    children.append(child)
    assert child.receive(30) == "begun"
    if beats:
        assert child.receive(30) == "alive"
    else:
        with pytest.raises(ChildError, match="hung"):
            child.receive(1.0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("20000", "1")),
        ({"GOMP_SPINCOUNT": "7"}, ("7", "1")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, (None, "1")),
        ({"MALLOC_ARENA_MAX": "8"}, ("20000", "8")),
    ],
)
def test_children_spin_briefly_and_have_one_heap_unless_the_user_decides(
    children: list[ChildProcess],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    wanted: tuple[str | None, str],
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    child = ChildProcess("tests.poison:tell_environment", title="x")
    children.append(child)
    environment = child.receive(30)
    assert (environment.get("GOMP_SPINCOUNT"), environment.get("MALLOC_ARENA_MAX")) == wanted
