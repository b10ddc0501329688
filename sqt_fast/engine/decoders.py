"""The decoders of one device: threads with a process each, that probe videos, decode segments and make clips."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, View
from sqt_fast.clips.gather import Clip, ClipMaker
from sqt_fast.clips.recipe import Recipe
from sqt_fast.clips.resize import resize, upright
from sqt_fast.engine.decoder_process import DecoderProcess
from sqt_fast.engine.events import Report, ignore
from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.engine.jobs import Job, Jobs, Planned
from sqt_fast.engine.memory import DECODER_BYTES, Budget, Resources, decoder_limits, decoding_bytes
from sqt_fast.engine.process import ChildError
from sqt_fast.engine.segment_decoder import SegmentError
from sqt_fast.errors import BackendError, DeviceLostError, SqtError, VideoError, first_line, system_reason
from sqt_fast.video.cpu_decoder import FFMPEG, CpuTools, DecodeReport
from sqt_fast.video.segments import Segment

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute

log = logging.getLogger(__name__)
T = TypeVar("T")

# How long threads may take to notice that they are to stop, all of them together.
STOP_S = 1.0
# A decoder that dies is given the same again: others' memory or a signal may have been the cause. One that hangs is
# tried once more only, since every try costs the whole of the time that is allowed for silence.
ATTEMPTS = 3
ATTEMPTS_WHEN_HUNG = 2
# A segment so long cannot be shared out: FFmpeg's own threads decode it. Not by what else there is to do: concealed
# pictures depend on the number of threads, and the labels of a damaged file must not change from run to run.
LONG_SEGMENT = 600
# So many videos for each decoder pay for the start of all of them.
PLENTY = 3
MAX_THREADS = 8


class NoProcessError(Exception):
    """The machine has no room for one more process now."""


@dataclass(frozen=True)
class DecoderSetup:
    """What decoders work with. tools: what runs in their processes; gpu: the GPU's decoders, None for the CPU alone."""

    resources: Resources
    tools: CpuTools = FFMPEG
    gpu: "GpuRoute | None" = None


