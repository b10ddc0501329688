"""The eager network: folded, channels last, run by PyTorch as it is."""

import torch
from torch import Tensor, nn

from sqt_fast.network.fold import fold
from sqt_fast.network.model import SqueezeTime


class LogitsAndEmbeddings(nn.Module):
    """The folded network with both outputs. clips (B, 48, S, S) -> logits (B, K), embeddings (B, C), float32."""

    def __init__(self, model: SqueezeTime) -> None:
        super().__init__()
        self.net = fold(model)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.net.embed(clips)
        return self.net.classify(embeddings).float(), embeddings.float()


def eager_network(model: SqueezeTime, *, device: str, dtype: torch.dtype) -> LogitsAndEmbeddings:
    """Return the folded network on ``device``, channels last, in ``dtype``."""
    net = LogitsAndEmbeddings(model)
    return net.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
