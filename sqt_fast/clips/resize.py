"""Turn frames upright and resize them on the CPU as the release does: OpenCV's bilinear, size ``int(x * scale + .5)``.

OpenCV's arithmetic on bytes is fixed-point; mmaction2 uses it, so scores agree with the release's only if we do too.
"""

import cv2
import torch
from torch import Tensor

from sqt_fast.video.probe import Orientation


def resize(images: Tensor, short_side: int) -> Tensor:
    """images: (F, H, W, 3) uint8 on the CPU. Returns (F, h, w, 3) uint8, short side ``short_side``; always a copy.

    Runs on the calling thread alone: every decoder has one of its own. OpenCV lets go of Python's lock meanwhile.
    """
    cv2.setNumThreads(0)
    size = resized_size(images.shape[1], images.shape[2], short_side)
    resized = torch.empty((len(images), *size, 3), dtype=torch.uint8)
    for source, target in zip(images.contiguous().numpy(), resized.numpy(), strict=True):
        cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) of frames whose short side becomes ``short_side``."""
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def upright(images: Tensor, orientation: Orientation) -> Tensor:
    """Turn stored pictures as they are shown. images: (F, H, W, 3), any dtype. Returns (F, H, W, 3) or (F, W, H, 3)."""
    if orientation.transpose:
        images = images.transpose(1, 2)
    flips = [axis for axis, flip in ((1, orientation.flip_y), (2, orientation.flip_x)) if flip]
    return torch.flip(images, flips) if flips else images
