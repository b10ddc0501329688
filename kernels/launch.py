"""From an operation to its launch: which tiles, and who carries it out.

An operation (``kernels/pointwise.py`` and its neighbours) describes itself as a ``Problem``: what decides its best
tiles, what it must move and compute, and how to make a ``Launch`` of given tiles. ``run`` carries it out. Tests that
only compile, benches and tuning put themselves in the place of ``run``: ``executing``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqt_fast.kernels.tuned import tuned_config

# Shared memory that a block may ask for, by compute capability (CUDA C++ programming guide, technical specifications).
SHARED_BYTES = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376}


class Config(NamedTuple):
    """How a kernel is cut: rows, columns and depth of a tile, warps that share it, loads in flight.

    copy_bytes: of one asynchronous copy of a convolution's taps. 16 pass the L1 cache by, 8 go through it: there, most
    taps have been seen before (products.py).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    copy_bytes: int = 16


@dataclass(frozen=True)
class Launch:
    """One kernel launch, complete. args: by the kernel's parameter names, tl.constexpr ones included.

    after: called when it was launched, where a result's shape depends on the tiles.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    num_warps: int
    num_stages: int
    after: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        number = max((value.get_device() for value in self.args.values() if isinstance(value, Tensor)), default=-1)
        with torch.cuda.device(number):  # Triton launches on the current one; -1, a CPU, changes nothing
            self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages)
        self.after()


@dataclass(frozen=True)
class Problem:
    """One call of an operation whose tiles are not chosen yet.

    key: what changes the best tiles, the number of rows (which grows with the batch) apart. moved_bytes, flops: what
    any implementation must at least move and compute, a multiply-add being two. candidates: makes what tuning tries;
    nobody else asks for it. device: where the tensors are. reference: plain PyTorch on the same arguments, for benches.
    """

    op: str
    key: str
    rows: int
    moved_bytes: int
    flops: int
    heuristic: Config
    candidates: Callable[[], Sequence[Config]]
    launch: Callable[[Config], Launch]
    device: torch.device | None = None
    reference: partial[Tensor] | None = None

    @property
    def name(self) -> str:
        """The operation and its key: under this name a tuned configuration is kept."""
        return f"{self.op} {self.key}"


def run(problem: Problem) -> None:
    """Carry out ``problem``, with tuned tiles where there are some for this GPU."""
    _execute.get()(problem)


def launch_best(problem: Problem) -> None:
    """Launch ``problem`` with its tuned tiles, else with those of its heuristic."""
    problem.launch(best_config(problem))()


def best_config(problem: Problem) -> Config:
    """Return the tuned tiles of ``problem`` for this GPU, else those of its heuristic."""
    tuned = tuned_config(architecture(problem.device), problem.name, problem.rows)
    return problem.heuristic if tuned is None else Config(*tuned)


_execute: ContextVar[Callable[[Problem], None]] = ContextVar("execute", default=launch_best)
_architecture: ContextVar[int | None] = ContextVar("architecture", default=None)


@contextmanager
def executing(execute: Callable[[Problem], None], *, architecture: int | None = None) -> Iterator[None]:
    """Hand every problem to ``execute`` instead of launching it.

    architecture: pretend to be on a GPU of this compute capability (80, 90, ...). With tensors on the ``meta`` device
    no GPU is needed at all.
    """
    tokens = _execute.set(execute), _architecture.set(architecture)
    try:
        yield
    finally:
        _execute.reset(tokens[0])
        _architecture.reset(tokens[1])


def architecture(device: str | torch.device | None = None) -> int:
    """Return the compute capability to choose for, as 10 * major + minor; 90 where there is no GPU.

    device: the current one if None, or no GPU.
    """
    if (pretended := _architecture.get()) is not None:
        return pretended
    if not torch.cuda.is_available():
        return 90
    is_gpu = device is not None and torch.device(device).type == "cuda"
    major, minor = torch.cuda.get_device_capability(device if is_gpu else None)
    return 10 * major + minor


def shared_bytes(device: torch.device | None) -> int:
    """Return the shared memory that a block may ask for on ``device``; a GPU not listed is like the one before."""
    known = [limit for arch, limit in sorted(SHARED_BYTES.items()) if arch <= architecture(device)]
    return (known or [min(SHARED_BYTES.values())])[-1]


def product_bytes(config: Config, itemsize: int, *, operands: int = 1) -> int:
    """Return the most shared memory that a loop of products takes: the loads of its stages.

    operands: how many of BLOCK_M rows each step loads. In float32 the last step's columns wait as two TF32 parts (read
    off what Triton 3.7 compiles for sm_90).
    """
    step = operands * config.block_m + config.block_n
    last = max(step, 2 * config.block_n) if itemsize == 4 else step
    return (max(config.num_stages - 1, 0) * step + last) * config.block_k * itemsize


def fitting(config: Config, needed: Callable[[Config], int], device: torch.device | None) -> Config:
    """Return ``config`` with as many stages, and as deep, as the shared memory of ``device`` has room for.

    needed: says how many bytes the kernel takes with given tiles.
    """
    limit = shared_bytes(device)
    while needed(config) > limit and config.num_stages > 2:
        config = config._replace(num_stages=config.num_stages - 1)
    while needed(config) > limit and config.block_k > 16:
        config = config._replace(block_k=config.block_k // 2)
    return config


def all_fitting(
    configs: Iterable[Config], needed: Callable[[Config], int], device: torch.device | None
) -> list[Config]:
    """Return those of ``configs`` that fit into the shared memory of ``device``, each once, the smallest first."""
    limit = shared_bytes(device)
    return sorted({config for config in configs if needed(config) <= limit})


def power_of_two_divisor(number: int, most: int) -> int:
    """Return the largest power of two that divides ``number`` and is at most ``most``."""
    return min(number & -number, most)


def power_of_two_over(number: int, least: int = 16) -> int:
    """Return the smallest power of two that is at least ``number`` and ``least``."""
    return max(least, 1 << (number - 1).bit_length())


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``fp32``, ``fp16`` or ``bf16``. Raises ValueError for every other dtype."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    if dtype not in names:
        raise ValueError(f"tensors of {dtype}: give one of {', '.join(map(str, names))}")
    return names[dtype]


def check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is dense and has this shape, dtype and the device of ``like``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: give {tuple(shape)}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} of {tensor.dtype}: give {dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} on {tensor.device}: move it to {like.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} with strides {tensor.stride()}: call contiguous() first")
