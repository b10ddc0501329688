"""Squeeze time into channels in CUDA C++: the operation of ``kernels/squeeze.py``, same formula, shapes and traffic.

A frame's bytes come in 16 at a time, one warp a row of the crop; they wait in shared memory and leave as whole rows of
channels, 16 bytes a thread. What Triton cannot say: this at any alignment of the frames, and no bank of shared memory
asked twice at once. CuPy compiles it on first use (NVRTC; no
CUDA toolkit, no headers) and keeps it in its cache. For compute capability 8.0 and later.
"""

import functools
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.kernels.squeeze import checked_out
from sqt_fast.kernels.squeeze_host import MEAN, STD

NAME = "squeeze"
THREADS = 192  # a multiple of the 6 (16 bits) or 12 (float32) stores that make a pixel of 16 frames
MOST_PIXELS = 128  # their bytes, at any alignment, are at most 32 loads of 16 bytes: one a lane
OPTIONS = ("--std=c++17",)
# The C++ type of a value, and what two of them are converted by (none: it is float32 already).
_FORMATS = {
    torch.float32: ("float", ""),
    torch.float16: ("unsigned short", "cvt.rn.f16x2.f32"),
    torch.bfloat16: ("unsigned short", "cvt.rn.bf16x2.f32"),
}

# T, COLOUR, THREADS, MOST_PIXELS, SCALE, SHIFT, Index, Value, CONVERT: see ``source``.
_SOURCE = r"""
typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;

constexpr int WARPS = THREADS / 32;
constexpr int ROUNDS = (T + WARPS - 1) / WARPS;
constexpr int ROW = (3 * MOST_PIXELS + 15 + 15) / 16 * 16;  // a frame's bytes here, those before its first included
static_assert(ROW <= 32 * 16, "one load a lane");

// Values stored at once: a divisor of T and so of a pixel's 3 * T, at most 16 bytes.
__host__ __device__ constexpr int values_at_once() {
    int n = 16 / sizeof(Value);
    while (T % n) n /= 2;
    return n;
}
constexpr int N = values_at_once();
constexpr int GROUPS = 3 * T / N;
constexpr int LANES = THREADS / GROUPS;  // pixels worked on at once

__device__ __forceinline__ u32 rounded(float low, float high) {
    if constexpr (sizeof(Value) == 4) return __float_as_uint(low);
    u32 both;
    asm(CONVERT " %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Round N values and store them. Compilers split a plain store of 16 bytes here (NVRTC 13.5 below sm_100), PTX is kept.
__device__ __forceinline__ void store(Value* to, const float (&v)[N]) {
    if constexpr (N * sizeof(Value) == 16) {
        u32 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = rounded(v[i * N / 4], v[(i * N / 4 + 1) % N]);
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::
            "l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]));
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const u32 value = rounded(v[i], v[i]);
            if constexpr (sizeof(Value) == 4) to[i] = __uint_as_float(value);
            else to[i] = value;
        }
    }
}

// 16 bytes at p, which is aligned; those outside of [begin, end) are 0 and are not read.
__device__ __forceinline__ uint4 load16(const u8* p, const u8* begin, const u8* end) {
    if (p >= begin && p + 16 <= end) return __ldg((const uint4*)p);
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (p + i >= begin && p + i < end) words[i / 4] |= (u32)p[i] << (8 * (i % 4));
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Where frame t's row starts. Frames t and t + 8, read at once, lie half of the banks apart.
__device__ __forceinline__ int row_of(int t) { return t * ROW + (t & 8) * 8; }

// A block makes `run` pixels of one row of one clip.
extern "C" __global__ void __launch_bounds__(THREADS) squeeze(
    const u8* __restrict__ frames,     // (F, H, W, 3)
    const Index* __restrict__ index,   // (B, T)
    const int* __restrict__ corners,   // (B, 2)
    const u8* __restrict__ flip,       // (B,) or null
    const float* __restrict__ colour,  // (B, 3, 4); read only with COLOUR
    Value* __restrict__ out,           // (B, S, S, 3 * T)
    i64 frames_bytes, int height, int width, int size, int run, int runs)
{
    __shared__ alignas(16) u8 bytes[T * ROW + 64];
    __shared__ int first[T];  // where the run's first pixel lies in bytes
    __shared__ float map[3][4];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.x / runs, clip = row / size, y = row % size;  // row: of all clips
    const int x = blockIdx.x % runs * run, pixels = min(run, size - x);
    const bool mirrored = flip != nullptr && flip[clip];
    const int left = corners[2 * clip + 1] + (mirrored ? size - x - pixels : x);
    const u8* start[ROUNDS];  // of the run in every frame of this warp
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const i64 frame = index[(i64)clip * T + min(warp + i * WARPS, T - 1)];
        start[i] = frames + ((frame * height + corners[2 * clip] + y) * width + left) * 3;
    }
    uint4 loaded[ROUNDS];  // all under way before the first is waited for
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const int before = (int)((size_t)start[i] % 16);
        loaded[i] = make_uint4(0, 0, 0, 0);
        if (warp + i * WARPS < T && 16 * lane < before + 3 * pixels)
            loaded[i] = load16(start[i] - before + 16 * lane, frames, frames + frames_bytes);
    }
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const int t = warp + i * WARPS;
        if (t < T && 16 * lane < ROW) *(uint4*)(bytes + row_of(t) + 16 * lane) = loaded[i];
        if (t < T && lane == 0) first[t] = row_of(t) + (int)((size_t)start[i] % 16);
    }
    if (threadIdx.x < 12) {
        const int c = threadIdx.x / 4, k = threadIdx.x % 4;
        const float entry = COLOUR ? colour[(i64)clip * 12 + threadIdx.x] : c == k;
        map[c][k] = entry * SCALE[c] + (k == 3 ? SHIFT[c] : 0.0f);
    }
    __syncthreads();

    // A thread makes the same N channels of every LANES-th pixel.
    const int group = threadIdx.x % GROUPS, c = group * N / T, t0 = group * N % T;
    int from[N];
#pragma unroll
    for (int i = 0; i < N; i++) from[i] = first[t0 + i];
    const float red = map[c][0], green = map[c][1], blue = map[c][2], shift = map[c][3], scale = map[c][c];
    Value* to = out + ((i64)row * size + x) * (3 * T) + group * N;
    for (int pixel = threadIdx.x / GROUPS; pixel < pixels && threadIdx.x < LANES * GROUPS; pixel += LANES) {
        const u8* rgb = bytes + 3 * (mirrored ? pixels - 1 - pixel : pixel);
        float v[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            const u8* p = rgb + from[i];
            v[i] = COLOUR ? green * p[1] + (blue * p[2] + (red * p[0] + shift)) : scale * p[c] + shift;
        }
        store(to + pixel * (3 * T), v);
    }
}
"""


