"""Compile launches for GPUs that are not here, and read what came out: registers, spills, shared memory, instructions.

    python -m tests.compile_kernels RESULTS.json [--architectures 80 90] [--dtypes bf16]

compiles every launch of whole networks, with the tiles that would be used, without a GPU; --candidates, with those that
tuning would try. Run it where TRITON_INTERPRET
is not set: test_compile.py does, in a process of its own.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqt_fast.kernels.launch import SHARED_BYTES, Config, Launch, Problem, best_config, executing, product_bytes
from tests.nvrtc import usage

ARCHITECTURES = (80, 90, 100, 120)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
# What tensor cores execute, by generation; without them there are none of these.
TENSOR_CORES = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")


@dataclass(frozen=True)
class Source:
    """One specialisation of a kernel, as its launch would ask for it. Only plain values: it goes to other processes."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of it. stack_bytes: local memory, that is, registers that were spilled."""

    name: str
    architecture: int
    dtype: str
    config: Config
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int]
    error: str = ""


def source_of(launch: Launch) -> Source:
    """Return the specialisation that Triton would compile for ``launch``."""
    signature, constants, aligned = [], [], []
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.args[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature.append((parameter.name, "constexpr"))
            constants.append((parameter.name, value))
        elif isinstance(value, Tensor):
            signature.append((parameter.name, POINTERS[value.dtype]))
            aligned.append(i)
        elif isinstance(value, float):
            signature.append((parameter.name, "fp32"))
        else:
            signature.append((parameter.name, "i32" if value < 2**31 else "i64"))
            aligned += [i] if value % 16 == 0 else []
    function = launch.kernel.fn
    names = function.__module__, function.__name__
    return Source(*names, tuple(signature), tuple(constants), tuple(aligned), launch.num_warps, launch.num_stages)


def compile_source(source: Source, architecture: int) -> tuple[int, int, int, dict[str, int]]:
    """Return registers, stack bytes and shared bytes of the machine code, and counts of the PTX instructions."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(source.module), source.kernel)
    made = triton.compile(
        ASTSource(
            fn=kernel,
            signature=dict(source.signature),
            constexprs=dict(source.constants),
            attrs={(i,): [["tt.divisibility", 16]] for i in source.aligned},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": source.num_warps, "num_stages": source.num_stages},
    )
    opcodes = re.findall(r"^\s*(?:@%?!?%?\w+\s+)?([a-z][a-z0-9]*\.[a-zA-Z0-9_.:]+)\s", made.asm["ptx"], re.MULTILINE)
    return *_usage(made.asm["cubin"]), made.metadata.shared, dict(Counter(opcodes))


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and stack bytes of machine code."""
    with tempfile.TemporaryDirectory() as folder:
        used = usage(cubin, Path(folder))
    return used["REG"], used["STACK"]


def problems_of(run: Callable[[], object], architecture: int) -> list[Problem]:
    """Return what ``run`` would launch on a GPU of ``architecture``, each problem once."""
    found: dict[str, Problem] = {}

    def note(problem: Problem) -> None:
        found.setdefault(problem.name, problem)

    with executing(note, architecture=architecture):
        run()
    return list(found.values())


def network_problems(architecture: int, dtype: torch.dtype, *, depth: int = 50, batch: int = 256) -> list[Problem]:
    """Return every problem of a whole network on clips of 224x224, at no cost: no tensor has memory."""
    from sqt_fast.network.fused import FusedNetwork
    from sqt_fast.network.model import ModelConfig, SqueezeTime

    with torch.device("meta"):
        model = SqueezeTime(ModelConfig(depth=depth)).eval()
    network = FusedNetwork(model, device="meta", dtype=dtype)
    clips = torch.empty((batch, 48, 224, 224), dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    return problems_of(lambda: network(clips), architecture)


def squeeze_problems(architecture: int, dtype: torch.dtype, *, batch: int = 256) -> list[Problem]:
    """Return the squeeze of a batch, with and without colour."""
    from sqt_fast.kernels.squeeze import squeeze

    with torch.device("meta"):
        frames = torch.empty((16 * batch, 224, 224, 3), dtype=torch.uint8)
        index, corners = torch.empty((batch, 16), dtype=torch.int32), torch.empty((batch, 2), dtype=torch.int32)
        colour, flip = torch.empty((batch, 3, 4)), torch.empty((batch,), dtype=torch.bool)

    def run() -> None:
        squeeze(frames, index, corners=corners, size=224, dtype=dtype)
        squeeze(frames, index, corners=corners, size=224, dtype=dtype, flip=flip, colour=colour)

    return problems_of(run, architecture)


def frame_problems(architecture: int) -> list[Problem]:
    """Return what a segment's frames go through, with and without colour, and with chroma that is moved."""
    from sqt_fast.kernels.bilinear import bilinear

    frames = torch.empty((128, 1080, 1920, 3), dtype=torch.uint8, device="meta")

    def run() -> None:
        matrix = torch.empty((3, 4), dtype=torch.int32, device="meta")
        bilinear(frames, (256, 455))
        for chroma_axis in (None, 2):
            bilinear(frames, (256, 455), matrix=matrix, chroma_axis=chroma_axis)

    return problems_of(run, architecture)


@dataclass(frozen=True)
class Task:
    """One compilation."""

    name: str
    architecture: int
    dtype: str
    config: Config
    source: Source

    def __call__(self) -> Compiled:
        """Compile. What the compiler refuses is a result too."""
        about = self.name, self.architecture, self.dtype, self.config
        try:
            return Compiled(*about, *compile_source(self.source, self.architecture))
        except Exception as error:  # noqa: BLE001
            return Compiled(*about, 0, 0, 0, {}, f"{type(error).__name__}: {error}"[:500])


def tasks_of(
    problems: Iterable[Problem], architecture: int, dtype: str, configs: Callable[[Problem], Iterable[Config]]
) -> Iterator[Task]:
    """Yield the compilations of ``problems`` with each of ``configs(problem)``."""
    with executing(lambda _: None, architecture=architecture):
        for problem in problems:
            for config in configs(problem):
                yield Task(problem.name, architecture, dtype, config, source_of(problem.launch(config)))


def network_tasks(architectures: Iterable[int], dtypes: Sequence[str], *, quick: bool = False) -> list[Task]:
    """Return the compilations of networks of both kinds of blocks with the tiles that they would use, each once.

    For many clips, and of bfloat16 for few.

    quick: all shapes of bfloat16 for the oldest GPUs in use and for Hopper (sm_80, sm_90); for others, and of float16
    and float32, which networks seldom run in, only the first and the last shape of every kernel.
    """
    tasks: dict[tuple[int, Source], Task] = {}
    for architecture in architectures:
        for dtype in dtypes:
            problems = {
                (problem.name, batch): problem
                for batch in ((256, 8) if dtype == "bf16" else (256,))
                for depth in (18, 50)
                for problem in network_problems(architecture, DTYPES[dtype], depth=depth, batch=batch)
            }
            chosen = [*problems.values(), *squeeze_problems(architecture, DTYPES[dtype])]
            in_use = architecture in (80, 90)
            if quick and (dtype != "bf16" or not in_use):
                chosen = _first_and_last(chosen) if dtype == "bf16" or in_use else []
            if dtype == dtypes[0]:  # bytes, whatever the network's is
                chosen += frame_problems(architecture)
            for task in tasks_of(chosen, architecture, dtype, lambda problem: [best_config(problem)]):
                tasks.setdefault((architecture, task.source), task)
    return list(tasks.values())


def candidate_tasks(architectures: Iterable[int], dtypes: Iterable[str], *, quick: bool = False) -> list[Task]:
    """Return the compilations of all that tuning would try, each once for every kind of problem.

    Of those that differ in channels, columns and pixels only, that of the deepest: its loops are the longest. quick:
    only tiles whose operands fill half of the shared memory, each with the most loads in flight: others need less.
    """
    tasks: dict[tuple[object, ...], Task] = {}
    for architecture in architectures:
        for dtype in dtypes:
            problems = [p for depth in (18, 50) for p in network_problems(architecture, DTYPES[dtype], depth=depth)]
            for task in tasks_of(problems, architecture, dtype, lambda problem: problem.candidates()):
                kind = re.sub(r" (c|n|k|r)=[\d+]+", "", task.name)
                config = task.config._replace(copy_bytes=0)
                if not quick:
                    tasks[kind, architecture, config] = task
                elif product_bytes(config, DTYPES[dtype].itemsize) > SHARED_BYTES[architecture] // 2:
                    tile = kind, architecture, config[:3]
                    tasks[tile] = max(tasks.get(tile, task), task, key=lambda task: task.config.num_stages)
    return list(tasks.values())


def _first_and_last(problems: list[Problem]) -> list[Problem]:
    """Return the first and the last problem of every operation: its largest map and its widest."""
    last = {problem.op: problem for problem in problems}
    first = {problem.op: problem for problem in reversed(problems)}
    return list({problem.name: problem for problem in (*first.values(), *last.values())}.values())


def compile_all(tasks: list[Task], *, processes: int = 2) -> list[Compiled]:
    """Compile ``tasks``."""
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(_call, tasks))


def _call(task: Task) -> Compiled:
    return task()


def main() -> None:
    """Compile, write, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--candidates", action="store_true", help="with all tiles that tuning would try")
    args = parser.parse_args()
    if args.candidates:
        tasks = candidate_tasks(args.architectures, args.dtypes, quick=args.quick)
    else:
        tasks = network_tasks(args.architectures, args.dtypes, quick=args.quick)
    results = compile_all(tasks)
    args.results.write_text(json.dumps([asdict(result) for result in results]))
    for r in results:
        cores = {name: sum(n for op, n in r.instructions.items() if op.startswith(name)) for name in TENSOR_CORES}
        used = " ".join(f"{name} {n}" for name, n in cores.items() if n)
        print(
            f"sm_{r.architecture} {r.name} {tuple(r.config)}: {r.registers} registers, {r.stack_bytes} B stack, "
            f"{r.shared_bytes} B shared, {used} {r.error}"
        )


if __name__ == "__main__":
    main()
