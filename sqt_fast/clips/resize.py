"""Resize frames on the host as mmaction2 does: bilinear, no antialiasing, size ``int(x * scale + .5)``.

PyTorch's uint8 kernel: at most 1 level from OpenCV (its own fixed-point rounding) and 3 to 10 times faster than DALI's
resize on a CPU (docs/experiments.md). It runs on the calling thread alone and lets go of Python's lock.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sqt_fast.video.probe import Orientation


def resize(images: Tensor, short_side: int) -> Tensor:
    """images: (F, H, W, 3) uint8. Returns (F, h, w, 3) uint8, contiguous, short side ``short_side``; always a copy."""
    height, width = images.shape[1:3]
    if min(height, width) == short_side:
        return images.clone()
    scale = short_side / min(height, width)
    size = [int(height * scale + 0.5), int(width * scale + 0.5)]
    resized = interpolate(images.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def upright(images: Tensor, orientation: Orientation) -> Tensor:
    """Turn stored pictures as they are shown. images: (F, H, W, 3), any dtype. Returns (F, H, W, 3) or (F, W, H, 3)."""
    if orientation.transpose:
        images = images.transpose(1, 2)
    flips = [axis for axis, flip in ((1, orientation.flip_y), (2, orientation.flip_x)) if flip]
    return torch.flip(images, flips) if flips else images
