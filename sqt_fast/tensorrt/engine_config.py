"""What an engine is asked to be: frozen, checked once, and part of what tells it from all others."""

import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqt_fast.errors import ConfigError
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS, Flavour

HARDWARE = ("none", "same-capability", "ampere-plus")
FRONTENDS = ("onnx", "torch")
PLUGINS = ("none", "ctl")


class Batches(NamedTuple):
    """How many clips at once: the fewest, the number that the engine is made fastest for, and the most."""

    least: int
    best: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Batches":
        """Return what ``MIN:OPT:MAX``, or one number for all three, says. Raises ConfigError."""
        parts = text.split(":")
        numbers = [int(part) for part in parts if re.fullmatch(r"[1-9]\d{0,5}", part)]
        if len(numbers) != len(parts) or len(numbers) not in (1, 3) or sorted(numbers) != numbers:
            raise ConfigError(f"batch {text}: expected MIN:OPT:MAX, 1 or more and ascending, as 1:64:64")
        return cls(*(numbers if len(numbers) == 3 else 3 * numbers))

    def __str__(self) -> str:
        return ":".join(map(str, self))


@dataclass(frozen=True)
class EngineConfig:
    """Everything that decides what an engine is, given a network and a GPU.

    level: 0 to 5, how long the builder looks for faster kernels. workspace_mib: memory that kernels may take, None for
    what there is. hardware: GPUs that it runs on: the kind it is built on (none), all of the same compute capability,
    or Ampere and newer. version_compatible: newer versions of TensorRT run it too. capabilities: of TensorRT-RTX, the
    GPUs to build for, as ``8.9``; none for all that it knows. frontend: what reads the network, TensorRT's parser of
    ONNX or Torch-TensorRT. plugin: ``ctl`` has our kernel end every CTL.
    """

    flavour: str = "tensorrt"
    export: ExportConfig = field(default_factory=lambda: ExportConfig(precision="bf16"))
    batches: Batches = field(default_factory=lambda: Batches(1, 64, 64))
    level: int = 3
    workspace_mib: int | None = None
    tf32: bool = True
    hardware: str = "none"
    version_compatible: bool = False
    capabilities: tuple[str, ...] = ()
    frontend: str = "onnx"
    plugin: str = "none"

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise ConfigError(f"flavour {self.flavour}: expected one of {', '.join(FLAVOURS)}")
        for name, allowed in (("hardware", HARDWARE), ("frontend", FRONTENDS), ("plugin", PLUGINS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)}: expected one of {', '.join(allowed)}")
        if not 0 <= self.level <= 5:
            raise ConfigError(f"level {self.level}: expected 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"workspace {self.workspace_mib} MiB: expected 1 or more")
        if self.flavour == "rtx" and (self.hardware != "none" or self.version_compatible):
            raise ConfigError("hardware and version compatibility are TensorRT's; TensorRT-RTX takes --capability")
        if self.flavour == "rtx" and (self.frontend != "onnx" or self.plugin != "none"):
            raise ConfigError("--frontend torch and --plugin are for --flavour tensorrt; TensorRT-RTX reads plain ONNX")
        if self.frontend == "torch" and self.plugin != "none":
            raise ConfigError("--plugin goes into the exported network: use --frontend onnx")
        if self.flavour != "rtx" and self.capabilities:
            raise ConfigError("--capability is for --flavour rtx; TensorRT takes --hardware")
        for capability in self.capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ConfigError(f"capability {capability}: expected a compute capability, as 8.9")

    @property
    def of_flavour(self) -> Flavour:
        """The record of its flavour."""
        return FLAVOURS[self.flavour]

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values, as JSON would give them back."""
        values = asdict(self)
        exported: dict[str, Any] = values.pop("export")
        return exported | values | {"batches": list(self.batches), "capabilities": list(self.capabilities)}

    def command(self, weights: str) -> str:
        """Return the command that builds it."""
        usual, words = EngineConfig(), ["sqt-fast build-engine", f"--weights {weights}", f"--flavour {self.flavour}"]
        words += [f"--precision {self.export.precision}", f"--batch {self.batches}", f"--size {self.export.size}"]
        options = {
            f"--input {self.export.input}": self.export.input != usual.export.input,
            f"--level {self.level}": self.level != usual.level,
            f"--workspace {self.workspace_mib}": self.workspace_mib is not None,
            "--no-tf32": not self.tf32,
            f"--hardware {self.hardware}": self.hardware != usual.hardware,
            "--version-compatible": self.version_compatible,
            f"--frontend {self.frontend}": self.frontend != usual.frontend,
            f"--plugin {self.plugin}": self.plugin != usual.plugin,
        }
        words += [option for option, wanted in options.items() if wanted]
        return " ".join([*words, *(f"--capability {each}" for each in self.capabilities)])


def rebuild_command(config: EngineConfig, weights: str, output: Path | None, calibration: str = "") -> str:
    """Return the command that builds an engine again. calibration: the options of a quantised one."""
    command = " ".join([config.command(shlex.quote(weights)), *([calibration] if calibration else [])])
    return f"{command} --force" if output is None else f"{command} -o {shlex.quote(str(output))} --force"
