"""One training clip: from a place in the run to frames, or packets that hold them, and what is to become of them.

Everything follows from (seed, epoch, place), so any process may make any clip. Runs in worker processes: no torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqt_fast.clips.colour import matrix_from_nvdec
from sqt_fast.errors import VideoError, first_line
from sqt_fast.pipelines.routing import why_not_nvdec
from sqt_fast.signals import kill_with_parent
from sqt_fast.train.augment import Choices, Float32, generator, order_of, plain_choices, random_choices
from sqt_fast.train.lists import LabelledVideos
from sqt_fast.train.recipes import TrainRecipe
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.probe import Orientation, Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.remux import remux
from sqt_fast.video.sampling import Int64
from sqt_fast.video.segments import plan_segments

# What NVDEC decodes of every GPU since Turing, and DALI with it, by the names of ``pipelines.routing``. What they then
# refuse is decoded by the host.
NVDEC_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp8"})
# So many videos in a row that cannot be read are a wrong list or a lost disk, not a few bad files.
MAX_REPLACED = 100
NO_DATA = np.zeros(1, np.uint8)
NO_INDICES = np.zeros(1, np.int32)
NO_PIXELS = np.zeros((1, 1, 1, 3), np.uint8)
SAME_COLOURS = np.eye(3, 4, dtype=np.float32)

Bytes = NDArray[np.uint8]


class Sample(NamedTuple):
    """One clip on its way into the graph of ``pipelines/train.py``; arrays all, in this order.

    pixels: (F, H, W, 3) upright frames, decoded here, or ``NO_PIXELS``. data, indices: a file in memory and the (F,)
    int32 places of the frames in it, for the graph to decode where ``encoded`` is true; colours: (3, 4) float32, what
    turns (R, G, B, 1) as DALI makes them on a GPU into RGB of the stream; of its CPU decoder, which adds nothing, the
    first three columns. order: (16,) int32, the clip as places among the F frames. box: (4,) float32, top, left,
    bottom, right, in pixels of the frames. jitter, erased: see ``Choices``; noise, flip, label: one int64 or int32
    each. item: number in the list. failures: UTF-8 text, a line "number<tab>reason" for every video that could not be
    read and that this one stands for.
    """

    pixels: Bytes
    data: Bytes
    indices: NDArray[np.int32]
    encoded: NDArray[np.bool_]
    colours: Float32
    order: NDArray[np.int32]
    box: Float32
    jitter: Float32
    erased: Float32
    noise: Int64
    flip: NDArray[np.int32]
    label: Int64
    item: Int64
    failures: Bytes


@dataclass(frozen=True)
class ClipSource:
    """Makes the clips of a list. training: random clips in random order, else the middle of each in order of the list.

    rank, world_size: which share of every global batch is made here. batch_size: clips a batch of this rank.
    first_batch: where to begin, in batches from the start of the first epoch. codecs: by the names that
    ``pipelines.routing`` has for them; streams of these that need no turning, and that a GPU's decoder gets right, are
    handed on encoded.
    """

    videos: LabelledVideos
    recipe: TrainRecipe
    batch_size: int
    seed: int = 0
    training: bool = True
    rank: int = 0
    world_size: int = 1
    first_batch: int = 0
    codecs: frozenset[str] = frozenset()

    @property
    def batches_per_epoch(self) -> int:
        """Batches of every rank; the last one is filled up from the start of the order."""
        return -(-len(self.videos) // (self.batch_size * self.world_size))

    def place(self, number: int) -> tuple[int, int]:
        """Return (epoch, place in its order) of clip ``number`` of this source; the place may be past the end."""
        batch, within = divmod(number, self.batch_size)
        epoch, step = divmod(self.first_batch + batch, self.batches_per_epoch)
        return epoch, (step * self.world_size + self.rank) * self.batch_size + within

    def clip(self, number: int) -> Sample:
        """Return clip ``number``. A video that cannot be read is replaced by another one, and named.

        Raises VideoError where one after the other cannot be read.
        """
        epoch, place = self.place(number)
        item = int(self._order(epoch)[place % len(self.videos)])
        rng = generator(self.seed, epoch, item)
        failures: list[str] = []
        while True:
            try:
                return self._sample(item, rng, "\n".join(failures))
            except VideoError as error:
                failures.append(f"{item}\t{first_line(error)}")
            except Exception as error:  # noqa: BLE001 - one file must not end days of training
                failures.append(f"{item}\t{type(error).__name__}: {first_line(error)}")
            if len(failures) >= MAX_REPLACED:
                path, reason = self.videos.paths[item], failures[-1].partition("\t")[2]
                raise VideoError("unreadable", f"{len(failures)} videos in a row cannot be read, last {path}: {reason}")
            item = int(rng.integers(len(self.videos)))

    def _order(self, epoch: int) -> Int64:
        if not self.training:
            return np.arange(len(self.videos), dtype=np.int64)
        return order_of(self.seed, epoch, len(self.videos))

    def _sample(self, item: int, rng: np.random.Generator, failures: str) -> Sample:
        facts, reader = PacketReader.probing(VideoFile(self.videos.paths[item], None, None))
        with reader:
            height, width = facts.source.height, facts.source.width
            size = (width, height) if facts.source.orientation.transpose else (height, width)
            choices = (
                random_choices(self.recipe, rng, facts.num_frames, size)
                if self.training
                else plain_choices(self.recipe, facts.num_frames, size)
            )
            clip = _encoded(facts, reader, choices) if self._may_be_encoded(facts) else None
            clip = _decoded(facts, reader, choices) if clip is None else clip
        return Sample(
            pixels=clip.pixels,
            data=clip.data,
            indices=clip.indices,
            encoded=np.array(clip.pixels is NO_PIXELS),
            colours=clip.colours,
            order=clip.order.astype(np.int32),
            box=choices.box * np.array([*size, *size], np.float32),
            jitter=choices.jitter,
            erased=choices.erased,
            noise=np.array([choices.noise], np.int64),
            flip=np.array(choices.flip, np.int32),
            label=np.array([self.videos.labels[item]], np.int64),
            item=np.array([item], np.int64),
            failures=np.frombuffer(failures.encode("utf-8", "replace") or b"\0", np.uint8),
        )

    def _may_be_encoded(self, facts: Probe) -> bool:
        upright = facts.source.orientation == Orientation()
        return upright and not facts.broken and why_not_nvdec(facts, dict.fromkeys(self.codecs)) is None


class ClipFeed:
    """Hands the clips of a source to DALI, which calls it for every one, here or in processes of its own.

    fields: of ``Sample``, those that are handed over. DALI's processes wait for ever for one that was killed, so they
    are told to end with this one.
    """

    def __init__(self, source: ClipSource, fields: Sequence[str]) -> None:
        self.source, self.fields = source, tuple(fields)
        self._home = self._here = os.getpid()

    def __call__(self, info: Any) -> tuple[NDArray[Any], ...]:
        """info: DALI's ``SampleInfo``. Raises VideoError."""
        if self._here != os.getpid():
            self._here = os.getpid()
            kill_with_parent()
            if os.getppid() != self._home:  # it is gone already
                os._exit(1)
        sample = self.source.clip(info.idx_in_epoch)
        return tuple(getattr(sample, name) for name in self.fields)


