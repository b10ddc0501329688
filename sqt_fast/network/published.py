"""Weights that have a name: those of the official release, kept in the user's cache with their hashes, and our own."""

import logging
from dataclasses import dataclass
from pathlib import Path

from sqt_fast.config import OFFICIAL, OFFICIAL_HMDB51, ClipProtocol
from sqt_fast.errors import CheckpointError
from sqt_fast.files import cache_folder, file_sha256, replace_file

_log = logging.getLogger(__name__)

SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Published:
    """A checkpoint of the official release (tag ``ckpts``), or with ``ships`` one of ours that is in the package."""

    file: str
    task: str
    labels: str | None  # name of a bundled list; None where the file itself holds them, or has no classes
    official: ClipProtocol = OFFICIAL  # the release's test config
    ships: bool = False

    @property
    def path(self) -> Path:
        """Where the file is, or would be once it is downloaded."""
        return (SHIPPED_FOLDER if self.ships else cache_folder()) / self.file

    @property
    def url(self) -> str:
        """Where the file is published."""
        return f"https://github.com/xinghaochen/SqueezeTime/releases/download/ckpts/{self.file}"


PUBLISHED = {
    "k400": Published("SqueezeTime_K400_71.64.pth", "Kinetics-400 actions", "kinetics400"),
    "k600": Published("SqueezeTime_K600_76.06.pth", "Kinetics-600 actions", "kinetics600"),
    "hmdb51": Published("SqueezeTime_HMDB51_65.56.pth", "HMDB51 actions", "hmdb51", OFFICIAL_HMDB51),
    "in1k": Published("SqueezeTime_in1k_pretrain.pth", "ImageNet pre-training, to train from", None),
    "ava": Published("SqueezeTime-AVA2.1.pth", "AVA 2.1 detection: the backbone, without its region head", None),
    "motions": Published("motions.safetensors", "moving shapes, as sample-videos makes them", None, ships=True),
}


def published_name(weights: str) -> str | None:
    """Return which of ``PUBLISHED`` these weights are: by name, by content, or by file name if that was never seen."""
    if weights in PUBLISHED:
        return weights
    path = Path(weights).expanduser()
    seen = {name: sidecar_of(known.path) for name, known in PUBLISHED.items() if not known.ships}
    hashes = {recorded(sidecar): name for name, sidecar in seen.items() if sidecar.exists()}
    if hashes and path.is_file() and (found := hashes.get(file_sha256(path))):
        return found
    unseen = (name for name, sidecar in seen.items() if not sidecar.exists())
    return next((name for name in unseen if PUBLISHED[name].file == path.name), None)


def sidecar_of(path: Path) -> Path:
    """Return the file that keeps the hash of ``path``."""
    return path.with_name(f"{path.name}.sha256")


def recorded(sidecar: Path) -> str:
    """Return the hash that a file keeps."""
    return (sidecar.read_text(encoding="ascii", errors="replace").split() or ["nothing"])[0]


def checked_sha256(path: Path) -> str:
    """Hash a cached file and compare with what was recorded at its first use. Raises CheckpointError."""
    sha256, sidecar = file_sha256(path), sidecar_of(path)
    if sidecar.exists():
        first = recorded(sidecar)
        if first != sha256:
            raise CheckpointError(
                f"{path} has changed: SHA-256 {sha256}, at first use {first}; delete it and {sidecar} to download "
                f"it again, or {sidecar.name} alone if the change was meant"
            )
    return sha256


def record_sha256(path: Path, sha256: str) -> None:
    """Remember the hash of a file that was just read and fitted, in the form of sha256sum."""
    sidecar = sidecar_of(path)
    if sidecar.exists():
        return
    try:
        replace_file(sidecar, lambda file: file.write(f"{sha256}  {path.name}\n".encode("ascii")))
    except OSError as error:
        _log.warning("%s: the hash could not be recorded (%s), so a later change will go unnoticed", path, error)
