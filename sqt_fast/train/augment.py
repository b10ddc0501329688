"""The random choices for one clip: which frames, which part of them, and how they are changed.

They depend on (seed, epoch, item) alone, by a counter-based generator: not on the batch, the worker, the rank, or what
was drawn before. So any run can be repeated, split over devices, and resumed at any batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sqt_fast.train.recipes import TrainRecipe
from sqt_fast.video.sampling import FRAME_INTERVAL, NUM_FRAMES, WINDOW_FRAMES, Int64, official

# RandomErasing of mmaction2: its area, as a part of the picture, and its height by its width.
ERASE_AREA, ERASE_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Choices:
    """What becomes of one clip, the same for all of its frames.

    frames: (16,) int64 frame numbers. box: (4,) float32, top, left, bottom, right of the part that is shown, in parts
    of the height and width of upright frames. jitter: (4,) float32 factors of brightness, contrast and saturation, and
    the turn of hue in degrees. erased: (4,) float32, top, left, height, width, in parts of the crop, all 0 for nothing.
    noise: what tells the noise there from any other's. flip: mirror it.
    """

    frames: Int64
    box: Float32
    jitter: Float32
    erased: Float32
    noise: int
    flip: bool


UNCHANGED = np.array([1, 1, 1, 0], np.float32)
NOTHING = np.zeros(4, np.float32)


def generator(seed: int, epoch: int, item: int) -> np.random.Generator:
    """Return the random numbers of an item in an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) | item]))


@lru_cache(maxsize=2)  # a million items take 10 ms, and every clip asks; a batch may lie in two epochs
def order_of(seed: int, epoch: int, num_items: int) -> Int64:
    """Return the order of the items in an epoch, (N,) int64: what ``generator`` gives for no item of the list."""
    return generator(seed, epoch, (1 << 32) - 1).permutation(num_items).astype(np.int64)


def random_choices(recipe: TrainRecipe, rng: np.random.Generator, num_frames: int, size: tuple[int, int]) -> Choices:
    """Draw what becomes of a clip for training. size: (height, width) of the upright frames, pixels.

    Source: mmaction2 1.x, SampleFrames, MultiScaleCrop, Flip, ColorJitter, RandomErasing. Its resize to the short side
    and its crop and resize of that are one here.
    """
    start = int(rng.integers(0, max(1, num_frames - WINDOW_FRAMES + 1)))
    frames = (start + FRAME_INTERVAL * np.arange(NUM_FRAMES, dtype=np.int64)) % num_frames
    box = _multi_scale_box(recipe, rng, size)
    jitter = rng.uniform(-1, 1, 4) * ([recipe.jitter] * 3 + [360 * recipe.jitter_hue]) + UNCHANGED
    flip = bool(rng.uniform() < recipe.flip)
    erased = _erased(rng) if rng.uniform() < recipe.erase else NOTHING
    return Choices(frames, box, jitter.astype(np.float32), erased, int(rng.integers(1 << 31)), flip)


def plain_choices(recipe: TrainRecipe, num_frames: int, size: tuple[int, int]) -> Choices:
    """Return the choices for validation: one clip in the middle, the centre crop."""
    height, width = size
    share = recipe.crop_size / recipe.short_side
    part = np.array([share * min(size) / height, share * min(size) / width])
    box = np.concatenate([(1 - part) / 2, (1 + part) / 2]).astype(np.float32)
    return Choices(official(num_frames, 1)[0], box, UNCHANGED, NOTHING, 0, flip=False)


def _multi_scale_box(recipe: TrainRecipe, rng: np.random.Generator, size: tuple[int, int]) -> Float32:
    height, width = size
    levels = range(len(recipe.scales))
    pairs = [(rows, columns) for rows in levels for columns in levels if abs(rows - columns) <= recipe.max_scale_gap]
    rows, columns = pairs[int(rng.integers(len(pairs)))]
    part = np.array([recipe.scales[rows] * min(size) / height, recipe.scales[columns] * min(size) / width])
    corner = rng.uniform(size=2) * (1 - part)
    return np.concatenate([corner, corner + part]).clip(0, 1).astype(np.float32)


def _erased(rng: np.random.Generator) -> Float32:
    log_aspect = rng.uniform(*np.log(ERASE_ASPECT))
    part = np.sqrt(rng.uniform(*ERASE_AREA) * np.exp([log_aspect, -log_aspect])).clip(max=1)
    return np.concatenate([rng.uniform(size=2) * (1 - part), part]).astype(np.float32)
