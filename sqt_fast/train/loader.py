"""Batches of clips, epoch after epoch, from any place on: what the training loop iterates over."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sqt_fast.errors import SqtError
from sqt_fast.pipelines.dali_errors import in_words
from sqt_fast.train.clip_source import ClipSource
from sqt_fast.train.erase import erase

log = logging.getLogger(__name__)

# Batches that the graph's decoder may fail at before it is given up: each costs two starts of a pipeline.
MAX_REFUSED = 20

# Clips (B, 48, S, S), erased (B, 4), noise, labels, items (B,), and the failures of each clip as text.
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[bytes]]


class Batch(NamedTuple):
    """clips (B, 48, S, S) float32, normalised; labels, items (B,) int64: class, and number in the list.

    B is the batch size, but in a validation, where what cannot be read is left out, and the last batch holds what is
    left, or nothing.
    """

    clips: Tensor
    labels: Tensor
    items: Tensor


class Clips(Protocol):
    """What ``pipelines.train.ClipPipeline`` is."""

    def run(self) -> Results: ...
    def close(self) -> None: ...


class ClipLoader:
    """Iterates over the batches of an epoch; each ``iter`` is the next epoch's, or what a loaded state says.

    open_pipeline: makes the pipeline of a source. failures: path -> reason, of every video that could not be read so
    far. Where a pipeline fails, its batch is made anew by another one, without decoding in the graph: what a GPU cannot
    decode the host may, and a worker process that the system killed was not to blame.
    """

    def __init__(self, source: ClipSource, open_pipeline: Callable[[ClipSource], Clips]) -> None:
        self.source, self.open_pipeline = source, open_pipeline
        self.failures: dict[str, str] = {}
        self._pipeline: Clips | None = None
        self._batch = source.first_batch  # the next to hand out, from the start of the first epoch
        self._at: int | None = None  # the next that the pipeline gives
        self._refused = 0

    def __len__(self) -> int:
        return self.source.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, that is, what was handed out so far, and what it met."""
        return {"batch": self._batch, "failures": dict(self.failures)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another loader of the same list, batch size and seed was."""
        self._batch = int(state["batch"])
        self.failures = dict(state["failures"])

    def start_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, also of one whose ``iter`` has not been asked for a batch yet."""
        self._batch = epoch * len(self)

    def __iter__(self) -> Iterator[Batch]:
        end = (self._batch // len(self) + 1) * len(self)
        while self._batch < end:
            batch = self._next()
            self._batch += 1
            yield batch

    def close(self) -> None:
        """Stop the worker processes."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = self._at = None

    def _next(self) -> Batch:
        clips, erased, noise, labels, items, failures = self._run()
        for text in failures:
            self._note(text)
        erase(clips, erased, noise)
        kept: slice | list[int] = slice(None)
        if not self.source.training:
            kept = [place for place in range(self._num_left()) if not failures[place]]
            kept = slice(len(kept)) if kept == list(range(len(kept))) else kept  # most often: nothing is copied
        return Batch(clips[kept], labels[kept].to(clips.device), items[kept])

    def _num_left(self) -> int:
        """Return how many clips of this batch there are in the list."""
        _, place = replace(self.source, first_batch=self._batch).place(0)
        return min(max(len(self.source.videos) - place, 0), self.source.batch_size)

    def _run(self) -> Results:
        if self._at != self._batch or self._pipeline is None:
            self._pipeline = self._open(self.source)
        try:
            results = self._pipeline.run()
            self._at = self._batch + 1
        except RuntimeError as error:
            results = self._run_again(in_words(error))
        return results

    def _run_again(self, reason: str) -> Results:
        host = replace(self.source, codecs=frozenset())
        if self.source.codecs:
            self._refused += 1
        if self._refused == MAX_REFUSED:
            self.source = host
        for_good = " from now on" if self._refused == MAX_REFUSED else ""
        log.warning("a batch is made again, decoded by the host%s: %s", for_good, reason)
        self._pipeline = self._open(host)
        try:
            results = self._pipeline.run()
        except RuntimeError as error:
            raise SqtError(
                f"clips cannot be made: {in_words(error)}; the same command goes on from the last checkpoint"
            ) from error
        self._at = self._batch + 1 if self.source == host else None
        return results

    def _open(self, source: ClipSource) -> Clips:
        self.close()
        return self.open_pipeline(replace(source, first_batch=self._batch))

    def _note(self, text: bytes) -> None:
        """text: see ``Sample.failures``."""
        for line in filter(None, text.decode("utf-8", "replace").split("\n")):
            number, _, reason = line.partition("\t")
            path = self.source.videos.paths[int(number)]
            if path not in self.failures:
                self.failures[path] = reason
                instead = "another video stands for it" if self.source.training else "it is left out"
                log.warning("%s: %s; %s", path, reason, instead)


def open_clips(*, device_id: int | None, num_workers: int, num_threads: int) -> Callable[[ClipSource], Clips]:
    """Return what opens DALI's pipelines on a CUDA device, or with None on the CPU."""

    def open_pipeline(source: ClipSource) -> Clips:
        from sqt_fast.pipelines.train import ClipPipeline  # here: its import takes a while

        return ClipPipeline(source, device_id=device_id, num_workers=num_workers, num_threads=num_threads)

    return open_pipeline
