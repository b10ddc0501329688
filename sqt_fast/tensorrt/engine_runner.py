"""Engines at work: the tensorrt and tensorrt-rtx backends.

An engine is called through ``graph_runner.GraphRunner``, a CUDA graph for every size of batch. Each graph has an
execution context of its own, for a graph holds the state of its context; all contexts share one piece of memory, for
one graph at a time is replayed. Clips, results and that memory are torch's.
"""

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network.backends import DTYPES
from sqt_fast.network.graph_runner import GraphRunner
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import INPUT_NAME, OUTPUT_NAMES, network_sha256
from sqt_fast.tensorrt.engine_cache import Engine, Gpu, again, engines_folder, engines_in, objections, refuse
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS, Flavour, hear, load_library, why

MIN_SCRATCH_BYTES = 256  # what the library wants addresses of memory to be multiples of, and torch's are


class EngineNetwork:
    """An engine as a function: clips (B, 48, S, S) contiguous on its GPU -> logits (B, K), embeddings (B, C) there.

    It runs on torch's current stream and waits for nothing. device: where it was built for. Raises BackendError where
    the library refuses it; ``objections`` must have been asked before, for its bytes are run.
    """

    memory_format = torch.contiguous_format

    def __init__(self, engine: Engine, library: Any, device: str) -> None:
        self.engine, self.library, self.device = engine, library, device
        self.errors: list[str] = []
        self.logger = hear(library, self.errors)
        self.runtime = library.Runtime(self.logger)  # must live as long as the engine
        self.cuda_engine = self.runtime.deserialize_cuda_engine(engine.path.read_bytes())
        if self.cuda_engine is None:
            raise self._failed("cannot be loaded")
        names = [self.cuda_engine.get_tensor_name(i) for i in range(self.cuda_engine.num_io_tensors)]
        self.names = engine.about["names"]
        if set(names) != {self.names.get(name) for name in (INPUT_NAME, *OUTPUT_NAMES)}:
            raise self._failed(f"has the tensors {', '.join(names)}, not those that its sidecar names")
        self.clips_name = self.names[INPUT_NAME]
        least, _, most = self.cuda_engine.get_tensor_profile_shape(self.clips_name, 0)
        self.least, self.most, self.sample = int(least[0]), int(most[0]), tuple(int(side) for side in most[1:])
        self.widths = {name: int(self.cuda_engine.get_tensor_shape(self.names[name])[1]) for name in OUTPUT_NAMES}
        self.dtype = engine.export.input_dtype
        size = int(self.cuda_engine.get_device_memory_size_for_profile_v2(0))
        self._scratch = torch.empty(max(size, MIN_SCRATCH_BYTES), dtype=torch.uint8, device=device)
        self._contexts: dict[int, Any] = {}

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(clips)
        if tuple(clips.shape[1:]) != self.sample or clips.dtype != self.dtype or not clips.is_contiguous():
            wanted = ", ".join(map(str, self.sample))
            raise ValueError(
                f"clips {tuple(clips.shape)} {clips.dtype}: expected (B, {wanted}) {self.dtype}, contiguous"
            )
        if not self.least <= batch <= self.most:
            raise BackendError(
                f"engine {self.engine.path.name} takes {self.least} to {self.most} clips at once, not {batch}: use "
                f"--batch-size {self.most}, or build one with another --batch"
            )
        context = self._contexts.get(batch) or self._new_context(batch)
        outputs = {
            name: torch.empty((batch, width), dtype=torch.float32, device=self.device)
            for name, width in self.widths.items()
        }
        for name, tensor in ({INPUT_NAME: clips} | outputs).items():
            if not context.set_tensor_address(self.names[name], tensor.data_ptr()):
                raise self._failed(f"refuses the address of {name}")
        if not context.execute_async_v3(torch.cuda.current_stream(clips.device).cuda_stream):
            raise self._failed("could not be started")  # and would leave in the results what was there before
        return outputs["logits"], outputs["embeddings"]

    def _new_context(self, batch: int) -> Any:
        """Make what an engine runs in, for batches of one size."""
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.cuda_engine.create_execution_context(strategy)
        if context is None:
            raise self._failed("gives no execution context")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        if not context.set_input_shape(self.clips_name, (batch, *self.sample)):
            raise self._failed(f"refuses batches of {batch}")
        self._contexts[batch] = context
        return context

    def clear(self) -> None:
        """Let go of all contexts; they are made again when they are needed."""
        self._contexts.clear()

    def _failed(self, what: str) -> BackendError:
        return BackendError(f"engine {self.engine.path} {what}: {why(self.errors)}; {again(self.engine.about)}")


