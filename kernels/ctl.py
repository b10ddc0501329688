"""Channel-time learning (CTL), the operator SqueezeTime is made of (arXiv 2405.08344, section 3.2).

``y = conv1x1(p * x) + (conv3x3(x) + b) * sigmoid(conv3x3(h))``

* x (B, C, H, W) the block's features, p (B, C, 1, 1) the importance of every channel, that is of every moment;
* h (B, 16, H, W) what the inter-temporal object interaction branch has found;
* y (B, K, H, W).

Unfused this writes and reads five maps of the size of y. Its kernel, ``ctl_merge.py``, reads x and h once and writes y
once: ``(B*C*H*W + B*16*H*W + B*K*H*W) * itemsize`` bytes.

The network is built from these references, so they cannot rot.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def position_reference(pos_embed: Tensor, height: int, width: int) -> Tensor:
    """Return the position embedding at the size of the feature map.

    pos_embed: (1, 16, P, P) any float dtype. Resized bilinearly with ``align_corners=True``, as the release does,
    when P differs from height or width.

    Returns (1, 16, height, width), same dtype.
    """
    if pos_embed.shape[-2:] == (height, width):
        return pos_embed
    return F.interpolate(pos_embed, size=(height, width), mode="bilinear", align_corners=True)


def ctl_merge_reference(
    x: Tensor,
    importance: Tensor,
    hidden: Tensor,
    temporal_weight: Tensor,
    temporal_bias: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
) -> Tensor:
    """Merge the temporal branch and the gated spatial branch of CTL.

    x: (B, C, H, W); importance: (B, C, 1, 1) in 0..1; hidden: (B, 16, H, W); temporal_weight: (K, C, 1, 1);
    temporal_bias: (K,) after batch norm is folded in, None before; short_weight: (K, C, 3, 3); short_bias: (K,);
    gate_weight: (K, 16, 3, 3); gate_bias: (K,). One float dtype for all.

    Returns (B, K, H, W).
    """
    temporal = F.conv2d(x * importance, temporal_weight, temporal_bias)
    spatial = F.conv2d(x, short_weight, short_bias, padding=1)
    gate = torch.sigmoid(F.conv2d(hidden, gate_weight, gate_bias, padding=1))
    return temporal + spatial * gate
