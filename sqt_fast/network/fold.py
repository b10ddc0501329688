"""Fold batch norm into the convolutions: the inference form that every fast backend shares.

Exact up to rounding. The batch norm behind a CTL folds into its temporal 1x1 and its short 3x3, because
``a * (t + s * g) + c == (a * t + c) + (a * s) * g``. Weights are folded in float64 and rounded once.
"""

import copy

import torch
import torch.nn as nn
from torch import Tensor

from sqt_fast.network.model import CTL, SqueezeTime


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return a and c of ``norm(x) == a * x + c`` in evaluation mode, (C,) float64 each."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm without running statistics cannot be folded")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _fold_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor | None) -> None:
    """Multiply the output of ``conv`` by scale (C,) and add shift (C,), in place."""
    weight, dtype = conv.weight.double(), conv.weight.dtype
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    conv.weight = nn.Parameter((weight * scale[:, None, None, None]).to(dtype), requires_grad=False)
    bias = bias * scale if shift is None else bias * scale + shift
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _fold_pairs(sequential: nn.Sequential) -> None:
    """Fold every batch norm that directly follows a convolution inside ``sequential``."""
    for i in range(1, len(sequential)):
        conv, norm = sequential[i - 1], sequential[i]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _fold_conv(conv, *_scale_and_shift(norm))
            sequential[i] = nn.Identity()


def _fold_behind(block: nn.Module, conv_name: str, norm_name: str) -> None:
    """Fold the batch norm ``norm_name`` of ``block`` into the convolution or CTL before it."""
    conv, norm = block.get_submodule(conv_name), block.get_submodule(norm_name)
    assert isinstance(norm, nn.BatchNorm2d)
    scale, shift = _scale_and_shift(norm)
    if isinstance(conv, CTL):
        _fold_conv(conv.temporal_conv, scale, shift)
        _fold_conv(conv.spatial_conv.short_conv, scale, None)
    else:
        assert isinstance(conv, nn.Conv2d)
        _fold_conv(conv, scale, shift)
    setattr(block, norm_name, nn.Identity())


@torch.no_grad()
def fold(model: SqueezeTime) -> SqueezeTime:
    """Return a copy of ``model`` in evaluation mode with no batch norm left.

    The copy gives the same features and logits up to rounding, holds no gradients and cannot be trained further.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold_pairs(module)
        for i in (1, 2, 3):  # of blocks, and of the stem
            if hasattr(module, f"bn{i}"):
                _fold_behind(module, f"conv{i}", f"bn{i}")
    return folded
