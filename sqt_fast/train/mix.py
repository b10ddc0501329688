"""Mixup and CutMix: clips of a batch mixed with one another, and their targets with them."""

import numpy as np
import torch
from torch import Tensor


def mixed(
    clips: Tensor, targets: Tensor, rng: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Return clips (B, 48, S, S), each mixed with another one of them, and targets (B, K) mixed alike.

    mixup, cutmix: alpha of the Beta distribution of the parts, 0 for never; where both are given, each is taken half of
    the time. Sources: arXiv 1710.09412, arXiv 1905.04899.
    """
    cut = cutmix > 0 and (mixup == 0 or rng.uniform() < 0.5)
    alpha = cutmix if cut else mixup
    if not alpha:
        return clips, targets
    part = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(clips))).to(clips.device)
    if cut:
        height, width = clips.shape[2:]
        middle = rng.uniform(size=2) * (height, width)
        half = 0.5 * (1 - part) ** 0.5 * np.array([height, width])
        top, left = np.rint((middle - half).clip(0, (height, width))).astype(int).tolist()
        bottom, right = np.rint((middle + half).clip(0, (height, width))).astype(int).tolist()
        result = clips.clone()
        result[:, :, top:bottom, left:right] = clips[other, :, top:bottom, left:right]
        part = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        result = clips * part + clips[other] * (1 - part)
    return result, targets * part + targets[other] * (1 - part)
