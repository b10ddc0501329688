"""Find weights by name or path, and the class names that belong to them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqt_fast.errors import CheckpointError, ConfigError, system_reason
from sqt_fast.files import file_sha256
from sqt_fast.network.class_names import LABEL_LISTS, read_labels
from sqt_fast.network.download import download
from sqt_fast.network.metadata import labels_in
from sqt_fast.network.published import PUBLISHED, checked_sha256, record_sha256

if TYPE_CHECKING:  # torch is imported only when weights are wanted
    from sqt_fast.network.model import SqueezeTime

RANDOM = "random"
RANDOM_SEED = 0


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
    elif path is not None and (carried := labels_in(path)) is not None:
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
    path = locate(weights, progress=progress)
    try:
        return checked_sha256(path) if weights in PUBLISHED else file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"weights {weights}: cannot be read ({system_reason(error)})") from error


def _random_network(seed: int) -> "SqueezeTime":
    """Make an untrained network of the K400 release's shape, the same one for the same seed."""
    import torch

    from sqt_fast.network.model import SqueezeTime

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SqueezeTime().eval()


def locate(weights: str, *, progress: bool) -> Path:
    """Return the path of a published file (downloading it if need be) or of the user's.

    Raises ConfigError for what is neither, CheckpointError if it cannot be downloaded.
    """
    check_name(weights)
    if weights in PUBLISHED:
        known = PUBLISHED[weights]
        if not known.ships and not known.path.exists():
            download(weights, progress=progress)
        return known.path
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
        path = locate(weights, progress=progress)
        model = build(read_checkpoint(path), source=str(path))
        if weights in PUBLISHED and not PUBLISHED[weights].ships:
            record_sha256(path, sha256)
    names, labels_source = _choose_labels(labels, weights, path, model.config.num_classes)
    return Weights(weights, path, sha256, model, names, labels_source, meaningless=weights == RANDOM)
