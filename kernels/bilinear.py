"""Resize frames as OpenCV's INTER_LINEAR resizes bytes, to the bit: the release's frames are made with it.

``out = (sum of v * (row >> 4) >> 16 over two rows + 2) >> 2``, ``row = sum of u * frames over two columns``

* frames (F, H, W, 3) uint8, any strides but for dense colours, so that they may be cropped or transposed; out
  (F, h, w, 3) uint8, dense. u, v: weights of 11 bits, from positions in float64 that were rounded to float32.
* matrix (3, 4) int32, 16 bits after the point: colours to be put right first, from (R, G, B, 1), rounded once and
  clamped to bytes. Where the byte was 0 or 255, nothing is added: it may have been clipped, and black is to stay black.

Reads what it needs of each frame from where the decoder wrote it and writes only small frames: no turned, corrected or
cropped copy at full size.

Source: HResizeLinear and VResizeLinear of OpenCV's imgproc/src/resize.cpp. Averages of 2 x 2, which it has a path of
its own for, and frames of the right size already come out of the same formula.
"""

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Problem, run


@triton.jit
def _bilinear_kernel(
    frames,  # (F, H, W, 3)
    rows,  # (4, h): where two rows begin in a frame, and their weights
    columns,  # (4, w)
    matrix,  # (3, 4)
    out,  # (F, h * w, 3)
    FRAME_STRIDE,
    OH,
    OW,
    TILES,
    COLOUR: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Some pixels of one resized frame."""
    i_frame = (tl.program_id(0) // TILES).to(tl.int64)
    o_m = (tl.program_id(0) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < OH * OW
    rows += o_m // OW
    columns += o_m % OW
    frames += i_frame * FRAME_STRIDE
    o_y0 = tl.load(rows, mask=m_m, other=0)
    o_y1 = tl.load(rows + OH, mask=m_m, other=0)
    b_v0 = tl.load(rows + 2 * OH, mask=m_m, other=0)
    b_v1 = tl.load(rows + 3 * OH, mask=m_m, other=0)
    o_x0 = tl.load(columns, mask=m_m, other=0)
    o_x1 = tl.load(columns + OW, mask=m_m, other=0)
    b_u0 = tl.load(columns + 2 * OW, mask=m_m, other=0)
    b_u1 = tl.load(columns + 3 * OW, mask=m_m, other=0)
    r_00, g_00, b_00 = _pixel(frames + o_y0 + o_x0, matrix, m_m, COLOUR)
    r_01, g_01, b_01 = _pixel(frames + o_y0 + o_x1, matrix, m_m, COLOUR)
    r_10, g_10, b_10 = _pixel(frames + o_y1 + o_x0, matrix, m_m, COLOUR)
    r_11, g_11, b_11 = _pixel(frames + o_y1 + o_x1, matrix, m_m, COLOUR)
    p_out = out + (i_frame * OH * OW + o_m) * 3
    tl.store(p_out, _mix(r_00, r_01, r_10, r_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)
    tl.store(p_out + 1, _mix(g_00, g_01, g_10, g_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)
    tl.store(p_out + 2, _mix(b_00, b_01, b_10, b_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)


@triton.jit
def _pixel(p, matrix, m, COLOUR: tl.constexpr):
    """The colours at p, int32, put right by the matrix."""
    r = tl.load(p, mask=m, other=0).to(tl.int32)
    g = tl.load(p + 1, mask=m, other=0).to(tl.int32)
    b = tl.load(p + 2, mask=m, other=0).to(tl.int32)
    if COLOUR:
        return _correct(matrix, r, g, b, r), _correct(matrix + 4, r, g, b, g), _correct(matrix + 8, r, g, b, b)
    return r, g, b


@triton.jit
def _correct(row, r, g, b, old):
    """The level that one row of the matrix makes of a pixel; old: the level that it had."""
    level = r * tl.load(row) + g * tl.load(row + 1) + b * tl.load(row + 2)
    level += tl.where((old > 0) & (old < 255), tl.load(row + 3), 0)
    return tl.minimum(tl.maximum((level + 32768) >> 16, 0), 255)


@triton.jit
def _mix(b_00, b_01, b_10, b_11, b_u0, b_u1, b_v0, b_v1):
    """The formula, for one colour of two pixels of each of two rows."""
    b_0 = b_v0 * ((b_u0 * b_00 + b_u1 * b_01) >> 4) >> 16
    b_1 = b_v1 * ((b_u0 * b_10 + b_u1 * b_11) >> 4) >> 16
    return ((b_0 + b_1 + 2) >> 2).to(tl.uint8)


def bilinear(
    frames: Tensor, size: tuple[int, int], *, flip_y: bool = False, flip_x: bool = False, matrix: Tensor | None = None
) -> Tensor:
    """Put colours right, flip and resize, in one pass.

    frames: (F, H, W, 3) uint8 RGB, a view with strides of its own or not; size: (h, w); flip_y, flip_x: top to bottom,
    left to right; matrix: (3, 4) int32, (R, G, B, 1) to RGB times 65536, on any device.

    Returns (F, h, w, 3) uint8, dense. Raises ValueError for other shapes, dtypes and strides.
    """
    num_frames, height, width = _checked(frames, size)
    out = frames.new_empty((num_frames, *size, 3))
    frame_stride, row_stride, column_stride, _ = frames.stride()
    rows = _taps(height, size[0], flip=flip_y, stride=row_stride).to(frames.device)
    columns = _taps(width, size[1], flip=flip_x, stride=column_stride).to(frames.device)

    given = frames, rows, columns, rows if matrix is None else matrix.to(frames.device), out, frame_stride, *size
    if num_frames:
        run(
            Problem(
                op="bilinear",
                key="bytes" if matrix is None else "bytes colour",
                kernel=_bilinear_kernel,
                out=out,
                parts=(num_frames, size[0] * size[1], 1),
                args=lambda tiles: (*given, tiles, matrix is not None),
                heuristic=Config(256, 1, 1, 4, 1),
                candidates=lambda: [Config(32 * warps * n, 1, 1, warps, 1) for n in (1, 2, 4) for warps in (2, 4, 8)],
                reference=partial(bilinear_reference, frames, size, flip_y=flip_y, flip_x=flip_x, matrix=matrix),
            )
        )
    return out


def bilinear_reference(
    frames: Tensor, size: tuple[int, int], *, flip_y: bool = False, flip_x: bool = False, matrix: Tensor | None = None
) -> Tensor:
    """See ``bilinear``. On any device."""
    num_frames, height, width = _checked(frames, size)
    out = frames.new_empty((num_frames, *size, 3))
    y_0, y_1, v_0, v_1 = _taps(height, size[0]).to(frames.device)[..., None, None].long()
    x_0, x_1, u_0, u_1 = _taps(width, size[1]).to(frames.device)[..., None].long()
    for frame, resized in zip(frames, out, strict=True):  # one by one, as wide copies are large
        pixels = frame.flip([axis for axis, flip in enumerate((flip_y, flip_x)) if flip]).int()
        if matrix is not None:
            weights, added = matrix.to(frames.device).split([3, 1], dim=1)
            level = (pixels[..., None, :] * weights).sum(-1) + added[:, 0] * ((pixels > 0) & (pixels < 255))
            pixels = (level + 32768 >> 16).clamp(0, 255)
        rows = u_0 * pixels[:, x_0[:, 0]] + u_1 * pixels[:, x_1[:, 0]] >> 4
        resized.copy_((v_0 * rows[y_0[:, 0, 0]] >> 16) + (v_1 * rows[y_1[:, 0, 0]] >> 16) + 2 >> 2)
    return out


def _taps(old: int, new: int, *, flip: bool = False, stride: int = 1) -> Tensor:
    """Return for each of ``new`` pixels along an axis two of ``old``, times ``stride``, and their weights: (4, new)."""
    # The steps and the types are OpenCV's: another order rounds differently.
    place = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    pixels = np.clip(np.stack([first, first + 1]).astype(np.int32), 0, old - 1)
    weights = np.rint(np.stack([np.float32(1) - share, share]) * np.float32(2048)).astype(np.int32)
    return torch.from_numpy(np.concatenate([(old - 1 - pixels if flip else pixels) * np.int32(stride), weights]))


def _checked(frames: Tensor, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return (F, H, W). Raises ValueError."""
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:] or frames.stride(3) != 1:
        raise ValueError(
            f"frames of shape {tuple(frames.shape)} and strides {frames.stride()}: give (F, H, W, 3), colours dense"
        )
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames of {frames.dtype}: give torch.uint8")
    if min(size) < 1:
        raise ValueError(f"a size of {size[0]} x {size[1]}: give 1 x 1 or more")
    return frames.shape[0], frames.shape[1], frames.shape[2]
