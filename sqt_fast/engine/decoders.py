"""The decoders of one device: threads with a host process each, that probe videos, decode segments and make clips."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, View
from sqt_fast.clips.gather import Clip, ClipMaker
from sqt_fast.clips.recipe import Recipe
from sqt_fast.clips.resize import resize, upright
from sqt_fast.engine.decoder_process import DecoderProcess, ToolsFactory
from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.engine.memory import DECODER_BYTES, Budget, Resources, decoding_bytes
from sqt_fast.engine.process import ChildError
from sqt_fast.engine.segment_decoder import SegmentError
from sqt_fast.errors import SqtError, VideoError
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.segments import Segment, plan_segments

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute

log = logging.getLogger(__name__)
T = TypeVar("T")

# How long threads may take to notice that they are to stop, all of them together.
STOP_S = 1.0
# A decoder that dies is given the same again, alone on the machine: it may have been killed for another's memory.
ATTEMPTS = 3
# A segment so long cannot be shared out: FFmpeg's own threads decode it. Not by what else there is to do: concealed
# pictures depend on the number of threads, and the labels of a damaged file must not change from run to run.
LONG_SEGMENT = 600
MAX_THREADS = 8


class Decoding:
    """Turns ``jobs`` into views.

    put(job, view) is called from threads: for every view, and with None when a job ends. It may wait.
    """

    def __init__(
        self,
        jobs: Jobs,
        recipe: Recipe,
        batches: Batches,
        resources: Resources,
        *,
        tools: ToolsFactory,
        gpu: "GpuRoute | None",
        put: Callable[[Job, View | None], None],
        on_progress: Callable[[], None],
    ) -> None:
        self.jobs, self.recipe, self.batches, self.resources = jobs, recipe, batches, resources
        self.gpu, self.put = gpu, put
        self.error: Exception | None = None
        self._budget = Budget(resources.memory_bytes)
        self._hosts = [
            DecoderProcess(tools=tools, hang_s=resources.hang_s, on_progress=on_progress)
            for _ in range(resources.num_decoders)
        ]
        self._threads = [
            threading.Thread(target=self._loop, args=(host,), name=f"decode-{i}", daemon=True)
            for i, host in enumerate(self._hosts)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all processes and threads, whatever they do."""
        self.jobs.stop()
        for host in self._hosts:
            host.stop()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _loop(self, host: DecoderProcess) -> None:
        """Work with one host process until all is done."""
        own: Job | None = None
        try:
            while (work := self.jobs.take(own)) is not None:
                own, segment = work
                if segment is None:
                    self._probe(own, host)
                else:
                    self._segment(own, segment, host)
        except Exception as error:
            log.debug("a decoder's thread ended", exc_info=True)
            self.error = error  # for the main thread, which would wait for ever
        finally:
            host.close()

    def _probe(self, job: Job, host: DecoderProcess) -> None:
        """Look at a video, choose its route, and plan what to decode of it."""
        started = time.perf_counter()
        segments: list[Segment] = []
        try:
            facts = self._attempt(lambda: host.probe(job.video), DECODER_BYTES)
            job.facts = facts
            job.plan = self.recipe.plan(facts)
            job.maker = ClipMaker(job.plan, self.recipe.protocol)
            reason = "no GPU decoder" if self.gpu is None else self.gpu.why_not(facts)
            job.on_gpu = reason is None
            log.debug("%s: %s", job.video.name, f"decoded on the host: {reason}" if reason else "decoded on the GPU")
            if self.gpu is not None and job.on_gpu:
                segments = plan_segments(facts, job.plan.wanted, max_wanted=self.gpu.max_wanted(facts))
            else:
                segments = plan_segments(facts, job.plan.wanted)
        except Exception as error:  # noqa: BLE001 - whatever one file does, it gets a row
            job.fail(_of_the_file(error))
        job.spend("probe", time.perf_counter() - started)
        self.jobs.probed(job, segments)
        if not segments:
            self.put(job, None)

    def _segment(self, job: Job, segment: Segment, host: DecoderProcess) -> None:
        """Decode a segment, make the clips that it completes, and end the job if it was the last one."""
        assert job.maker is not None
        try:
            if not (job.on_gpu and self._decode_on_gpu(job, segment, host)):
                self._decode_on_host(job, segment, host)
        except Exception as error:  # noqa: BLE001 - whatever one file does, it gets a row
            job.fail(_of_the_file(error))
            self._emit(job, job.maker.segment(segment.numbers).finish())
        with job.lock:
            job.segments_open -= 1
            is_last = not job.segments_open
        if is_last:
            self.put(job, None)

    def _decode_on_gpu(self, job: Job, segment: Segment, host: DecoderProcess) -> bool:
        """Return whether it worked. The host opens the file: the GPU sees only packets that were asked for."""
        assert self.gpu is not None
        assert job.facts is not None
        facts = job.facts
        started = time.perf_counter()
        uncropped = self.gpu.uncropped(facts)
        remuxed = self._attempt(lambda: host.remux(facts.source, segment, uncropped), DECODER_BYTES)
        try:
            images = self.gpu.decode(facts, segment, remuxed.data, is_uncropped=remuxed.is_uncropped)
        except SegmentError as error:
            log.debug("%s: %s; on the host", job.video.name, error)
            return False
        finally:
            job.spend("decode", time.perf_counter() - started)
        self._take(job, segment, iter([(segment.numbers.tolist(), images)]), remuxed.report)
        with job.lock:
            job.decoders.add(self.gpu.name)
        return True

    def _decode_on_host(self, job: Job, segment: Segment, host: DecoderProcess) -> None:
        assert job.facts is not None
        source, short_side = job.facts.source, self.recipe.protocol.short_side
        num_threads = min(MAX_THREADS, self.resources.cores) if segment.num_kept > LONG_SEGMENT else 1

        def decode() -> None:
            report = DecodeReport()
            chunks = host.frames(source, segment, report, num_threads=num_threads)
            # Turned before they are resized, as the release's decoder does: the other order rounds otherwise.
            turned = ((f.numbers, upright(torch.from_numpy(f.images), source.orientation)) for f in chunks)
            resized = ((numbers, resize(images, short_side)) for numbers, images in turned)
            self._take(job, segment, resized, report)

        self._attempt(decode, decoding_bytes(job.facts, num_threads=num_threads))
        with job.lock:
            job.decoders.add("cpu")

    def _take(
        self, job: Job, segment: Segment, chunks: Iterator[tuple[list[int], Tensor]], report: DecodeReport
    ) -> None:
        """Make clips of a segment's frames as they come; then ``report`` is complete."""
        assert job.maker is not None
        intake = job.maker.segment(segment.numbers)
        while True:
            started = time.perf_counter()
            chunk = next(chunks, None)
            job.spend("decode", time.perf_counter() - started)
            if chunk is None or self.jobs.stopped:
                break
            self._emit(job, intake.add(*chunk))
        self._emit(job, intake.finish())
        with job.lock:
            job.report.add(report)

    def _attempt(self, do: Callable[[], T], cost_bytes: int) -> T:
        """Do it within the memory budget; again, alone, when the process dies. Raises VideoError if it always does."""
        reasons: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                with self._budget.take(self._budget.total_bytes if reasons else cost_bytes):
                    return do()
            except ChildError as error:
                if self.jobs.stopped:
                    break
                reasons.append(str(error))
        raise VideoError("crashed", f"{reasons[-1] if reasons else 'stopped'}, {len(reasons)} times")

    def _emit(self, job: Job, clips: list[Clip]) -> None:
        for clip in clips:
            started = time.perf_counter()
            views = list(self.batches.views(clip))
            job.spend("squeeze", time.perf_counter() - started)
            for view in views:
                self.put(job, view)


def _of_the_file(error: Exception) -> VideoError:
    """Return ``error`` as one of the file. Raises it if no file would fare better."""
    if isinstance(error, VideoError):
        return error
    if isinstance(error, SqtError):
        raise error
    log.debug("unforeseen", exc_info=error)
    return VideoError.unforeseen(error)
