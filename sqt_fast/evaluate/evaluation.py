"""One evaluation: the scores of a list's videos, from the network or from a table that is there, beside the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqt_fast.config import OFFICIAL, IndexConfig
from sqt_fast.engine.events import Event, Loaded, Report, ignore
from sqt_fast.errors import ConfigError, InterruptedRunError
from sqt_fast.evaluate.matching import Classes, match_classes
from sqt_fast.evaluate.metrics import Metrics, measure
from sqt_fast.evaluate.scores import TableScores, absolute, name_of, read_scores
from sqt_fast.network.class_names import read_labels
from sqt_fast.run import run
from sqt_fast.train.lists import LabelledVideos, read_list

OF_A_RUN = (
    "protocol",
    "output",
    "overwrite",
    "backend",
    "device",
    "precision",
    "batch_size",
    "decoder",
    "memory_bytes",
)
OPTIONS = {"output": "out", "memory_bytes": "memory"}  # options that are called otherwise


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything ``sqt-fast evaluate`` was asked for. None means "decide from the facts".

    source: a list of labelled videos (see ``lists.read_list``). weights: what labels them; or table: what
    ``sqt-fast index`` said of them. label_names: of the classes, by number, both of the list and of the weights. The
    other fields are those of ``IndexConfig``.
    """

    source: Path
    weights: str | None = None
    table: Path | None = None
    video_root: Path | None = None
    label_names: str | None = None
    protocol: str | None = None
    output: Path | None = None
    overwrite: bool = False
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    decoder: str | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.table is None):
            given = "neither is given" if self.weights is None else f"{self.weights} and {self.table}"
            raise ConfigError(
                f"--weights or --table: {given}; give --weights, which label the videos now, or a --table that "
                "sqt-fast index wrote"
            )
        if self.table is not None:
            for name in OF_A_RUN:
                if getattr(self, name) not in (None, False):
                    option = OPTIONS.get(name, name.replace("_", "-"))
                    raise ConfigError(f"--{option}: no network runs with --table; drop it, or give --weights")
        if self.output is not None and self.output.suffix.lower() != ".parquet":
            raise ConfigError(f"--out {self.output}: the name must end in .parquet, which can be read again")

    def run_config(self, output: Path) -> IndexConfig:
        """Return what is to be run: every class of every video, into ``output``. The paths come from stdin."""
        assert self.weights is not None
        return IndexConfig(
            inputs=("-",),
            output=output,
            weights=self.weights,
            labels=self.label_names,
            protocol=self.protocol or OFFICIAL.name,
            level="video",
            top_k=None,
            null=True,
            all_links=True,
            **{name: getattr(self, name) for name in OF_A_RUN if name not in ("protocol", "output")},
        )


@dataclass(frozen=True)
class ClassReport:
    """One class of an evaluation. Shares are None where there is nothing to share.

    top1: its recall. confused_with: what most of its videos that are labelled wrongly are labelled as, and how many.
    """

    label_id: int
    label: str
    videos: int
    without_label: int
    top1: float | None
    top5: float | None
    predicted: int
    precision: float | None
    confused_with: str | None
    confused: int


