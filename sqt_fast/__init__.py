"""Label what happens when in a folder of videos, with SqueezeTime (arXiv 2405.08344).

Legend used everywhere: B clips, T=16 frames, C channels, H W pixels, K classes, F frames of one video.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"


def load_model(weights: str, *, device: str = "cpu") -> "nn.Module":
    """Load a SqueezeTime network in evaluation mode.

    weights: a published name (``k400 k600 hmdb51 in1k ava``), ``random``, or a path to a checkpoint (mmengine, bare
    state dict, ``model``-keyed, safetensors). device: where to put it, for example ``cpu`` or ``cuda:0``.

    Returns an ``nn.Module`` with ``features(clips)`` and ``logits(clips)``; clips are normalised RGB (B, 3, 16, H, W)
    or (B, 48, H, W) with channel = c * 16 + t. Raises ``sqt_fast.errors.CheckpointError`` when the file cannot be
    had, read or fitted.
    """
    from sqt_fast.zoo import load_weights  # torch is imported only when a network is wanted

    return load_weights(weights).model.to(device)
