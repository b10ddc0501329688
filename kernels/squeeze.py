"""Squeeze time into channels: gather the frames of every clip, crop, mirror, correct colours, normalise, reorder.

``out[b, c * T + t, y, x] = (rgb'[c] - mean[c]) / std[c]``, where ``rgb' = M[b] @ rgb + o[b]`` and
``rgb = frames[index[b, t], top[b] + y, left[b] + x]``, x counted from the right where flip[b].

* frames (F, H, W, 3) uint8; index (B, T); corners (B, 2) top, left; flip (B,); colour (B, 3, 4) = (M, o).
* out (B, 3 * T, S, S) float32, float16 or bfloat16, channels last in memory (what the first convolution wants),
  computed in float32 and rounded once.

Reads each frame once a clip and writes the clips once: ``B*T*S*S*3 * (1 + out.itemsize)`` bytes. Neither the gathered
frames nor their float copies are ever written.

Channel order, mean and std: the release's configs (FormatShape NCTHW viewed as N, C*T, H, W; ActionDataPreprocessor).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Problem, check, dtype_name, power_of_two_over, run
from sqt_fast.kernels.numerics import narrow, precision
from sqt_fast.kernels.squeeze_host import MEAN, STD

MOST_FRAMES = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A colour times SCALE plus SHIFT is normalised.
SCALE = tl.constexpr(tuple(1 / std for std in STD))
SHIFT = tl.constexpr(tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True)))


@triton.jit
def _squeeze_kernel(
    frames,  # (F, H, W, 3)
    index,  # (B, T)
    corners,  # (B, 2)
    flip,  # (B,) uint8
    colour,  # (B, 3, 4) float32
    out,  # (B, S * S, 3 * T)
    H,
    W,
    S,
    TILES,
    T: tl.constexpr,
    FLIP: tl.constexpr,
    COLOUR: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One run of pixels of one clip. Loads have lanes along pixels (3 bytes apart), stores along channels."""
    i_clip = (tl.program_id(0) // TILES).to(tl.int64)
    o_m = (tl.program_id(0) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_t = tl.arange(0, BLOCK_T)
    m_m = o_m < S * S
    m_t = o_t < T
    o_x = o_m % S
    if FLIP:
        o_x = tl.where(tl.load(flip + i_clip) != 0, S - 1 - o_x, o_x)
    i_top = tl.load(corners + i_clip * 2)
    i_left = tl.load(corners + i_clip * 2 + 1)
    o_pixel = ((i_top + o_m // S) * W + i_left + o_x) * 3  # within a frame: fits int32
    o_frame = tl.load(index + i_clip * T + o_t, mask=m_t, other=0).to(tl.int64) * H * W * 3
    p_rgb = frames + o_frame[:, None] + o_pixel[None, :]
    m_rgb = m_t[:, None] & m_m[None, :]
    r = tl.load(p_rgb, mask=m_rgb, other=0).to(tl.float32)  # (BLOCK_T, BLOCK_M)
    g = tl.load(p_rgb + 1, mask=m_rgb, other=0).to(tl.float32)
    b = tl.load(p_rgb + 2, mask=m_rgb, other=0).to(tl.float32)
    if COLOUR:
        b_0 = _mix(colour + i_clip * 12, r, g, b, SCALE[0], SHIFT[0])
        b_1 = _mix(colour + i_clip * 12 + 4, r, g, b, SCALE[1], SHIFT[1])
        b_2 = _mix(colour + i_clip * 12 + 8, r, g, b, SCALE[2], SHIFT[2])
    else:
        b_0 = r * SCALE[0] + SHIFT[0]
        b_1 = g * SCALE[1] + SHIFT[1]
        b_2 = b * SCALE[2] + SHIFT[2]
    dtype: tl.constexpr = out.dtype.element_ty
    b_0 = narrow(b_0, dtype, PRECISION)
    b_1 = narrow(b_1, dtype, PRECISION)
    b_2 = narrow(b_2, dtype, PRECISION)
    # The colours side by side, so that a pixel's 3 * T channels are stored as one stretch; the fourth is padding.
    b_out = tl.join(tl.join(b_0, b_1), tl.join(b_2, b_2))  # (BLOCK_T, BLOCK_M, c % 2, c // 2)
    b_out = b_out.permute(1, 3, 2, 0).reshape(BLOCK_M, 4 * BLOCK_T)
    o_j = tl.arange(0, 4 * BLOCK_T)
    m_j = (o_j < 3 * BLOCK_T) & (o_j % BLOCK_T < T)
    o_n = (o_j // BLOCK_T) * T + o_j % BLOCK_T
    out += i_clip * S * S * 3 * T
    tl.store(out + o_m[:, None] * (3 * T) + o_n[None, :], b_out, mask=m_m[:, None] & m_j[None, :])


@triton.jit
def _mix(row, r, g, b, SCALE: tl.constexpr, SHIFT: tl.constexpr):
    """(row[:3] @ (r, g, b) + row[3]) * SCALE + SHIFT, folded before the pixels see it."""
    shifted = r * (tl.load(row) * SCALE) + (tl.load(row + 3) * SCALE + SHIFT)
    return g * (tl.load(row + 1) * SCALE) + (b * (tl.load(row + 2) * SCALE) + shifted)


def squeeze(
    frames: Tensor,
    index: Tensor,
    *,
    corners: Tensor,
    size: int,
    dtype: torch.dtype,
    flip: Tensor | None = None,
    colour: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Make clips from frames in one pass.

    frames: (F, H, W, 3) uint8 RGB; index: (B, T) int32 or int64, T <= 16, the frames of each clip in time order,
    repeats allowed; corners: (B, 2) int32, top and left of the crop; size: its side; flip: (B,) bool, mirror it left to
    right; colour: (B, 3, 4) float32, matrix and offset on RGB levels, not clamped; dtype: float32, float16 or bfloat16;
    out: write there. All dense and on one device. That index and corners lie within the frames is not checked: it would
    have to wait for the GPU.

    Returns (B, 3 * T, size, size) of ``dtype``, channels last. Raises ValueError for other shapes and dtypes.
    """
    out = checked_out(frames, index, corners, size, dtype, flip, colour, out)
    clips, num_frames = index.shape
    if not clips:
        return out
    _, height, width, _ = frames.shape

    tensors = (
        frames,
        index,
        corners,
        frames if flip is None else flip.view(torch.uint8),
        frames if colour is None else colour,
        out,
    )
    constants = num_frames, flip is not None, colour is not None, power_of_two_over(num_frames, least=1)
    run(
        Problem(
            op="squeeze",
            key=f"{dtype_name(dtype)} t={num_frames}{'' if colour is None else ' colour'}",
            kernel=_squeeze_kernel,
            out=out,
            parts=(clips, size * size, 1),
            args=lambda tiles: (*tensors, height, width, size, tiles, *constants, precision(dtype)),
            heuristic=Config(64, 1, 1, 4, 1),  # 24 loads in flight a thread
            candidates=lambda: [
                Config(8 * loads * warps, 1, 1, warps, 1) for loads in (1, 2, 4) for warps in (2, 4, 8)
            ],
        )
    )
    return out


def checked_out(
    frames: Tensor,
    index: Tensor,
    corners: Tensor,
    size: int,
    dtype: torch.dtype,
    flip: Tensor | None,
    colour: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """Check what ``squeeze`` is given. Returns ``out``, or fresh memory for it. Raises ValueError."""
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: give (F, H, W, 3)")
    if index.ndim != 2 or not 1 <= index.shape[1] <= MOST_FRAMES:
        raise ValueError(f"index of shape {tuple(index.shape)}: give (B, T), T from 1 to {MOST_FRAMES}")
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index of {index.dtype}: give torch.int32 or torch.int64")
    if dtype not in DTYPES:
        raise ValueError(f"clips of {dtype}: give one of {', '.join(map(str, DTYPES))}")
    (_, height, width, _), (clips, num_frames) = frames.shape, index.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"crops of {size} from frames of {height} x {width}: give 1 to {min(height, width)}")
    if max(height * width, size * size * num_frames) * 3 >= 2**31:
        raise ValueError(f"frames of {height} x {width}, crops of {size}: a frame, a clip must hold under 2^31 values")
    check("frames", frames, frames.shape, torch.uint8, frames)
    check("index", index, index.shape, index.dtype, frames)
    check("corners", corners, (clips, 2), torch.int32, frames)
    if flip is not None:
        check("flip", flip, (clips,), torch.bool, frames)
    if colour is not None:
        check("colour", colour, (clips, 3, 4), torch.float32, frames)
    if out is None:
        return frames.new_empty((clips, size, size, 3 * num_frames), dtype=dtype).permute(0, 3, 1, 2)
    if tuple(out.shape) != (clips, 3 * num_frames, size, size):
        raise ValueError(f"out of shape {tuple(out.shape)}: give {(clips, 3 * num_frames, size, size)}")
    check("out, channels last,", out.permute(0, 2, 3, 1), (clips, size, size, 3 * num_frames), dtype, frames)
    return out


def squeeze_clips_reference(
    frames: Tensor,
    index: Tensor,
    *,
    dtype: torch.dtype,
    corners: Tensor,
    size: int,
    colour: Tensor | None = None,
    flip: Tensor | None = None,
) -> Tensor:
    """See ``squeeze``; B at least 1. With dtype float64 everything is computed in float64, else in float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.tensor(MEAN, dtype=wide, device=frames.device)
    std = torch.tensor(STD, dtype=wide, device=frames.device)
    clips = []
    for i, (top, left) in enumerate(corners.tolist()):
        rgb = frames[index[i].long(), top : top + size, left : left + size].to(wide)  # (T, S, S, 3)
        if flip is not None and bool(flip[i]):
            rgb = rgb.flip(2)
        if colour is not None:  # no matrix product: on a GPU it might be TF32
            rgb = (rgb[..., None, :] * colour[i, :, :3].to(wide)).sum(-1) + colour[i, :, 3].to(wide)
        clips.append(((rgb - mean) / std).permute(3, 0, 1, 2).flatten(0, 1))
    return torch.stack(clips).to(dtype).contiguous(memory_format=torch.channels_last)
