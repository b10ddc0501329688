"""Resize frames as OpenCV's INTER_LINEAR resizes bytes, to the bit: the release's frames are made with it.

``out = (sum of v * (row >> 4) >> 16 over two rows + 2) >> 2``, ``row = sum of u * frames over two columns``

* frames (F, H, W, 3) uint8, any strides but for dense colours, so that they may be cropped or transposed; out
  (F, h, w, 3) uint8, dense. u, v: weights of 11 bits, from positions in float64 that were rounded to float32.
* matrix (3, 4) int32, 16 bits after the point: colours to be put right first, from (R, G, B, 1), rounded once and
  clamped to bytes. Where the byte was 0 or 255, nothing is added: it may have been clipped, and black is to stay black.
* chroma_axis: chroma was put between the pixels of a pair along this axis, and lies on the first of them: it is moved
  there, exactly, as ``C'(x) = (3 C(x) - C(x - 1)) / 2`` at even x, ``(C(x) + C(x + 1)) / 2`` at odd x, where C is what
  colours differ by from their luma. Not where one of these bytes is 0 or 255.

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

# Weights of red, green and blue in luma, BT.601, times 65536: of what DALI converts with.
LUMA = tl.constexpr((19595, 38470, 7471))


@triton.jit
def _bilinear_kernel(
    frames,  # (F, H, W, 3)
    rows,  # (6, h): where two rows begin in a frame, their weights, and how far the neighbour of each lies
    columns,  # (6, w)
    matrix,  # (3, 4)
    out,  # (F, h * w, 3)
    FRAME_STRIDE,
    OH,
    OW,
    TILES,
    COLOUR: tl.constexpr,
    SITED: tl.constexpr,
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
    n_y0 = tl.load(rows + 4 * OH, mask=m_m, other=0)
    n_y1 = tl.load(rows + 5 * OH, mask=m_m, other=0)
    n_x0 = tl.load(columns + 4 * OW, mask=m_m, other=0)
    n_x1 = tl.load(columns + 5 * OW, mask=m_m, other=0)
    r_00, g_00, b_00 = _pixel(frames + o_y0 + o_x0, n_y0 + n_x0, matrix, m_m, COLOUR, SITED)
    r_01, g_01, b_01 = _pixel(frames + o_y0 + o_x1, n_y0 + n_x1, matrix, m_m, COLOUR, SITED)
    r_10, g_10, b_10 = _pixel(frames + o_y1 + o_x0, n_y1 + n_x0, matrix, m_m, COLOUR, SITED)
    r_11, g_11, b_11 = _pixel(frames + o_y1 + o_x1, n_y1 + n_x1, matrix, m_m, COLOUR, SITED)
    p_out = out + (i_frame * OH * OW + o_m) * 3
    tl.store(p_out, _mix(r_00, r_01, r_10, r_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)
    tl.store(p_out + 1, _mix(g_00, g_01, g_10, g_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)
    tl.store(p_out + 2, _mix(b_00, b_01, b_10, b_11, b_u0, b_u1, b_v0, b_v1), mask=m_m)


@triton.jit
def _pixel(p, o_neighbour, matrix, m, COLOUR: tl.constexpr, SITED: tl.constexpr):
    """The colours at p, int32, put right by the matrix. o_neighbour: where the pixel is that chroma is shared with."""
    r, g, b = _colours(p, m)
    if COLOUR:
        # Twice the colours with their chroma moved, and what their luma then lacks, times 65536.
        r_2, g_2, b_2 = 2 * r, 2 * g, 2 * b
        b_luma = tl.zeros_like(r)
        if SITED:
            r_n, g_n, b_n = _colours(p + o_neighbour, m)
            is_whole = _inside(r) & _inside(g) & _inside(b) & _inside(r_n) & _inside(g_n) & _inside(b_n)
            b_own = tl.where(o_neighbour < 0, 3, 1)
            r_2 = tl.where(is_whole, b_own * r + (2 - b_own) * r_n, r_2)
            g_2 = tl.where(is_whole, b_own * g + (2 - b_own) * g_n, g_2)
            b_2 = tl.where(is_whole, b_own * b + (2 - b_own) * b_n, b_2)
            b_luma = (2 * r - r_2) * LUMA[0] + (2 * g - g_2) * LUMA[1] + (2 * b - b_2) * LUMA[2]
        r, g, b = (
            _correct(matrix, r_2, g_2, b_2, b_luma, r),
            _correct(matrix + 4, r_2, g_2, b_2, b_luma, g),
            _correct(matrix + 8, r_2, g_2, b_2, b_luma, b),
        )
    return r, g, b


@triton.jit
def _colours(p, m):
    r = tl.load(p, mask=m, other=0).to(tl.int32)
    g = tl.load(p + 1, mask=m, other=0).to(tl.int32)
    b = tl.load(p + 2, mask=m, other=0).to(tl.int32)
    return r, g, b


@triton.jit
def _inside(level):
    return (level > 0) & (level < 255)


@triton.jit
def _correct(row, r_2, g_2, b_2, b_luma, old):
    """The level that one row of the matrix, which keeps greys, makes of a pixel; old: the level that it had."""
    level = r_2 * tl.load(row) + g_2 * tl.load(row + 1) + b_2 * tl.load(row + 2) + b_luma
    level += tl.where(_inside(old), 2 * tl.load(row + 3), 0)
    return tl.minimum(tl.maximum((level + 65536) >> 17, 0), 255)


@triton.jit
def _mix(b_00, b_01, b_10, b_11, b_u0, b_u1, b_v0, b_v1):
    """The formula, for one colour of two pixels of each of two rows."""
    b_0 = b_v0 * ((b_u0 * b_00 + b_u1 * b_01) >> 4) >> 16
    b_1 = b_v1 * ((b_u0 * b_10 + b_u1 * b_11) >> 4) >> 16
    return ((b_0 + b_1 + 2) >> 2).to(tl.uint8)


def bilinear(
    frames: Tensor,
    size: tuple[int, int],
    *,
    flip_y: bool = False,
    flip_x: bool = False,
    matrix: Tensor | None = None,
    chroma_axis: int | None = None,
) -> Tensor:
    """Put colours right, flip and resize, in one pass.

    frames: (F, H, W, 3) uint8 RGB, a view with strides of its own or not; size: (h, w); flip_y, flip_x: top to bottom,
    left to right; matrix: (3, 4) int32, (R, G, B, 1) to RGB times 65536, on any device; chroma_axis: along which of
    ``frames``, 1 or 2, chroma lies on every other pixel, None if it lies where it was put; used only with a matrix.

    Returns (F, h, w, 3) uint8, dense. Raises ValueError for other shapes, dtypes and strides.
    """
    num_frames, height, width = _checked(frames, size)
    out = frames.new_empty((num_frames, *size, 3))
    frame_stride, row_stride, column_stride, _ = frames.stride()
    rows = _taps(height, size[0], flip=flip_y, stride=row_stride, sited=chroma_axis == 1).to(frames.device)
    columns = _taps(width, size[1], flip=flip_x, stride=column_stride, sited=chroma_axis == 2).to(frames.device)

    given = frames, rows, columns, rows if matrix is None else matrix.to(frames.device), out, frame_stride, *size
    constants = matrix is not None, chroma_axis is not None
    if num_frames:
        run(
            Problem(
                op="bilinear",
                key=" ".join(["bytes", *["colour"] * constants[0], *["sited"] * constants[1]]),
                kernel=_bilinear_kernel,
                out=out,
                parts=(num_frames, size[0] * size[1], 1),
                args=lambda tiles: (*given, tiles, *constants),
                heuristic=Config(256, 1, 1, 4, 1),
                candidates=lambda: [Config(32 * warps * n, 1, 1, warps, 1) for n in (1, 2, 4) for warps in (2, 4, 8)],
                reference=partial(
                    bilinear_reference,
                    frames,
                    size,
                    flip_y=flip_y,
                    flip_x=flip_x,
                    matrix=matrix,
                    chroma_axis=chroma_axis,
                ),
            )
        )
    return out


def bilinear_reference(
    frames: Tensor,
    size: tuple[int, int],
    *,
    flip_y: bool = False,
    flip_x: bool = False,
    matrix: Tensor | None = None,
    chroma_axis: int | None = None,
) -> Tensor:
    """See ``bilinear``. On any device."""
    num_frames, height, width = _checked(frames, size)
    out = frames.new_empty((num_frames, *size, 3))
    y_0, y_1, v_0, v_1 = _taps(height, size[0])[:4].to(frames.device)[..., None, None].long()
    x_0, x_1, u_0, u_1 = _taps(width, size[1])[:4].to(frames.device)[..., None].long()
    for frame, resized in zip(frames, out, strict=True):  # one by one, as wide copies are large
        pixels = frame.int()
        if matrix is not None:
            pixels = _corrected(pixels, matrix.to(frames.device), chroma_axis)
        pixels = pixels.flip([axis for axis, flip in enumerate((flip_y, flip_x)) if flip])
        rows = u_0 * pixels[:, x_0[:, 0]] + u_1 * pixels[:, x_1[:, 0]] >> 4
        resized.copy_((v_0 * rows[y_0[:, 0, 0]] >> 16) + (v_1 * rows[y_1[:, 0, 0]] >> 16) + 2 >> 2)
    return out


def _corrected(pixels: Tensor, matrix: Tensor, chroma_axis: int | None) -> Tensor:
    """Put the colours of one frame (H, W, 3) int32 right."""
    weights, added = matrix.split([3, 1], dim=1)
    inside = (pixels > 0) & (pixels < 255)
    doubled, luma = 2 * pixels, torch.zeros_like(pixels[..., 0])
    if chroma_axis is not None:
        axis = chroma_axis - 1
        length = pixels.shape[axis]
        places = torch.arange(length, device=pixels.device)
        is_even = places % 2 == 0
        others = torch.where(is_even, places - 1, places + 1).clamp(0, length - 1)
        neighbours = pixels.index_select(axis, others)
        own = torch.where(is_even & (others != places), 3, 1).view([-1 if k == axis else 1 for k in range(3)])
        is_whole = (inside & inside.index_select(axis, others)).all(-1, keepdim=True)
        doubled = torch.where(is_whole, own * pixels + (2 - own) * neighbours, doubled)
        luma = ((2 * pixels - doubled) * torch.tensor(LUMA.value, device=pixels.device, dtype=torch.int32)).sum(-1)
    level = (doubled[..., None, :] * weights).sum(-1) + luma[..., None] + 2 * added[:, 0] * inside
    corrected: Tensor = (level + 65536 >> 17).clamp(0, 255)
    return corrected


def _taps(old: int, new: int, *, flip: bool = False, stride: int = 1, sited: bool = False) -> Tensor:
    """Return for each of ``new`` pixels along an axis two of ``old``, times ``stride``, and their weights: (6, new).

    The last two rows say how far the neighbours of the two lie with which they share chroma; 0 if not ``sited``.
    """
    # The steps and the types are OpenCV's: another order rounds differently.
    place = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    pixels = np.clip(np.stack([first, first + 1]).astype(np.int32), 0, old - 1)
    pixels = old - 1 - pixels if flip else pixels
    weights = np.rint(np.stack([np.float32(1) - share, share]) * np.float32(2048)).astype(np.int32)
    away = (pixels + np.where(pixels % 2, 1, -1)).clip(0, old - 1) - pixels if sited else np.zeros_like(pixels)
    return torch.from_numpy(np.concatenate([pixels * np.int32(stride), weights, away * np.int32(stride)]))


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
