"""Threads ask for one segment each; they are decoded together, as the GPU's decoders want it.

A dispatcher thread for each pipeline takes what waits. What goes wrong with one segment reaches the thread that asked
for it and no other. Importing this imports no torch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sqt_fast.engine.events import Note, Report, ignore
from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.errors import DeviceLostError, SqtError
from sqt_fast.pipelines.dali_errors import in_words
from sqt_fast.pipelines.sample import SegmentSample

if TYPE_CHECKING:
    from torch import Tensor

# Several pipelines hide the end of each other's batches, where decoders wait for the longest segment.
NUM_PIPELINES = 2
BATCH_SIZE = 32
MAX_BATCH_BYTES = 8 << 30
# So many samples of a batch are decoded at once; twice the 7 decoders of an H100 or H200.
NUM_THREADS = 14
# A batch takes seconds. After this long a driver hangs, or a stream that it cannot digest.
HANG_S = 120.0
_GATHER_S, _POLL_S, _CLOSE_S = 0.003, 1.0, 5.0


class SegmentError(SqtError):
    """A segment that could not be decoded on this route. The CPU's decoder may still be able to."""


class Pipeline(Protocol):
    """What ``pipelines.decode.SegmentPipeline`` is."""

    def run(self, samples: Sequence[SegmentSample]) -> "list[Tensor]": ...
    def release_memory(self) -> None: ...


def gpu_pipelines(
    short_side: int, *, device_id: int | None, num_threads: int = NUM_THREADS
) -> Callable[[int], Pipeline]:
    """Return what makes pipelines of a batch size, on a CUDA device, or with None on the CPU (VP8 and VP9 only)."""

    def make_pipeline(batch_size: int) -> Pipeline:
        from sqt_fast.pipelines.decode import SegmentPipeline  # here: its import takes a while, beside the network

        threads = min(num_threads, batch_size)
        return SegmentPipeline(short_side, device_id=device_id, batch_size=batch_size, num_threads=threads)

    return make_pipeline


@dataclass(eq=False)
class _Request:
    """A segment on its way. server: the dispatcher that took it."""

    sample: SegmentSample
    answer: "Future[Tensor]" = field(default_factory=Future)
    server: "_Dispatcher | None" = None

    def finish(self, images: "Tensor") -> None:
        if len(images) == len(self.sample.indices):
            self.answer.set_result(images)
        else:  # a pipeline's silent way to fail
            self.fail(f"{len(self.sample.indices)} frames were asked for, {len(images)} came")

    def fail(self, reason: str) -> None:
        self.fail_with(SegmentError(reason))

    def fail_with(self, error: SqtError) -> None:
        if not self.answer.done():  # the dispatcher may fail after it has answered some
            self.answer.set_exception(error)


class SegmentDecoder:
    """Decode segments for many threads.

    make_pipeline: see ``gpu_pipelines``. max_batch_bytes: memory of a batch, by ``SegmentSample.size_bytes``, for each
    pipeline; a larger sample goes alone. report: is told what the user should know. hang_s: without progress
    for so long, the decoder is given up.
    """

    def __init__(
        self,
        make_pipeline: Callable[[int], Pipeline],
        *,
        batch_size: int = BATCH_SIZE,
        num_pipelines: int = NUM_PIPELINES,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        report: Report = ignore,
        hang_s: float = HANG_S,
    ) -> None:
        self.make_pipeline, self.batch_size, self.max_batch_bytes = make_pipeline, batch_size, max_batch_bytes
        self.report, self.hang_s = report, hang_s
        self._condition = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._closed: str | None = None
        self._dispatchers = [_Dispatcher(self, f"nvdec-{i}") for i in range(num_pipelines)]

    def decode(self, sample: SegmentSample) -> "Tensor":
        """Return the frames of ``sample``, (F, h, w, 3) uint8 on the device, for use on the caller's current stream.

        Blocks. Raises SegmentError when they cannot be had, DeviceLostError when the GPU is lost.
        """
        job = _Request(sample)
        with self._condition:
            if self._closed is not None:
                raise SegmentError(self._closed)
            self._waiting.append(job)
            self._condition.notify_all()
        images = self._wait(job)
        if images.is_cuda:
            import torch

            images.record_stream(torch.cuda.current_stream(images.device))
        return images

    def close(self) -> None:
        """Stop. Segments that wait are refused, those in a batch are finished."""
        self._stop("the decoder was closed")
        for dispatcher in self._dispatchers:
            dispatcher.thread.join(_CLOSE_S)

    def give_up(self, reason: str) -> None:
        """Stop, and say why: there is no going on."""
        if self._stop(reason):
            self.report(Note(reason))

    def limit_batches(self, size_bytes: int) -> None:
        """Make no larger batches from now on: one did not fit."""
        with self._condition:
            self.max_batch_bytes = min(self.max_batch_bytes, size_bytes)

    def _stop(self, reason: str) -> bool:
        with self._condition:
            is_first = self._closed is None
            self._closed = self._closed or reason
            while self._waiting:
                self._waiting.popleft().fail(self._closed)
            self._condition.notify_all()
            return is_first

    def _wait(self, job: _Request) -> "Tensor":
        """Return the answer, or give up when there is no progress. Polls are counted, for a process may be stopped."""
        poll_s = min(_POLL_S, self.hang_s / 4)
        patience_s, seen = self.hang_s, -1
        while patience_s > 0:
            try:
                return job.answer.result(poll_s)
            except TimeoutError:
                busy = self._dispatchers if job.server is None else [job.server]
                steps = sum(dispatcher.steps for dispatcher in busy)
                patience_s = patience_s - poll_s if steps == seen else self.hang_s
                seen = steps
        reason = f"decoding hangs: no answer in {self.hang_s:g} s"
        self.give_up(reason)
        raise SegmentError(reason)

    def gather(self, server: "_Dispatcher") -> list[_Request]:
        """Return the next batch for ``server``: what waits or comes in a few milliseconds. Empty once closed."""
        with self._condition:
            self._condition.wait_for(self._has_news)
            batch: list[_Request] = []
            size_bytes, deadline = 0, time.monotonic() + _GATHER_S
            while len(batch) < self.batch_size:
                self._condition.wait_for(self._has_news, deadline - time.monotonic())
                if not self._waiting:
                    break
                size_bytes += self._waiting[0].sample.size_bytes
                if batch and size_bytes > self.max_batch_bytes:
                    break
                batch.append(self._waiting.popleft())
                batch[-1].server = server
            return batch

    def _has_news(self) -> bool:
        return bool(self._waiting) or self._closed is not None


