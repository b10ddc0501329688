"""Backends: ways to run the network. Each is a function of clips; which one is decided once, at start.

A backend takes clips (B, 48, S, S), normalised, of its ``dtype``, and gives logits (B, K) and embeddings (B, C),
both float32. B is always the same in a run, so a clip's result does not depend on its neighbours in the batch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sqt_fast.errors import BackendError, ConfigError, first_line
from sqt_fast.network.model import INPUT_CHANNELS, SqueezeTime, squeezed
from sqt_fast.network.registry import BACKENDS, PRECISIONS, QUANTISED

log = logging.getLogger(__name__)

# Clips (B, 48, S, S) on its device, channels last, to logits (B, K) and embeddings (B, C), float32, there.
Network = Callable[[Tensor], tuple[Tensor, Tensor]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= dict.fromkeys(QUANTISED, torch.float16)  # of the clips, and between products


@dataclass(frozen=True)
class Started:
    """A batch that a network was given. logits (B, K) and embeddings (B, C), float32 on the CPU, are to be read through
    ``results``. event: when a GPU has written them there; None if they are there.
    """

    logits: Tensor
    embeddings: Tensor
    event: torch.cuda.Event | None = None

    def results(self) -> tuple[Tensor, Tensor]:
        """Wait for logits and embeddings, and return them. Raises what went wrong on the GPU meanwhile."""
        if self.event is not None:
            self.event.synchronize()
        return self.logits, self.embeddings


class Backend(Protocol):
    """What labelling needs of a network. InferenceModel is the implementation; tests use a fake one."""

    dtype: torch.dtype

    def start(self, clips: Tensor) -> Started:
        """clips: (B, 48, S, S). Run the network on them; on a GPU, behind what was started before, without waiting."""
        ...

    def release_memory(self) -> None:
        """Give back what can be made again, after memory has run out. Waits for what was started."""
        ...


class InferenceModel(nn.Module):
    """The folded network on one backend. Not for training: it holds no parameters that could be.

    Made by ``sqt_fast.load_model(..., backend=...)``. Raises BackendError where the backend cannot run, ConfigError for
    a name that is none or a network without classifier.
    """

    def __init__(self, model: SqueezeTime, backend: str, *, device: str, precision: str) -> None:
        super().__init__()
        self.network = load_network(backend, model, device=device, precision=precision)
        self.device, self.dtype, self.input_channels = device, DTYPES[precision], model.config.input_channels

    @torch.no_grad()  # not inference_mode: its tensors are of a kind of their own, for which all is compiled again
    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: normalised RGB, (B, 3, 16, H, W) or (B, 48, H, W), any float dtype, anywhere.

        Returns logits (B, K) and embeddings (B, C), float32, on the model's device. Nothing waits for a GPU.
        """
        clips = squeezed(clips, self.input_channels)
        return self.network(clips.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last))

    def logits(self, clips: Tensor) -> Tensor:
        """Return (B, K), before softmax."""
        logits: Tensor = self(clips)[0]
        return logits

    def embed(self, clips: Tensor) -> Tensor:
        """Return the pooled features (B, C) that the classifier sees."""
        embeddings: Tensor = self(clips)[1]
        return embeddings

    def start(self, clips: Tensor) -> Started:
        """See Backend."""
        # Where nothing waits for a copy, torch lets it go to pinned memory.
        logits, embeddings = (each.to("cpu", non_blocking=True) for each in self(clips))
        if not self.device.startswith("cuda"):
            return Started(logits, embeddings)
        # Blocking: who waits leaves its core to the decoders.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return Started(logits, embeddings, event)

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: see ``forward``. Wait, and return logits and embeddings on the CPU."""
        return self.start(clips).results()

    def input(self, shape: tuple[int, ...]) -> Tensor | None:
        """Lend the memory that the next clips (B, 48, H, W) of ``shape`` are read from, None if the network has none.

        See ``GraphRunner.input``. Only for whoever alone runs this model.
        """
        lend = getattr(self.network, "input", None)
        memory: Tensor | None = None if lend is None else lend(shape)
        return memory

    def compile_ahead(self, shape: tuple[int, ...]) -> None:
        """Compile what clips of ``shape`` (B, 48, H, W) need, where that can be done faster than by running them."""
        if (compile_ahead := getattr(self.network, "compile_ahead", None)) is not None:
            compile_ahead(shape)

    def release_memory(self) -> None:
        """See Backend. A network that keeps something for each shape of batch has ``clear``."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        if (clear := getattr(self.network, "clear", None)) is not None:
            clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def load_network(name: str, model: SqueezeTime, *, device: str, precision: str) -> Network:
    """Make the network ``name`` of ``model``, folded, for inference.

    Raises ConfigError for a name or precision that there is not, and for a model without classifier; BackendError where
    it cannot run.
    """
    precisions = (*PRECISIONS, *QUANTISED)
    for value, allowed, kind in ((name, tuple(BACKENDS), "backend"), (precision, precisions, "precision")):
        if value not in allowed:
            raise ConfigError(f"{kind} {value}: no such {kind}; choose one of {', '.join(allowed)}")
    if precision not in BACKENDS[name].precisions:
        able = " or ".join(other for other, record in BACKENDS.items() if precision in record.precisions)
        raise ConfigError(f"precision {precision}: not one of backend {name}'s; use --backend {able}")
    if model.fc is None:
        raise ConfigError(
            "these weights hold no classifier, so there is nothing to label with: choose other --weights "
            "(load_model without a backend gives their features)"
        )
    if reason := BACKENDS[name].why_not(device, model):
        raise BackendError(f"backend {name}: {reason}; use --backend {_others(name, device, model)}")
    more = {"precision": precision} if precision in QUANTISED else {}
    network: Network = BACKENDS[name].make(model, device=device, dtype=DTYPES[precision], **more)
    return network


