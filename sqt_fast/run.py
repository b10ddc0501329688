"""One run of ``sqt-fast index``: label an archive into a table, losing nothing on the way."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqt_fast import __version__
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig, differences
from sqt_fast.engine.events import BatchSizeChanged, Begun, Event, Note, Report, VideoFinished, ignore
from sqt_fast.engine.results import EarlierRun, Summary, VideoResult, WeightsInfo
from sqt_fast.engine.supervisor import Labeller, Launch, supervised
from sqt_fast.errors import ConfigError, InterruptedRunError, OutputError, SqtError
from sqt_fast.network.class_names import read_labels
from sqt_fast.network.weights import check_name, weights_sha256
from sqt_fast.survey import estimate_clips, survey
from sqt_fast.table.ledger import Ledger
from sqt_fast.table.merge import Counts, count, merge
from sqt_fast.table.parts import Parts
from sqt_fast.table.rows import failed_row
from sqt_fast.table.schema import FORMATS, Row, read_metadata, to_table
from sqt_fast.versions import installed
from sqt_fast.video.archive import VideoFile, find_videos
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
    left_out: list[str] = []
    videos = find_videos(config.inputs, path_col=config.path_col, stdin=stdin, null=config.null, left_out=left_out)
    recipe = Recipe.of(config)
    settings = _settings(config, recipe, labels)
    with Parts(config.output) as parts:
        summary = _Run(config, recipe, videos[: config.limit], parts, report, launch).execute(settings)
    summary.other_files = len(left_out)
    summary.wall_s = time.perf_counter() - started
    return summary


def _settings(config: IndexConfig, recipe: Recipe, labels: Sequence[str] | None) -> dict[str, Any]:
    """Return what rows must have in common to share a table."""
    return {
        "weights_sha256": weights_sha256(config.weights),
        "labels_sha256": None if labels is None else hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        "protocol": asdict(recipe.protocol),
        **config.settings(),
    }


class _Run:
    """One run: what is there, what is to do, doing it, and the table."""

    def __init__(
        self,
        config: IndexConfig,
        recipe: Recipe,
        videos: list[VideoFile],
        parts: Parts,
        report: Report,
        launch: Launch,
    ) -> None:
        self.config, self.recipe, self.videos, self.parts = config, recipe, videos, parts
        self.report, self.launch = report, launch
        self.summary = Summary(output=str(config.output), videos=len(videos))
        self.settings: dict[str, Any] = {}
        self.waiting: list[Row] = []
        self.embedding_dim: int | None = None
        self.begun = self.last_flush = time.perf_counter()

    def execute(self, settings: dict[str, Any]) -> Summary:
        self.settings = settings
        base_metadata = self._base()
        base = [] if base_metadata is None else [self.config.output]
        ledger = Ledger([*base, *self.parts.files()])
        gone = ledger.gone(self.videos)
        todo = self._todo(ledger, gone)
        unfinished = self.parts.run
        metadata = unfinished["metadata"] if unfinished is not None else base_metadata
        hopeless = self._hopeless(todo, ledger) if metadata is not None else []
        settled = {result.video for result in hopeless}
        todo = [video for video in todo if video not in settled]
        if todo:
            metadata = self._label(todo, base_metadata, hopeless)
        elif hopeless:
            assert metadata is not None
            self._start(metadata)
            self.report(Begun(len(hopeless), self.summary.already_done))
            self._keep(hopeless)
        pruned = gone if self.config.prune else set()
        if metadata is not None and (self.parts.run is not None or pruned & ledger.done.keys()):
            self._finish([*base, *self.parts.files()], metadata, pruned)
        else:
            assert base, "nothing to do, and yet no table"
            self._say(f"{self.config.output} is complete and up to date: nothing to decode")
            self._take_counts(count(self.config.output))
        self.summary.labels_mean_nothing = bool((metadata or {}).get("labels_mean_nothing"))
        return self.summary

    # -- what is there ------------------------------------------------------------------------------------------------

    def _base(self) -> dict[str, Any] | None:
        """Return the metadata of the table that is there and stays; None if there is none or it is to be replaced."""
        unfinished = self.parts.run
        ours = unfinished is not None and unfinished["overwrite"] and unfinished["settings"] == self.settings
        if self.config.overwrite and not ours:
            self.parts.clear()
            unfinished = None
        if unfinished:
            self._same(unfinished["settings"], f"{self.parts.folder}, an unfinished run,")
        if self.config.overwrite or (unfinished and unfinished["overwrite"]) or not self.config.output.exists():
            return None
        if not FORMATS[self.config.output.suffix.lower()].can_grow:
            if unfinished:  # it was killed between writing the table and tidying up: the parts hold everything
                return None
            raise OutputError(
                f"output {self.config.output}: is there, and {self.config.output.suffix} cannot be added to; "
                "use --overwrite, or --out labels.parquet for a table that grows"
            )
        metadata = read_metadata(self.config.output)
        if metadata is None or "settings" not in metadata:
            raise OutputError(
                f"output {self.config.output}: not written by sqt-fast; choose another name or --overwrite"
            )
        self._same(metadata["settings"], str(self.config.output))
        return metadata

    def _same(self, old: dict[str, Any], what: str) -> None:
        if different := differences(old, self.settings):
            raise ConfigError(
                f"{what} was made with other settings: {'; '.join(different)}; use the same ones, another --out, or "
                "--overwrite to start anew"
            )

    def _todo(self, ledger: Ledger, gone: set[str]) -> list[VideoFile]:
        todo = ledger.todo(self.videos, gone, retry_failed=self.config.retry_failed)
        self.summary.vanished = len(gone)
        self.summary.already_done = len(self.videos) - len(todo)
        if gone:
            named = ", ".join(sorted(gone)[:NAMED_FILES])
            more = f" and {len(gone) - NAMED_FILES} more" if len(gone) > NAMED_FILES else ""
            then = "their rows are removed" if self.config.prune else "their rows stay (--prune removes them)"
            self._say(f"gone from disk: {named}{more}; {then}")
        return todo

    def _hopeless(self, todo: list[VideoFile], ledger: Ledger) -> list[VideoResult]:
        """Return the rows of those that failed before and still cannot be opened: they need no network."""
        again = [video for video in todo if video.name in ledger.failed]
        findings = survey(again, self.recipe) if again else ()
        return [VideoResult(f.video, [failed_row(f.video, f.error)]) for f in findings if f.error is not None]

    def _say(self, text: str) -> None:
        self.report(Note(text))

    # -- labelling ----------------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Pass on what the labeller reports while it works, and keep what a resumed run must know."""
        self.report(event)
        if isinstance(event, BatchSizeChanged) and (run := self.parts.run) is not None:
            run["metadata"]["choice"]["batch_size"] = event.batch_size  # a resumed run begins with it
            self.parts.start(run)

    def _label(
        self, todo: list[VideoFile], base_metadata: dict[str, Any] | None, finished: list[VideoResult]
    ) -> dict[str, Any]:
        """Label ``todo`` into parts, and keep what is finished without. Returns the metadata of the table."""
        started = time.perf_counter()
        with closing(self.launch(self.config, self.on_event)) as labeller:
            weights = self._load(labeller)
            unfinished = self.parts.run
            earlier = (unfinished["metadata"] if unfinished else base_metadata or {}).get("choice")
            decided = self.config.backend and self.config.precision
            num_clips = 0 if decided else estimate_clips(todo, self.recipe)  # for the choice
            choice = labeller.open(EarlierRun(earlier, whole=unfinished is not None), num_clips)
            metadata = self._metadata(weights, choice)
            self._start(metadata)
            self.summary.backend = f"{choice['backend']} {choice['precision']} {choice['device']}"
            self.summary.start_s = time.perf_counter() - started
            self.report(Begun(len(todo) + len(finished), self.summary.already_done))
            self._drain(labeller, todo, finished)
        return metadata

    def _load(self, labeller: Labeller) -> WeightsInfo:
        weights = labeller.load()
        if weights.meaningless:
            self._say("the weights are random, never trained: the labels of this table mean nothing")
        if weights.labels is None:
            raise ConfigError(f"--weights {self.config.weights}: a backbone without a classifier has nothing to say")
        if self.config.top_k > len(weights.labels):
            self._say(f"--top-k {self.config.top_k}: there are {len(weights.labels)} classes, all are kept")
        if self.config.stride_s is not None:
            self._say(
                f"--stride {self.config.stride_s:g}: windows start on the nearest multiple of {FRAME_INTERVAL} frames"
            )
        return weights

    def _start(self, metadata: dict[str, Any]) -> None:
        """Say in the parts folder what this run is about."""
        self.embedding_dim = metadata["embedding_dim"]
        overwrite = self.config.overwrite or (self.parts.run or {}).get("overwrite", False)
        self.parts.start({"settings": self.settings, "overwrite": overwrite, "metadata": metadata})

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

    def _drain(self, labeller: Labeller, todo: list[VideoFile], finished: list[VideoResult]) -> None:
        """Take every result; whatever ends this, the rows of finished videos are on disk."""
        try:
            try:
                self._keep(finished)
                with closing(labeller.label(todo)) as results:
                    for result in results:
                        self._take(result)
            finally:
                self._flush()
                self.summary.counters.add(labeller.take_counters())
        except KeyboardInterrupt as error:
            done = self.summary.labelled + self.summary.already_done
            raise InterruptedRunError(
                f"stopped: {done} of {len(self.videos)} videos are done and kept in {self.parts.folder}; "
                "run the same command again to go on"
            ) from error

    def _keep(self, results: list[VideoResult]) -> None:
        for result in results:
            self._take(result)
        self._flush()

    def _take(self, result: VideoResult) -> None:
        failure = result.failure
        if failure is not None and self.config.on_error == "fail":
            raise SqtError(f"{failure.path}: {failure.status}: {failure.error_message} (stopped by --on-error fail)")
        self.waiting += result.rows
        self.summary.labelled += 1
        self.summary.failed_now += failure is not None
        self.report(VideoFinished(result))
        now = time.perf_counter()
        if now - self.last_flush > min(MAX_FLUSH_S, max(1.0, 0.05 * (now - self.begun))):
            self._flush()

    def _flush(self) -> None:
        """Bring the rows of finished videos to disk."""
        started = time.perf_counter()
        if self.waiting:
            self.parts.add(to_table(self.waiting, self.embedding_dim))
            self.waiting.clear()
        self.last_flush = time.perf_counter()
        self.summary.write_s += self.last_flush - started

    # -- the table ----------------------------------------------------------------------------------------------------

    def _finish(self, sources: list[Path], metadata: dict[str, Any], pruned: set[str]) -> None:
        started = time.perf_counter()
        counts = merge(sources, self.config.output, metadata, without=pruned)
        if self.parts.run is not None:
            self.parts.remove()
        self.summary.pruned = len(pruned)
        self._take_counts(counts)
        self.summary.write_s += time.perf_counter() - started

    def _take_counts(self, counts: Counts) -> None:
        self.summary.rows, self.summary.failed, self.summary.failures = counts.rows, counts.failed, counts.failures
