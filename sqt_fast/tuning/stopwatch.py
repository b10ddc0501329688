"""Time kernels and networks on a CUDA GPU, as they find it in the network: compiled, clocks up, caches cold."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any, Protocol

import torch
import triton

from sqt_fast.errors import BackendError, first_line
from sqt_fast.kernels.launch import Launch

# What a launch of tiles that do not fit this GPU raises: Triton's compiler, ptxas, and the driver.
LAUNCH_ERRORS = (triton.TritonError, RuntimeError, ValueError, AssertionError)
KERNEL_RUNS = 12
NETWORK_RUNS = 20
# How long Python may take for one run: launch and events. The GPU is kept busy for that long before the first, so that
# it never waits for Python between two events.
HOST_S = 3e-4
WARM_UP_S = 0.05


class Stopwatch(Protocol):
    """What tuning needs of a GPU. Implementations: CudaStopwatch; tests use a fake one."""

    def prepare(self, launches: Sequence[Launch]) -> None:
        """Compile ``launches`` ahead. What fails is raised when it is launched."""
        ...

    def spills(self, launch: Launch) -> int:
        """Return how many registers a thread keeps in memory, of a ``launch`` that has run."""
        ...

    def kernel_s(self, launch: Launch, give_up_s: float) -> float:
        """Return the median seconds of ``launch``. One that takes longer than ``give_up_s`` may be timed carelessly."""
        ...

    def check_alive(self, error: Exception) -> None:
        """Raise BackendError if ``error``, which a launch raised, leaves the GPU unusable."""
        ...

    def network_s(self, run: Callable[[], object]) -> float:
        """Return the median seconds of ``run``, a whole network on inputs that lie on the GPU."""
        ...


class CudaStopwatch:
    """Times on the current CUDA device by events, in front of which the GPU has work to do. See Stopwatch."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        l2_bytes = getattr(properties, "L2_cache_size", 0) or 64 << 20
        self._flushed = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._flushes_a_run = 1
        self._flush(20)
        self._flushes_a_run = math.ceil(HOST_S / max(statistics.median(self._seconds(self._flush, 20)), 1e-6))

    def close(self) -> None:
        """Drop what waits to be compiled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def prepare(self, launches: Sequence[Launch]) -> None:
        compile_ahead(launches, self._threads)
        begun = time.perf_counter()
        while time.perf_counter() - begun < WARM_UP_S:
            self._flush(20)
            torch.cuda.synchronize()

    def spills(self, launch: Launch) -> int:
        return int(_compiled(launch).n_spills)

    def kernel_s(self, launch: Launch, give_up_s: float) -> float:
        launch()
        first_s = min(self._seconds(launch, 2))
        return first_s if first_s > give_up_s else statistics.median(self._seconds(launch, KERNEL_RUNS))

    def check_alive(self, error: Exception) -> None:
        try:
            torch.cuda.synchronize()
        except RuntimeError as fatal:  # all that follows in this process would fail too
            raise BackendError(
                f"the GPU gave up ({first_line(error)}); run the same command again with --resume"
            ) from fatal

    def network_s(self, run: Callable[[], object]) -> float:
        for _ in range(3):
            run()
        return statistics.median(self._seconds(run, NETWORK_RUNS))

    def _flush(self, times: int = 1) -> None:
        """Fill the L2 cache with zeros."""
        for _ in range(times):
            self._flushed.zero_()

    def _seconds(self, run: Callable[[], object], runs: int) -> list[float]:
        events = [[_event(), _event()] for _ in range(runs)]
        torch.cuda.synchronize()
        self._flush(runs * self._flushes_a_run)
        for begin, end in events:
            self._flush()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def compile_ahead(launches: Iterable[Launch], threads: Executor) -> None:
    """Compile ``launches``, which may be of tensors on ``meta``. What fails is raised when it is launched."""
    # Most of the compiler runs without Python's lock. Where ptxas fails, Triton prints the whole source.
    with redirect_stdout(None), triton.AsyncCompileMode(threads, ignore_errors=True):
        for launch in launches:
            _compiled(launch)


def _compiled(launch: Launch) -> Any:
    """Return Triton's compiled kernel of ``launch``."""
    return launch.kernel.warmup(
        **launch.args, grid=launch.grid, num_warps=launch.num_warps, num_stages=launch.num_stages
    )
