"""One engine from weights to its place: exported, checked, built, held against PyTorch, and only then installed."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqt_fast import __version__
from sqt_fast.errors import BackendError, OutputError, ParityError
from sqt_fast.files import file_sha256, naming
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportedNetwork, network_sha256
from sqt_fast.network.parity import ROUNDED, Limits, Parity, drawn_clips
from sqt_fast.network.published import PUBLISHED
from sqt_fast.network.weights import RANDOM, load_weights
from sqt_fast.tensorrt.engine_build import Plan, Progress, build_plan
from sqt_fast.tensorrt.engine_cache import (
    Engine,
    Gpu,
    engine_paths,
    engines_folder,
    identity_of,
    install,
    objections,
    path_in_cache,
    read_engine,
    refuse,
    write_sidecar,
)
from sqt_fast.tensorrt.engine_config import EngineConfig, rebuild_command
from sqt_fast.tensorrt.engine_runner import EngineNetwork
from sqt_fast.tensorrt.exports import Exported, Exports, Say, keep
from sqt_fast.tensorrt.quantize import Calibration, check_calibration
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS, load_library
from sqt_fast.tensorrt.torch_frontend import build_with_torch
from sqt_fast.tensorrt.validation import Validation, gpu_clock, validate

# Clips to validate with: how many, of which size -> (N, 48, S, S) uint8.
Record = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Request:
    """What ``sqt-fast build-engine`` was asked for.

    weights: a name or path. output: where the engine goes, None for the user's cache. keep_onnx: where the exported
    network is kept too. clips: how many the engine is validated with, 0 for none. force: build it though it is there.
    calibration: of int8 and fp8, whose clips take the place of those that ``record`` gives to validate with.
    """

    config: EngineConfig
    weights: str
    output: Path | None = None
    keep_onnx: Path | None = None
    clips: int = 32
    force: bool = False
    timing_cache: bool = True
    calibration: Calibration | None = None
    record: Record = drawn_clips

    def __post_init__(self) -> None:
        check_calibration(self.config.export, self.calibration)


@dataclass(frozen=True)
class Outcome:
    """What came of a request. engine: None of a dry run; why: what was or would be done, and the reason."""

    path: Path
    built: bool
    why: str
    engine: Engine | None = None
    onnx: Parity | None = None
    validation: Validation | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values."""
        parities = {"onnx_parity": self.onnx, "validation": self.validation}
        found = {name: None if each is None else each.as_dict() for name, each in parities.items()}
        return {"path": str(self.path), "built": self.built, "why": self.why, **found}

    def lines(self) -> Iterator[str]:
        """Yield what came of it, for people."""
        if self.engine is None:
            yield f"would build {self.why}"
        elif not self.built:
            yield f"{self.why}; {self.engine.state}"
        else:
            yield f"{self.path}: {self.engine.in_words}, built in {self.engine.about['build_s']:.1f} s"
            yield self.engine.state if self.validation is None else self.validation.in_words


def build_engine(request: Request, say: Say, progress: Progress, *, dry_run: bool = False) -> Outcome:
    """Make the engine that ``request`` asks for, unless it is there. say: takes lines of what is being done.

    With ``dry_run``, export and say what would be built or used again, and why; no GPU is needed. Raises BackendError
    where it cannot be built here, ParityError where it does not give what the network gives, and then nothing is
    installed; ConfigError, CheckpointError, OutputError for what cannot be used.
    """
    flavour = request.config.of_flavour
    library = load_library(flavour)  # before the minutes
    for place in (request.output, request.keep_onnx):
        if place is not None and not place.parent.is_dir():
            raise OutputError(f"{place}: cannot be written (no such folder); choose another place")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = Gpu.of(device)
    if flavour.needs_gpu and gpu is None and not dry_run:
        raise BackendError(
            f"{flavour.title} builds on the GPU that the engine is for, and torch sees none; "
            "--flavour rtx builds without one"
        )
    with tempfile.TemporaryDirectory() as folder:
        exports = Exports(request.weights, request.config.export, request.config.batches.most)
        onnx, calibration = Path(folder) / "network.onnx", request.calibration
        exported = (
            exports.export(onnx, say)
            if calibration is None
            else exports.quantised(onnx, calibration, request.clips, say)
        )
        if request.keep_onnx is not None:
            keep(exported.path, request.keep_onnx)
        plugin_sha256 = None if request.config.plugin == "none" else _put_plugin(exported.path, library, gpu)
        identity = identity_of(
            request.config,
            onnx_sha256=file_sha256(exported.path),
            network_sha256=network_sha256(exported.weights.model),
            library_version=library.__version__,
            gpu=gpu,
            plugin_sha256=plugin_sha256,
        )
        path = request.output or path_in_cache(request.weights, identity)
        found, reason = _existing(path, identity, library.__version__, gpu, force=request.force)
        if found is not None or dry_run:
            return Outcome(path, built=False, why=reason, engine=found, onnx=exported.parity)
        say(f"building: {reason}")
        plan = _build(request, exported, progress)
    named = request.weights == RANDOM or request.weights in PUBLISHED
    weights = request.weights if named else str(Path(request.weights).absolute())  # engines are checked from anywhere
    output = None if request.output is None else request.output.absolute()
    about = {
        "weights": weights,
        "weights_sha256": exported.weights.sha256,
        "labels": list(exported.weights.labels or ()),
        "made_by": f"sqt-fast {__version__}, torch {torch.__version__}",
        "rebuild": rebuild_command(
            request.config, weights, output, "" if calibration is None else calibration.options()
        ),
        "limits": asdict(exported.limits),
        "onnx_parity": None if exported.parity is None else exported.parity.as_dict(),
        "validation": None,
    }
    if gpu is None or not request.clips:
        return Outcome(path, True, reason, install(plan, path, identity, about), exported.parity)
    clips = request.record(request.clips, identity["size"]) if exported.clips is None else exported.clips
    say(f"validating with {len(clips)} clips")
    with tempfile.TemporaryDirectory() as folder:  # a place that only this run knows
        tried = install(plan, Path(folder) / "tried.engine", identity, about)
        validation = _validate(tried, library, exported.weights.model, clips, device)
    if not validation.holds:
        raise ParityError(
            f"the engine does not give what the network gives, and was not installed: {validation.faults}; "
            "try --precision bf16 or fp32"
        )
    about["validation"] = validation.as_dict()
    return Outcome(path, True, reason, install(plan, path, identity, about), exported.parity, validation)


