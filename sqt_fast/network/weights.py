"""Find weights by name or path, and the class names that belong to them."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, SINGLE, ClipProtocol
from sqt_fast.errors import CheckpointError, ConfigError, system_reason
from sqt_fast.files import cache_folder, file_sha256, replace_file
from sqt_fast.network.class_names import LABEL_LISTS, read_labels

if TYPE_CHECKING:  # torch, pooch and rich are imported only when weights are wanted
    from rich.progress import Progress

    from sqt_fast.network.model import SqueezeTime

_log = logging.getLogger(__name__)

RANDOM = "random"
RANDOM_SEED = 0


@dataclass(frozen=True)
class Published:
    """A checkpoint of the official release (tag ``ckpts``)."""

    file: str
    task: str
    labels: str | None  # name of a bundled list
    official: ClipProtocol = OFFICIAL  # the release's test config

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
}


def published_name(weights: str) -> str | None:
    """Return which of ``PUBLISHED`` these weights are: by name, by content, or by file name if that was never seen."""
    if weights in PUBLISHED:
        return weights
    path = Path(weights).expanduser()
    seen = {name: _sidecar(cache_folder() / known.file) for name, known in PUBLISHED.items()}
    hashes = {_recorded(sidecar): name for name, sidecar in seen.items() if sidecar.exists()}
    if hashes and path.is_file() and (found := hashes.get(file_sha256(path))):
        return found
    unseen = (name for name, sidecar in seen.items() if not sidecar.exists())
    return next((name for name in unseen if PUBLISHED[name].file == path.name), None)


def find_protocol(name: str, weights: str) -> ClipProtocol:
    """Return the protocol ``name`` as the release uses it with ``weights``, however they are named."""
    for protocol in (FAST, SINGLE):
        if name == protocol.name:
            return protocol
    published = published_name(weights)
    return OFFICIAL if published is None else PUBLISHED[published].official


@dataclass(frozen=True)
class Weights:
    """A network and what is known about it.

    path: None for random weights. sha256: see ``weights_sha256``. labels: the K class
    names, None for a backbone alone. labels_source: where they come from, in words. meaningless: the weights were
    never trained, so labels and scores say nothing.
    """

    name: str
    path: Path | None
    sha256: str
    model: "SqueezeTime"
    labels: tuple[str, ...] | None
    labels_source: str
    meaningless: bool


class _Bar:
    """What pooch calls during a download. Also remembers how many bytes the server announced."""

    def __init__(self, progress: "Progress", name: str) -> None:
        self.total = 0
        self._progress = progress
        self._task = progress.add_task(name, total=None, visible=False)

    def update(self, size_bytes: int) -> None:
        self._progress.update(self._task, advance=size_bytes, total=self.total or None, visible=True)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        """Leave the last word to the display that draws the bar."""


def _download(name: str, path: Path, *, progress: bool) -> None:
    """Fetch a published file to ``path``, whole or not at all. Raises CheckpointError."""
    import pooch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    url = PUBLISHED[name].url
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not progress or not console.is_terminal) as display:
        bar = _Bar(display, path.name)
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18)

        def fetch_whole(url: str, partial: str, owner: object) -> None:
            fetch(url, partial, owner)
            if (size := Path(partial).stat().st_size) < bar.total:
                raise OSError(f"only {size} of {bar.total} bytes came")

        pooch.get_logger().setLevel(logging.WARNING)  # it would announce the hash as a line of code to copy
        try:
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=fetch_whole)
        except (OSError, ValueError) as error:  # errors of requests are OSError
            raise CheckpointError(
                f"{name}: cannot download {url} ({_short(error)}); fetch it elsewhere and put it at {path}, "
                f"or give the path of a file with --weights PATH"
            ) from None
    if progress and not console.is_terminal:
        console.print(f"downloaded {url} to {path}", markup=False, highlight=False, soft_wrap=True)


def _short(error: Exception) -> str:
    """Say in a few words why a download failed; requests would print its whole connection pool."""
    response = getattr(error, "response", None)
    if response is not None:
        response.close()  # pooch does not
        return f"HTTP {response.status_code}"
    return type(error).__name__ if type(error).__module__.startswith("requests") else str(error)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(sidecar: Path) -> str:
    return (sidecar.read_text(encoding="ascii", errors="replace").split() or ["nothing"])[0]


def _checked_sha256(path: Path) -> str:
    """Hash a cached file and compare with what was recorded at its first use. Raises CheckpointError."""
    sha256, sidecar = file_sha256(path), _sidecar(path)
    if sidecar.exists():
        recorded = _recorded(sidecar)
        if recorded != sha256:
            raise CheckpointError(
                f"{path} has changed: SHA-256 {sha256}, at first use {recorded}; delete it and {sidecar} to download "
                f"it again, or {sidecar.name} alone if the change was meant"
            )
    return sha256


def _record_sha256(path: Path, sha256: str) -> None:
    """Remember the hash of a file that was just read and fitted, in the form of sha256sum."""
    sidecar = _sidecar(path)
    if sidecar.exists():
        return
    try:
        replace_file(sidecar, lambda file: file.write(f"{sha256}  {path.name}\n".encode("ascii")))
    except OSError as error:
        _log.warning("%s: the hash could not be recorded (%s), so a later change will go unnoticed", path, error)


def _labels_of_metadata(path: Path | None) -> tuple[str, ...] | None:
    """Return the class names that a safetensors file of ours carries. Raises CheckpointError."""
    from sqt_fast.network.checkpoint import read_metadata

    text = read_metadata(path).get("labels") if path else None
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise CheckpointError(f"{path}: its metadata labels are no JSON list; say the class names with --labels")
    return tuple(map(str, names))


def _choose_labels(
    labels: str | Path | None, name: str, path: Path | None, num_classes: int | None
) -> tuple[tuple[str, ...] | None, str]:
    """Return the class names and where they come from: asked for, published, carried, guessed, or numbers.

    Raises ConfigError if their number is not ``num_classes``.
    """
    if num_classes is None:
        if labels is not None:
            raise ConfigError(f"labels {labels}: {name} is a backbone alone, without classes; leave --labels out")
        return None, "none: the weights are a backbone alone"
    published = PUBLISHED[name].labels if name in PUBLISHED else "kinetics400" if name == RANDOM else None
    guess = next((known for known, count in LABEL_LISTS.items() if count == num_classes), None)
    if labels is not None:
        names, source = read_labels(labels), f"{labels}, as asked"
    elif published is not None:
        names, source = read_labels(published), f"{published}, which belongs to {name}"
    elif (carried := _labels_of_metadata(path)) is not None:
        names, source = carried, "the metadata of the checkpoint"
    elif guess is not None:
        names, source = read_labels(guess), f"{guess}, guessed from the number of classes ({num_classes})"
    else:
        names = tuple(f"class {i}" for i in range(num_classes))
        source = f"numbers, because no list of {num_classes} classes is known; name them with --labels"
    if len(names) != num_classes:
        raise ConfigError(
            f"labels {source}: {len(names)} names for the {num_classes} classes of {name}; "
            f"give a list of {num_classes} with --labels"
        )
    return names, source


def weights_sha256(weights: str, *, progress: bool = True, seed: int = RANDOM_SEED) -> str:
    """Return what tells these weights from all others, without loading them or importing torch; they are on disk then.

    Of random weights, which no file holds, it stands for the way in which they are made. Raises ConfigError for a name
    that is none, CheckpointError if a published file cannot be had.
    """
    if weights == RANDOM:
        return hashlib.sha256(f"{RANDOM} {seed}".encode()).hexdigest()
    path = _locate(weights, progress=progress)
    try:
        return _checked_sha256(path) if weights in PUBLISHED else file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"weights {weights}: cannot be read ({system_reason(error)})") from error


def _random_network(seed: int) -> "SqueezeTime":
    """Make an untrained network of the K400 release's shape, the same one for the same seed."""
    import torch

    from sqt_fast.network.model import SqueezeTime

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SqueezeTime().eval()


