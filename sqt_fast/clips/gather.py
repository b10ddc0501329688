"""From the frames of one video to the clips the network sees: each frame is decoded and resized once, however many
clips share it, and clips are made as soon as their frames are there, whatever the order of the segments.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.clips.crops import centre
from sqt_fast.config import ClipProtocol
from sqt_fast.video.sampling import ClipPlan, Int64

Bools = NDArray[np.bool_]


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

    Frames are dealt with as many at once as come: all decoders of a device wait for Python's lock here.
    """

    def __init__(self, plan: ClipPlan, protocol: ClipProtocol) -> None:
        self.protocol = protocol
        self.wanted = plan.wanted
        self._places = np.searchsorted(self.wanted, plan.frames)  # (N, 16): clips, as places in wanted
        self._clip_of = np.argsort(self._places.ravel(), kind="stable") // plan.frames.shape[1]
        self._uses = np.bincount(self._places.ravel(), minlength=len(self.wanted))
        # Place i is seen by clips _clip_of[_first[i] : _first[i + 1]].
        self._first = np.append(0, np.cumsum(self._uses))
        self._waiting = np.full(len(plan), plan.frames.shape[1])
        self._came = np.zeros(len(self.wanted), np.bool_)
        self._missing = np.zeros(len(self.wanted), np.bool_)
        self._store: dict[int, Tensor | None] = {}  # by place
        self._lock = threading.Lock()

    def segment(self, numbers: Int64) -> "SegmentIntake":
        """Return what takes the frames ``numbers`` of one segment, which follow each other in ``wanted``."""
        return SegmentIntake(self, numbers)

    def put(self, start: int, images: Sequence[Tensor | None], missing: Bools) -> list[Clip]:
        """Take the frames of consecutive places from ``start`` on, and return the clips that are complete now.

        Those that came before are not taken again. missing: which of them are replaced.
        """
        end = start + len(images)
        with self._lock:
            new = ~self._came[start:end]
            self._came[start:end] = True
            self._missing[start:end] |= missing & new
            self._store.update((start + i, images[i]) for i in np.flatnonzero(new).tolist())
            clips = self._clip_of[self._first[start] : self._first[end]]
            if not new.all():
                clips = clips[np.repeat(new, self._uses_of(start, end))]
            np.subtract.at(self._waiting, clips, 1)
            touched = np.unique(clips)
            ready = [self._take(i) for i in touched[self._waiting[touched] == 0].tolist()]
            return [clip for clip in ready if clip is not None]

    def own(self, start: int, end: int) -> None:
        """Copy the frames of places start to end that clips still wait for: as views they would hold a whole chunk."""
        with self._lock:
            for place in range(start, end):
                if (image := self._store.get(place)) is not None:
                    self._store[place] = image.clone()

    def _uses_of(self, start: int, end: int) -> Int64:
        """Return how often clips see each of these places, whatever has been made of them."""
        return np.diff(self._first[start : end + 1])

    def _take(self, clip_index: int) -> Clip | None:
        """Return a complete clip and let go of its frames; None if none of them could be decoded."""
        places = self._places[clip_index]
        images = _filled([self._store[place] for place in places.tolist()])
        np.subtract.at(self._uses, places, 1)
        for place in set(places[self._uses[places] == 0].tolist()):
            del self._store[place]
        return None if images is None else Clip(clip_index, images, int(self._missing[places].sum()))


class SegmentIntake:
    """The frames of one segment on their way into clips, in presentation order. Used by one thread."""

    def __init__(self, maker: ClipMaker, numbers: Int64) -> None:
        self.maker, self.numbers = maker, numbers
        self._start = int(np.searchsorted(maker.wanted, numbers[0])) if len(numbers) else 0
        self._taken = 0  # of numbers
        self._newest: Tensor | None = None

    def add(self, numbers: list[int], images: Tensor) -> list[Clip]:
        """Take the next frames, images (F, H, W, 3) uint8, and return the clips that are complete now."""
        at = np.searchsorted(self.numbers, numbers)
        late = int(np.searchsorted(at, self._taken))  # those come after their replacement
        if late == len(numbers):
            return []
        if (size := self.maker.protocol.crop_size) and self.maker.protocol.num_crops == 1:
            rows, columns = centre(images.shape[1], images.shape[2], size)
            images = images[:, rows, columns]
        return self._give(at[late:], list(images[late:].unbind()))

    def finish(self) -> list[Clip]:
        """Say that no more frames come, and return the clips that are complete now."""
        start, self._taken = self._taken, len(self.numbers)
        left = self._taken - start
        return self.maker.put(self._start + start, [self._newest] * left, np.ones(left, np.bool_))

    def _give(self, at: Int64, images: list[Tensor]) -> list[Clip]:
        """Pass on images at places of the segment, and for those between them the last before; at first, the next."""
        start, self._taken = self._taken, int(at[-1]) + 1
        there = np.zeros(self._taken - start, np.bool_)
        there[at - start] = True
        known = [images[0] if self._newest is None else self._newest, *images]
        self._newest = images[-1]
        all_images = images if there.all() else [known[i] for i in np.cumsum(there).tolist()]
        first = self._start + start
        clips = self.maker.put(first, all_images, ~there)
        self.maker.own(first, first + len(all_images))
        return clips


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
