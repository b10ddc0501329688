"""What a run is told to do: frozen, checked once, passed whole to the top."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqt_fast.errors import ConfigError

# Settings whose option is called otherwise.
OPTIONS = {"weights_sha256": "--weights", "labels_sha256": "--labels", "stride_s": "--stride"}
OUTPUT_SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class ClipProtocol:
    """How a video becomes clips and a label.

    short_side: pixels of the short side after resizing. crop_size: pixels of the square the network sees. num_clips:
    None covers the video with windows. num_crops: 1 is the centre; 3 are both ends of the long side and the centre.
    """

    name: str
    short_side: int
    crop_size: int
    num_clips: int | None
    num_crops: int


FAST = ClipProtocol("fast", short_side=256, crop_size=224, num_clips=None, num_crops=1)
SINGLE = ClipProtocol("single", short_side=256, crop_size=224, num_clips=1, num_crops=1)
OFFICIAL = ClipProtocol("official", short_side=224, crop_size=224, num_clips=10, num_crops=3)
OFFICIAL_HMDB51 = ClipProtocol("official", short_side=286, crop_size=286, num_clips=2, num_crops=3)
PROTOCOLS = (FAST.name, SINGLE.name, OFFICIAL.name)


@dataclass(frozen=True)
class IndexConfig:
    """Everything ``sqt-fast index`` was asked for. None means "decide from the facts".

    top_k: None keeps every class.
    """

    inputs: tuple[str, ...]
    output: Path
    path_col: str = "path"
    weights: str = "k400"
    labels: str | None = None
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    protocol: str = "fast"
    stride_s: float | None = None
    target_fps: float | None = None
    top_k: int | None = 5
    level: str | None = None
    embeddings: bool = False
    on_error: str = "record"
    overwrite: bool = False
    retry_failed: bool = False
    prune: bool = False
    null: bool = False
    all_links: bool = False
    limit: int | None = None
    decoder: str | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.output.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ConfigError(f"output {self.output}: the name must end in {', '.join(OUTPUT_SUFFIXES)}")
        if self.output.is_dir():
            raise ConfigError(f"output {self.output}: is a folder; give a file name, as {self.output}/labels.parquet")
        for name, value, least, most in (
            ("stride", self.stride_s, 1e-3, 1e9),
            ("target-fps", self.target_fps, 1e-3, 1e3),
        ):
            if value is not None and not least <= value <= most:
                raise ConfigError(f"--{name} {value:g}: must be from {least:g} to {most:g}")
        if self.protocol != FAST.name and self.level == "window":
            raise ConfigError(
                f"--level window: the {self.protocol} protocol gives one row a video; drop it or use fast"
            )
        if self.protocol != FAST.name and self.stride_s is not None:
            raise ConfigError(f"--stride: the {self.protocol} protocol places its clips itself; drop it or use fast")

    @property
    def per_window(self) -> bool:
        """Whether a row speaks for a window (else for a whole video)."""
        return self.level != "video" and self.protocol == FAST.name

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for rows to share a table, but for weights, labels and protocol.

        Those are added by their contents: a name or path may stand for other ones tomorrow.
        """
        return {
            "backend": self.backend or "auto",
            "precision": self.precision or "auto",
            "stride_s": self.stride_s,
            "target_fps": self.target_fps,
            "top_k": self.top_k,
            "level": "window" if self.per_window else "video",
            "embeddings": self.embeddings,
        }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in words, each by its option, which settings are others now."""
    return [
        f"{OPTIONS.get(key, '--' + key.replace('_', '-'))} {_shown(old.get(key))}, now {_shown(value)}"
        for key, value in new.items()
        if old.get(key) != value
    ]


def _shown(value: Any) -> str:
    """Return a setting as a person would name it."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)[:12]