class _Dispatcher:
    """One pipeline and the thread that feeds it. steps: counts what it has begun."""

    def __init__(self, decoder: SegmentDecoder, name: str) -> None:
        self.decoder = decoder
        self.steps = 0
        self.alone: Pipeline | None = None
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        """Serve until the decoder is closed. Whatever happens, nobody is left waiting."""
        batch: list[_Request] = []
        try:
            self.pipeline = self.decoder.make_pipeline(self.decoder.batch_size)
            while batch := self.decoder.gather(self):
                self._serve(batch)
                batch.clear()  # or the last frames would be held until the next come
        except BaseException as error:  # noqa: BLE001 - told to all who wait
            reason = f"decoding stopped: {in_words(error)}"
            for job in batch:
                job.fail(reason)
            self.decoder.give_up(reason)

    def _serve(self, batch: list[_Request]) -> None:
        """Give every job of ``batch`` its answer."""
        self.steps += 1
        try:
            results = self.pipeline.run([job.sample for job in batch])
        except Exception as error:  # noqa: BLE001 - pipelines raise RuntimeError for everything
            # Only its words are kept: the traceback would hold the memory of the failed batch.
            reason, kind = in_words(error), kind_of(error)
        else:
            for job, images in zip(batch, results, strict=True):
                job.finish(images)
            return
        if kind is Failure.DEVICE:
            for job in batch:
                job.fail_with(DeviceLostError(reason))
        elif len(batch) == 1:
            batch[0].fail(reason)
        elif kind is Failure.MEMORY:
            self._serve_halves(batch, reason)
        else:
            self._serve_one_by_one(batch, reason)

    def _serve_halves(self, batch: list[_Request], reason: str) -> None:
        """Go on with smaller batches, from now on."""
        middle = len(batch) // 2
        halves = batch[:middle], batch[middle:]
        size_bytes = max(sum(job.sample.size_bytes for job in half) for half in halves)
        self.decoder.limit_batches(size_bytes)
        self.decoder.report(
            Note(f"a batch of {len(batch)} segments did not fit ({reason}); now {size_bytes >> 20} MB a batch")
        )
        self.pipeline.release_memory()
        for half in halves:
            self._serve(half)

    def _serve_one_by_one(self, batch: list[_Request], reason: str) -> None:
        """Find the bad one."""
        num_bad = 0
        for job in batch:
            self.steps += 1
            try:
                self.alone = self.alone or self.decoder.make_pipeline(1)
                (images,) = self.alone.run([job.sample])
                job.finish(images)
            except Exception as error:  # noqa: BLE001 - see _serve
                num_bad += 1
                job.fail(in_words(error))
        if not num_bad:
            self.decoder.report(
                Note(f"a batch of {len(batch)} segments failed, though each can be decoded alone ({reason})")
            )
            self.pipeline = self.decoder.make_pipeline(self.decoder.batch_size)
