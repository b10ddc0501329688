"""What becomes of the frames of a training clip on a CPU, by OpenCV: cropped, resized, coloured, mirrored, squeezed.

DALI's operators do it on a GPU; on a CPU they take several times as long (docs/experiments.md).
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.kernels.squeeze_host import MEAN, STD

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating]

# From RGB to luma and two of chroma, the plane in which hue turns (NTSC).
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# Boxes may lie between pixels, which cv2.resize cannot have: they are maps from crop to frame. Without antialiasing.
_LINEAR, _EDGES = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
_MIDDLE = 128.0  # what contrast leaves as it is
# byte, channel -> the number that the network sees
_NORMALISED = ((np.arange(256)[:, None] - np.array(MEAN)) / np.array(STD)).astype(np.float32)[None]


def colour_matrix(jitter: Floats) -> NDArray[np.float64]:
    """Return the (3, 4) matrix that changes (R, G, B, 1), 0 to 255: all of a jitter at once, as DALI's color_twist.

    jitter: (4,) factors of brightness, contrast and saturation, and the turn of hue in degrees.
    """
    brightness, contrast, saturation, hue = map(float, jitter)
    cosine, sine = np.cos(np.radians(hue)), np.sin(np.radians(hue))
    turned = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]) * [[1], [saturation], [saturation]]
    matrix = brightness * contrast * (np.linalg.inv(_TO_YIQ) @ turned @ _TO_YIQ)
    return np.column_stack([matrix, np.full(3, brightness * _MIDDLE * (1 - contrast))])


def changed(
    frames: Bytes, order: NDArray[np.int32], box: Floats, size: int, *, colours: Floats | None, jitter: Floats | None
) -> Bytes:
    """Return the frames of a clip, (16, size, size, 3) uint8 RGB.

    frames: (F, H, W, 3) uint8; order: (16,) places in it; box: (4,) top, left, bottom, right, pixels; colours:
    (3, 3), what mends the colours of frames, None for nothing; jitter: see ``colour_matrix``, None for nothing.
    """
    top, left, bottom, right = map(float, box)
    down, across = (bottom - top) / size, (right - left) / size
    to_frame = np.array([[across, 0, left + across / 2 - 0.5], [0, down, top + down / 2 - 0.5]])
    small = np.empty((len(order), size, size, 3), np.uint8)
    for place, number in enumerate(order):
        cv2.warpAffine(frames[number], to_frame, (size, size), dst=small[place], flags=_LINEAR, borderMode=_EDGES)
    matrix = np.eye(3, 4) if jitter is None else colour_matrix(jitter)
    if colours is not None:
        matrix[:, :3] = matrix[:, :3] @ colours
    if not np.array_equal(matrix, np.eye(3, 4)):
        seen = cv2.transform(small.reshape(-1, size, 3), matrix.astype(np.float32))
        small = np.asarray(seen, np.uint8).reshape(small.shape)
    return small


def squeezed(clips: Sequence[Bytes], flips: Sequence[int]) -> Tensor:
    """Return clips (T, S, S, 3) uint8 as the network takes them, normalised, (B, 3 * T, S, S) float32.

    flips: which are mirrored.
    """
    num_frames, height, width, _ = clips[0].shape
    batch = np.empty((len(clips), 3, num_frames, height, width), np.float32)
    for planes, frames, flip in zip(batch, clips, flips, strict=True):
        for place, frame in enumerate(frames):
            seen = cv2.flip(frame, 1) if flip else frame
            cv2.split(cv2.LUT(seen, _NORMALISED), [planes[colour, place] for colour in range(3)])
    return torch.from_numpy(batch).flatten(1, 2)