@dataclass(frozen=True)
class Evaluation:
    """What came out. N videos of the list, K classes.

    scores: (N, K) float32, NaN where none was said. num_kept: how many of the K classes each row of the table holds,
    None without such a row. failures: (path, as the table writes it, status, message) of the videos without a label.
    metadata: of the table. notes: sentences that a reader of the numbers should know.
    """

    paths: tuple[str, ...]
    classes: Classes
    scores: NDArray[np.float32]
    num_kept: int | None
    failures: tuple[tuple[str, str, str], ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...]

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted."""
        return measure(self.scores, self.classes.labels)

    @property
    def has_top5(self) -> bool:
        """Whether the table holds enough classes to say which are among the 5 best."""
        return self.num_kept is None or self.num_kept >= min(5, len(self.classes.names))

    @cached_property
    def per_class(self) -> tuple[ClassReport, ...]:
        """The K classes, by number."""
        metrics, names = self.metrics, self.classes.names
        wrong = metrics.confusion[:, :-1].copy()
        np.fill_diagonal(wrong, 0)
        top5 = metrics.top5_hits / np.where(metrics.videos > 0, metrics.videos, np.nan)
        return tuple(
            ClassReport(
                label_id=number,
                label=name,
                videos=int(metrics.videos[number]),
                without_label=int(metrics.confusion[number, -1]),
                top1=_share(metrics.recall[number]),
                top5=_share(top5[number]) if self.has_top5 else None,
                predicted=int(metrics.predicted[number]),
                precision=_share(metrics.precision[number]),
                confused_with=names[wrong[number].argmax()] if wrong[number].any() else None,
                confused=int(wrong[number].max()),
            )
            for number, name in enumerate(names)
        )

    def worst_classes(self, count: int) -> list[ClassReport]:
        """Return the ``count`` classes of the lowest recall, worst first, but none without a mistake."""
        found = [(each.top1, each) for each in self.per_class if each.top1 is not None and each.top1 < 1]
        return [each for _, each in sorted(found, key=lambda pair: pair[0])[:count]]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        metrics, settings = self.metrics, self.metadata["settings"]
        return {
            "top1": metrics.top1,
            "top5": metrics.top5 if self.has_top5 else None,
            "mean_class": metrics.mean_class,
            "videos": len(self.paths),
            "failed": len(self.failures),
            "failures": [dict(zip(("path", "status", "error_message"), each, strict=True)) for each in self.failures],
            "classes": len(self.classes.names),
            "classes_with_videos": int((metrics.videos > 0).sum()),
            "protocol": settings["protocol"],
            "level": settings["level"],
            **{name: self.metadata.get(name) for name in ("weights", "choice", "versions")},
            "notes": list(self.notes),
        }


def evaluate(config: EvaluateConfig, report: Report = ignore) -> Evaluation:
    """Evaluate as ``config`` says. report: is told how the run goes.

    Raises ConfigError, and what ``sqt_fast.run.run`` raises. Videos that cannot be labelled are counted as wrong.
    """
    names = None if config.label_names is None else read_labels(config.label_names)
    videos = read_list(config.source, root=config.video_root, names=names)
    if config.table is not None:
        return judge(videos, config.table)
    with _place(config.output) as output:
        _label(config, output, videos, report)
        return judge(videos, output)


def judge(videos: LabelledVideos, table: Path) -> Evaluation:
    """Evaluate what ``table`` says of ``videos``. Raises ConfigError if it has none, or none of their classes."""
    paths = tuple(map(absolute, videos.paths))
    found = read_scores(table, set(paths))
    if all(status == "not_in_table" for status, _ in found.failures.values()) and not found.rows:
        raise ConfigError(
            f"table {table}: has none of the {len(paths)} videos of the list, such as {paths[0]} (it has "
            f"{found.example or 'no video'}); give the table of these videos, or --video-root"
        )
    classes = match_classes(videos, found.names, complete=found.is_complete)
    return Evaluation(
        paths=paths,
        classes=classes,
        scores=found.of(paths, len(classes.names)),
        num_kept=found.num_kept,
        failures=tuple((name_of(path), *found.failures[path]) for path in paths if path in found.failures),
        metadata=found.metadata,
        notes=tuple(_notes(found, classes)),
    )


def _notes(found: TableScores, classes: Classes) -> Iterator[str]:
    kept = found.num_kept
    if found.metadata.get("labels_mean_nothing"):
        yield "the weights are random, never trained: these numbers mean nothing"
    if kept is not None and kept < min(5, len(classes.names)):
        yield f"top-5 needs a table with --top-k 5 or more; this one has the best {kept}"
    if kept is not None and kept < len(classes.names) and any(len(rows) > 1 for rows in found.rows.values()):
        yield f"approximate: scores are means over windows, in which all but the best {kept} classes count as 0"
    if classes.unknown:
        yield f"classes of the list that no row of the table names: {', '.join(classes.unknown)}"


@contextmanager
def _place(output: Path | None) -> Iterator[Path]:
    """Yield where the table goes: where it was wanted, or into a folder that is gone in the end."""
    if output is not None:
        yield output
        return
    with TemporaryDirectory(prefix="sqt-fast-") as folder:
        yield Path(folder) / "labels.parquet"


def _label(config: EvaluateConfig, output: Path, videos: LabelledVideos, report: Report) -> None:
    """Run the network over ``videos``, unless their classes are not those of the weights."""

    def check_classes(event: Event) -> None:
        if isinstance(event, Loaded):
            match_classes(videos, dict(enumerate(event.labels)), complete=True)
        report(event)

    try:
        run(config.run_config(output), check_classes, stdin=map(absolute, videos.paths))
    except InterruptedRunError as error:
        if config.output is not None:
            raise
        raise InterruptedRunError("stopped: nothing is kept without --out, with which it could go on") from error


def _share(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
