"""From an operation to its launch: which tiles, and who carries it out.

An operation (``kernels/pointwise.py`` and its neighbours) describes itself as a ``Problem``: its kernel, what it gives
the kernel, and what decides its best tiles. ``run`` carries it out. Tests that only compile, benches and tuning put
themselves in the place of ``run``: ``executing``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    taps have been seen before (products.py). out_rows: rows of a map that a row of a tile makes (conv.py).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    copy_bytes: int = 16
    out_rows: int = 1


@dataclass(frozen=True)
class Launch:
    """One kernel launch, complete. args: by the kernel's parameter names, tl.constexpr ones included."""

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    num_warps: int
    num_stages: int

    def __call__(self) -> "Launch":
        """Launch on the device of the tensors. Returns itself."""
        number = max((value.get_device() for value in self.args.values() if isinstance(value, Tensor)), default=-1)
        with torch.cuda.device(number):  # Triton launches on the current one; -1, a CPU, changes nothing
            self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages)
        return self

    def compiled(self) -> Any:
        """Return Triton's compiled kernel, compiled now if it was not before. None in the interpreter."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return self.kernel.warmup(**self.args, grid=self.grid, **options)


@dataclass(frozen=True)
class Problem:
    """One call of an operation whose tiles are not chosen yet.

    key: what changes the best tiles, the number of rows (which grows with the batch) apart. out: what is written.
    parts: (samples, rows of a sample, columns), which programs share; a tile never straddles two samples. args: makes
    what the kernel takes, in its order, of the number of tiles of rows that a sample is cut into; the last parameters
    of the kernel, those of the tiles, are not among them. candidates: makes what tuning tries; nobody else asks for it.
    reference: plain PyTorch on the same arguments, for benches. parts_of: makes the parts, where they depend on tiles.
    """

    op: str
    key: str
    kernel: Any
    out: Tensor
    parts: tuple[int, int, int]
    args: Callable[[int], tuple[Any, ...]]
    heuristic: Config
    candidates: Callable[[], Sequence[Config]]
    reference: partial[Tensor] | None = None
    parts_of: Callable[[Config], tuple[int, int, int]] | None = None

    @property
    def name(self) -> str:
        """The operation and its key: under this name a tuned configuration is kept."""
        return f"{self.op} {self.key}"

    @property
    def rows(self) -> int:
        """Of all samples."""
        return self.parts[0] * self.parts[1]

    def launch(self, config: Config) -> Launch:
        """Return what launches these tiles."""
        samples, rows, columns = self.parts if self.parts_of is None else self.parts_of(config)
        tiles = -(-rows // config.block_m)
        of_tiles = {
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "COPY": config.copy_bytes // self.out.element_size(),
            "OUT_ROWS": config.out_rows,
        }
        names, given = self.kernel.arg_names, self.args(tiles)
        args = dict(zip(names, given, strict=False)) | {name: of_tiles[name] for name in names[len(given) :]}
        grid = (samples * tiles * -(-columns // config.block_n),)
        return Launch(self.kernel, grid, args, config.num_warps, config.num_stages)


def run(problem: Problem) -> Launch:
    """Carry out ``problem``, with tuned tiles where there are some for this GPU.

    Returns the launch that wrote the results, and that of the heuristic where nobody launched anything.
    """
    return _execute.get()(problem) or problem.launch(problem.heuristic)


def launch_best(problem: Problem) -> Launch:
    """Launch ``problem`` with its tuned tiles, else with those of its heuristic."""
    return problem.launch(best_config(problem))()


def best_config(problem: Problem) -> Config:
    """Return the tuned tiles of ``problem`` for this GPU, else those of its heuristic."""
    tuned = tuned_config(architecture(problem.out.device), problem.name, problem.rows)
    return problem.heuristic if tuned is None else Config(*tuned)


_execute: ContextVar[Callable[[Problem], Launch | None]] = ContextVar("execute", default=launch_best)
_architecture: ContextVar[int | None] = ContextVar("architecture", default=None)


@contextmanager
def executing(execute: Callable[[Problem], Launch | None], *, architecture: int | None = None) -> Iterator[None]:
    """Hand every problem to ``execute``, which returns what it launched, instead of launching it.

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


def product_bytes(config: Config, itemsize: int) -> int:
    """Return the shared memory that a loop of products needs, at most: the operands of all loads in flight.

    float32 needs that of a load more, for the parts that its three TF32 products work on.
    """
    stages = config.num_stages + (itemsize == 4)
    return stages * (config.block_m + config.block_n) * config.block_k * itemsize


def fitting(config: Config, x: Tensor, needed: Callable[[Config, int], int] = product_bytes) -> Config:
    """Return ``config`` with as many stages, and as deep, as the shared memory of the GPU of ``x`` has room for.

    Never fewer than 2 stages of 16: what is too large even then fails when it is launched. needed: bytes that a kernel
    needs for tiles and elements of so many bytes.
    """
    here = architecture(x.device)
    known = [limit for arch, limit in sorted(SHARED_BYTES.items()) if arch <= here]
    limit = (known or [min(SHARED_BYTES.values())])[-1]
    while needed(config, x.element_size()) > limit and config.num_stages > 2:
        config = config._replace(num_stages=config.num_stages - 1)
    while needed(config, x.element_size()) > limit and config.block_k > 16:
        config = config._replace(block_k=config.block_k // 2)
    return config


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