class EngineBackend:
    """The network by whichever engine was built for it, looked for when clips of a size first come.

    Threads may share it. precision: of a quantised engine, which dtype does not tell. Raises BackendError, at the first
    clips of a size, where there is no engine that may run here.
    """

    def __init__(
        self, model: SqueezeTime, *, device: str, dtype: torch.dtype, flavour: Flavour, precision: str | None = None
    ) -> None:
        self.network_sha256, self.device, self.flavour = network_sha256(model), device, flavour
        self.precision = precision or next(name for name, each in DTYPES.items() if each == dtype)
        self._runners: dict[int, GraphRunner] = {}
        self._lock = threading.Lock()

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        size = clips.shape[-1]
        with self._lock:
            if (runner := self._runners.get(size)) is None:
                library = load_library(self.flavour)
                network = EngineNetwork(self.find(size, len(clips), library.__version__), library, self.device)
                runner = self._runners[size] = GraphRunner(network)
        return runner(clips.contiguous())

    def find(self, size: int, batch: int, library_version: str) -> Engine:
        """Return the engine for ``batch`` clips of size x size pixels, else for other batches. Raises BackendError."""
        wanted = {
            "network_sha256": self.network_sha256,
            "size": size,
            "precision": self.precision,
            "input": "normalised",
            "flavour": self.flavour.name,
        }
        found = [each for each in engines_in(engines_folder()) if isinstance(each, Engine) and _fits(each, wanted)]
        gpu, refused = Gpu.of(self.device), []
        for engine in sorted(found, key=partial(_distance, batch)):
            reasons = objections(engine, library_version=library_version, gpu=gpu)
            if not reasons and not (engine.about["validation"] or {}).get("holds"):
                check = f"sqt-fast engines check {engine.path}"
                reasons = [f"it was not found to give what the network gives ({check} looks)"]
            if not reasons:
                return engine
            refused.append((engine, reasons))
        if refused:
            refuse(*min(refused, key=lambda each: len(each[1])))
        raise BackendError(
            f"no engine was built for these weights, {self.precision} and {size}x{size} pixels: sqt-fast build-engine "
            f"--flavour {self.flavour.name} --precision {self.precision} --size {size} --weights (the same)"
        )

    def clear(self) -> None:
        """Let go of graphs, contexts and engines; they are loaded again when they are needed."""
        with self._lock:
            self._runners.clear()


def _fits(engine: Engine, wanted: Mapping[str, Any]) -> bool:
    return all(engine.identity.get(name) == each for name, each in wanted.items())


def _distance(batch: int, engine: Engine) -> tuple[bool, int]:
    """Return how far from the batches that an engine was built for ``batch`` is."""
    least, best, most = engine.batches
    return not least <= batch <= most, abs(best - batch)


def _why_not(device: str, model: SqueezeTime, *, flavour: Flavour) -> str | None:
    """Return why no engine can run on this device, None if nothing speaks against it."""
    del model
    if not device.startswith("cuda"):
        return f"{flavour.title} needs an NVIDIA GPU (--device cuda)"
    try:
        load_library(flavour)
    except BackendError as error:
        return str(error)
    return None


tensorrt_network, rtx_network = (partial(EngineBackend, flavour=FLAVOURS[name]) for name in ("tensorrt", "rtx"))
tensorrt_why_not, rtx_why_not = (partial(_why_not, flavour=FLAVOURS[name]) for name in ("tensorrt", "rtx"))
