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
    out,  # (B, S, S, 3 * T)
    size_bytes,  # of frames
    H,
    W,
    S,
    TILES,
    T: tl.constexpr,
    FLIP: tl.constexpr,
    COLOUR: tl.constexpr,
    TAIL: tl.constexpr,  # size_bytes is no multiple of 16
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A run of up to BLOCK_M pixels of one row of one clip.

    A pixel's 3 * T channels are the T frames of its red, of its green, of its blue. So what is stored, (3 * M, T), is
    the transpose of the run's bytes, (T, 3 * M): byte q of all frames becomes the T values at q. Bytes are read in
    chunks of 16, at once where ``frames`` is aligned to 16 bytes and one by one where it is not; they wait in shared
    memory and are gathered there in the order in which they are stored.
    """
    BLOCK_Q: tl.constexpr = triton.next_power_of_2(3 * BLOCK_M)
    BLOCK_B: tl.constexpr = triton.next_power_of_2(3 * BLOCK_M + 15)  # with those before the first in its chunk
    i_row = tl.program_id(0) // TILES  # of all clips
    i_clip = i_row // S
    run = tl.cdiv(S, TILES)  # as long as each other but for the last
    i_x = (tl.program_id(0) % TILES) * run
    num_bytes = tl.minimum(run, S - i_x) * 3
    i_left = tl.load(corners + i_clip * 2 + 1) + i_x
    if FLIP:
        is_mirrored = tl.load(flip + i_clip) != 0
        i_left += tl.where(is_mirrored, S - 2 * i_x - num_bytes // 3, 0)
    o_pixel = ((tl.load(corners + i_clip * 2) + i_row % S) * W + i_left) * 3  # within a frame: fits int32
    o_t = tl.arange(0, BLOCK_T)
    m_t = o_t < T
    i_frame = tl.load(index + i_clip * T + o_t, mask=m_t, other=0).to(tl.int64)
    o_first = i_frame * (H * W * 3) + o_pixel
    o_chunk = (o_first >> 4) << 4
    o_before = o_first.to(tl.int32) & 15
    b_bytes = _chunks(frames, o_chunk, m_t, o_before + num_bytes, size_bytes, TAIL, BLOCK_B)  # (BLOCK_T * BLOCK_B,)

    o_q = tl.arange(0, BLOCK_Q)
    o_c = o_q % 3
    o_red = o_q - o_c  # of the pixel
    if FLIP:
        o_red = tl.where(is_mirrored, num_bytes - 3 - o_red, o_red)
    o_red = tl.minimum(tl.maximum(o_red, 0), BLOCK_B - 18)  # those behind the run are not stored
    o_b = (o_t * BLOCK_B + o_before)[None, :] + o_red[:, None]
    scale, shift = _of_colour(o_c, SCALE), _of_colour(o_c, SHIFT)
    if COLOUR:
        matrix = colour + i_clip * 12
        # One gather for all three colours, for each waits for all threads. The fourth is padding.
        b_rgb = _bytes_at(b_bytes, tl.join(tl.join(o_b, o_b + 1), tl.join(o_b + 2, o_b + 2)))
        b_red_green, b_blue_twice = tl.split(b_rgb)
        b_red, b_green = tl.split(b_red_green)
        b_blue, _ = tl.split(b_blue_twice)
        b_out = b_red * (_column(matrix, o_c) * scale)[:, None] + (_column(matrix + 3, o_c) * scale + shift)[:, None]
        b_out = b_blue * (_column(matrix + 2, o_c) * scale)[:, None] + b_out
        b_out = b_green * (_column(matrix + 1, o_c) * scale)[:, None] + b_out
    else:
        b_out = _bytes_at(b_bytes, o_b + o_c[:, None]) * scale[:, None] + shift[:, None]
    out += (i_row.to(tl.int64) * S + i_x) * (3 * T)
    p_out = out + (o_q[:, None] * T + o_t[None, :])
    tl.store(p_out, narrow(b_out, out.dtype.element_ty, PRECISION), mask=(o_q < num_bytes)[:, None] & m_t[None, :])


@triton.jit
def _chunks(frames, o_chunk, m_t, needed, size_bytes, TAIL: tl.constexpr, BLOCK_B: tl.constexpr):
    """The first ``needed`` bytes from o_chunk on and those that share their chunks, one row after the other.

    A mask that is the same for all bytes of a chunk keeps its load whole. What lies outside of frames is never read:
    the bytes of a last chunk that is cut off come one by one.
    """
    o_b = tl.arange(0, BLOCK_B)
    o_begin = o_b // 16 * 16
    p_bytes = frames + (o_chunk[:, None] + o_b[None, :])
    m_bytes = (o_begin[None, :] < needed[:, None]) & m_t[:, None]
    if TAIL:
        m_whole = o_chunk[:, None] + (o_begin + 16)[None, :] <= size_bytes
        b_bytes = tl.load(p_bytes, mask=m_bytes & m_whole, other=0)
        m_rest = (m_whole == 0) & (o_chunk[:, None] + o_b[None, :] < size_bytes)
        b_bytes += tl.load(p_bytes, mask=m_bytes & m_rest, other=0)
    else:
        b_bytes = tl.load(p_bytes, mask=m_bytes, other=0)
    return b_bytes.reshape(o_chunk.shape[0] * BLOCK_B)


@triton.jit
def _bytes_at(b_bytes, o_b):
    """The bytes at o_b, as float32."""
    return tl.gather(b_bytes, o_b.reshape(o_b.numel), 0).reshape(o_b.shape).to(tl.float32)


@triton.jit
def _column(entry, o_c):
    """A column of a (3, 4) matrix, from its first entry on, at rows o_c.

    Not loaded with o_c in the address: what Triton loads that way it moves between threads, behind barriers.
    """
    return tl.where(o_c == 0, tl.load(entry), tl.where(o_c == 1, tl.load(entry + 4), tl.load(entry + 8)))


@triton.jit
def _of_colour(o_c, VALUES: tl.constexpr):
    """VALUES[o_c], one for red, green and blue each."""
    return tl.where(o_c == 0, VALUES[0], tl.where(o_c == 1, VALUES[1], VALUES[2]))


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
    sizes = frames.numel(), height, width, size
    constants = num_frames, flip is not None, colour is not None, frames.numel() % 16 != 0
    block_t = power_of_two_over(num_frames, least=1)
    run(
        Problem(
            op="squeeze",
            key=f"{dtype_name(dtype)} t={num_frames}{'' if colour is None else ' colour'}",
            kernel=_squeeze_kernel,
            out=out,
            parts=(clips * size, size, 1),
            args=lambda tiles: (*tensors, *sizes, tiles, *constants, block_t, precision(dtype)),
            heuristic=Config(80, 1, 1, 4, 1),
            # Nearly 128, 256 or 512 bytes of a frame.
            candidates=lambda: [Config(pixels, 1, 1, warps, 1) for pixels in (42, 80, 165) for warps in (2, 4, 8)],
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
