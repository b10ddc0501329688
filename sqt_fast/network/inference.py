"""A network for inference in Python programs: any backend, clips in, tensors out on the same device."""

import torch
from torch import Tensor, nn

from sqt_fast.network.backends import DTYPES, load_network
from sqt_fast.network.model import SqueezeTime, squeezed


class InferenceModel(nn.Module):
    """The folded network on one backend. Not for training: it holds no parameters that could be.

    Made by ``sqt_fast.load_model(..., backend=...)``. Raises BackendError where the backend cannot run, ConfigError for
    a name that is none or a network without classifier.
    """

    def __init__(self, model: SqueezeTime, backend: str, *, device: str, precision: str) -> None:
        super().__init__()
        self.network = load_network(backend, model, device=device, precision=precision)
        self.device, self.dtype, self.input_channels = device, DTYPES[precision], model.config.input_channels

    @torch.no_grad()
    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: normalised RGB, (B, 3, 16, H, W) or (B, 48, H, W), any float dtype, anywhere.

        Returns logits (B, K) and embeddings (B, C), float32, on the model's device.
        """
        clips = squeezed(clips, self.input_channels).to(self.device, self.dtype, non_blocking=True)
        return self.network(clips.contiguous(memory_format=torch.channels_last))

    def logits(self, clips: Tensor) -> Tensor:
        """Return (B, K), before softmax."""
        logits: Tensor = self(clips)[0]
        return logits

    def embed(self, clips: Tensor) -> Tensor:
        """Return the pooled features (B, C) that the classifier sees."""
        embeddings: Tensor = self(clips)[1]
        return embeddings
