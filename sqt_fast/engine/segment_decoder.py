"""Threads ask for one segment each; they are decoded together, as the GPU's decoders want it.

A dispatcher thread for each pipeline takes what waits. What goes wrong with one segment reaches the thread that asked
for it and no other. Importing this imports neither DALI nor torch.
"""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import SqtError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

# Several pipelines hide the end of each other's batches, where decoders wait for the longest segment.
NUM_PIPELINES = 2
BATCH_SIZE = 32
MAX_BATCH_BYTES = 8 << 30
# DALI decodes so many samples of a batch at once; twice the 7 decoders of an H100 or H200.
NUM_THREADS = 14
# A batch takes seconds. After this long a driver hangs, or a stream that it cannot digest.
HANG_S = 120.0
_GATHER_S, _POLL_S, _CLOSE_S = 0.003, 1.0, 5.0
# CUDA's, NVDEC's and DALI's words; the last come as RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|CUDA allocation failed|(can't|cannot|failed to) allocate|MemoryAllocation|bad_alloc", re.I
)


class SegmentError(SqtError):
    """A segment that could not be decoded on this route. The host decoder may still be able to."""


@dataclass(frozen=True, eq=False)
class SegmentSample:
    """One segment to decode.

    data: a whole file in memory. indices: (F,) int32, places among the file's frames in presentation order, ascending,
    each once (DALI would decode from the start again). coded_size: (height, width) of the frames that the decoder
    writes, to plan memory. display_size: (height, width), what of them is shown, from the upper left corner; None for
    all.
    """

    data: bytes | bytearray | memoryview | NDArray[np.uint8]
    indices: NDArray[np.int32]
    coded_size: tuple[int, int]
    display_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        assert self.indices.dtype == np.int32
        assert len(self.indices) > 0
        assert (np.diff(self.indices, prepend=np.int32(-1)) > 0).all()

    @property
    def size_bytes(self) -> int:
        """About the device memory that decoding takes: RGB of the wanted frames, and DALI's 8 to reorder.

        Counted twice, for one batch may still be held by DALI when the next is decoded.
        """
        height, width = self.coded_size
        return (2 * len(self.indices) + 8) * height * width * 3


class Pipeline(Protocol):
    """What ``pipelines.decode.SegmentPipeline`` is."""

    def run(self, samples: Sequence[SegmentSample]) -> "list[Tensor]": ...
    def release_memory(self) -> None: ...


def dali_pipelines(
    short_side: int, *, device_id: int | None, num_threads: int = NUM_THREADS
) -> Callable[[int], Pipeline]:
    """Return what makes pipelines of a batch size, on a CUDA device, or with None on the CPU (VP8 and VP9 only)."""

    def make_pipeline(batch_size: int) -> Pipeline:
        from sqt_fast.pipelines.decode import SegmentPipeline  # here: importing DALI takes a while, beside the network

        threads = min(num_threads, batch_size)
        return SegmentPipeline(short_side, device_id=device_id, batch_size=batch_size, num_threads=threads)

    return make_pipeline


@dataclass(eq=False)
class _Job:
    """A segment on its way. server: the dispatcher that took it."""

    sample: SegmentSample
    answer: "Future[Tensor]" = field(default_factory=Future)
    server: "_Dispatcher | None" = None

    def finish(self, images: "Tensor") -> None:
        if len(images) == len(self.sample.indices):
            self.answer.set_result(images)
        else:  # DALI's silent way to fail
            self.fail(f"{len(self.sample.indices)} frames were asked for, {len(images)} came")

    def fail(self, reason: str) -> None:
        if not self.answer.done():  # the dispatcher may fail after it has answered some
            self.answer.set_exception(SegmentError(reason))


