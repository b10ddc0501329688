"""A confusion matrix as a picture: what training and evaluation leave behind."""

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # matplotlib is an extra, imported only for a picture
    from matplotlib.figure import Figure

READABLE_CLASSES = 60  # more names than that cannot be read beside a matrix


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty picture, sides in inches, for which no display is needed. Raises ModuleNotFoundError."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_confusion(
    counts: NDArray[np.integer[Any]], truths: Sequence[str], predictions: Sequence[str], file: IO[bytes]
) -> None:
    """Draw counts (K, P), rows truth, columns prediction, as a PNG; each row as parts of its sum."""
    side = min(12.0, 4.0 + 0.2 * len(truths))
    figure = new_figure(side, side)
    axes = figure.add_subplot(xlabel="prediction", ylabel="truth")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(picture, label="share of the class's videos", shrink=0.7)
    if len(truths) <= READABLE_CLASSES:
        axes.set_xticks(range(len(predictions)), predictions, rotation=90, parse_math=False)
        axes.set_yticks(range(len(truths)), truths, parse_math=False)
    figure.savefig(file, format="png", dpi=150)
