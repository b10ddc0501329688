"""Backends: ways to run the network. Each is an object with one method; which one is decided once, at start.

A backend takes clips (B, 48, S, S), normalised, of its ``dtype``, and returns logits (B, K) and embeddings (B, C),
both float32 on the host. B is always the same, so a clip's result does not depend on its neighbours in the batch.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, first_line
from sqt_fast.network.model import INPUT_CHANNELS, SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS

log = logging.getLogger(__name__)

# Clips (B, 48, S, S) on its device, channels last, to logits (B, K) and embeddings (B, C), float32, there.
Network = Callable[[Tensor], tuple[Tensor, Tensor]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Backend(Protocol):
    """The contract. NetworkBackend is the implementation; tests use a fake one."""

    dtype: torch.dtype

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: (B, 48, S, S). Returns logits (B, K) and embeddings (B, C), float32 on the CPU."""
        ...

    def release_memory(self) -> None:
        """Give back what can be made again, after memory has run out."""
        ...


class NetworkBackend:
    """A network, clips carried to it and results from it. See Backend."""

    def __init__(self, network: Network, *, device: str, dtype: torch.dtype) -> None:
        self.network, self.device, self.dtype = network, device, dtype

    @torch.no_grad()  # not inference_mode: its tensors are of a kind of their own, for which all is compiled again
    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """See Backend."""
        clips = clips.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last)
        logits, embeddings = self.network(clips)
        return logits.cpu(), embeddings.cpu()

    def release_memory(self) -> None:
        """See Backend. A network that keeps something for each shape of batch has ``clear``."""
        if (clear := getattr(self.network, "clear", None)) is not None:
            clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def load_network(name: str, model: SqueezeTime, *, device: str, precision: str) -> Network:
    """Make the network ``name`` of ``model``, folded, for inference.

    Raises ConfigError for a name or precision that there is not, and for a model without classifier; BackendError where
    it cannot run.
    """
    for value, allowed, kind in ((name, tuple(BACKENDS), "backend"), (precision, PRECISIONS, "precision")):
        if value not in allowed:
            raise ConfigError(f"{kind} {value}: no such {kind}; choose one of {', '.join(allowed)}")
    if model.fc is None:
        raise ConfigError(
            "these weights hold no classifier, so there is nothing to label with: choose other --weights "
            "(load_model without a backend gives their features)"
        )
    if reason := BACKENDS[name].why_not(device, model):
        raise BackendError(f"backend {name}: {reason}; use --backend {_others(name, device, model)}")
    network: Network = BACKENDS[name].make(model, device=device, dtype=DTYPES[precision])
    return network


def _others(name: str, device: str, model: SqueezeTime) -> str:
    """Return the names of what can run instead, the simplest first."""
    known = sorted(BACKENDS, key=lambda other: BACKENDS[other].order)
    return " or ".join(other for other in known if other != name and not BACKENDS[other].why_not(device, model))


def load_backend(name: str, model: SqueezeTime, *, device: str, precision: str, batch_size: int, size: int) -> Backend:
    """Make the backend ``name`` of ``model`` for clips (batch_size, 48, size, size), and have it compile what it will.

    Raises BackendError when it cannot run here, ConfigError when the network has no classifier or wants other clips.
    """
    if (wanted := model.config.input_channels) != INPUT_CHANNELS:
        raise ConfigError(f"these weights want {wanted} channels, clips have {INPUT_CHANNELS}: choose other --weights")
    network = load_network(name, model, device=device, precision=precision)
    backend = NetworkBackend(network, device=device, dtype=DTYPES[precision])
    if device.partition(":")[0] in BACKENDS[name].needs_start:
        _start(name, backend, model, torch.zeros((batch_size, INPUT_CHANNELS, size, size), dtype=backend.dtype))
    return backend


def _start(name: str, backend: NetworkBackend, model: SqueezeTime, clips: Tensor) -> None:
    """Run a batch of the shape that will come, so that what fails fails now."""
    try:
        backend.run(clips)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # the worker halves batches that are too large
    except Exception as error:
        log.debug("backend %s", name, exc_info=True)
        others = _others(name, backend.device, model)
        raise BackendError(f"backend {name}: compiling failed ({first_line(error)}); use --backend {others}") from error
