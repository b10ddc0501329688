"""Backends: ways to run the network. Each is an object with one method; which one is decided once, at start.

A backend takes clips (B, 48, S, S), normalised, of its ``dtype``, and returns logits (B, K) and embeddings (B, C),
both float32 on the host. B is always the same, so a clip's result does not depend on its neighbours in the batch.
"""

import importlib
from typing import Protocol

import torch
from torch import Tensor

from sqt_fast.errors import ConfigError
from sqt_fast.model import INPUT_CHANNELS, SqueezeTime


class Backend(Protocol):
    """The contract. Implementations: the entries of BACKENDS; tests use a fake one."""

    dtype: torch.dtype

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: (B, 48, S, S). Returns logits (B, K) and embeddings (B, C), float32 on the host."""
        ...


# name -> "module:class", imported when used
BACKENDS = {
    "eager": "sqt_fast.eager:EagerBackend",
    "compile": "sqt_fast.compiled:CompiledBackend",
    "triton": "sqt_fast.triton_backend:TritonBackend",
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_backend(name: str, model: SqueezeTime, *, device: str, precision: str, batch_size: int, size: int) -> Backend:
    """Make the backend ``name`` of ``model`` for clips (batch_size, 48, size, size).

    Raises BackendError when it cannot run here, ConfigError when the network has no classifier or wants other clips.
    """
    if model.fc is None:
        raise ConfigError("these weights hold no classifier, so there is nothing to label with: choose other --weights")
    if (wanted := model.config.input_channels) != INPUT_CHANNELS:
        raise ConfigError(f"these weights want {wanted} channels, clips have {INPUT_CHANNELS}: choose other --weights")
    module, _, attribute = BACKENDS[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    backend: Backend = factory(model, device=device, dtype=PRECISIONS[precision], batch_size=batch_size, size=size)
    return backend