def _locate(weights: str, *, progress: bool) -> Path:
    """Return the path of a published file (downloading it if need be) or of the user's.

    Raises ConfigError for what is neither, CheckpointError if it cannot be downloaded.
    """
    check_name(weights)
    if weights in PUBLISHED:
        path = cache_folder() / PUBLISHED[weights].file
        if not path.exists():
            _download(weights, path, progress=progress)
        return path
    return Path(weights).expanduser()


def check_name(weights: str) -> None:
    """Raise ConfigError for what is neither a name of weights nor the path of a file."""
    if weights not in (RANDOM, *PUBLISHED) and not Path(weights).expanduser().exists():
        names = ", ".join((*PUBLISHED, RANDOM))
        raise ConfigError(f"weights {weights}: no such file, and not one of {names}; check the path")


def load_weights(
    weights: str, *, labels: str | Path | None = None, progress: bool = True, seed: int = RANDOM_SEED
) -> Weights:
    """Load a network and its class names.

    weights: a name of ``PUBLISHED`` (downloaded once, then checked against the hash of its first use), ``random``
    (an untrained network, for trying things out), or a path. labels: a bundled list or a file with one name a line;
    found by itself if None. progress: draw downloads on standard error. seed: of ``random``.

    Returns a network in evaluation mode on the CPU, float32. Raises CheckpointError if the file cannot be had, read
    or fitted, and ConfigError if the labels do not belong to it.
    """
    from sqt_fast.network.checkpoint import build, read_checkpoint

    sha256 = weights_sha256(weights, progress=progress, seed=seed)
    if weights == RANDOM:
        path, model = None, _random_network(seed)
    else:
        path = _locate(weights, progress=progress)
        model = build(read_checkpoint(path), source=str(path))
        if weights in PUBLISHED:
            _record_sha256(path, sha256)
    names, labels_source = _choose_labels(labels, weights, path, model.config.num_classes)
    return Weights(weights, path, sha256, model, names, labels_source, meaningless=weights == RANDOM)
