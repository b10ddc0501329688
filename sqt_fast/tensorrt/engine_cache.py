"""Engines on disk, each with a sidecar that says what it is, so that none is run where it does not belong.

An engine is a program: its SHA-256 is checked before the library sees a byte of it, the folder is the user's alone, and
nothing is ever downloaded. Beside ``x.engine`` lies ``x.engine.json``; the engine's own bytes are as the builder gave
them.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sqt_fast.errors import BackendError, system_reason
from sqt_fast.files import cache_folder, file_sha256, naming, replace_file
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS, is_older
from sqt_fast.versions import driver_version

SCHEMA = 1
SUFFIX = ".engine"
# What a sidecar must hold to be one of ours, and of which kind each is.
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "identity": dict,
    "key": str,
    "engine_sha256": str,
    "tensors": dict,
    "names": dict,
    "rebuild": str,
    "validation": (dict, type(None)),
}
OF_IDENTITY: Mapping[str, type | tuple[type, ...]] = {
    "flavour": str,
    "library_version": str,
    "network_sha256": str,
    "precision": str,
    "size": int,
    "input": str,
    "batches": list,
    "gpu": dict,
}


@dataclass(frozen=True)
class Gpu:
    """What an engine depends on of a GPU."""

    name: str
    capability: str
    num_sms: int

    @property
    def number(self) -> int:
        """The compute capability without the point, as 90."""
        return int(self.capability.replace(".", ""))

    @classmethod
    def of(cls, device: str) -> "Gpu | None":
        """Return the GPU ``device``, None where torch sees none."""
        if not device.startswith("cuda") or not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.name, f"{properties.major}.{properties.minor}", properties.multi_processor_count)


@dataclass(frozen=True)
class Engine:
    """An engine on disk and what its sidecar says."""

    path: Path
    about: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells it from all other engines."""
        identity: Mapping[str, Any] = self.about["identity"]
        return identity

    @property
    def export(self) -> ExportConfig:
        """How its network was exported."""
        return ExportConfig(self.identity["size"], self.identity["precision"], self.identity["input"])

    @property
    def batches(self) -> Batches:
        """How many clips it takes at once."""
        return Batches(*self.identity["batches"])

    @property
    def title(self) -> str:
        """What the library is called that built it."""
        flavour = self.identity["flavour"]
        return FLAVOURS[flavour].title if flavour in FLAVOURS else flavour

    @property
    def in_words(self) -> str:
        """What it is, on a line."""
        it = self.identity
        clips = f"{self.batches} {it['input']} clips of {it['size']}x{it['size']}"
        gpu = it["gpu"].get("name") or it["gpu"].get("capability") or "any GPU that it knows"
        return f"{it['precision']}, {clips}, {self.title} {it['library_version']}, {gpu}"

    @property
    def state(self) -> str:
        """Whether it was held against PyTorch, in words."""
        validation = self.about["validation"]
        if validation is None:
            return "not validated yet (sqt-fast engines check does, where there is a GPU)"
        return "validated" if validation.get("holds") else "gives other results than the network"


def engines_folder() -> Path:
    """Return where engines are kept, a folder of the user's alone: what is in it will be run."""
    return cache_folder() / "engines"


def identity_of(
    config: EngineConfig,
    *,
    onnx_sha256: str,
    network_sha256: str,
    library_version: str,
    gpu: Gpu | None,
    plugin_sha256: str | None = None,
) -> dict[str, Any]:
    """Return everything that makes an engine this engine, in plain values, as JSON would give them back.

    gpu: what it is built on; of it counts what ``config.hardware`` says. plugin_sha256: of the code that goes into it.
    """
    parts = {"none": ("name", "capability", "num_sms"), "same-capability": ("capability",), "ampere-plus": ()}
    wanted = parts[config.hardware] if config.of_flavour.needs_gpu else ()
    facts = {} if gpu is None else {name: each for name, each in asdict(gpu).items() if name in wanted}
    return config.as_dict() | {
        "schema": SCHEMA,
        "onnx_sha256": onnx_sha256,
        "network_sha256": network_sha256,
        "library_version": library_version,
        "gpu": facts,
        "plugin_sha256": plugin_sha256,
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the name that an identity has in the cache."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_in_cache(name: str, identity: Mapping[str, Any]) -> Path:
    """Return where an engine of the weights ``name`` belongs: a name that people can read, and its key."""
    batches = "-".join(map(str, identity["batches"]))
    version = ".".join(identity["library_version"].split(".")[:3])
    gpu = identity["gpu"].get("name") or identity["gpu"].get("capability") or "portable"
    words = [Path(name).stem, identity["precision"], f"{identity['size']}px", f"b{batches}"]
    words += [identity["flavour"] + version, gpu, key_of(identity)]
    return engines_folder() / ("_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", word) for word in words) + SUFFIX)


def sidecar_of(path: Path) -> Path:
    """Return where it says what the engine ``path`` is."""
    return path.with_name(path.name + ".json")


