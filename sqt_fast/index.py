"""``sqt-fast index``: label an archive into a table, losing nothing on the way."""

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from sqt_fast import __version__
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import BatchSizeChanged, ClipsLabelled, Event, Note, Report
from sqt_fast.engine.memory import plan_resources
from sqt_fast.engine.results import EarlierRun, RunCounters, Summary, VideoResult, WeightsInfo
from sqt_fast.engine.supervisor import Supervisor
from sqt_fast.errors import ConfigError, InterruptedRunError, OutputError, SqtError
from sqt_fast.survey import estimate_clips
from sqt_fast.table.ledger import Ledger
from sqt_fast.table.merge import Counts, count, merge
from sqt_fast.table.parts import Parts
from sqt_fast.table.schema import Row, read_metadata, to_table
from sqt_fast.versions import installed
from sqt_fast.video.archive import VideoFile, find_videos

VERSIONED = ("torch", "nvidia-dali-cuda130", "av", "numpy", "pyarrow")
MAX_FLUSH_S = 30.0


class Labeller(Protocol):
    """What labels videos: a ``supervisor.Supervisor``, or a ``worker.Worker`` in this very process."""

    def load(self) -> WeightsInfo:
        """Load the weights."""

    def open(self, earlier: EarlierRun, num_clips: int) -> dict[str, Any]:
        """Get ready and return the fields of the Choice."""

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video."""

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""

    def close(self) -> None:
        """Stop, whatever is being done."""


Launch = Callable[[IndexConfig, Report], Labeller]


class Watcher(Protocol):
    """Who is told how the run goes. See ``console.py``; tests use a silent one."""

    def note(self, text: str) -> None:
        """Say one line."""

    def begin(self, total: int, done: int) -> None:
        """``total`` videos, ``done`` of them in an earlier run."""

    def clips(self, count: int) -> None:
        """``count`` more clips are labelled."""

    def video(self, result: VideoResult) -> None:
        """One more video is finished."""


def supervised(config: IndexConfig, report: Report) -> Labeller:
    """Return a labeller in a process of its own."""
    return Supervisor(config, plan_resources(config.memory_bytes), report)


def index(config: IndexConfig, watcher: Watcher, *, stdin: Iterable[str] = (), launch: Launch = supervised) -> Summary:
    """Label every video of ``config.inputs`` into ``config.output``.

    Raises SqtError: ConfigError, CheckpointError, BackendError, OutputError, or InterruptedRunError after Ctrl-C.
    """
    started = time.perf_counter()
    videos = find_videos(config.inputs, path_col=config.path_col, stdin=stdin)
    with Parts(config.output) as parts:
        run = _Run(config, videos, parts, watcher)
        run.labeller = launch(config, run.on_event)
        try:
            summary = run.execute()
        finally:
            run.labeller.close()
    summary.wall_s = time.perf_counter() - started
    return summary


class _Run:
    """One run: what is there, what is to do, doing it, and the table."""

    labeller: Labeller

    def __init__(self, config: IndexConfig, videos: list[VideoFile], parts: Parts, watcher: Watcher) -> None:
        self.config, self.videos, self.parts, self.watcher = config, videos[: config.limit], parts, watcher
        self.summary = Summary(output=str(config.output), videos=len(self.videos))
        self.waiting: list[Row] = []
        self.begun = self.last_flush = time.perf_counter()

    def on_event(self, event: Event) -> None:
        """Take what the labeller reports while it works."""
        if isinstance(event, Note):
            self.watcher.note(event.text)
        elif isinstance(event, ClipsLabelled):
            self.watcher.clips(event.count)
        elif isinstance(event, BatchSizeChanged) and (run := self.parts.run) is not None:
            run["metadata"]["choice"]["batch_size"] = event.batch_size  # a resumed run begins with it
            self.parts.start(run)

    def execute(self) -> Summary:
        weights = self._load_weights()
        settings = self._settings(weights)
        base_metadata = self._base(settings)
        base = [] if base_metadata is None else [self.config.output]
        todo = self._todo([*base, *self.parts.files()])
        if todo:
            self._label(todo, weights, settings, base_metadata)
        unfinished = self.parts.run
        if unfinished is not None:
            self._finish([*base, *self.parts.files()], unfinished["metadata"])
        else:
            assert base, "nothing to do, and yet no table"
            self.watcher.note(f"{self.config.output} is complete and up to date: nothing to decode")
            self._take_counts(count(self.config.output))
        return self.summary

    def _load_weights(self) -> WeightsInfo:
        weights = self.labeller.load()
        if weights.meaningless:
            self.watcher.note("the weights are random, never trained: the labels of this table mean nothing")
            self.summary.labels_mean_nothing = True
        if weights.labels is None:
            raise ConfigError(f"--weights {self.config.weights}: a backbone without a classifier has nothing to say")
        return weights

    def _settings(self, weights: WeightsInfo) -> dict[str, Any]:
        labels = hashlib.sha256("\n".join(weights.labels or ()).encode()).hexdigest()
        return {"weights_sha256": weights.sha256, "labels_sha256": labels, **self.config.settings()}

    def _base(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the metadata of the table that is there and stays; None if there is none or it is to be replaced."""
        unfinished = self.parts.run
        ours = unfinished is not None and unfinished["overwrite"] and unfinished["settings"] == settings
        if self.config.overwrite and not ours:
            self.parts.clear()
            unfinished = None
        if unfinished:
            self._same(unfinished["settings"], settings, f"{self.parts.folder}, an unfinished run,")
        if self.config.overwrite or (unfinished and unfinished["overwrite"]) or not self.config.output.exists():
            return None
        metadata = read_metadata(self.config.output)
        if metadata is None or "settings" not in metadata:
            raise OutputError(
                f"output {self.config.output}: not written by sqt-fast; choose another name or --overwrite"
            )
        self._same(metadata["settings"], settings, str(self.config.output))
        return metadata

    def _same(self, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
        different = [f"{key} {old.get(key)} (now {new[key]})" for key in new if old.get(key) != new[key]]
        if different:
            raise OutputError(
                f"{what} was made with other settings: {', '.join(different)}; use the same ones, another --out, or "
                "--overwrite to start anew"
            )

    def _todo(self, sources: list[Path]) -> list[VideoFile]:
        ledger = Ledger(sources)
        gone = ledger.gone(self.videos)
        todo = ledger.todo(self.videos, gone, retry_failed=self.config.retry_failed)
        self.summary.vanished = len(gone)
        self.summary.already_done = len(self.videos) - len(todo)
        if self.summary.vanished:
            self.watcher.note(f"{self.summary.vanished} videos of the table are gone from disk; their rows stay")
        return todo

    def _label(
        self,
        todo: list[VideoFile],
        weights: WeightsInfo,
        settings: dict[str, Any],
        base_metadata: dict[str, Any] | None,
    ) -> None:
        """Label ``todo`` into parts."""
        started = time.perf_counter()
        unfinished = self.parts.run
        earlier = (unfinished["metadata"] if unfinished else base_metadata or {}).get("choice")
        num_clips = 0 if self.config.backend else estimate_clips(todo, Recipe.of(self.config))  # for the choice
        choice = self.labeller.open(EarlierRun(earlier, whole=unfinished is not None), num_clips)
        metadata = self._metadata(settings, weights, choice)
        overwrite = self.config.overwrite or (unfinished or {}).get("overwrite", False)
        self.parts.start({"settings": settings, "overwrite": overwrite, "metadata": metadata})
        self.summary.backend = f"{choice['backend']} {choice['precision']} {choice['device']}"
        self.embedding_dim = metadata["embedding_dim"]
        self.summary.start_s = time.perf_counter() - started
        self.watcher.begin(len(todo), self.summary.already_done)
        self._drain(todo)

    def _metadata(self, settings: dict[str, Any], weights: WeightsInfo, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "sqt_fast": __version__,
            "settings": settings,
            "weights": {"name": weights.name, "sha256": weights.sha256, "labels": weights.labels_source},
            "labels_mean_nothing": weights.meaningless,
            "choice": choice,
            "embedding_dim": weights.feature_channels if self.config.embeddings else None,
            "versions": installed(VERSIONED),
        }

    def _drain(self, todo: list[VideoFile]) -> None:
        """Take every result; whatever ends this, the rows of finished videos are on disk."""
        try:
            try:
                with closing(self.labeller.label(todo)) as results:
                    for result in results:
                        self._take(result)
            finally:
                self._flush()
                self.summary.counters.add(self.labeller.take_counters())
        except KeyboardInterrupt as error:
            done = self.summary.labelled + self.summary.already_done
            raise InterruptedRunError(
                f"stopped: {done} of {len(self.videos)} videos are done and kept in {self.parts.folder}; "
                "run the same command again to go on"
            ) from error

    def _take(self, result: VideoResult) -> None:
        failure = result.failure
        if failure is not None and self.config.on_error == "fail":
            raise SqtError(f"{failure.path}: {failure.status}: {failure.error_message} (stopped by --on-error fail)")
        self.waiting += result.rows
        self.summary.labelled += 1
        self.watcher.video(result)
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

    def _finish(self, sources: list[Path], metadata: dict[str, Any]) -> None:
        started = time.perf_counter()
        counts = merge(sources, self.config.output, metadata)
        self.parts.remove()
        self._take_counts(counts)
        self.summary.write_s += time.perf_counter() - started

    def _take_counts(self, counts: Counts) -> None:
        self.summary.rows, self.summary.failed, self.summary.failures = counts.rows, counts.failed, counts.failures
