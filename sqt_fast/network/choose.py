"""Decide once, at start, how the network will run, and say why.

The backend is the one that ends the job soonest: what it takes to get ready, and then its seconds a clip. On a GPU, the
latter are what ``sqt-fast tune`` measured on GPUs of its family, and precision goes by rule. On a CPU, precision is
measured here and now, unless the job is as short as that; what compiling costs and gains is what it was when this
machine last did it (kept in the user's cache), or cautious guesses before that.
"""

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from sqt_fast.config import IndexConfig
from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.files import keep_finding, read_findings, tuned_file
from sqt_fast.kernels.launch import architecture
from sqt_fast.kernels.tuned import look_in, network_speeds
from sqt_fast.network.backends import Backend, InferenceModel, load_backend
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.registry import BACKENDS, SIMPLEST, BackendRecord
from sqt_fast.versions import cpu_name

# Where findings of this machine are kept, in the user's cache.
FINDINGS = "tuning.json"
# 8 clips of 224x224: larger batches leave the CPU's caches, smaller ones leave cores idle (docs/experiments.md).
CPU_BATCH = 8
CUDA_BATCH = 64
# Before this machine has compiled once. Seen on 2 cores: 0.8 to 0.9 of eager's time.
GUESSED_COMPILED_RATIO = 0.85
# Timing both precisions takes as long as labelling so many clips.
TIMED_CLIPS = 24
# Ampere: the oldest GPUs with matrix units for bf16.
BF16_CAPABILITY = (8, 0)
# What "auto" chooses between: float16 overflows where the others do not, so one has to ask for it.
AUTO_PRECISIONS = ("fp32", "bf16")
# A gain below this is noise of the measurement.
WORTH = 0.95


@dataclass(frozen=True)
class Choice:
    """How the network runs, and the reason for what was not asked for."""

    backend: str
    precision: str
    device: str
    batch_size: int
    reason: str

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Choice | None":
        """Return a choice that was kept as a dict, by this version or another; None if something is missing."""
        known = {field.name: kept[field.name] for field in fields(cls) if field.name in kept}
        return cls(**known) if len(known) == len(fields(cls)) else None


class Cost(NamedTuple):
    """What a backend takes: seconds to get ready, once, and seconds a clip."""

    ready_s: float
    clip_s: float


# Seconds a clip takes the simplest backend on a CPU, by precision.
SimplestSeconds = Callable[[str], float]


def choose(config: IndexConfig, model: SqueezeTime, *, num_clips: int, size: int) -> Choice:
    """Turn every "auto" of ``config`` into a decision. num_clips: about how many there will be to label.

    Raises ConfigError for a device that is not there.
    """
    device = find_device(config.device)
    batch_size = config.batch_size or (CPU_BATCH if device == "cpu" else CUDA_BATCH)
    choice = Choice(config.backend or SIMPLEST, config.precision or "fp32", device, batch_size, "as asked")
    if config.backend and config.precision:
        return choice
    if device == "cpu" and num_clips <= TIMED_CLIPS:
        return replace(choice, reason=f"not measured, for that takes as long as the job (about {num_clips} clips)")
    simplest_s = functools.cache(functools.partial(_time_simplest, model, size))
    reasons = []
    if config.precision is None:
        precision, reason = _precision(device, simplest_s)
        choice, reasons = replace(choice, precision=precision), [reason]
    if config.backend is None:
        backend, reason = _backend(choice, model, size, num_clips, simplest_s)
        choice, reasons = replace(choice, backend=backend), [*reasons, reason]
    return replace(choice, reason="; ".join(reasons))


def open_backend(
    choice: Choice, model: SqueezeTime, *, size: int, may_fall_back: bool
) -> tuple[Choice, InferenceModel]:
    """Load the chosen backend. With ``may_fall_back``, one that fails is replaced by the simplest.

    Raises BackendError when it cannot run here and may not be replaced.
    """
    started = time.perf_counter()
    try:
        backend = _load(choice, model, size)
    except BackendError as error:
        if not may_fall_back or choice.backend == SIMPLEST:
            raise
        simplest = replace(choice, backend=SIMPLEST, reason=f"{error}; so {SIMPLEST}")
        return open_backend(simplest, model, size=size, may_fall_back=False)
    if choice.device == "cpu" and _compiles_for_cpus(BACKENDS[choice.backend]):
        _remember_compile(choice, model, size, backend, time.perf_counter() - started)
    return choice, backend


