"""From the frames of one video to the clips the network sees: each frame is decoded and resized once, however many
clips share it, and clips are made as soon as their frames are there, whatever the order of the segments.
"""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sqt_fast.clips.crops import centre
from sqt_fast.config import ClipProtocol
from sqt_fast.video.sampling import ClipPlan, Int64


@dataclass(frozen=True)
class Clip:
    """The 16 images of a clip that is complete: (H, W, 3) uint8 each."""

    clip_index: int
    images: list[Tensor]
    missing: int


class ClipMaker:
    """Gather the decoded frames of a video into clips. Segments may come in any order, and at once.

    A wanted frame that never comes is replaced by the last one before it in its segment, as a player would go on
    showing it; at the start of a segment by the next one; if a whole segment is lost, by its neighbours in the clip.
    """

    def __init__(self, plan: ClipPlan, protocol: ClipProtocol) -> None:
        self.plan, self.protocol = plan, protocol
        self.wanted = plan.wanted
        places = np.searchsorted(self.wanted, plan.frames)  # (N, 16)
        self._clip_of = np.argsort(places.ravel(), kind="stable") // plan.frames.shape[1]
        self._first = np.append(0, np.cumsum(np.bincount(places.ravel(), minlength=len(self.wanted))))
        self._waiting = np.full(len(plan), plan.frames.shape[1])
        self._uses = np.diff(self._first)
        self._came = np.zeros(len(self.wanted), np.bool_)
        self._missing: set[int] = set()
        self._store: dict[int, Tensor | None] = {}
        self._lock = threading.Lock()

    def segment(self, numbers: Int64) -> "SegmentIntake":
        """Return what takes the frames ``numbers`` of one segment."""
        return SegmentIntake(self, numbers)

    def put(self, number: int, image: Tensor | None, *, missing: bool) -> list[Clip]:
        """Take one frame and return the clips that are complete now. One that came before is not taken again."""
        with self._lock:
            place = int(np.searchsorted(self.wanted, number))
            if self._came[place]:
                return []
            self._came[place] = True
            self._store[number] = image
            if missing:
                self._missing.add(number)
            clips = self._clip_of[self._first[place] : self._first[place + 1]]
            np.subtract.at(self._waiting, clips, 1)
            ready = [self._take(int(i)) for i in dict.fromkeys(clips.tolist()) if not self._waiting[i]]
            return [clip for clip in ready if clip is not None]

    def own(self, numbers: list[int]) -> None:
        """Copy the frames ``numbers`` that clips still wait for: they are views, and would hold their whole chunk."""
        with self._lock:
            for number in numbers:
                if (image := self._store.get(number)) is not None:
                    self._store[number] = image.clone()

    def _take(self, clip_index: int) -> Clip | None:
        """Return a complete clip and let go of its frames; None if none of them could be decoded."""
        numbers = self.plan.frames[clip_index].tolist()
        images = _filled([self._store[n] for n in numbers])
        missing = sum(n in self._missing for n in numbers)
        for n in numbers:
            place = int(np.searchsorted(self.wanted, n))
            self._uses[place] -= 1
            if not self._uses[place]:
                del self._store[n]
        return None if images is None else Clip(clip_index, images, missing)


class SegmentIntake:
    """The frames of one segment on their way into clips, in presentation order. Used by one thread."""

    def __init__(self, maker: ClipMaker, numbers: Int64) -> None:
        self.maker = maker
        self._pending = deque(numbers.tolist())
        self._newest: Tensor | None = None

    def add(self, numbers: list[int], images: Tensor) -> list[Clip]:
        """Take the next frames, images (F, H, W, 3) uint8, and return the clips that are complete now."""
        ready: list[Clip] = []
        for number, image in zip(numbers, images, strict=True):
            if not self._pending or number < self._pending[0]:  # it comes after its replacement
                continue
            if (size := self.maker.protocol.crop_size) and self.maker.protocol.num_crops == 1:
                image = image[centre(image.shape[0], image.shape[1], size)]
            ready += self._replace_missing(number, image)
            self._newest = image
            self._pending.popleft()
            ready += self.maker.put(number, image, missing=False)
        self.maker.own(numbers)
        return ready

    def finish(self) -> list[Clip]:
        """Say that no more frames come, and return the clips that are complete now."""
        return self._replace_missing(self._pending[-1] + 1, None) if self._pending else []

    def _replace_missing(self, before: int, following: Tensor | None) -> list[Clip]:
        ready: list[Clip] = []
        while self._pending and self._pending[0] < before:
            image = following if self._newest is None else self._newest
            ready += self.maker.put(self._pending.popleft(), image, missing=True)
        return ready


def _filled(images: list[Tensor | None]) -> list[Tensor] | None:
    """Replace each None by the last image before it, or else the next after it; None if there is no image."""
    known = [image for image in images if image is not None]
    if not known:
        return None
    newest, result = known[0], []
    for image in images:
        newest = newest if image is None else image
        result.append(newest)
    return result
