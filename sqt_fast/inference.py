"""A network for inference in Python programs: any backend, clips in, tensors out on the same device."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sqt_fast.backends import PRECISIONS
from sqt_fast.errors import ConfigError
from sqt_fast.model import SqueezeTime

# name -> "module:function" of (model, device, dtype), which returns what maps clips to logits and embeddings
NETWORKS = {
    "eager": "sqt_fast.eager:eager_network",
    "compile": "sqt_fast.compiled:compiled_network",
    "triton": "sqt_fast.triton_backend:triton_network",
}


class InferenceModel(nn.Module):
    """The folded network on one backend. Not for training: it holds no parameters that could be.

    Made by ``sqt_fast.load_model(..., backend=...)``. Raises BackendError where the backend cannot run, ConfigError for
    a name that is none or a network without classifier.
    """

    def __init__(self, model: SqueezeTime, backend: str, *, device: str, precision: str) -> None:
        super().__init__()
        for value, allowed, name in ((backend, NETWORKS, "backend"), (precision, PRECISIONS, "precision")):
            if value not in allowed:
                raise ConfigError(f"{name} {value}: no such {name}; choose one of {', '.join(allowed)}")
        if model.fc is None:
            raise ConfigError("these weights hold no classifier; load them without backend and use features()")
        self.device, self.dtype, self.input_channels = device, PRECISIONS[precision], model.config.input_channels
        module, _, function = NETWORKS[backend].partition(":")
        make = getattr(importlib.import_module(module), function)
        self._network: Callable[[Tensor], tuple[Tensor, Tensor]] = make(model, device=device, dtype=self.dtype)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: normalised RGB, (B, 3, 16, H, W) or (B, 48, H, W), any float dtype, anywhere.

        Returns logits (B, K) and embeddings (B, C), float32, on the model's device.
        """
        squeezed = clips.flatten(1, 2) if clips.ndim == 5 else clips
        if squeezed.ndim != 4 or squeezed.shape[1] != self.input_channels:
            raise ValueError(
                f"clips of shape {tuple(clips.shape)}: give (B, 3, {self.input_channels // 3}, H, W) "
                f"or (B, {self.input_channels}, H, W)"
            )
        squeezed = squeezed.to(self.device, self.dtype, non_blocking=True)
        return self._network(squeezed.contiguous(memory_format=torch.channels_last))

    def logits(self, clips: Tensor) -> Tensor:
        """Return (B, K), before softmax."""
        logits: Tensor = self(clips)[0]
        return logits

    def embed(self, clips: Tensor) -> Tensor:
        """Return the pooled features (B, C) that the classifier sees."""
        embeddings: Tensor = self(clips)[1]
        return embeddings
