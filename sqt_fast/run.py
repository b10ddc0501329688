"""One run of ``sqt-fast index``: label an archive into a table, losing nothing on the way."""

import hashlib
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from sqt_fast import __version__
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig, differences
from sqt_fast.engine.events import BatchSizeChanged, Begun, Event, Loaded, Note, Report, VideoFinished, ignore
from sqt_fast.engine.results import EarlierRun, Summary, VideoResult, WeightsInfo
from sqt_fast.engine.supervisor import Labeller, Launch, supervised
from sqt_fast.errors import ConfigError, InterruptedRunError, OutputError, SqtError
from sqt_fast.network.class_names import read_labels
from sqt_fast.network.weights import check_name, weights_sha256
from sqt_fast.survey import estimate_clips, survey, videos_of
from sqt_fast.table.ledger import Ledger
from sqt_fast.table.merge import merge
from sqt_fast.table.parts import Parts
from sqt_fast.table.rows import failed_row
from sqt_fast.table.schema import CAN_GROW, Row, read_metadata, to_table
from sqt_fast.versions import installed
from sqt_fast.video.archive import LeftOut, VideoFile
from sqt_fast.video.sampling import FRAME_INTERVAL

VERSIONED = ("torch", "nvidia-dali-cuda130", "av", "numpy", "opencv-python-headless", "pyarrow")
MAX_FLUSH_S = 30.0
NAMED_FILES = 5  # of many, so many are named


def run(
    config: IndexConfig, report: Report = ignore, *, stdin: Iterable[str] = (), launch: Launch = supervised
) -> Summary:
    """Label every video of ``config.inputs`` into ``config.output``. report: is told how it goes.

    Raises SqtError: ConfigError, CheckpointError, BackendError, OutputError, or InterruptedRunError after Ctrl-C.
    """
    started = time.perf_counter()
    check_name(config.weights)
    labels = None if config.labels is None else read_labels(config.labels)
    left_out = LeftOut()
    videos = videos_of(config, stdin, left_out)
    recipe = Recipe.of(config)
    settings = {  # what rows must have in common to share a table
        "weights_sha256": weights_sha256(config.weights),
        "labels_sha256": None if labels is None else hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        "protocol": asdict(recipe.protocol),
        **config.settings(),
    }
    with Parts(config.output) as parts:
        summary = _Run(config, recipe, settings, parts, report).execute(videos, launch)
    summary.other_files, summary.links = len(left_out.other_files), len(left_out.links)
    summary.wall_s = time.perf_counter() - started
    return summary