def find_device(asked: str | None) -> str:
    """Return the device to use, ``cpu`` or ``cuda[:N]``. Raises ConfigError for one that is not there."""
    if asked in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    assert asked is not None
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise ConfigError(f"--device {asked}: no such device; use auto, cpu, cuda or cuda:N")
    if asked.startswith("cuda"):
        number = int(asked.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise ConfigError(f"--device {asked}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return asked


def _load(choice: Choice, model: SqueezeTime, size: int) -> InferenceModel:
    """Load the backend of ``choice`` for clips of size x size pixels."""
    return load_backend(
        choice.backend,
        model,
        device=choice.device,
        precision=choice.precision,
        batch_size=choice.batch_size,
        size=size,
    )


def _precision(device: str, simplest_s: SimplestSeconds) -> tuple[str, str]:
    """Return the precision, and why.

    On a GPU bf16 by rule: timed on few clips, the GPU waits for Python, and noise decides.
    """
    if device != "cpu":
        if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY:
            return "bf16", "bf16 because the GPU has matrix units for it"
        return "fp32", "fp32 because the GPU has no matrix units for bf16"
    seconds = {precision: simplest_s(precision) for precision in AUTO_PRECISIONS}
    faster = "bf16" if seconds["bf16"] < WORTH * seconds["fp32"] else "fp32"
    timings = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    return faster, f"{faster} because measured here, {SIMPLEST}, a clip of two: {timings}"


def _backend(
    choice: Choice, model: SqueezeTime, size: int, num_clips: int, simplest_s: SimplestSeconds
) -> tuple[str, str]:
    """Return the backend that ends the job soonest in the precision of ``choice``, and why."""
    on_cpu = choice.device == "cpu"  # where one gains by compiling or not at all
    offered = {name: record for name, record in BACKENDS.items() if not record.by_request}
    names = [name for name, record in offered.items() if name == SIMPLEST or not on_cpu or _compiles_for_cpus(record)]
    refused = {name: reason for name in names if (reason := BACKENDS[name].why_not(choice.device, model))}
    able = [name for name in names if name not in refused]
    if able == [SIMPLEST]:
        return SIMPLEST, f"{SIMPLEST} because {'; '.join(refused.values())}"
    if on_cpu:
        costs, source = _costs_on_cpu(able, choice, _key(choice, model, size), simplest_s)
    else:
        costs, source = _costs_on_gpu(able, choice, model, size)
    if not costs:
        return SIMPLEST, f"{SIMPLEST} because {source}"
    totals_s = {name: cost.ready_s + num_clips * cost.clip_s for name, cost in costs.items()}
    best, *_ = ranking = sorted(totals_s, key=totals_s.__getitem__)
    times = ", ".join(f"{name} {_in_words(totals_s[name], costs[name].ready_s)}" for name in ranking)
    passed_over = "".join(f"; not {name}: {reason}" for name, reason in refused.items())
    return best, f"{best} because about {num_clips} clips take {times} ({source}){passed_over}"


def _in_words(total_s: float, ready_s: float) -> str:
    total = f"{total_s:.0f} s" if total_s >= 100 else f"{total_s:.3g} s"
    return total + (f" with {ready_s:.0f} s of compiling" if ready_s else "")


def _costs_on_cpu(
    names: Sequence[str], choice: Choice, key: str, simplest_s: SimplestSeconds
) -> tuple[dict[str, Cost], str]:
    """Return what these backends cost on this CPU, and how that is known. key: of what was measured before."""
    compiling = [name for name in names if name != SIMPLEST]
    match read_findings(FINDINGS).get(key):
        case {"eager_s": eager_s, "compiled_s": compiled_s, "compile_s": compile_s}:
            costs, source = {name: Cost(compile_s, compiled_s) for name in compiling}, "measured here before"
        case _:
            eager_s, source = simplest_s(choice.precision), "guessed"
            costs = {name: Cost(BACKENDS[name].compile_s, GUESSED_COMPILED_RATIO * eager_s) for name in compiling}
    return {SIMPLEST: Cost(0.0, eager_s), **costs}, source


def _compiles_for_cpus(record: BackendRecord) -> bool:
    return bool(record.compile_s) and "cpu" in record.needs_start


def _costs_on_gpu(names: Sequence[str], choice: Choice, model: SqueezeTime, size: int) -> tuple[dict[str, Cost], str]:
    """Return what these backends cost on GPUs of this family, as far as they were measured, and how that is known."""
    family = architecture(choice.device)
    look_in(tuned_file())
    speeds, gpu = network_speeds(family, choice.precision) or ({}, "")
    ready_s = {name: _compile_s(name, choice, model, size) for name in names if name in speeds}
    if costs := {name: Cost(seconds, 1 / speeds[name]) for name, seconds in ready_s.items()}:
        return costs, f"by clips/s in {choice.precision} on {gpu}; sqt-fast tune measures here"
    return {}, (
        f"nothing was measured in {choice.precision} on GPUs of compute capability {family / 10} "
        "(sqt-fast tune measures here, --backend triton tries it)"
    )


def _compile_s(name: str, choice: Choice, model: SqueezeTime, size: int) -> float:
    """Return what compiling costs on a GPU: nothing where this machine has done it, and kept it."""
    record = BACKENDS[name]
    if not record.must_agree:
        return record.compile_s
    from sqt_fast.network.agreement import Form  # here: what it holds networks against takes a while to import

    form = Form(name, choice.device, choice.precision, choice.batch_size, size)
    return 0.0 if form.is_trusted(model) else record.compile_s


def _time_simplest(model: SqueezeTime, size: int, precision: str) -> float:
    """Return the seconds that a clip takes the simplest backend on the CPU, in batches of two."""
    return _seconds_a_clip(_load(Choice(SIMPLEST, precision, "cpu", 2, ""), model, size), 2, size)


def _seconds_a_clip(backend: Backend, batch_size: int, size: int, repeats: int = 2) -> float:
    clips = torch.zeros((batch_size, 48, size, size), dtype=backend.dtype).to(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        backend.start(clips).results()
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch_size


def _remember_compile(choice: Choice, model: SqueezeTime, size: int, backend: InferenceModel, compile_s: float) -> None:
    """Note what compiling cost and gained, for the next decision on this machine."""
    simplest = _load(replace(choice, backend=SIMPLEST), model, size)
    entry = {
        "eager_s": _seconds_a_clip(simplest, choice.batch_size, size),
        "compiled_s": _seconds_a_clip(backend, choice.batch_size, size),
        "compile_s": compile_s,
    }
    keep_finding(FINDINGS, _key(choice, model, size), entry)


def _key(choice: Choice, model: SqueezeTime, size: int) -> str:
    machine = f"{platform.machine()} {cpu_name()} x{os.cpu_count()} torch {torch.__version__}"
    shape = f"depth {model.config.depth} width {model.config.width} {choice.batch_size}x{size} {choice.precision}"
    return f"{machine} | {choice.device} | {shape}"