def _put_plugin(path: Path, library: Any, gpu: Gpu | None) -> str | None:
    """Put our kernel into an exported network, and return the hash of its code for a GPU, which then knows it."""
    try:  # it needs Triton, which nothing else here does
        from sqt_fast.kernels.ctl_plugin import digest
        from sqt_fast.tensorrt.plugin_graph import make_known, put_plugin
    except ModuleNotFoundError as error:
        raise BackendError(f"plugin ctl: {error.name} is not installed (pip install 'sqt-fast[tensorrt]')") from error
    put_plugin(path)
    if gpu is None:
        return None
    make_known(library, gpu.number)
    return digest(gpu.number)


def _build(request: Request, exported: Exported, progress: Progress) -> Plan:
    """Build by the frontend that was asked for."""
    if request.config.frontend == "torch":
        network = ExportedNetwork(exported.weights.model, request.config.export)
        return build_with_torch(request.config, network, "cuda")
    timing_cache = engines_folder() / f"timing-{request.config.flavour}.cache" if request.timing_cache else None
    return build_plan(request.config, exported.path, progress, timing_cache=timing_cache)


def _existing(
    path: Path, identity: dict[str, Any], library_version: str, gpu: Gpu | None, *, force: bool
) -> tuple[Engine | None, str]:
    """Return the engine at ``path`` if it is the one that is wanted, and why it is or is not used."""
    if force:
        return None, f"{path}, as asked by --force"
    if not path.exists():
        return None, f"{path}, where there is none yet"
    try:
        engine = read_engine(path)
    except BackendError as error:
        return None, f"{path}, for what is there cannot be used ({error})"
    changed = [name for name, each in identity.items() if engine.identity.get(name) != each]
    if changed:
        return None, f"{path}, for what is there was built otherwise ({', '.join(changed)})"
    if reasons := objections(engine, library_version=library_version, gpu=gpu):
        return None, f"{path}, for what is there cannot be used ({'; '.join(reasons)})"
    return engine, f"{path} is there already, and what was asked for (--force builds it again)"


def _validate(engine: Engine, library: Any, model: SqueezeTime, clips: Tensor, device: str) -> Validation:
    """Run an engine beside PyTorch, by the limits in its sidecar."""
    run = EngineNetwork(engine, library, device)
    limits = Limits(**engine.about["limits"]) if "limits" in engine.about else ROUNDED
    return validate(run, model, engine.export, clips, engine.batches, device, gpu_clock, limits)


def check_engine(path: Path, *, clips: int, record: Record = drawn_clips) -> tuple[Engine, Validation | None]:
    """Look for every reason against an engine, and validate it if there is a GPU; what came of it is kept beside it.

    clips: how many to validate with, 0 for none. record: gives them. Raises BackendError with all reasons, ParityError
    where the engine does not give what the network gives: it is then marked, and no longer used.
    """
    engine = read_engine(path)
    if engine.identity["flavour"] not in FLAVOURS:
        refuse(engine, [f"its flavour {engine.identity['flavour']} is none that this version knows"])
    library = load_library(FLAVOURS[engine.identity["flavour"]])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = load_weights(engine.about["weights"]) if "weights" in engine.about else None
    wanted = None if weights is None else network_sha256(weights.model)
    gpu = Gpu.of(device)
    refuse(engine, objections(engine, library_version=library.__version__, gpu=gpu, network_sha256=wanted))
    if gpu is None or not clips or weights is None:
        return engine, None
    validation = _validate(engine, library, weights.model, record(clips, engine.export.size), device)
    engine = replace(engine, about={**engine.about, "validation": validation.as_dict()})
    with naming(engine.path):
        write_sidecar(engine)
    if not validation.holds:
        raise ParityError(f"engine {path} does not give what the network gives: {validation.faults}")
    return engine, validation


def useless(*, everything: bool) -> Iterator[tuple[Path, str]]:
    """Yield the engines in the user's cache that cannot run here, and why; with ``everything``, all of them."""
    gpu = Gpu.of("cuda")
    for path in engine_paths(engines_folder()):
        try:
            engine = read_engine(path)
            flavour = FLAVOURS.get(engine.identity["flavour"])
            version = "none" if flavour is None else load_library(flavour).__version__
            reasons = objections(engine, library_version=version, gpu=gpu)
        except BackendError as error:
            reasons = [str(error)]
        if reasons or everything:
            yield path, "; ".join(reasons) or "as asked"
