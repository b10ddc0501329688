"""``sqt-fast index``: label an archive into a table, losing nothing on the way."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from sqt_fast import __version__
from sqt_fast.archive import VideoFile, find_videos
from sqt_fast.backends import Backend
from sqt_fast.choose import Choice, choose, find_device, open_backend
from sqt_fast.config import IndexConfig
from sqt_fast.errors import ConfigError, InterruptedRunError, OutputError, SqtError
from sqt_fast.ledger import Ledger
from sqt_fast.parts import Parts
from sqt_fast.rows import RowStyle
from sqt_fast.summary import Summary, Watcher
from sqt_fast.survey import estimate_clips
from sqt_fast.table import Row, Table, join, read_table, to_table, write_table
from sqt_fast.versions import installed
from sqt_fast.worker import Recipe, VideoResult, Worker
from sqt_fast.zoo import Weights, load_weights

VERSIONED = ("torch", "nvidia-dali-cuda130", "av", "numpy", "pyarrow")
MAX_DECODERS = 16
MAX_FLUSH_S = 30.0


def index(config: IndexConfig, watcher: Watcher, *, stdin: Iterable[str] = ()) -> Summary:
    """Label every video of ``config.inputs`` into ``config.output``.

    Raises SqtError: ConfigError, CheckpointError, BackendError, OutputError, or InterruptedRunError after Ctrl-C.
    """
    started = time.perf_counter()
    videos = find_videos(config.inputs, path_col=config.path_col, stdin=stdin)
    with Parts(config.output) as parts:
        run = _Run(config, videos, parts, watcher)
        summary = run.execute()
    summary.wall_s = time.perf_counter() - started
    return summary


class _Run:
    """One run: what is there, what is to do, doing it, and the table."""

    def __init__(self, config: IndexConfig, videos: list[VideoFile], parts: Parts, watcher: Watcher) -> None:
        self.config, self.videos, self.parts, self.watcher = config, videos[: config.limit], parts, watcher
        self.summary = Summary(output=str(config.output), videos=len(self.videos))
        self.waiting: list[Row] = []
        self.begun = self.last_flush = time.perf_counter()

    def execute(self) -> Summary:
        weights = self._load_weights()
        settings = self._settings(weights)
        base, base_metadata = self._base(settings)
        todo = self._todo(base)
        if todo:
            self._label(todo, weights, settings, base_metadata)
        unfinished = self.parts.run
        if unfinished is not None:
            self._finish(base, unfinished["metadata"])
        else:
            assert base is not None, "nothing to do, and yet no table"
            self.watcher.note(f"{self.config.output} is complete and up to date: nothing to decode")
            self._count_rows(base)
        return self.summary

    def _load_weights(self) -> Weights:
        weights = load_weights(self.config.weights, labels=self.config.labels)
        if weights.meaningless:
            self.watcher.note("the weights are random, never trained: the labels of this table mean nothing")
            self.summary.labels_mean_nothing = True
        if weights.labels is None:
            raise ConfigError(f"--weights {self.config.weights}: a backbone without a classifier has nothing to say")
        return weights

    def _settings(self, weights: Weights) -> dict[str, Any]:
        labels = hashlib.sha256("\n".join(weights.labels or ()).encode()).hexdigest()
        return {"weights_sha256": weights.sha256, "labels_sha256": labels, **self.config.settings()}

    def _base(self, settings: dict[str, Any]) -> tuple[Table | None, dict[str, Any] | None]:
        """Return the table that is there and stays, and its metadata; None if there is none or it is to be replaced."""
        unfinished = self.parts.run
        ours = unfinished is not None and unfinished["overwrite"] and unfinished["settings"] == settings
        if self.config.overwrite and not ours:
            self.parts.clear()
            unfinished = None
        if unfinished:
            self._same(unfinished["settings"], settings, f"{self.parts.folder}, an unfinished run,")
        if self.config.overwrite or (unfinished and unfinished["overwrite"]) or not self.config.output.exists():
            return None, None
        table, metadata = read_table(self.config.output)
        if metadata is None or "settings" not in metadata:
            raise OutputError(
                f"output {self.config.output}: not written by sqt-fast; choose another name or --overwrite"
            )
        self._same(metadata["settings"], settings, str(self.config.output))
        return table, metadata

    def _same(self, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
        different = [f"{key} {old.get(key)} (now {new[key]})" for key in new if old.get(key) != new[key]]
        if different:
            raise OutputError(
                f"{what} was made with other settings: {', '.join(different)}; use the same ones, another --out, or "
                "--overwrite to start anew"
            )

    def _todo(self, base: Table | None) -> list[VideoFile]:
        ledger = Ledger([*([] if base is None else [base]), *self.parts.tables()])
        gone = ledger.gone(self.videos)
        todo = ledger.todo(self.videos, gone, retry_failed=self.config.retry_failed)
        self.summary.vanished = len(gone)
        self.summary.already_done = len(self.videos) - len(todo)
        if self.summary.vanished:
            self.watcher.note(f"{self.summary.vanished} videos of the table are gone from disk; their rows stay")
        return todo

    def _label(
        self, todo: list[VideoFile], weights: Weights, settings: dict[str, Any], base_metadata: dict[str, Any] | None
    ) -> None:
        """Label ``todo`` into parts."""
        started = time.perf_counter()
        recipe = Recipe.of(self.config)
        choice, backend = self._open_backend(todo, weights, recipe, base_metadata)
        metadata = self._metadata(settings, weights, choice)
        unfinished = self.parts.run or {}
        overwrite = self.config.overwrite or unfinished.get("overwrite", False)
        self.parts.start({"settings": settings, "overwrite": overwrite, "metadata": metadata})
        self.summary.backend = f"{choice.backend} {choice.precision} {choice.device}"
        cores = os.cpu_count() or 1
        num_decoders = max(1, min(cores, len(todo), MAX_DECODERS))
        worker = Worker(
            backend,
            recipe,
            RowStyle(weights.labels or (), self.config.top_k, self.config.per_window),
            batch_size=choice.batch_size,
            num_decoders=num_decoders,
            threads_per_decoder=max(1, cores // num_decoders),
            embeddings=self.config.embeddings,
            on_clips=self.watcher.clips,
        )
        self.embedding_dim = metadata["embedding_dim"]
        self.summary.tally = worker.tally
        self.summary.start_s = time.perf_counter() - started
        self.watcher.begin(len(todo), self.summary.already_done)
        self._drain(worker, todo)

    def _open_backend(
        self, todo: list[VideoFile], weights: Weights, recipe: Recipe, base_metadata: dict[str, Any] | None
    ) -> tuple[Choice, Backend]:
        """Open what was chosen: an unfinished run keeps its choice, a table its precision, so that rows agree."""
        config, size = self.config, recipe.protocol.crop_size
        device = find_device(config.device)
        unfinished = self.parts.run
        earlier = (unfinished["metadata"] if unfinished else base_metadata or {}).get("choice")
        if earlier is not None and earlier["device"] != device:
            earlier = None
        if unfinished and earlier:
            choice = replace(Choice(**earlier), batch_size=config.batch_size or earlier["batch_size"])
        else:
            if earlier:
                config = replace(config, precision=earlier["precision"])
            choice = choose(config, weights.model, num_clips=estimate_clips(todo, recipe), size=size)
        choice, backend = open_backend(choice, weights.model, size=size, may_fall_back=config.backend is None)
        self.watcher.note(f"{choice.backend} {choice.precision} on {choice.device}: {choice.reason}")
        return choice, backend

    def _metadata(self, settings: dict[str, Any], weights: Weights, choice: Choice) -> dict[str, Any]:
        return {
            "sqt_fast": __version__,
            "settings": settings,
            "weights": {"name": weights.name, "sha256": weights.sha256, "labels": weights.labels_source},
            "labels_mean_nothing": weights.meaningless,
            "choice": asdict(choice),
            "embedding_dim": weights.model.config.feature_channels if self.config.embeddings else None,
            "versions": installed(VERSIONED),
        }

    def _drain(self, worker: Worker, todo: list[VideoFile]) -> None:
        try:
            with closing(worker.label(todo)) as results:
                for result in results:
                    self._take(result)
        except KeyboardInterrupt as error:
            self._flush()
            done = self.summary.labelled + self.summary.already_done
            raise InterruptedRunError(
                f"stopped: {done} of {len(self.videos)} videos are done and kept in {self.parts.folder}; "
                "run the same command again to go on"
            ) from error
        self._flush()

    def _take(self, result: VideoResult) -> None:
        failure = result.failure
        if failure is not None and self.config.on_error == "fail":
            self._flush()
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

    def _finish(self, base: Table | None, metadata: dict[str, Any]) -> None:
        started = time.perf_counter()
        tables = [*([] if base is None else [base]), *self.parts.tables()]
        whole = join(tables)
        write_table(whole, self.config.output, metadata)
        self.parts.remove()
        self._count_rows(whole)
        self.summary.write_s += time.perf_counter() - started

    def _count_rows(self, table: Table) -> None:
        self.summary.rows = table.num_rows
        failures = {
            p: s for p, s in zip(table["path"].to_pylist(), table["status"].to_pylist(), strict=True) if s != "ok"
        }
        self.summary.failed = len(failures)
        self.summary.failures = dict(Counter(failures.values()).most_common())
