"""A network that is captured as a CUDA graph for every shape of batch, whatever it runs on.

A graph replays some hundred launches as one: without it, a small batch waits for Python most of the time.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# Graphs kept. They share one pool of memory, for one at a time is replayed; each has inputs and outputs of its own.
MAX_GRAPHS = 4


class Capturable(Protocol):
    """What can be captured: clips of this dtype and layout -> logits and embeddings, on the current stream alone."""

    dtype: torch.dtype
    memory_format: torch.memory_format

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]: ...


class GraphRunner:
    """A network that replays CUDA graphs. On a CPU, where kernels are interpreted, it is the network as it is.

    Threads may share it: one batch at a time is run, for all graphs use the same memory.
    """

    def __init__(self, net: Capturable) -> None:
        self.net = net
        self._graphs: OrderedDict[torch.Size, _Captured] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: (B, 48, H, W) of the network's dtype, on its device.

        Returns logits (B, K) and embeddings (B, C), float32, there. Nothing waits for the GPU, but for the first batch
        of a shape. Clips that lie in the memory of ``input`` are not copied.
        """
        if clips.device.type != "cuda":
            return self.net(clips)
        with self._lock:
            captured = self._graphs.pop(clips.shape, None)
            if captured is not None and captured.is_lent and not clips.is_set_to(captured.clips):
                captured = None  # others' clips must not overwrite what is being prepared there: they get a graph anew
            if captured is None:
                if len(self._graphs) == MAX_GRAPHS:
                    self._graphs.popitem(last=False)
                captured = _Captured(self.net, clips, self._pool)
                self._pool = captured.graph.pool()
            self._graphs[clips.shape] = captured  # the newest last
            return captured(clips)

    def input(self, shape: tuple[int, ...]) -> Tensor | None:
        """Lend the memory that the graph for clips of ``shape`` reads, None where there is no such graph yet.

        For one batch: fill all of it on the current stream, which comes behind the run that still reads it, and run the
        network on it. From then on it may hold other clips. Whatever happens to the graph meanwhile, it stays memory
        like any other.
        """
        with self._lock:
            if (captured := self._graphs.get(torch.Size(shape))) is None:
                return None
            captured.is_lent = True
            return captured.clips

    def compile_ahead(self, shape: Sequence[int]) -> None:
        """Compile what the network needs for clips of ``shape``, if it knows how to before it runs."""
        if (compile_ahead := getattr(self.net, "compile_ahead", None)) is not None:
            compile_ahead(shape)

    def clear(self) -> None:
        """Let go of all graphs and their memory; they are captured again when they are needed."""
        with self._lock:
            self._graphs.clear()
            self._pool = None
            if (clear := getattr(self.net, "clear", None)) is not None:
                clear()


class _Captured:
    """One shape of batch as a CUDA graph, with the memory that it reads and writes."""

    def __init__(self, net: Capturable, clips: Tensor, pool: Any) -> None:
        self.is_lent = False  # whether somebody prepares the next batch in self.clips
        self.clips = torch.zeros_like(clips, dtype=net.dtype, memory_format=net.memory_format)
        with torch.cuda.device(clips.device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                net(self.clips)  # kernels are compiled, position embeddings stretched: neither can be captured
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            # Decoders' threads may ask for pinned memory meanwhile, which only a capture of this thread alone allows.
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.logits, self.embeddings = net(self.clips)

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Run the graph. What it returns is the caller's: the next run does not touch it."""
        if not clips.is_set_to(self.clips):
            self.clips.copy_(clips)
        self.is_lent = False
        self.graph.replay()
        return self.logits.clone(), self.embeddings.clone()
