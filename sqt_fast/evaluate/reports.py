"""What an evaluation leaves behind: the summary for people, and the files that were asked for."""

import csv
import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from sqt_fast.confusion import draw_confusion, new_figure
from sqt_fast.console import counted, printable
from sqt_fast.errors import ConfigError
from sqt_fast.evaluate.evaluation import ClassReport, Evaluation
from sqt_fast.evaluate.metrics import best_classes
from sqt_fast.files import replace_file
from sqt_fast.table.schema import writing

SUFFIXES = {"confusion": (".csv", ".png"), "per_class": (".csv",), "dump": (".pkl",)}
NAMED_FILES = 3  # of many, so many are named
NAMED_CLASSES = 5
NO_LABEL = "(no label)"


@dataclass(frozen=True)
class Outputs:
    """The files that were asked for, checked before any work is done.

    confusion: the matrix, as .csv or as a picture. per_class: a row a class. dump: see ``score_dump``. Raises
    ConfigError for what could not be written in the end.
    """

    confusion: Path | None = None
    per_class: Path | None = None
    dump: Path | None = None

    def __post_init__(self) -> None:
        for option, allowed in SUFFIXES.items():
            path = getattr(self, option)
            if path is None:
                continue
            shown = f"--{option.replace('_', '-')} {path}"
            if path.suffix.lower() not in allowed:
                raise ConfigError(f"{shown}: the name must end in {' or '.join(allowed)}")
            if not os.access(path.parent, os.W_OK):
                raise ConfigError(f"{shown}: cannot write to the folder {path.parent}; make it, or give another name")
        if self.confusion is not None and self.confusion.suffix.lower() == ".png":
            _check_matplotlib()

    def write(self, evaluation: Evaluation) -> None:
        """Write every file that was asked for, whole or not at all. Raises OutputError."""
        if self.confusion is not None:
            is_picture = self.confusion.suffix.lower() == ".png"
            _write(self.confusion, lambda file: (_draw if is_picture else _write_confusion)(evaluation, file))
        if self.per_class is not None:
            header = [each.name for each in fields(ClassReport)]
            rows = (asdict(each).values() for each in evaluation.per_class)
            _write(self.per_class, lambda file: _write_csv([header, *rows], file))
        if self.dump is not None:
            _write(self.dump, lambda file: pickle.dump(score_dump(evaluation), file))


def score_dump(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the scores as mmaction2 dumps them, one dict a video, in the order of the list.

    The keys are those of ``ActionDataSample.to_dict()`` in the newest mmaction2, which its report_accuracy.py reads
    (earlier 1.x had ``pred_scores.item`` and ``gt_labels.item``): ``pred_score`` (K,) float32, ``pred_label`` and
    ``gt_label`` (1,) int64, ``num_classes``; and ``filename``. What nobody said is 0, and the label of a video without
    one is -1. Source:
    https://github.com/open-mmlab/mmaction2/blob/main/mmaction/structures/action_data_sample.py
    """
    import torch

    scores = torch.from_numpy(np.nan_to_num(evaluation.scores))
    best, num_classes = best_classes(evaluation.scores), len(evaluation.classes.names)
    return [
        {
            "filename": path,
            "num_classes": num_classes,
            "pred_score": own.clone(),  # a view would be pickled with the whole table behind it
            "pred_label": torch.tensor([label if label < num_classes else -1]),
            "gt_label": torch.tensor([truth]),
        }
        for path, own, label, truth in zip(
            evaluation.paths, scores, best.tolist(), evaluation.classes.labels.tolist(), strict=True
        )
    ]


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the summary for people, a line for each thing worth knowing."""
    for name, text in _summary(evaluation):
        console.print(f"{name:<12}{escape(printable(_encodable(text)))}")


def _summary(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    metrics = evaluation.metrics
    yield "top-1", f"{_percent(metrics.top1)}, {metrics.hits.sum()} of {counted(len(evaluation.paths), 'video')}"
    yield "top-5", _percent(metrics.top5) if evaluation.has_top5 else "unknown"
    yield "mean class", f"{_percent(metrics.mean_class)}, over the classes of the list: {(metrics.videos > 0).sum()}"
    yield "no label", _failures(evaluation)
    yield from _circumstances(evaluation.metadata)
    for number, each in enumerate(evaluation.worst_classes(NAMED_CLASSES)):
        assert each.top1 is not None
        taken = f", {each.confused} labelled {each.confused_with}" if each.confused_with else ""
        text = f"{each.label}: {_percent(each.top1)} of {counted(each.videos, 'video')}{taken}"
        yield "" if number else "worst", text
    for note in evaluation.notes:
        yield "note", note


def _failures(evaluation: Evaluation) -> str:
    failures = evaluation.failures
    if not failures:
        return "0 videos"
    named = ", ".join(f"{path} ({status})" for path, status, _ in failures[:NAMED_FILES])
    more = f" and {len(failures) - NAMED_FILES} more" if len(failures) > NAMED_FILES else ""
    return f"{counted(len(failures), 'video')}, counted as wrong: {named}{more}"


def _circumstances(metadata: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was done, a name and words: the protocol, the weights, and what ran them."""
    settings = metadata["settings"]
    protocol = settings["protocol"]
    clips = "windows" if protocol["num_clips"] is None else counted(protocol["num_clips"], "clip")
    views = f"{clips} x {counted(protocol['num_crops'], 'crop')} at {protocol['crop_size']}"
    yield "protocol", f"{protocol['name']}: {views}, a row a {settings['level']}"
    if weights := metadata.get("weights"):
        yield "weights", f"{weights['name']} ({weights['sha256'][:12]})"
    if choice := metadata.get("choice"):
        yield "network", f"{choice['backend']} {choice['precision']} {choice['device']}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _encodable(text: str) -> str:
    """Return ``text`` with bytes that are not UTF-8, as names of folders may hold, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    with writing(path):
        replace_file(path, write)


def _write_csv(rows: Iterable[Iterable[Any]], file: IO[bytes]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write(_encodable(text.getvalue()).encode())


def _write_confusion(evaluation: Evaluation, file: IO[bytes]) -> None:
    names, counts = evaluation.classes.names, evaluation.metrics.confusion.tolist()
    rows = ([name, *row] for name, row in zip(names, counts, strict=True))
    _write_csv([["truth / prediction", *names, NO_LABEL], *rows], file)


def _check_matplotlib() -> None:
    """Raise ConfigError where there is nothing to draw with."""
    try:
        new_figure(1, 1)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ConfigError(
            "--confusion .png: needs matplotlib; pip install 'sqt-fast[train]', or give a .csv"
        ) from error


def _draw(evaluation: Evaluation, file: IO[bytes]) -> None:
    names = [_encodable(name) for name in evaluation.classes.names]
    draw_confusion(evaluation.metrics.confusion, names, [*names, NO_LABEL], file)
