"""From the frames of one video to the clips the network sees: each frame is decoded and resized once, however many
clips share it.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sqt_fast.config import Protocol
from sqt_fast.decode import Frames
from sqt_fast.kernels.squeeze import squeeze_reference
from sqt_fast.sampling import ClipPlan


@dataclass(frozen=True)
class View:
    """One input of the network: clip_index is the row of the plan, clip (48, S, S) normalised, channels last.

    crop: number of the crop, as crop_corners orders them. missing: how many of its 16 frames could not be decoded and
    were replaced by a neighbour.
    """

    clip_index: int
    crop: int
    clip: Tensor
    missing: int


def crop_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Return (top, left) of each crop of ``size`` pixels.

    One crop is the centre; three are left, right, centre of a landscape frame, top, bottom, centre of a portrait one.
    Source: mmaction2's CenterCrop and ThreeCrop.
    """
    top, left = (height - size) // 2, (width - size) // 2
    if num_crops == 1:
        return [(top, left)]
    if width >= height:
        return [(top, 0), (top, 2 * left), (top, left)]  # as there, a pixel before the edge where the rest is odd
    return [(0, left), (2 * top, left), (top, left)]


class ClipMaker:
    """Gather decoded frames into clips as soon as the last frame of each has come.

    A wanted frame that never comes is replaced by the last one before it, as a player would go on showing it.
    """

    def __init__(self, plan: ClipPlan, protocol: Protocol, dtype: torch.dtype) -> None:
        self.plan, self.protocol, self.dtype = plan, protocol, dtype
        last = plan.frames.max(axis=1)
        self.order = deque((int(last[i]), int(i)) for i in last.argsort(kind="stable"))
        self.pending = deque(plan.wanted.tolist())
        self.uses = Counter(n for clip in plan.frames.tolist() for n in set(clip))
        self.store: dict[int, Tensor] = {}
        self.missing: set[int] = set()
        self.newest: Tensor | None = None

    def add(self, frames: Frames) -> Iterator[View]:
        """Take the next frames, in order, and yield the views that are complete now."""
        for number, image in zip(frames.numbers, frames.images, strict=True):
            if self.protocol.num_crops == 1:  # nothing outside the centre is ever needed
                image = _centre(image, self.protocol.crop_size)
            self._replace_missing(number, image)
            self.newest = image
            self.pending.popleft()
            self.store[number] = image
            yield from self._complete(number)

    def finish(self) -> Iterator[View]:
        """Say that no more frames come, and yield the rest."""
        if self.newest is not None and self.pending:
            self._replace_missing(self.pending[-1] + 1, self.newest)
            yield from self._complete(self.order[-1][0])

    def _replace_missing(self, before: int, following: Tensor) -> None:
        while self.pending and self.pending[0] < before:
            number = self.pending.popleft()
            self.missing.add(number)
            self.store[number] = following if self.newest is None else self.newest

    def _complete(self, number: int) -> Iterator[View]:
        while self.order and self.order[0][0] <= number:
            yield from self._views(self.order.popleft()[1])

    def _views(self, clip_index: int) -> Iterator[View]:
        numbers = self.plan.frames[clip_index].tolist()
        clip = squeeze_reference([self.store[n] for n in numbers], dtype=self.dtype)
        missing = sum(n in self.missing for n in numbers)
        for n in set(numbers):
            self.uses[n] -= 1
            if not self.uses[n]:
                del self.store[n]
        size = self.protocol.crop_size
        height, width = clip.shape[1:]
        for crop, (top, left) in enumerate(crop_corners(height, width, size, self.protocol.num_crops)):
            yield View(clip_index, crop, clip[:, top : top + size, left : left + size], missing)


def _centre(image: Tensor, size: int) -> Tensor:
    ((top, left),) = crop_corners(image.shape[0], image.shape[1], size, 1)
    return image[top : top + size, left : left + size].contiguous()