class _Run:
    """One run: what is there, what is to do, doing it, and the table."""

    def __init__(
        self, config: IndexConfig, recipe: Recipe, settings: dict[str, Any], parts: Parts, report: Report
    ) -> None:
        self.config, self.recipe, self.settings, self.parts, self.report = config, recipe, settings, parts, report
        self.summary = Summary(output=str(config.output))
        self.unfinished, self.overwrite = parts.run, config.overwrite
        self.metadata: dict[str, Any] = {}  # of the table that is there, or that comes; empty while there is none
        self.waiting: list[Row] = []
        self.begun = self.last_flush = time.perf_counter()

    def execute(self, videos: list[VideoFile], launch: Launch) -> Summary:
        """Label those of ``videos`` that have no rows yet, and bring the table up to date."""
        base, summary = self._base(), self.summary
        ledger = Ledger([*base, *self.parts.files()])
        gone = ledger.gone(videos)
        todo = ledger.todo(videos, gone, retry_failed=self.config.retry_failed)
        summary.videos, summary.already_done, summary.vanished = len(videos), len(videos) - len(todo), len(gone)
        self._name(gone)
        hopeless = self._hopeless([video for video in todo if video.name in ledger.failed])
        settled = {result.video for result in hopeless}
        todo = [video for video in todo if video not in settled]
        if todo:
            self._label(todo, hopeless, launch)
        elif hopeless:
            self._begin(len(hopeless))
            self._keep(hopeless)
        pruned = gone if self.config.prune else set()
        if todo or hopeless or pruned or self.unfinished:
            self._merge(base, pruned)
        else:
            self.report(Note(f"{self.config.output} is complete and up to date: nothing to decode"))
            summary.count(ledger.num_rows, ledger.failed.values())
        summary.labels_mean_nothing = bool(self.metadata.get("labels_mean_nothing"))
        return summary

    # -- what is there ------------------------------------------------------------------------------------------------

    def _base(self) -> list[Path]:
        """Return the table that is there and stays; nothing if there is none or it is to be replaced.

        Raises OutputError, or ConfigError where its settings, or those of an unfinished run, are others.
        """
        output, unfinished = self.config.output, self.unfinished
        same = unfinished and unfinished["overwrite"] and unfinished["metadata"]["settings"] == self.settings
        if self.overwrite and not same:
            self.parts.clear()
            self.unfinished = unfinished = None
        if unfinished:
            self.metadata = unfinished["metadata"]
            self.overwrite |= unfinished["overwrite"]
            _agree(self.metadata["settings"], self.settings, f"{self.parts.folder}, an unfinished run,")
        if self.overwrite or not output.exists():
            return []
        if output.suffix.lower() not in CAN_GROW:
            if unfinished:  # it was killed between writing the table and tidying up: the parts hold everything
                return []
            raise OutputError(
                f"output {output}: is there, and {output.suffix} cannot be added to; "
                "use --overwrite, or --out labels.parquet for a table that grows"
            )
        metadata = read_metadata(output)
        if metadata is None or "settings" not in metadata:
            raise OutputError(f"output {output}: not written by sqt-fast; choose another name or --overwrite")
        _agree(metadata["settings"], self.settings, str(output))
        self.metadata = self.metadata or metadata
        return [output]

    def _name(self, gone: set[str]) -> None:
        """Say which videos of the table are gone from disk."""
        if gone:
            named = ", ".join(sorted(gone)[:NAMED_FILES])
            more = f" and {len(gone) - NAMED_FILES} more" if len(gone) > NAMED_FILES else ""
            then = "their rows are removed" if self.config.prune else "their rows stay (--prune removes them)"
            self.report(Note(f"gone from disk: {named}{more}; {then}"))

    def _hopeless(self, again: list[VideoFile]) -> list[VideoResult]:
        """Return the rows of those that failed before and still cannot be opened: they need no network."""
        findings = survey(again, self.recipe) if again else ()
        return [VideoResult(f.video, [failed_row(f.video, f.error)]) for f in findings if f.error is not None]

    # -- labelling ----------------------------------------------------------------------------------------------------

    def _label(self, todo: list[VideoFile], hopeless: list[VideoResult], launch: Launch) -> None:
        """Label ``todo`` into parts, beside what is finished without."""
        started = time.perf_counter()
        with closing(launch(self.config, self._on_event)) as labeller:
            weights = self._load(labeller)
            decided = self.config.backend and self.config.precision
            num_clips = 0 if decided else estimate_clips(todo, self.recipe)  # for the choice
            earlier = EarlierRun(self.metadata.get("choice"), whole=self.unfinished is not None)
            choice = labeller.open(earlier, num_clips)
            self.metadata = self._metadata(weights, choice)
            self.summary.backend = f"{choice['backend']} {choice['precision']} {choice['device']}"
            self.summary.start_s = time.perf_counter() - started
            self._begin(len(todo) + len(hopeless))
            try:
                with closing(labeller.label(todo)) as results:
                    self._keep(chain(hopeless, results))
            except KeyboardInterrupt as error:
                done = self.summary.labelled + self.summary.already_done
                raise InterruptedRunError(
                    f"stopped: {done} of {self.summary.videos} videos are done and kept in {self.parts.folder}; "
                    "run the same command again to go on"
                ) from error
            finally:
                self.summary.counters.add(labeller.take_counters())

    def _load(self, labeller: Labeller) -> WeightsInfo:
        weights = labeller.load()
        if weights.meaningless:
            self.report(Note("the weights are random, never trained: the labels of this table mean nothing"))
        if weights.labels is None:
            raise ConfigError(f"--weights {self.config.weights}: a backbone without a classifier has nothing to say")
        self.report(Loaded(weights.labels))
        if self.config.top_k is not None and self.config.top_k > len(weights.labels):
            self.report(Note(f"--top-k {self.config.top_k}: there are {len(weights.labels)} classes, all are kept"))
        if self.config.stride_s is not None:
            nearest = f"windows start on the nearest multiple of {FRAME_INTERVAL} frames"
            self.report(Note(f"--stride {self.config.stride_s:g}: {nearest}"))
        return weights

    def _metadata(self, weights: WeightsInfo, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "sqt_fast": __version__,
            "settings": self.settings,
            "weights": {"name": weights.name, "sha256": weights.sha256, "labels": weights.labels_source},
            "labels_mean_nothing": weights.meaningless,
            "choice": choice,
            "embedding_dim": weights.feature_channels if self.config.embeddings else None,
            "versions": installed(VERSIONED),
        }

    def _begin(self, total: int) -> None:
        self._remember()
        self.report(Begun(total, self.summary.already_done))

    def _remember(self) -> None:
        """Say in the parts folder what this run is about, for one that goes on."""
        self.parts.start({"overwrite": self.overwrite, "metadata": self.metadata})

    def _on_event(self, event: Event) -> None:
        """Pass on what the labeller reports while it works."""
        if isinstance(event, BatchSizeChanged):
            self.metadata["choice"]["batch_size"] = event.batch_size  # a resumed run begins with it
            self._remember()
        self.report(event)

    def _keep(self, results: Iterable[VideoResult]) -> None:
        """Take every result; whatever ends this, the rows of finished videos are on disk."""
        try:
            for result in results:
                self._take(result)
        finally:
            self._flush()

    def _take(self, result: VideoResult) -> None:
        row = result.failure
        failure = None if row is None else f"{row.path}: {row.status}: {row.error_message}"
        if failure is not None and self.config.on_error == "fail":
            raise SqtError(f"{failure} (stopped by --on-error fail)")
        self.waiting += result.rows
        self.summary.labelled += 1
        self.summary.failed_now += failure is not None
        self.report(VideoFinished(result.video.name, result.duration_s, failure))
        now = time.perf_counter()
        if now - self.last_flush > min(MAX_FLUSH_S, max(1.0, 0.05 * (now - self.begun))):
            self._flush()

    def _flush(self) -> None:
        """Bring the rows of finished videos to disk."""
        started = time.perf_counter()
        if self.waiting:
            self.parts.add(to_table(self.waiting, self.metadata["embedding_dim"]))
            self.waiting.clear()
        self.last_flush = time.perf_counter()
        self.summary.write_s += self.last_flush - started

    # -- the table ----------------------------------------------------------------------------------------------------

    def _merge(self, base: list[Path], pruned: set[str]) -> None:
        started = time.perf_counter()
        counts = merge([*base, *self.parts.files()], self.config.output, self.metadata, without=pruned)
        self.parts.remove()
        self.summary.pruned = len(pruned)
        self.summary.count(counts.rows, counts.failed.values())
        self.summary.write_s += time.perf_counter() - started


def _agree(old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    """Raise ConfigError where settings are others than those that the rows of ``what`` were made with."""
    if different := differences(old, new):
        raise ConfigError(
            f"{what} was made with other settings: {'; '.join(different)}; use the same ones, another --out, or "
            "--overwrite to start anew"
        )