def source(num_frames: int, dtype: torch.dtype, *, colour: bool, long_index: bool) -> str:
    """Return the CUDA C++ for clips of so many frames; NVRTC compiles it with OPTIONS."""
    value, convert = _FORMATS[dtype]
    scale = ", ".join(f"{1 / std!r}f" for std in STD)
    shift = ", ".join(f"{-mean / std!r}f" for mean, std in zip(MEAN, STD, strict=True))
    return f"""
constexpr int T = {num_frames}, THREADS = {THREADS}, MOST_PIXELS = {MOST_PIXELS};
constexpr bool COLOUR = {str(colour).lower()};
__constant__ const float SCALE[3] = {{{scale}}}, SHIFT[3] = {{{shift}}};
typedef {"long long" if long_index else "int"} Index;
typedef {value} Value;
#define CONVERT "{convert}"
{_SOURCE}"""


def squeeze_cuda(
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
    """See ``kernels.squeeze.squeeze``: same arguments, on a CUDA device, same result. Runs on torch's current stream.

    Raises ValueError for other shapes and dtypes, BackendError without CuPy.
    """
    out = checked_out(frames, index, corners, size, dtype, flip, colour, out)
    cupy = _cupy()
    if not frames.is_cuda:
        raise ValueError(f"frames on {frames.device}: move all tensors to a CUDA device")
    if out.data_ptr() % 16:
        raise ValueError(f"out at address {out.data_ptr():#x}: give memory aligned to 16 bytes")
    if not out.numel():
        return out
    text = source(index.shape[1], dtype, colour=colour is not None, long_index=index.dtype == torch.int64)
    blocks, arguments = launch_arguments(frames, index, corners, size, flip, colour, out)
    stream = torch.cuda.current_stream(frames.device)
    with cupy.cuda.Device(frames.device.index), cupy.cuda.ExternalStream(stream.cuda_stream):
        _kernel(text)((blocks,), (THREADS,), arguments)
    return out


def launch_arguments(
    frames: Tensor,
    index: Tensor,
    corners: Tensor,
    size: int,
    flip: Tensor | None,
    colour: Tensor | None,
    out: Tensor,
) -> tuple[int, tuple[np.generic, ...]]:
    """Return the number of blocks and the kernel's arguments: addresses and numbers of their exact types."""
    _, height, width, _ = frames.shape
    runs = -(-size // MOST_PIXELS)  # in a row, as long as each other but for the last
    run = -(-size // runs)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (frames, index, corners, flip, colour, out)]
    numbers = [np.int32(number) for number in (height, width, size, run, runs)]
    return len(index) * size * runs, (*map(np.uint64, addresses), np.int64(frames.numel()), *numbers)


@functools.cache
def _kernel(text: str) -> Any:
    """Return the kernel; CuPy compiles it when a device first launches it."""
    return _cupy().RawKernel(text, NAME, options=OPTIONS, backend="nvrtc")


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise BackendError("the CUDA C++ kernels need cupy, which is missing: pip install 'sqt-fast[gpu]'") from None
