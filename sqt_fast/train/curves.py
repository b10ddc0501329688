"""Pictures of a run: loss, learning rate and accuracy over its steps; a confusion matrix."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curves = dict[str, dict[int, float]]  # name -> step -> value
MAX_NAMES = 60  # more cannot be read


def read_curves(logs: Path, first: int = 0) -> Curves:
    """Read the CSV logs of a run, one folder a start; where a resumed run did steps again, the later ones count.

    first: number of its first start; before it, another run used the folder.
    """
    curves: Curves = defaultdict(dict)
    starts = {int(path.parent.name.partition("_")[2]): path for path in logs.glob("version_*/metrics.csv")}
    for path in (starts[number] for number in sorted(starts) if number >= first):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        curves[name][int(row["step"])] = float(text)
    return dict(curves)


def draw_curves(logs: Path, target: Path, first: int = 0) -> None:
    """Draw the curves of a run to a PNG. first: see ``read_curves``."""
    curves = read_curves(logs, first)
    panels = {"loss": ["loss"], "learning rate": ["lr"], "validation": [n for n in curves if n.startswith("val_")]}
    figure, rows = _figure(len(panels), (9, 12))
    for axes, (title, names) in zip(rows, panels.items(), strict=True):
        for name in names:
            steps = sorted(curves.get(name, {}))
            axes.plot(steps, [curves[name][step] for step in steps], label=name.removeprefix("val_"))
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.savefig(target, dpi=110, bbox_inches="tight")


def draw_confusion(matrix: NDArray[Any], names: Sequence[str], target: Path) -> None:
    """Draw a confusion matrix (K, K), rows truth, columns prediction, to a PNG; each row in parts of its sum."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(4 + 0.25 * len(names), 20)
    figure, (axes,) = _figure(1, (side, side))
    picture = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, fraction=0.04)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= MAX_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.savefig(target, dpi=110, bbox_inches="tight")


def _figure(rows: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """Return a figure that no display is needed for, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