class Decoders:
    """Turns ``jobs`` into views.

    put(job, view) is called from threads: for every view, and with None when a job ends. It may wait. ``error`` is what
    ended a thread that no other can replace.
    """

    def __init__(
        self,
        jobs: Jobs,
        recipe: Recipe,
        batches: Batches,
        setup: DecoderSetup,
        put: Callable[[Job, View | None], None],
        report: Report = ignore,
    ) -> None:
        self.jobs, self.recipe, self.batches, self.put = jobs, recipe, batches, put
        self.resources, self.gpu = setup.resources, setup.gpu
        self.error: Exception | None = None
        self._budget = Budget(self.resources.memory_bytes)
        limits = decoder_limits(self.resources)
        self.processes = [
            DecoderProcess(tools=setup.tools, hang_s=self.resources.hang_s, limits=limits, report=report)
            for _ in range(self.resources.num_decoders)
        ]
        self._lock, self._living = threading.Lock(), len(self.processes)
        self._at_work = [threading.Event() for _ in self.processes]
        self.threads = [
            threading.Thread(target=self._loop, args=(i,), name=f"decode-{i}", daemon=True)
            for i in range(len(self.processes))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End all processes and threads, whatever they do."""
        self.jobs.stop()
        for process in self.processes:
            process.stop()
        deadline = time.monotonic() + STOP_S
        for thread in self.threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _loop(self, number: int) -> None:
        """Work with one process until all is done."""
        process, own = self.processes[number], None
        try:
            # Else torch gives every thread a team of as many threads as there are cores, which wait for each other to
            # copy 2 MB. It holds for this thread, and for those that are started later.
            torch.set_num_threads(1)
            self._wait_for_turn(number)
            while (work := self.jobs.take(own)) is not None:
                own, segment = work
                try:
                    if segment is None:
                        self._probe(own, process)
                    else:
                        self._segment(own, segment, process)
                except NoProcessError as error:
                    self._leave(own, segment, error)
                    return
                self._at_work[number].set()
        except Exception as error:
            log.debug("a decoder's thread ended", exc_info=True)
            self.error = error  # for the main thread, which would wait for ever
        finally:
            self._at_work[number].set()
            process.close()

    def _leave(self, job: Job, segment: Segment | None, error: Exception) -> None:
        """Give work back to the decoders that live, as the machine has no room for this one. Raises if none does."""
        with self._lock:
            self._living -= 1
            if not self._living:
                raise BackendError(f"no decoder can be started: {error}") from error
        self.jobs.give_back(job, segment)

    def _wait_for_turn(self, number: int) -> None:
        """Begin when the decoder before in a binary tree has done something: few videos start few processes.

        Where there is plenty to do, begin at once: on 16 cores, the tree takes some seconds to grow.
        """
        plenty = PLENTY * len(self.processes)
        while number and not self._at_work[(number - 1) // 2].wait(0.1) and not self.jobs.stopped:
            if self.jobs.num_waiting > plenty:
                return

    # -- one video ----------------------------------------------------------------------------------------------------

    def _probe(self, job: Job, process: DecoderProcess) -> None:
        """Look at a video, choose its route, and plan what to decode of it."""
        started = time.perf_counter()
        segments: list[Segment] = []
        try:
            segments = self._attempt(lambda: self._plan(job, process), DECODER_BYTES)
        except Exception as error:  # noqa: BLE001 - sorted out by whose failure it is
            job.fail(_of_the_file(error))
        job.spend("probe", time.perf_counter() - started)
        self.jobs.probed(job, segments)
        if not segments:
            self.put(job, None)

    def _plan(self, job: Job, process: DecoderProcess) -> list[Segment]:
        facts = job.facts = process.probe(job.video)
        reason = "no GPU decoder" if self.gpu is None else self.gpu.why_not(facts)
        log.debug("%s: decoded on the %s", job.video.name, f"CPU: {reason}" if reason else "GPU")
        on_gpu = self.gpu is not None and reason is None
        plan = process.plan(self.recipe, self.gpu.max_wanted(facts) if self.gpu is not None and on_gpu else None)
        job.planned = Planned(facts, plan.clips, ClipMaker(plan.clips, self.recipe.protocol), on_gpu)
        return plan.segments

    # -- one segment --------------------------------------------------------------------------------------------------

    def _segment(self, job: Job, segment: Segment, process: DecoderProcess) -> None:
        """Decode a segment, make the clips that it completes, and end the job if it was the last one."""
        planned = job.planned
        assert planned is not None
        crashed = False
        try:
            if not (planned.on_gpu and self._decode_on_gpu(job, planned, segment, process)):
                self._decode_on_cpu(job, planned, segment, process)
        except Exception as error:  # noqa: BLE001 - sorted out by whose failure it is
            reason = _of_the_file(error)
            crashed = reason.status == "crashed"
            job.fail(reason)
            self._emit(job, planned.maker.segment(segment.numbers).finish())
        if self.jobs.segment_done(job, crashed=crashed):
            self.put(job, None)

    def _decode_on_gpu(self, job: Job, planned: Planned, segment: Segment, process: DecoderProcess) -> bool:
        """Return whether it worked. The process opens the file: the GPU sees only packets that were asked for."""
        gpu, facts = self.gpu, planned.facts
        assert gpu is not None
        uncropped = gpu.uncropped(facts)
        remuxed = self._attempt(lambda: process.remux(facts.source, segment, uncropped), DECODER_BYTES)

        def decode() -> Iterator[tuple[list[int], Tensor]]:
            images = gpu.decode(facts, segment, remuxed.data, is_uncropped=remuxed.is_uncropped)
            yield segment.numbers.tolist(), images

        try:
            self._gather(job, planned, segment, decode())
        except Exception as error:
            if not isinstance(error, SegmentError) and kind_of(error) is not Failure.MEMORY:
                raise
            log.debug("%s: %s; decoded on the CPU", job.video.name, error)
            return False
        with job.lock:
            job.report.add(remuxed.report)
            job.decoders.add(gpu.name)
        return True

    def _decode_on_cpu(self, job: Job, planned: Planned, segment: Segment, process: DecoderProcess) -> None:
        source, short_side = planned.facts.source, self.recipe.protocol.short_side
        num_threads = min(MAX_THREADS, self.resources.cores) if segment.num_kept > LONG_SEGMENT else 1

        def decode() -> DecodeReport:
            report = DecodeReport()
            chunks = process.frames(source, segment, report, num_threads=num_threads)
            # Turned before they are resized, as the release's decoder does: the other order rounds otherwise.
            turned = ((f.numbers, upright(torch.from_numpy(f.images), source.orientation)) for f in chunks)
            resized = ((numbers, resize(images, short_side)) for numbers, images in turned)
            self._gather(job, planned, segment, resized)
            return report

        report = self._attempt(decode, decoding_bytes(planned.facts, num_threads=num_threads))
        with job.lock:
            job.report.add(report)
            job.decoders.add("cpu")

    def _gather(self, job: Job, planned: Planned, segment: Segment, chunks: Iterator[tuple[list[int], Tensor]]) -> None:
        """Make clips of a segment's frames as they come."""
        intake = planned.maker.segment(segment.numbers)
        while True:
            started = time.perf_counter()
            try:
                chunk = next(chunks, None)
            finally:
                job.spend("decode", time.perf_counter() - started)
            if chunk is None or self.jobs.stopped:
                break
            self._emit(job, intake.add(*chunk))
        self._emit(job, intake.finish())

    def _attempt(self, do: Callable[[], T], cost_bytes: int) -> T:
        """Do it within the memory budget, and again when the process dies. Raises VideoError if it always does.

        One that was killed gets the whole budget next: most likely its neighbours' memory was the reason. One that hung
        or crashed is tried beside the others, whom it must not hold up.
        """
        errors: list[ChildError] = []
        while len(errors) < (ATTEMPTS_WHEN_HUNG if any(error.hung for error in errors) else ATTEMPTS):
            alone = bool(errors) and errors[-1].killed
            try:
                with self._budget.take(self._budget.total_bytes if alone else cost_bytes):
                    return do()
            except ChildError as error:
                if self.jobs.stopped:
                    raise VideoError("crashed", "stopped") from error
                errors.append(error)
            except OSError as error:  # of starting a process
                raise NoProcessError(system_reason(error)) from error
        raise VideoError("crashed", f"{errors[-1]}, {len(errors)} times")

    def _emit(self, job: Job, clips: list[Clip]) -> None:
        for clip in clips:
            started = time.perf_counter()
            views = list(self.batches.views(clip))
            job.spend("squeeze", time.perf_counter() - started)
            for view in views:
                self.put(job, view)


def _of_the_file(error: Exception) -> VideoError:
    """Return ``error`` as one of the file. Raises it where no file would fare better."""
    if isinstance(error, VideoError):
        return error
    if isinstance(error, SqtError | NoProcessError):
        raise error
    if kind_of(error) is Failure.DEVICE:
        raise DeviceLostError(first_line(error)) from error
    log.debug("unforeseen", exc_info=error)
    return VideoError.unforeseen(error)
