"""Compile launches before any of them is needed, in processes of their own, into Triton's cache on disk.

Threads would wait for each other: much of Triton's compiler is Python. The processes see no GPU: what to compile is
told by Triton's own description of a specialisation, and for which GPU by that too.
"""

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from sqt_fast.kernels.launch import Launch
from sqt_fast.signals import kill_with_parent, starting_uninterrupted


class Specialisation(NamedTuple):
    """A kernel and what it is compiled for. data: what ``JITFunction.preload`` takes; target: fields of GPUTarget."""

    module: str
    kernel: str
    data: str
    target: tuple[str, int, int]


def specialisations(launches: Iterable[Launch]) -> list[Specialisation]:
    """Return what ``launches``, which may be of tensors on ``meta``, need and this process has not compiled.

    None in the interpreter.
    """
    found: dict[Specialisation, None] = {}

    def note(**said: Any) -> bool:
        target = triton.runtime.driver.active.get_current_target()
        where = said["fn"].module, said["fn"].name
        data = said["compile"]["specialization_data"]
        found[Specialisation(*where, data, (target.backend, target.arch, target.warp_size))] = None
        return True  # that it need not be compiled

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = note
        for launch in launches:
            launch.compiled()
    return list(found)


def precompile(wanted: Iterable[Specialisation], processes: int | None = None) -> int:
    """Compile ``wanted``; one process a core if ``processes`` is None. Returns how many could not be.

    What fails here fails again when it is launched, and says why then.
    """
    todo = list(wanted)
    if not todo:
        return 0
    number = min(len(todo), processes or len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")  # a forked child of a process that uses CUDA must not use torch
    pool = ProcessPoolExecutor(number, context, kill_with_parent)
    try:
        with starting_uninterrupted():
            answers = pool.map(_compile, todo)
        return sum(not done for done in answers)
    except BrokenProcessPool:  # killed for memory, most likely
        return len(todo)
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(wanted: Specialisation) -> bool:
    """Return whether it could be compiled."""
    triton.runtime.driver.set_active(_Absent(GPUTarget(*wanted.target)))
    try:
        with redirect_stdout(None):  # where ptxas fails, Triton prints the whole source
            getattr(import_module(wanted.module), wanted.kernel).preload(wanted.data)
    except Exception:  # noqa: BLE001 - compilers raise what they like
        return False
    return True


class _Absent:
    """What Triton asks of the driver of a GPU in order to compile for it."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return str(self.target)  # kernels are kept by device: another target must not find those of this one

    def get_current_target(self) -> GPUTarget:
        return self.target
