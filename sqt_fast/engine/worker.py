"""One device at work: load the weights, choose and open a backend, label videos. Runs in a process of its own, under
the supervisor, or in the caller's.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from sqt_fast.clips.batches import Batches, CpuBatches
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import IndexConfig
from sqt_fast.engine.decoder_process import TICK_S, CpuTools, ToolsFactory
from sqt_fast.engine.labelling import Labelling
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult, WeightsInfo
from sqt_fast.engine.routing import why_no_gpu_decoder
from sqt_fast.errors import BackendError, SqtError
from sqt_fast.network.backends import Backend
from sqt_fast.network.choose import Choice, choose, find_device, open_backend
from sqt_fast.network.weights import Weights, load_weights
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import VideoFile

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute


class Worker:
    """Call ``load``, then ``open``, then ``label``."""

    def __init__(self, config: IndexConfig, resources: Resources, tools: ToolsFactory = CpuTools) -> None:
        self.config, self.resources, self.tools = config, resources, tools
        self.recipe = Recipe.of(config)
        self.note: Callable[[str], None] = lambda _: None
        self.on_clips: Callable[[int], None] = lambda _: None
        self.on_progress: Callable[[], None] = lambda: None
        self.tally = RunCounters()
        self._weights: Weights | None = None
        self._gpu: GpuRoute | None = None
        self.worker: Labelling | None = None

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
        self.note(f"{choice.backend} {choice.precision} on {choice.device}: {choice.reason}")
        self._gpu, resources = self._open_gpu(choice.device), self.resources
        if self._gpu is not None:
            resources = replace(resources, num_decoders=max(resources.num_decoders, self._gpu.num_threads))
        self.worker = Labelling(
            backend,
            self.recipe,
            RowStyle(weights.labels or (), self.config.top_k, self.config.per_window),
            resources,
            batch_size=choice.batch_size,
            embeddings=self.config.embeddings,
            tools=self.tools,
            gpu=self._gpu,
            batches=self._batches(choice.device, backend),
            on_clips=self.on_clips,
            on_progress=self.on_progress,
            note=self.note,
        )
        self.tally = self.worker.tally
        return asdict(choice)

    def _batches(self, device: str, backend: Backend) -> Batches:
        """Return what squeezes on the GPU where the kernel runs, else on the host."""
        protocol = self.recipe.protocol
        if device.startswith("cuda"):
            from sqt_fast.clips.device_batches import DeviceBatches  # here: Triton takes a third of a second to import

            try:
                return DeviceBatches(protocol, backend.dtype, device)
            except BackendError as error:
                self.note(f"clips are squeezed on the host: {error}")
        return CpuBatches(protocol, backend.dtype)

    def _open_gpu(self, device: str) -> "GpuRoute | None":
        """Return the GPU's decoders where they are wanted and work. Raises BackendError where they are a must."""
        must = self.config.decoder == "nvdec"
        if self.config.decoder == "cpu" or not (must or device.startswith("cuda")):
            return None
        reason = why_no_gpu_decoder()
        if reason is None:
            from sqt_fast.engine.gpu_route import GpuRoute  # here: DALI is loaded where it is needed

            number = int(device.partition(":")[2] or 0)
            gpu = GpuRoute.open(number, self.recipe.protocol.short_side, self.note)
            if gpu is not None:
                return gpu
            reason = "no codec passed its test"
        if must:
            raise BackendError(f"--decoder nvdec: {reason}; use --decoder cpu")
        self.note(f"videos are decoded on the host: {reason}")
        return None

    def _choose(self, weights: Weights, earlier: EarlierRun, num_clips: int) -> Choice:
        config, size = self.config, self.recipe.protocol.crop_size
        device = find_device(config.device)
        known = earlier.choice if earlier.choice is not None and earlier.choice["device"] == device else None
        if known and earlier.whole:
            return replace(Choice(**known), batch_size=config.batch_size or known["batch_size"])
        if known:
            config = replace(config, precision=known["precision"])
        return choose(config, weights.model, num_clips=num_clips, size=size)

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished."""
        assert self.worker is not None
        return self.worker.label(videos)

    def close(self) -> None:
        """Let go of the GPU's decoders."""
        if self._gpu is not None:
            self._gpu.close()


def serve(
    connection: "Connection[Any, Any]", config: IndexConfig, resources: Resources, tools: ToolsFactory, log_level: int
) -> None:
    """Be the process of a device: answer ``load`` and ``open``, then label what comes.

    Sends (kind, value): answer, error, note, clips, result with the tally since the last one, and now and then alive.
    """
    logging.basicConfig(level=log_level, format="%(name)s: %(message)s")
    _Server(connection, Worker(config, resources, tools)).run()


class _Server:
    """The other side of supervisor.Supervisor."""

    def __init__(self, connection: "Connection[Any, Any]", device: Worker) -> None:
        self.connection, self.device = connection, device
        self.lock = threading.Lock()
        self.last_sent = time.monotonic()
        device.note = lambda text: self.send("note", text)
        device.on_clips = lambda count: self.send("clips", count)
        device.on_progress = self.tick

    def send(self, kind: str, value: Any) -> None:
        with self.lock:
            self.connection.send((kind, value))
            self.last_sent = time.monotonic()

    def tick(self) -> None:
        """Say now and then that work goes on."""
        if time.monotonic() - self.last_sent > TICK_S:
            self.send("alive", None)

    def run(self) -> None:
        try:
            while True:
                name, *args = self.connection.recv()
                if name == "label":
                    self.label()
                    return
                self.send("answer", getattr(self.device, name)(*args))
        except SqtError as error:
            self.send("error", error)

    def label(self) -> None:
        """Label the videos that the supervisor sends, until it says that no more come."""
        worker = self.device.worker
        assert worker is not None
        threading.Thread(target=self.take_videos, args=(worker,), daemon=True).start()
        for result in worker.results():
            tally, worker.tally = worker.tally, RunCounters()
            self.send("result", (result, tally))
        self.send("answer", worker.tally)

    def take_videos(self, worker: Labelling) -> None:
        try:
            while (videos := self.connection.recv()) is not None:
                worker.jobs.add(videos)
            worker.jobs.close()
        except (EOFError, OSError):
            worker.jobs.stop()  # the supervisor is gone: the next thing sent ends this process