def install(plan: Plan, path: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> Engine:
    """Write an engine and its sidecar, whole or not at all. Raises OutputError.

    The sidecar goes last: an engine without one, or with another's, is refused.
    """
    said = {
        "key": key_of(identity),
        "identity": dict(identity),
        "engine_sha256": hashlib.sha256(plan.data).hexdigest(),
        "engine_bytes": len(plan.data),
        "tensors": plan.tensors,
        "names": dict(plan.names),
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "build_s": round(plan.build_s, 3),
        "driver": driver_version(),
        **about,
    }
    engine = Engine(path, said)
    with naming(path):
        if path.parent == engines_folder():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)
        replace_file(path, lambda file: file.write(plan.data))
        try:
            write_sidecar(engine)
        except OSError:
            remove(path)
            raise
    return engine


def write_sidecar(engine: Engine) -> None:
    """Write what is known of an engine. Raises OSError."""
    text = json.dumps(engine.about, indent=1, sort_keys=True) + "\n"
    replace_file(sidecar_of(engine.path), lambda file: file.write(text.encode()))


def read_engine(path: Path) -> Engine:
    """Return an engine as its sidecar describes it; its bytes are not looked at. Raises BackendError."""
    sidecar = sidecar_of(path)
    if not path.is_file():
        raise BackendError(
            f"engine {path}: no such file; sqt-fast build-engine makes engines, sqt-fast engines list them"
        )
    try:
        about = json.loads(sidecar.read_bytes())
    except FileNotFoundError:
        raise BackendError(
            f"engine {path}: {sidecar.name}, which says what it is, is missing; build it again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BackendError(
            f"engine {path}: {sidecar.name} cannot be read ({system_reason(error)}); build it again"
        ) from None
    if not _holds(about, FIELDS):
        raise BackendError(f"engine {path}: {sidecar.name} is not of sqt-fast; build it again")
    if about["identity"].get("schema") != SCHEMA:
        found = about["identity"].get("schema")
        raise BackendError(f"engine {path}: its form is number {found}, this version writes {SCHEMA}; {again(about)}")
    if not _holds(about["identity"], OF_IDENTITY):
        raise BackendError(f"engine {path}: {sidecar.name} was edited, and does not say what it is; {again(about)}")
    return Engine(path, about)


def _holds(found: Any, fields: Mapping[str, type | tuple[type, ...]]) -> bool:
    return isinstance(found, dict) and all(n in found and isinstance(found[n], kind) for n, kind in fields.items())


def objections(
    engine: Engine, *, library_version: str, gpu: Gpu | None, network_sha256: str | None = None
) -> list[str]:
    """Return every reason why an engine must not be run here; none if there is nothing against it.

    network_sha256: of the network whose place it is to take. The file is read once, and no library sees it.
    """
    identity, reasons = engine.identity, []
    try:
        if file_sha256(engine.path) != engine.about["engine_sha256"]:
            reasons.append("its bytes are not those that were built (cut off, replaced or edited)")
    except OSError as error:
        reasons.append(f"it cannot be read ({system_reason(error)})")
    if key_of(identity) != engine.about["key"]:
        reasons.append("what its sidecar says of it was edited")
    built, title = identity["library_version"], engine.title
    if identity.get("version_compatible"):
        if is_older(library_version, built):
            reasons.append(
                f"it was built with {title} {built} and needs that or a newer one, this is {library_version}"
            )
    elif built != library_version:
        reasons.append(f"it was built with {title} {built}, this is {library_version}")
    here = {} if gpu is None else asdict(gpu)
    names = {"name": "GPU", "capability": "compute capability", "num_sms": "number of multiprocessors"}
    for name, value in identity["gpu"].items():
        if here.get(name) != value:
            reasons.append(f"it was built for {names.get(name, name)} {value}, this is {here.get(name, 'none')}")
    if network_sha256 is not None and identity["network_sha256"] != network_sha256:
        reasons.append("it was built from other weights")
    return reasons


def refuse(engine: Engine, reasons: list[str]) -> None:
    """Raise BackendError with all reasons against an engine and the command that makes another, if there are any."""
    if reasons:
        raise BackendError(f"engine {engine.path} cannot be used: {'; '.join(reasons)}; {again(engine.about)}")


def again(about: Mapping[str, Any]) -> str:
    """Return what to do about an engine that cannot be used, given what its sidecar says."""
    return f"build it again: {about['rebuild']}"


def engine_paths(folder: Path) -> list[Path]:
    """Return the engines in a folder, by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def engines_in(folder: Path) -> Iterator[Engine | BackendError]:
    """Yield the engines in a folder, by name, and what is wrong with those that cannot be described."""
    for path in engine_paths(folder):
        try:
            yield read_engine(path)
        except BackendError as error:
            yield error


def remove(path: Path) -> None:
    """Remove an engine and its sidecar. Raises OSError."""
    path.unlink(missing_ok=True)
    sidecar_of(path).unlink(missing_ok=True)
