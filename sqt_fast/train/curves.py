"""Curves of a run: loss, learning rate and accuracy over its steps, as a picture."""

import csv
from collections import defaultdict
from pathlib import Path

from sqt_fast.confusion import new_figure

Curves = dict[str, dict[int, float]]  # name -> step -> value


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
    figure = new_figure(9, 12)
    for row, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, row)
        for name in names:
            steps = sorted(curves.get(name, {}))
            axes.plot(steps, [curves[name][step] for step in steps], label=name.removeprefix("val_"))
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.savefig(target, dpi=110)