class SegmentDecoder:
    """Decode segments for many threads.

    make_pipeline: see ``dali_pipelines``. max_batch_bytes: memory of a batch, by ``SegmentSample.size_bytes``, for each
    pipeline; a larger sample goes alone. note: is told in words what the user should know. hang_s: without progress
    for so long, the decoder is given up.
    """

    def __init__(
        self,
        make_pipeline: Callable[[int], Pipeline],
        *,
        batch_size: int = BATCH_SIZE,
        num_pipelines: int = NUM_PIPELINES,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        note: Callable[[str], None] | None = None,
        hang_s: float = HANG_S,
    ) -> None:
        self.make_pipeline, self.batch_size, self.max_batch_bytes = make_pipeline, batch_size, max_batch_bytes
        self.note, self.hang_s = note or log.info, hang_s
        self._condition = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._closed: str | None = None
        self._dispatchers = [_Dispatcher(self, f"nvdec-{i}") for i in range(num_pipelines)]

    def decode(self, sample: SegmentSample) -> "Tensor":
        """Return the frames of ``sample``, (F, h, w, 3) uint8 on the device, for use on the caller's current stream.

        Blocks. Raises SegmentError when they cannot be had.
        """
        job = _Job(sample)
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
            self.note(reason)

    def _stop(self, reason: str) -> bool:
        with self._condition:
            is_first = self._closed is None
            self._closed = self._closed or reason
            while self._waiting:
                self._waiting.popleft().fail(self._closed)
            self._condition.notify_all()
            return is_first

    def _wait(self, job: _Job) -> "Tensor":
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

    def gather(self, server: "_Dispatcher") -> list[_Job]:
        """Return the next batch for ``server``: what waits or comes in a few milliseconds. Empty once closed."""
        with self._condition:
            self._condition.wait_for(self._has_news)
            batch: list[_Job] = []
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
        batch: list[_Job] = []
        try:
            self.pipeline = self.decoder.make_pipeline(self.decoder.batch_size)
            while batch := self.decoder.gather(self):
                self._serve(batch)
                batch.clear()  # or the last frames would be held until the next come
        except BaseException as error:  # noqa: BLE001 - told to all who wait
            reason = f"decoding stopped: {one_line(error)}"
            for job in batch:
                job.fail(reason)
            self.decoder.give_up(reason)

    def _serve(self, batch: list[_Job]) -> None:
        """Give every job of ``batch`` its answer."""
        self.steps += 1
        try:
            results = self.pipeline.run([job.sample for job in batch])
        except Exception as error:  # noqa: BLE001 - DALI raises RuntimeError for everything
            # Only its words are kept: the traceback would hold the memory of the failed batch.
            reason, out_of_memory = one_line(error), is_out_of_memory(error)
        else:
            for job, images in zip(batch, results, strict=True):
                job.finish(images)
            return
        if len(batch) == 1:
            batch[0].fail(reason)
        elif out_of_memory:
            self._serve_halves(batch, reason)
        else:
            self._serve_one_by_one(batch, reason)

    def _serve_halves(self, batch: list[_Job], reason: str) -> None:
        """Go on with smaller batches, from now on."""
        middle = len(batch) // 2
        halves = batch[:middle], batch[middle:]
        size_bytes = max(sum(job.sample.size_bytes for job in half) for half in halves)
        self.decoder.max_batch_bytes = min(self.decoder.max_batch_bytes, size_bytes)
        self.decoder.note(f"a batch of {len(batch)} segments did not fit ({reason}); now {size_bytes >> 20} MB a batch")
        self.pipeline.release_memory()
        for half in halves:
            self._serve(half)

    def _serve_one_by_one(self, batch: list[_Job], reason: str) -> None:
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
                job.fail(one_line(error))
        if not num_bad:
            self.decoder.note(f"a batch of {len(batch)} segments failed, though each can be decoded alone ({reason})")
            self.pipeline = self.decoder.make_pipeline(self.decoder.batch_size)


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that memory ran out."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))


def one_line(error: BaseException) -> str:
    """Return what ``error`` says, without DALI's account of where it was."""
    text = str(error).rpartition("encountered:")[2].strip() or type(error).__name__
    return re.sub(r'^Assert on ".*?" failed: ', "", text.splitlines()[0])
