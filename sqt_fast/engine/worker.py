"""One device at work: load the weights, choose and open a backend, label videos. Runs in a process of its own, under
the supervisor, or in the caller's.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from sqt_fast.clips.batches import Batches, CpuBatches
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig
from sqt_fast.engine.decoder_process import TICK_S
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.events import Alive, Event, Note, Report, ignore
from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.engine.labelling import Labelling, Task
from sqt_fast.engine.memory import Resources, with_gpu_threads
from sqt_fast.engine.process import serve_requests, start_heartbeat
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.routes import open_route
from sqt_fast.engine.suspects import DEVICE_LOST_EXIT
from sqt_fast.errors import BackendError, DeviceLostError, SqtError, first_line
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.choose import Choice, choose, find_device, open_backend
from sqt_fast.network.weights import Weights, load_weights
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import FFMPEG, CpuTools

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute


class Worker:
    """Call ``load``, then ``open``, then ``label``. report: is told of notes, progress, and changes."""

    def __init__(
        self, config: IndexConfig, resources: Resources, tools: CpuTools = FFMPEG, report: Report = ignore
    ) -> None:
        self.config, self.resources, self.tools, self.report = config, resources, tools, report
        self.recipe = Recipe.of(config)
        self._weights: Weights | None = None
        self._gpu: GpuRoute | None = None
        self.labelling: Labelling | None = None
        self.device = "cpu"

    def load(self) -> WeightsInfo:
        """Load the weights. Raises CheckpointError, ConfigError."""
        self._weights = weights = load_weights(self.config.weights, labels=self.config.labels)
        return WeightsInfo(
            weights.name,
            weights.sha256,
            weights.labels,
            weights.labels_source,
            weights.meaningless,
            weights.model.config.feature_channels,
        )

    def open(self, earlier: EarlierRun, num_clips: int) -> dict[str, Any]:
        """Decide how to run, get ready, and return the fields of the Choice. Raises ConfigError, BackendError.

        num_clips: about how many there are to label.
        """
        assert self._weights is not None
        weights, size = self._weights, self.recipe.protocol.crop_size
        choice = self._choose(weights, earlier, num_clips)
        choice, backend = open_backend(choice, weights.model, size=size, may_fall_back=self.config.backend is None)
        self.device = choice.device
        self.report(Note(f"{choice.backend} {choice.precision} on {choice.device}: {choice.reason}"))
        self._gpu = open_route(self.config.decoder, choice.device, self.recipe.protocol.short_side, self.report)
        style = RowStyle(weights.labels or (), self.config.top_k, self.config.per_window)
        self.labelling = Labelling(
            backend,
            Task(self.recipe, style, choice.batch_size, self.config.embeddings),
            DecoderSetup(self._decoder_resources(), self.tools, self._gpu),
            self._batches(choice.device, backend),
            self.report,
        )
        return asdict(choice)

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished."""
        assert self.labelling is not None
        return self.labelling.label(videos)

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""
        assert self.labelling is not None
        return self.labelling.take_counters()

    def close(self) -> None:
        """Let go of the GPU's decoders."""
        if self._gpu is not None:
            self._gpu.close()

    def _choose(self, weights: Weights, earlier: EarlierRun, num_clips: int) -> Choice:
        config, size = self.config, self.recipe.protocol.crop_size
        device = find_device(config.device)
        known = Choice.of(earlier.choice) if earlier.choice is not None else None
        if known is not None and known.device == device:
            if earlier.whole:
                return replace(known, batch_size=config.batch_size or known.batch_size)
            config = replace(config, precision=known.precision)
        return choose(config, weights.model, num_clips=num_clips, size=size)

    def _batches(self, device: str, backend: InferenceModel) -> Batches:
        """Return what squeezes on the GPU where the kernel runs, else on the CPU."""
        protocol = self.recipe.protocol
        if device.startswith("cuda"):
            try:
                from sqt_fast.clips.device_batches import DeviceBatches  # here: Triton takes a while to import

                return DeviceBatches(protocol, backend.dtype, device, backend.input)
            except (BackendError, ModuleNotFoundError) as error:
                self.report(Note(f"clips are squeezed on the CPU: {error}; pip install 'sqt-fast[gpu]' helps"))
        return CpuBatches(protocol, backend.dtype)

    def _decoder_resources(self) -> Resources:
        """Return what decoders may use: with the GPU's, more threads wait than cores compute, if memory allows."""
        if self._gpu is None:
            return self.resources
        return with_gpu_threads(self.resources, self._gpu.num_threads)


def serve(
    connection: "Connection[Any, Any]", config: IndexConfig, resources: Resources, tools: CpuTools, log_level: int
) -> NoReturn:
    """Be a worker's process: answer ``load`` and ``open``, then label what comes.

    Sends (kind, value): ("event", an event), ("result", a video's and what was counted since the last), ("answer",
    what a request gives), ("error", an SqtError), and ("lost", why) when the device is lost; then it ends itself.
    """
    logging.basicConfig(level=log_level, format="%(name)s: %(message)s")
    torch.set_num_threads(min(torch.get_num_threads(), resources.cores))  # torch knows no container's quota
    server = _Server(connection)
    worker = server.worker = Worker(config, resources, tools, server.report)
    answers: dict[str, Callable[..., Any]] = {
        "load": lambda: ("answer", worker.load()),
        "open": lambda *args: ("answer", worker.open(*args)),
        "label": server.label,
    }
    start_heartbeat(lambda: server.send(("event", Alive())), lambda: server.may_compute_long)
    serve_requests(connection, answers, server.send, server.in_words)


class _Server:
    """The other side of supervisor.Supervisor."""

    worker: Worker

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.last_sent = time.monotonic()
        self.labels = False

    @property
    def may_compute_long(self) -> bool:
        """Whether long work on the CPU is no hang: while getting ready, and where the CPU runs the network.

        A thread that waits for a GPU spins, and looks busy even when the driver hangs.
        """
        return not self.labels or self.worker.device == "cpu"

    def send(self, message: Any) -> None:
        with self.lock:
            self.connection.send(message)
            self.last_sent = time.monotonic()

    def report(self, event: Event) -> None:
        """Pass an event on, signs of life only now and then."""
        if not isinstance(event, Alive) or time.monotonic() - self.last_sent > TICK_S:
            self.send(("event", event))

    def in_words(self, error: Exception) -> tuple[str, Any]:
        """Return what the supervisor is told of an error. A lost device ends this process: its context is dead."""
        logging.getLogger(__name__).debug("the worker failed", exc_info=error)
        if isinstance(error, DeviceLostError) or kind_of(error) is Failure.DEVICE:
            self.send(("lost", first_line(error)))
            os._exit(DEVICE_LOST_EXIT)  # CUDA's own clean-up may hang
        if isinstance(error, SqtError):
            return "error", error
        return "error", BackendError(f"the worker failed: {type(error).__name__}: {first_line(error)}")

    def label(self) -> tuple[str, Any]:
        """Label the videos that the supervisor sends, until it says that no more come."""
        labelling = self.worker.labelling
        assert labelling is not None
        self.labels = True
        threading.Thread(target=self.take_videos, args=(labelling,), daemon=True).start()
        for result in labelling.results():
            self.send(("result", (result, labelling.take_counters())))
        return "answer", labelling.take_counters()

    def take_videos(self, labelling: Labelling) -> None:
        try:
            while (videos := self.connection.recv()) is not None:
                labelling.jobs.add(videos)
            labelling.jobs.close()
        except (EOFError, OSError):
            labelling.jobs.stop()  # the supervisor is gone, and this process ends with it
