"""DALI's conversion of NVDEC's pictures to RGB on a GPU, in numpy: what stands in for it where there is no GPU.

Read in the machine code of ``VideoColorSpaceConversionKernel<uint8_t>`` for sm_90 in DALI 2.4.0, step by step in
float32. It reproduces the differences from FFmpeg that an H100 showed (docs/experiments.md).
"""

import av
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]

_BYTE = np.array(0x3B808081, np.uint32).view(np.float32)[()]  # 1 / 255
# Weights of Cr in red, of Cb and Cr in green, of Cb in blue.
_LIMITED = (1.5960267782211304, -0.39176228642463684, -0.8129676580429077, 2.0172321796417236)
_FULL = (1.4019999504089355, -0.34413629770278931, -0.71413630247116089, 1.7719999551773071)


def planes(picture: av.VideoFrame) -> tuple[UInt8, UInt8, UInt8]:
    """Return Y (H, W), Cb and Cr (H / 2, W / 2) of a picture in 4:2:0 of 8 bits."""
    assert picture.format.name in ("yuv420p", "yuvj420p")
    y, cb, cr = (np.frombuffer(bytes(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in picture.planes)
    return y, cb, cr


def nv12_to_rgb(y: UInt8, cb: UInt8, cr: UInt8, *, full_range: bool) -> UInt8:
    """Convert a picture by BT.601. y: (H, W); cb, cr: (H / 2, W / 2). Returns (H, W, 3)."""
    blue, red = (_fused(_enlarged(plane), _BYTE, -0.5) for plane in (cb, cr))
    if full_range:
        luma = y.astype(np.float32) * _BYTE
    else:
        luma = _fused(y.astype(np.float32), _BYTE, -0.0625) * np.float32(1.1643835306167603)
    cr_r, cb_g, cr_g, cb_b = _FULL if full_range else _LIMITED
    rgb = np.stack(
        [_fused(red, cr_r, luma), _fused(red, cr_g, _fused(blue, cb_g, luma)), _fused(blue, cb_b, luma)], axis=-1
    )
    converted: UInt8 = np.rint(rgb * np.float32(255)).clip(0, 255).astype(np.uint8)
    return converted


def _enlarged(plane: UInt8) -> Float32:
    """Double both sides, chroma centred between 2 x 2 pixels of luma, beyond the edge what is at the edge; no bytes."""
    (top, bottom, down), (left, right, across) = map(_places, plane.shape)
    upper, lower = (
        _fused(rows[:, left], 1 - across, rows[:, right] * across)
        for rows in (plane[top].astype(np.float32), plane[bottom].astype(np.float32))
    )
    return _fused(lower - upper, down[:, None], upper)


def _places(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Float32]:
    """Return which two samples each of ``2 * length`` pixels lies between, and the share of the second."""
    place = np.arange(2 * length) / 2 - 0.25
    first = np.floor(place).astype(np.int64)
    share = (place - first).astype(np.float32)
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), share


def _fused(a: Float32, b: Float32 | np.float32 | float, c: Float32 | float) -> Float32:
    """Return a * b + c, rounded once: float64 holds the product of two float32 exactly."""
    product = a.astype(np.float64) * np.float32(b)
    rounded: Float32 = (product + np.float32(c)).astype(np.float32)
    return rounded