def _others(name: str, device: str, model: SqueezeTime) -> str:
    """Return the names of what can run instead, the simplest first."""
    others = [other for other, record in BACKENDS.items() if other != name and not record.by_request]
    return " or ".join(other for other in others if not BACKENDS[other].why_not(device, model))


def load_backend(
    name: str, model: SqueezeTime, *, device: str, precision: str, batch_size: int, size: int
) -> InferenceModel:
    """Make the backend ``name`` of ``model`` for clips (batch_size, 48, size, size), and have it compile what it will.

    Raises BackendError when it cannot run here or gives other numbers than PyTorch, ConfigError when the network has no
    classifier or wants other clips.
    """
    if (wanted := model.config.input_channels) != INPUT_CHANNELS:
        raise ConfigError(f"these weights want {wanted} channels, clips have {INPUT_CHANNELS}: choose other --weights")
    backend = InferenceModel(model, name, device=device, precision=precision)
    if device.partition(":")[0] not in BACKENDS[name].needs_start:
        return backend
    try:  # a batch of the shape that will come, so that what fails fails now
        if BACKENDS[name].must_agree:
            _be_trusted(backend, model, name=name, precision=precision, batch_size=batch_size, size=size)
        backend.run(torch.zeros((batch_size, INPUT_CHANNELS, size, size), dtype=backend.dtype))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # the worker halves batches that are too large
    except BackendError:  # it knows what to say
        raise
    except Exception as error:
        log.debug("backend %s", name, exc_info=True)
        others = _others(name, device, model)
        raise BackendError(f"backend {name}: compiling failed ({first_line(error)}); use --backend {others}") from error
    return backend


def _be_trusted(
    backend: InferenceModel, model: SqueezeTime, *, name: str, precision: str, batch_size: int, size: int
) -> None:
    """Compile what was never run here, and hold it against PyTorch. Raises BackendError if it gives other numbers."""
    from sqt_fast.network.agreement import Form, why_wrong  # here: it imports this file

    form = Form(name, backend.device, precision, batch_size, size)
    if form.is_trusted(model):
        return
    backend.compile_ahead((batch_size, INPUT_CHANNELS, size, size))
    if reason := why_wrong(backend, model, form):
        raise BackendError(f"backend {name}: {reason}; use --backend {_others(name, backend.device, model)}")
