"""Colours of frames that DALI converted from YCbCr with the matrix of BT.601, whatever their own is: how to mend them.

With M(tag) from YCbCr to RGB, the frame's own colours are M(tag) M(601)^-1 of the wrong ones: a 3x3 matrix, the same
for full and limited range. Colours that the first conversion has clipped stay clipped.

DALI's conversion on a GPU also takes 0.5 for the middle of chroma and 0.0625 for black, of bytes divided by 255, where
128/255 and 16/255 are meant (read in the machine code of DALI 2.4.0; docs/experiments.md). Its red and blue are about
one level too large, its green half a level too small. That is taken out in the same step.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # processes that read and decode for training have none
    from torch import Tensor

# Weights of red and blue in luma by AVColorSpace, that is, matrix_coefficients of ITU-T H.273. All others, unknown
# ones included, FFmpeg converts as BT.601.
_BT709, _BT2020 = (0.2126, 0.0722), (0.2627, 0.0593)
_WEIGHTS = {1: _BT709, 4: (0.30, 0.11), 7: (0.212, 0.087), 9: _BT2020, 10: _BT2020}
_BT601 = (0.299, 0.114)
# Codecs whose chroma lies on the left of its two pixels, unless a stream says otherwise, as few do (chroma_location of
# FFmpeg's decoders). DALI takes all for centred.
LEFT_CHROMA = frozenset({"h264", "hevc", "mpeg4"})


def matrix_from_bt601(colorspace: int) -> NDArray[np.float64] | None:
    """Return the (3, 3) matrix from RGB by BT.601 to RGB by ``colorspace`` (AVColorSpace), None where it was right."""
    if colorspace not in _WEIGHTS:
        return None
    matrix: NDArray[np.float64] = _to_rgb(*_WEIGHTS[colorspace]) @ np.linalg.inv(_to_rgb(*_BT601))
    return matrix


def matrix_from_nvdec(colorspace: int, *, full_range: bool) -> NDArray[np.float64]:
    """Return the (3, 4) matrix from (R, G, B, 1), 0 to 255, as DALI makes them on a GPU, to RGB by ``colorspace``."""
    matrix = matrix_from_bt601(colorspace)
    matrix = np.eye(3) if matrix is None else matrix
    return np.column_stack([matrix, -matrix @ _nvdec_excess(full_range=full_range)])


def from_bt601(colorspace: int) -> "Tensor | None":
    """Return ``matrix_from_bt601`` for ``kernels/bilinear.py``: (3, 4) int32, times 65536, nothing added."""
    matrix = matrix_from_bt601(colorspace)
    return None if matrix is None else _fixed_point(np.column_stack([matrix, np.zeros(3)]))


def from_nvdec(colorspace: int, *, full_range: bool) -> "Tensor":
    """Return ``matrix_from_nvdec`` for ``kernels/bilinear.py``: (3, 4) int32, times 65536."""
    return _fixed_point(matrix_from_nvdec(colorspace, full_range=full_range))


def _fixed_point(matrix: NDArray[np.float64]) -> "Tensor":
    import torch

    return torch.from_numpy(np.rint(65536 * matrix).astype(np.int32))


def _nvdec_excess(*, full_range: bool) -> NDArray[np.float64]:
    """Return by how many levels (R, G, B) are too large before DALI's kernel on a GPU rounds them to bytes."""
    luma = 0.0 if full_range else (16 / 255 - 0.0625) * 255 / 219
    chroma = (128 / 255 - 0.5) * (1 if full_range else 255 / 224)
    excess: NDArray[np.float64] = 255 * _to_rgb(*_BT601) @ np.array([luma, chroma, chroma])
    return excess


def _to_rgb(kr: float, kb: float) -> NDArray[np.float64]:
    """Return the matrix from (Y, Cb, Cr), Y in 0..1 and Cb, Cr in -0.5..0.5, to (R, G, B) in 0..1."""
    luma = np.array([kr, 1 - kr - kb, kb])
    blue = (np.array([0, 0, 1]) - luma) / (2 * (1 - kb))
    red = (np.array([1, 0, 0]) - luma) / (2 * (1 - kr))
    to_rgb: NDArray[np.float64] = np.linalg.inv(np.stack([luma, blue, red]))
    return to_rgb
