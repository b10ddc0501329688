"""Clips of the user's own videos, as bytes: what the network would be shown, kept instead of labelled.

Networks of 8 bits are calibrated and judged with them.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sqt_fast.clips.batches import View
from sqt_fast.clips.crops import crop_corners
from sqt_fast.clips.gather import Clip
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import ClipProtocol
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.labelling import Labelling, Task
from sqt_fast.engine.memory import plan_resources
from sqt_fast.errors import ConfigError
from sqt_fast.network.backends import Started
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import find_videos

BATCH_SIZE = 8


class ByteBatches:
    """Makes views of bytes, and batches without padding. size: pixels of the square."""

    def __init__(self, size: int) -> None:
        self.size = size

    def views(self, clip: Clip) -> Iterator[View]:
        """See Batches; one view, of the centre."""
        pixels = torch.stack(clip.images, dim=3).flatten(2).permute(2, 0, 1)  # (48, H, W): colour, then frame
        _, height, width = pixels.shape
        ((top, left),) = crop_corners(height, width, self.size, 1)
        centre = pixels[:, top : top + self.size, left : left + self.size].contiguous()
        yield View(clip.clip_index, 0, centre, clip.missing)

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        """See Batches."""
        del batch_size
        return torch.stack([view.clip for view in views])


class Recorder:
    """Stands where a network would, and keeps what it is shown. clips: by their content, so none is there twice."""

    dtype = torch.uint8

    def __init__(self) -> None:
        self.clips: dict[bytes, Tensor] = {}

    def start(self, clips: Tensor) -> Started:
        """See Backend; there is one class."""
        self.clips |= {hashlib.sha256(clip.numpy().tobytes()).digest(): clip for clip in clips}
        nothing = torch.zeros(len(clips), 1)
        return Started(nothing, nothing)

    def release_memory(self) -> None:
        """See Backend."""


def _ignore(line: str) -> None:
    del line


def clips_of_videos(
    inputs: Sequence[str], protocol: ClipProtocol, count: int, say: Callable[[str], None] = _ignore
) -> Tensor:
    """Return up to ``count`` clips of videos, (N, 48, S, S) uint8, spread over all of them, the same ones every time.

    inputs: files, folders, globs or lists. protocol: says how large clips are. Their order is by their content, so any
    part is a sample of all. Raises ConfigError where there are no videos, or none that can be decoded.
    """
    videos = find_videos(inputs)
    chosen = [videos[i * len(videos) // count] for i in range(count)] if len(videos) > count else videos
    several = replace(protocol, num_clips=-(-count // len(chosen)), num_crops=1)
    recorder = Recorder()
    task = Task(Recipe(several), RowStyle(("clip",), 1, per_window=False), BATCH_SIZE)
    labelling = Labelling(recorder, task, DecoderSetup(plan_resources(None)), ByteBatches(protocol.crop_size))
    failures = [result.failure for result in labelling.label(chosen) if result.failure is not None]
    named = f"{len(failures)} of {len(chosen)} videos are damaged or cannot be read"
    first = "" if not failures else f" ({failures[0].path}: {failures[0].error_message})"
    if not recorder.clips:
        raise ConfigError(f"--calibrate {' '.join(inputs)}: no clips, for {named}{first}; name videos that play")
    if failures:
        say(f"{named}{first}")
    return torch.stack([recorder.clips[digest] for digest in sorted(recorder.clips)[:count]])
