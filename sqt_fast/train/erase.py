"""RandomErasing: noise in a rectangle of a clip, the same rectangle in all frames, by PyTorch on any device."""

import torch
from torch import Tensor

from sqt_fast.kernels.squeeze_host import mean_and_std


def erase(clips: Tensor, rectangles: Tensor, noise: Tensor) -> None:
    """Fill a rectangle of each clip with noise, in place.

    clips: (B, 3 * T, S, S) float, normalised. rectangles: (B, 4) on the CPU: top, left, height, width, in parts of the
    side; nothing is done where the height is 0. noise: (B,) int64 on the CPU, what tells the noise of each clip from
    any other's. Bytes of 0 to 255, each as likely, another one for every pixel and channel, normalised.
    """
    channels, size = clips.shape[1], clips.shape[2]
    mean, std = (each[:, None, None] for each in mean_and_std(channels // 3, device=clips.device))
    for clip, (top, left, height, width), key in zip(clips, rectangles.tolist(), noise.tolist(), strict=True):
        if height == 0:
            continue
        rows = slice(round(top * size), round((top + height) * size))
        columns = slice(round(left * size), round((left + width) * size))
        hole = clip[:, rows, columns]
        grain = random_bytes(key, hole.shape[0] * hole.shape[1] * hole.shape[2], clips.device).view(hole.shape)
        hole.copy_((grain - mean) / std)


def random_bytes(key: int, count: int, device: torch.device) -> Tensor:
    """Return (count,) int64 of 0 to 255, which depend on their place and on ``key`` alone: the same on any device.

    A hash of the place, the finaliser of MurmurHash3, in 32 bits held in 64.
    """
    mask = 0xFFFFFFFF
    x = (torch.arange(count, dtype=torch.int64, device=device) * 0x9E3779B1 + key * 0x85EBCA77) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 16)) & 255
