"""From ONNX to the bytes of an engine: one path for TensorRT 10.13 and newer, 11, and TensorRT-RTX.

Precision is that of the ONNX: the network is strongly typed, which 11 always is and 10 is told to be.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqt_fast.errors import BackendError, first_line
from sqt_fast.files import replace_file
from sqt_fast.network.onnx_export import INPUT_NAME, OUTPUT_NAMES
from sqt_fast.tensorrt.engine_config import EngineConfig
from sqt_fast.tensorrt.tensorrt_library import hear, load_library, why

log = logging.getLogger(__name__)

# What a builder does, and which part of all is done, 0 to 1.
Progress = Callable[[str, float], None]
# How often the thread that waits for a builder looks for Ctrl-C.
POLL_S = 0.1


@dataclass(frozen=True)
class Plan:
    """A built engine. tensors: name -> dtype and shape of its inputs and outputs; layers: what it consists of.

    names: what it calls the tensors that are ``clips``, ``logits`` and ``embeddings`` to us.
    """

    data: bytes
    library_version: str
    tensors: dict[str, dict[str, Any]]
    layers: tuple[str, ...]
    build_s: float
    names: Mapping[str, str] = field(default_factory=lambda: {name: name for name in (INPUT_NAME, *OUTPUT_NAMES)})


def build_plan(config: EngineConfig, onnx: Path, progress: Progress, *, timing_cache: Path | None = None) -> Plan:
    """Build the engine that ``config`` asks for. timing_cache: what an earlier build on this GPU measured, and will.

    Raises BackendError with what the library says, and KeyboardInterrupt after Ctrl-C.
    """
    library, errors, layers = load_library(config.of_flavour), [], []  # type: ignore[var-annotated]
    logger = hear(library, errors, layers)
    try:
        builder = library.Builder(logger)
    except TypeError as error:  # "factory function returned nullptr": there is no driver
        raise BackendError(f"{config.of_flavour.title} cannot build here ({why([*errors, str(error)])})") from error
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)) or not network.num_inputs:  # an empty file is no error to it
        found = [parser.get_error(number) for number in range(parser.num_errors)]
        said = [f"{each.desc()} (node {each.node_name()}, {each.node_operator()})" for each in found]
        raise BackendError(
            f"{config.of_flavour.title} {library.__version__} cannot read the network: {why(said or errors)}"
        )
    settings = _settings(library, builder, network, config, errors)
    cache = _TimingCache(settings, timing_cache) if timing_cache and config.of_flavour.needs_gpu else None
    monitor = _monitor(library, progress)  # the name keeps it alive while the builder calls it
    settings.progress_monitor = monitor
    started = time.perf_counter()
    data = _run(lambda: builder.build_serialized_network(network, settings), monitor)
    build_s = time.perf_counter() - started
    if data is None:
        raise BackendError(f"{config.of_flavour.title} {library.__version__} could not build: {why(errors)}")
    progress("Built", 1.0)
    if cache is not None:
        cache.keep()
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    described = {tensor.name: {"dtype": tensor.dtype.name.lower(), "shape": list(tensor.shape)} for tensor in tensors}
    return Plan(bytes(data), library.__version__, described, tuple(layers), build_s)


def _settings(library: Any, builder: Any, network: Any, config: EngineConfig, errors: list[str]) -> Any:
    """Return the builder's configuration."""
    settings = builder.create_builder_config()
    settings.builder_optimization_level = config.level
    settings.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if config.workspace_mib is not None:
        settings.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    if not config.tf32:
        settings.clear_flag(library.BuilderFlag.TF32)
    if config.hardware != "none":
        levels = library.HardwareCompatibilityLevel
        same = config.hardware == "same-capability"
        settings.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY if same else levels.AMPERE_PLUS
    if config.version_compatible:
        settings.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
        settings.set_flag(library.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # no program inside the engine
    if config.capabilities:
        known = library.ComputeCapability.__members__
        names = [f"SM{capability.replace('.', '')}" for capability in config.capabilities]
        if unknown := [name for name in names if name not in known]:
            allowed = ", ".join(name for name in known if name.startswith("SM"))
            raise BackendError(f"{config.of_flavour.title} builds for {allowed}, not for {', '.join(unknown)}")
        settings.num_compute_capabilities = len(names)
        for place, name in enumerate(names):
            settings.set_compute_capability(known[name], place)
    sample = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *((batch, *sample) for batch in config.batches))
    if settings.add_optimization_profile(profile) < 0:
        raise BackendError(f"{config.of_flavour.title} refuses batches of {config.batches}: {why(errors)}")
    return settings


def _monitor(library: Any, progress: Progress) -> Any:
    """Return what the builder tells how far it is, and asks whether to go on."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # a class of a library that is loaded at run time
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.stopped = False
            self.steps: dict[str, tuple[str | None, int, int]] = {}  # phase -> the one that it is in, done, of
            self.furthest = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = (parent, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            parent, _, steps = self.steps.get(phase, (None, 0, 1))
            self.steps[phase] = (parent, step + 1, steps)
            self.furthest = max(self.furthest, self.part_of(phase))  # phases that come up twice would step back
            progress(phase, min(self.furthest, 1.0))
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

        def part_of(self, phase: str) -> float:
            """Return which part of all work is done, seen from a phase: its own, in the step of the one it is in."""
            part, seen, at = 0.0, set(), phase
            while at in self.steps and at not in seen:
                seen.add(at)
                parent, done, steps = self.steps[at]
                part = min(1.0, (done + part) / max(1, steps))
                at = parent or ""
            return part

    return Monitor()


def _run(build: Callable[[], Any], monitor: Any) -> Any:
    """Build on a thread, for the library holds the one it runs on: this one hears Ctrl-C and has the build stop."""
    results: list[Any] = []
    failures: list[BaseException] = []
    done = threading.Event()  # not the thread's join: after Ctrl-C in it, Python 3.11 takes the thread for ended

    def work() -> None:
        try:
            results.append(build())
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="engine builder", daemon=True)
    try:
        thread.start()  # Ctrl-C may come before this returns
        while not done.wait(POLL_S):
            pass
    except KeyboardInterrupt:
        monitor.stopped = True
        raise
    finally:
        if thread.is_alive():
            done.wait()
            thread.join()
    if failures:
        raise BackendError(f"the builder failed ({first_line(failures[0])})") from failures[0]
    return results[0]


class _TimingCache:
    """What builders measured on this GPU, with this version: kernels that were timed are not timed again."""

    def __init__(self, settings: Any, path: Path) -> None:
        self.settings, self.path = settings, path
        try:
            kept = path.read_bytes()
        except OSError:
            kept = b""
        cache = settings.create_timing_cache(kept)
        if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or version
            settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)

    def keep(self) -> None:
        """Write what is known now; where that cannot be, the next build measures again."""
        measured = bytes(self.settings.get_timing_cache().serialize())
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, lambda file: file.write(measured))
        except OSError as error:
            log.info("%s: not kept (%s)", self.path, error)