class _Clip(NamedTuple):
    """The frames of a clip, decoded or not: see ``Sample``."""

    order: Int64
    pixels: Bytes = NO_PIXELS
    data: Bytes = NO_DATA
    indices: NDArray[np.int32] = NO_INDICES
    colours: Float32 = SAME_COLOURS


def _decoded(facts: Probe, reader: PacketReader, choices: Choices) -> _Clip:
    """Decode the frames of a clip.

    A frame that cannot be decoded is replaced by the last one before it, or else by the first.
    """
    wanted = np.unique(choices.frames)
    numbers: list[int] = []
    images: list[Bytes] = []
    decoder, report = CpuDecoder(), DecodeReport()
    for segment in plan_segments(facts, wanted):
        for chunk in decoder.frames(reader, segment, report):
            numbers += chunk.numbers
            images.append(chunk.images)
    if not numbers:
        raise VideoError("no_decodable_frame", "no frame of the clip could be decoded")
    pixels = images[0] if len(images) == 1 else np.concatenate(images)
    order = np.maximum(np.searchsorted(np.array(numbers), choices.frames, side="right") - 1, 0)
    return _Clip(order, _upright(pixels, facts.source.orientation))


def _upright(pixels: Bytes, orientation: Orientation) -> Bytes:
    """Turn stored pictures as they are shown."""
    if orientation.transpose:
        pixels = pixels.swapaxes(1, 2)
    return np.ascontiguousarray(pixels[:, :: -1 if orientation.flip_y else 1, :: -1 if orientation.flip_x else 1])


def _encoded(facts: Probe, reader: PacketReader, choices: Choices) -> _Clip | None:
    """Return a file of the clip's packets; None if one does not hold them all, or cannot be written."""
    wanted = np.unique(choices.frames)
    segments = plan_segments(facts, wanted, max_wanted=len(wanted) + 1)
    if len(segments) != 1:
        return None
    try:
        data = np.frombuffer(remux(reader, segments[0]), np.uint8)
    except Exception:  # noqa: BLE001 - of what FFmpeg cannot write, it may still decode all
        return None
    colours = matrix_from_nvdec(facts.colorspace, full_range=facts.is_full_range).astype(np.float32)
    return _Clip(np.searchsorted(wanted, choices.frames), data=data, indices=segments[0].indices, colours=colours)
