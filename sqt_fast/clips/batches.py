"""From clips to what the network takes: squeezed on the host, in the decoders' threads. On a GPU: device_batches.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sqt_fast.clips.crops import crop_corners
from sqt_fast.clips.gather import Clip
from sqt_fast.config import ClipProtocol
from sqt_fast.kernels.squeeze_host import squeeze_reference
from sqt_fast.network.model import INPUT_CHANNELS


@dataclass(frozen=True)
class View:
    """One input of the network. clip_index is the row of the plan, crop the number of the crop (see crop_corners).

    clip: (48, S, S) squeezed, channels last, or the frames (16, H, W, 3) uint8, as its Batches wants it; top and left
    of the crop in those. missing: how many of its 16 frames could not be decoded and were replaced by a neighbour.
    """

    clip_index: int
    crop: int
    clip: Tensor
    missing: int
    top: int = 0
    left: int = 0


class Batches(Protocol):
    """Makes views of clips, in the decoders' threads, and batches of views, in the network's."""

    def views(self, clip: Clip) -> Iterator[View]:
        """Yield the views of ``clip``, one a crop."""
        ...

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        """Return (batch_size, 48, S, S), channels last, zeros behind ``views``."""
        ...


class CpuBatches:
    """Squeeze where the frames are decoded. dtype: the network's."""

    def __init__(self, protocol: ClipProtocol, dtype: torch.dtype) -> None:
        self.protocol, self.dtype = protocol, dtype

    def views(self, clip: Clip) -> Iterator[View]:
        """See Batches."""
        squeezed, size = squeeze_reference(clip.images, dtype=self.dtype), self.protocol.crop_size
        _, height, width = squeezed.shape
        for crop, (top, left) in enumerate(crop_corners(height, width, size, self.protocol.num_crops)):
            yield View(clip.clip_index, crop, squeezed[:, top : top + size, left : left + size], clip.missing)

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        """See Batches."""
        size = self.protocol.crop_size
        batch = torch.zeros((batch_size, INPUT_CHANNELS, size, size), dtype=self.dtype)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for i, view in enumerate(views):
            batch[i].copy_(view.clip)
        return batch
