"""Memory: how much there is, and that threads never take more than there is, nor wait for ever."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqt_fast.engine import memory
from sqt_fast.engine.memory import (
    DECODER_BYTES,
    GIB,
    MAX_DECODERS,
    Budget,
    Resources,
    affordable_decoders,
    available_bytes,
    decoding_bytes,
    parse_memory,
    plan_resources,
    usable_cores,
    with_gpu_threads,
)
from sqt_fast.errors import ConfigError
from sqt_fast.video.packets import PacketColumns
from sqt_fast.video.probe import Probe, Source
from tests.poison import wait_until

MIB = 1 << 20

# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 * GIB),
        ("8g", 8 * GIB),
        ("1500M", 1500 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("1.5 GB", 3 * GIB // 2),
        (" 2T ", 2048 * GIB),
        ("204800K", 200 * MIB),
        ("200M", 200 * MIB),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "G", "-8G", "8X", "8 G B", "1e9G", "0x8G", "0G", "199M", "1K", "nan", "infG"]
)
def test_other_sizes_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--memory .*: must be a size of at least 200M, as 8G or 1500M, or auto$"):
        parse_memory(text)


# What there is -------------------------------------------------------------------------------------------------------


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       65000000 kB\nMemFree:  1 kB\nMemAvailable:   33554432 kB\n"}
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
UNLIMITED = "9223372036854771712\n"
CASES: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 32 * GIB),
    "v2: in a container": (
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}/memory.max": f"{8 * GIB}\n",
            f"{V2}/memory.current": f"{2 * GIB}\n",
            f"{V2}/memory.stat": "anon 5\nfile 7\n",
        },
        6 * GIB,
    ),
    "v2: files that were read are no use of memory": (
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}/memory.max": f"{8 * GIB}\n",
            f"{V2}/memory.current": f"{8 * GIB}\n",
            f"{V2}/memory.stat": f"anon 5\ninactive_file {5 * GIB}\nactive_file 3\n",
        },
        5 * GIB,
    ),
    "v2: no limit": (
        {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": f"{2 * GIB}\n"},
        32 * GIB,
    ),
    "v2: a scheduler's job, under limits at several heights": (
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            f"{V2}/slurm/memory.max": f"{20 * GIB}\n",
            f"{V2}/slurm/memory.current": f"{15 * GIB}\n",
            f"{V2}/slurm/job_7/memory.max": f"{4 * GIB}\n",
            f"{V2}/slurm/job_7/memory.current": f"{1 * GIB}\n",
            f"{V2}/slurm/job_7/step_0/memory.max": "max\n",
            f"{V2}/slurm/job_7/step_0/memory.current": "1\n",
        },
        3 * GIB,
    ),
    "v1": (
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/\n0::/\n",
            f"{V1}/memory.limit_in_bytes": f"{8 * GIB}\n",
            f"{V1}/memory.usage_in_bytes": f"{7 * GIB}\n",
            f"{V1}/memory.stat": f"inactive_file 1\ntotal_inactive_file {3 * GIB}\n",
        },
        4 * GIB,
    ),
    "v1: a container whose own group is the root": (
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n",
            f"{V1}/memory.limit_in_bytes": f"{8 * GIB}\n",
            f"{V1}/memory.usage_in_bytes": f"{7 * GIB}\n",
        },
        1 * GIB,
    ),
    "v1: no limit": (
        {
            "proc/self/cgroup": "4:memory:/\n",
            f"{V1}/memory.limit_in_bytes": UNLIMITED,
            f"{V1}/memory.usage_in_bytes": f"{7 * GIB}\n",
        },
        32 * GIB,
    ),
    "more used than allowed": (
        {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "1000\n", f"{V2}/memory.current": "2000\n"},
        0,
    ),
    "other groups do not count": (
        {
            "proc/self/cgroup": "4:cpu:/small\n0::/mine\n",
            f"{V2}/small/memory.max": "1000\n",
            f"{V2}/small/memory.current": "0\n",
        },
        32 * GIB,
    ),
}


@pytest.mark.parametrize(("files", "size"), CASES.values(), ids=CASES)
def test_what_is_free(tmp_path: Path, files: dict[str, str], size: int) -> None:
    assert available_bytes(machine(tmp_path, MEMINFO | files)) == size


QUOTAS = {
    "no control groups": ({}, 64),
    "v2: no quota": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, 64),
    "v2: two of many": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
    "v2: one and a half": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 2),
    "v2: a tenth": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "10000 100000\n"}, 1),
    "v2: above a job": (
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            f"{V2}/slurm/cpu.max": "400000 100000\n",
            f"{V2}/slurm/job/cpu.max": "max 100000\n",
        },
        4,
    ),
    "v1": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n",
            f"{V2}/cpu/docker/1/cpu.cfs_quota_us": "300000\n",
            f"{V2}/cpu/docker/1/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "v1: no quota": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "-1\n",
            f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
        },
        64,
    ),
    "another controller's": (
        {"proc/self/cgroup": "4:memory:/a\n", f"{V2}/cpu/a/cpu.cfs_quota_us": "1\n"},
        64,
    ),
}


@pytest.mark.parametrize(("files", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_cores_are_those_of_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores(machine(tmp_path, files)) == cores


def test_decoders_are_as_many_as_memory_allows() -> None:
    assert affordable_decoders(GIB) == 2
    assert affordable_decoders(1) == 1
    assert affordable_decoders(1000 * GIB) == 64


@pytest.mark.parametrize(("memory", "threads", "decoders"), [(16, 28, 28), (2, 28, 5), (16, 2, 4)])
def test_decoders_of_a_gpu_obey_the_memory(memory: int, threads: int, decoders: int) -> None:
    """What more processes take is taken from what they may decode with."""
    before = Resources(4, memory * GIB - 4 * DECODER_BYTES, cores=4)
    after = with_gpu_threads(before, threads)
    assert after.num_decoders == decoders
    assert after.memory_bytes + after.num_decoders * DECODER_BYTES == memory * GIB


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 4 * GIB
    assert available_bytes() > 0


@pytest.mark.parametrize("free", [0, 1, 100 * MIB, 4 * GIB, 2048 * GIB])
@pytest.mark.parametrize("cores", [1, 2, 16, 384])
@pytest.mark.parametrize("asked", [None, DECODER_BYTES, 2 * GIB, 2048 * GIB])
def test_resources(monkeypatch: pytest.MonkeyPatch, free: int, cores: int, asked: int | None) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    plan = plan_resources(asked)
    total = free // 2 if asked is None else asked
    assert 1 <= plan.num_decoders <= min(cores, MAX_DECODERS)
    assert plan.cores == cores
    assert plan.memory_bytes >= DECODER_BYTES
    if total >= 2 * DECODER_BYTES:
        assert plan.num_decoders * DECODER_BYTES + plan.memory_bytes <= total
        assert plan.memory_bytes >= total // 2
    if total >= 2 * DECODER_BYTES * cores:
        assert plan.num_decoders == min(cores, MAX_DECODERS)


def facts(width: int, height: int, pix_fmt: str = "yuv420p", num_frames: int = 10) -> Probe:
    times = np.arange(num_frames) / 25
    known: dict[str, Any] = {"profile": None, "pts": None, "promised_end_s": None, "promised_frames": None}
    known |= dict.fromkeys(("is_interlaced", "size_changes", "has_hidden", "is_vfr"), False)
    return Probe(
        source=Source("v.mp4", 0, width, height),
        packets=PacketColumns().finish(),
        container="mp4",
        codec="h264",
        pix_fmt=pix_fmt,
        coded_size=(height, width),
        colorspace=2,
        reorder_depth=0,
        fps=25.0,
        times_s=times,
        end_s=float(times[-1]),
        broken=None,
        **known,
    )


def test_what_decoding_takes() -> None:
    small, full, huge = (decoding_bytes(facts(*size)) for size in ((320, 240), (1920, 1080), (7680, 4320)))
    assert small < full < huge
    assert 50 * MIB < full < 250 * MIB
    assert 1 * GIB < huge < 3 * GIB
    assert decoding_bytes(facts(1920, 1080, "yuv420p10le")) > 1.3 * full
    assert decoding_bytes(facts(1920, 1080), num_threads=8) > full
    assert decoding_bytes(replace(facts(1920, 1080), times_s=np.arange(10**6) / 25)) > full + 10 * MIB


# Sharing it ----------------------------------------------------------------------------------------------------------


class Taker(threading.Thread):
    """Takes a part until it is told to give it back."""

    def __init__(self, budget: Budget, size: int, error: type[Exception] | None = None) -> None:
        super().__init__(daemon=True)
        self.budget, self.size, self.error = budget, size, error
        self.has, self.enough = threading.Event(), threading.Event()
        waiting = len(budget._line)
        self.start()
        assert wait_until(lambda: self.has.is_set() or len(budget._line) > waiting)

    def run(self) -> None:
        with suppress(ZeroDivisionError), self.budget.take(self.size):
            self.has.set()
            self.enough.wait(20)
            if self.error is not None:
                raise self.error

    def give_back(self) -> None:
        self.enough.set()
        self.join(10)
        assert not self.is_alive()


def test_first_come_first_served() -> None:
    """A small part that would fit does not overtake a large one that waits: else that would wait for ever."""
    budget = Budget(100)
    first, large, small = Taker(budget, 60), Taker(budget, 50), Taker(budget, 10)
    time.sleep(0.1)
    assert [t.has.is_set() for t in (first, large, small)] == [True, False, False]
    first.give_back()
    assert large.has.wait(10)
    assert small.has.wait(10)
    large.give_back()
    small.give_back()
    assert budget._free == 100


def test_parts_that_fit_are_taken_at_once() -> None:
    budget = Budget(100)
    takers = [Taker(budget, 25) for _ in range(4)]
    assert all(t.has.wait(10) for t in takers)
    late = Taker(budget, 1)
    assert not late.has.wait(0.1)
    for taker in (*takers, late):
        taker.give_back()


def test_who_asks_for_more_than_all_gets_all() -> None:
    budget = Budget(100)
    first = Taker(budget, 10)
    greedy = Taker(budget, 10**12)
    assert not greedy.has.wait(0.1)
    first.give_back()
    assert greedy.has.wait(10)
    other = Taker(budget, 1)
    assert not other.has.wait(0.1)
    greedy.give_back()
    assert other.has.wait(10)
    other.give_back()
    assert budget._free == 100


def test_given_back_on_errors() -> None:
    budget = Budget(100)
    Taker(budget, 100, ZeroDivisionError).give_back()
    with pytest.raises(KeyboardInterrupt), budget.take(100):
        raise KeyboardInterrupt
    with budget.take(100):
        pass
    assert budget._free == 100


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), total=st.integers(1, 100), num_threads=st.integers(2, 8))
def test_never_more_than_all_and_nobody_starves(seed: int, total: int, num_threads: int) -> None:
    budget, lock, held, most, turns = Budget(total), threading.Lock(), [0], [0], [0]

    @contextmanager
    def counted(size: int) -> Iterator[None]:
        with lock:
            held[0] += min(size, total)
            most[0] = max(most[0], held[0])
            turns[0] += 1
        try:
            yield
        finally:
            with lock:
                held[0] -= min(size, total)

    def work(dice: random.Random) -> None:
        for _ in range(30):
            size = dice.randint(0, 2 * total)
            with suppress(ZeroDivisionError), budget.take(size), counted(size):
                if dice.random() < 0.3:
                    time.sleep(dice.random() * 1e-4)
                if dice.random() < 0.1:
                    raise ZeroDivisionError

    threads = [threading.Thread(target=work, args=(random.Random(seed + i),)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert most[0] <= total
    assert turns[0] == 30 * num_threads
    assert budget._free == total
    assert not budget._line
