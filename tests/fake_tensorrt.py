"""A TensorRT that is none: it builds and runs nothing, but says no where a test wants it, and remembers what it got."""

import ctypes
from collections.abc import Callable, Collection
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ITEM_BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.uint8: 1}
Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def sums(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Stand in for a network: clips (B, 48, H, W) -> logits (B, 7), embeddings (B, 8)."""
    flat = clips.float().flatten(1)
    return flat[:, :7] * 2, flat[:, :8] + flat.sum(1, keepdim=True)


def memory_at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the memory at ``address`` as a tensor."""
    size = ITEM_BYTES[dtype] * int(torch.tensor(shape).prod())
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class FakeTensorRT:
    """The module. run: what its engines calculate; refuses: names of calls that say no; batches: of its engines."""

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    BuilderFlag = Enum("BuilderFlag", "TF32 VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME")
    ComputeCapability = Enum("ComputeCapability", "NONE CURRENT SM75 SM86 SM89")
    ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", "USER_MANAGED")
    HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    ProfilingVerbosity = Enum("ProfilingVerbosity", "DETAILED")

    def __init__(
        self,
        *,
        run: Run = sums,
        refuses: Collection[str] = (),
        batches: tuple[int, int, int] = (1, 2, 4),
        dtype: torch.dtype = torch.float32,
        sample: tuple[int, ...] = (48, 4, 4),
    ) -> None:
        self.__version__ = "11.4.0.106"
        self.Runtime, self.Builder, self.OnnxParser = self.runtime, self.builder, self.parser
        self.run, self.refuses, self.batches, self.dtype, self.sample = run, refuses, batches, dtype, sample
        self.names = ["clips", "logits", "embeddings"]
        self.logger: Any = None
        self.loaded: list[bytes] = []
        self.contexts: list[FakeContext] = []
        self.settings: list[FakeSettings] = []
        self.network_flags: list[int] = []

    def allows(self, call: str) -> bool:
        """Whether a call is to do its work; if not, complain as the library does."""
        if call not in self.refuses:
            return True
        self.logger.log(Severity.ERROR, f"[{call}] says\n  no")
        return False

    def runtime(self, logger: Any) -> SimpleNamespace:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self.deserialize)

    def deserialize(self, data: bytes) -> "FakeEngine | None":
        self.loaded.append(data)
        return FakeEngine(self) if self.allows("deserialize_cuda_engine") else None

    def builder(self, logger: Any) -> "FakeBuilder":
        self.logger = logger
        if "Builder" in self.refuses:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeBuilder(self)

    def parser(self, network: Any, logger: Any) -> SimpleNamespace:
        del network, logger
        error = SimpleNamespace(desc=lambda: "no such thing", node_name=lambda: "n1", node_operator=lambda: "Odd")
        return SimpleNamespace(
            parse_from_file=lambda path: self.allows("parse_from_file"),
            num_errors=0 if "get_error" in self.refuses else 1,
            get_error=lambda number: error,
        )


class FakeEngine:
    def __init__(self, library: FakeTensorRT) -> None:
        self.library, self.num_io_tensors = library, len(library.names)

    def get_tensor_name(self, number: int) -> str:
        return self.library.names[number]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("clips", 0)
        return [(batch, *self.library.sample) for batch in self.library.batches]

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return -1, {"logits": 7, "embeddings": 8}[name]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        assert profile == 0
        return 1000

    def create_execution_context(self, strategy: Any) -> "FakeContext | None":
        assert strategy is FakeTensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self.library) if self.library.allows("create_execution_context") else None


class FakeContext:
    def __init__(self, library: FakeTensorRT) -> None:
        self.library = library
        self.scratch = (0, 0)
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []
        library.contexts.append(self)

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "clips"
        self.shape = shape
        return self.library.allows("set_input_shape")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.library.allows("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch[0] > 0
        assert self.scratch[1] >= 1000
        if not self.library.allows("execute_async_v3"):
            return False
        self.streams.append(stream)
        clips = memory_at(self.addresses["clips"], self.shape, self.library.dtype)
        for name, result in zip(("logits", "embeddings"), self.library.run(clips), strict=True):
            memory_at(self.addresses[name], tuple(result.shape), torch.float32).copy_(result)
        return True


class FakeBuilder:
    def __init__(self, library: FakeTensorRT) -> None:
        self.library = library

    def create_network(self, flags: int) -> SimpleNamespace:
        self.library.network_flags.append(flags)
        kinds = SimpleNamespace(FLOAT=SimpleNamespace(name="FLOAT"))
        shapes = {"clips": (-1, *self.library.sample), "logits": (-1, 7), "embeddings": (-1, 8)}
        tensors = [SimpleNamespace(name=name, dtype=kinds.FLOAT, shape=shape) for name, shape in shapes.items()]
        return SimpleNamespace(
            num_inputs=1, num_outputs=2, get_input=lambda i: tensors[i], get_output=lambda i: tensors[i + 1]
        )

    def create_builder_config(self) -> "FakeSettings":
        self.library.settings.append(FakeSettings(self.library))
        return self.library.settings[-1]

    def create_optimization_profile(self) -> SimpleNamespace:
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.update({name: shapes})
        return profile

    def build_serialized_network(self, network: Any, settings: Any) -> bytes | None:
        monitor = settings.progress_monitor
        monitor.phase_start("all", None, 2)
        going = monitor.step_complete("all", 0) and monitor.step_complete("all", 1)
        monitor.phase_finish("all")
        self.library.logger.log(Severity.VERBOSE, "Layers:\nName: one, LayerType: gemm\n\nI/O Tensors:\n Name: clips")
        return b"a plan" if going and self.library.allows("build_serialized_network") else None


class FakeSettings:
    """A builder's configuration. What is set on it stays on it; timing caches that begin with "other" do not fit."""

    def __init__(self, library: FakeTensorRT) -> None:
        self.library = library
        self.flags = {FakeTensorRT.BuilderFlag.TF32}
        self.profiles: list[Any] = []
        self.pools: dict[Any, int] = {}
        self.capabilities: dict[int, Any] = {}
        self.timing: Any = None
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard
        self.set_memory_pool_limit = self.pools.__setitem__

    def set_compute_capability(self, capability: Any, place: int) -> None:
        self.capabilities[place] = capability

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return 0 if self.library.allows("add_optimization_profile") else -1

    def create_timing_cache(self, kept: bytes) -> SimpleNamespace | None:
        return None if kept == b"broken" else SimpleNamespace(kept=kept, serialize=lambda: memoryview(kept + b"+"))

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.kept.startswith(b"other"):
            return False
        self.timing = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.timing
