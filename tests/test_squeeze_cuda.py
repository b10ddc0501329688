"""The CUDA C++ squeeze: its machine code for every GPU, its numbers on the host and, if there is one, on a GPU.

On the host it is compiled as plain C++: a thread is a thread, ``__syncthreads`` a barrier, blocks come one by one.
"""

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.kernels.squeeze import DTYPES, MOST_FRAMES, checked_out, squeeze_clips_reference
from sqt_fast.kernels.squeeze_cuda import OPTIONS, THREADS, launch_arguments, source, squeeze_cuda
from tests.nvrtc import compile_cuda, cuobjdump, inspect, nvrtc

needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc")
needs_cuobjdump = pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump: pip install triton")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
SPACING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
AS_CUPY_DOES = ("-ftz=true", "--device-as-default-execution-space")

HOST = """
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
using std::min;
struct Place { unsigned x; };
static thread_local Place threadIdx;
static Place blockIdx;
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static const void *first_byte, *end_byte;  // of frames
static std::atomic<int> wrong;  // accesses that would fail on a GPU, or read outside of frames
static uint4 __ldg(const uint4* p) {
    wrong += (size_t)p % 16 || p < first_byte || p + 1 > end_byte;
    return *p;
}
static void store16(void* to, const unsigned* w) { wrong += (size_t)to % 16 != 0; memcpy(to, w, 16); }
static unsigned bf16(float f) { unsigned u = __float_as_uint(f); return (u + 0x7fff + (u >> 16 & 1)) >> 16; }
static std::barrier<>* block;
static void __syncthreads() { block->arrive_and_wait(); }
"""
MAIN = """
extern "C" int run(int blocks, const u8* frames, const Index* index, const int* corners, const u8* flip,
    const float* colour, Value* out, i64 bytes, int height, int width, int size, int run, int runs) {
    first_byte = frames, end_byte = frames + bytes;
    std::barrier<> all(THREADS);
    block = &all;
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < THREADS; thread++) threads.emplace_back([=, &all] {
        threadIdx.x = thread;
        for (unsigned i = 0; i < (unsigned)blocks; i++) {
            if (thread == 0) blockIdx.x = i;
            all.arrive_and_wait();
            squeeze(frames, index, corners, flip, colour, out, bytes, height, width, size, run, runs);
            all.arrive_and_wait();
        }
    });
    for (auto& thread : threads) thread.join();
    return wrong;
}
"""


def host_source(text: str) -> str:
    """Return the CUDA C++ as C++, its two lines of PTX replaced."""
    text = text.replace("__shared__ alignas(16)", "alignas(16) static")
    text, conversions = re.subn(r"asm\(CONVERT.*;", "both = bf16(low) | bf16(high) << 16;", text)
    text, stores = re.subn(r"asm volatile\(.*?\)\);", "store16(to, w);", text, flags=re.DOTALL)
    assert (conversions, stores) == (1, 1)
    return HOST + text + MAIN


def squeeze_on_host(folder: Path, case: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Do what ``squeeze_cuda`` does, on CPU tensors."""
    frames, index, flip, colour = (case[name] for name in ("frames", "index", "flip", "colour"))
    out = checked_out(frames, index, case["corners"], case["size"], dtype, flip, colour, None)
    text = source(index.shape[1], dtype, colour=colour is not None, long_index=index.dtype == torch.int64)
    (folder / "squeeze.cpp").write_text(host_source(text))
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", "squeeze.cpp", "-o", "squeeze.so"]
    subprocess.run(command, cwd=folder, check=True)
    blocks, arguments = launch_arguments(frames, index, case["corners"], case["size"], flip, colour, out)
    as_c = {"Q": ctypes.c_void_p, "L": ctypes.c_void_p, "q": ctypes.c_longlong, "l": ctypes.c_long, "i": ctypes.c_int}
    values = [as_c[argument.dtype.char](argument.item()) for argument in arguments]
    assert ctypes.CDLL(str(folder / "squeeze.so")).run(ctypes.c_int(blocks), *values) == 0
    return out


def clips(num_frames: int, size: int, *, flip: bool, colour: bool, index_dtype: torch.dtype) -> dict[str, Any]:
    """Crops at all corners and in the middle of frames of odd sizes, which begin at an odd address."""
    noise = torch.Generator().manual_seed(num_frames)
    frames = torch.randint(0, 256, (4, size + 3, size + 6, 3), dtype=torch.uint8, generator=noise)
    return {
        "frames": frames[1:],
        "index": torch.randint(0, 3, (5, num_frames), generator=noise).to(index_dtype),
        "corners": torch.tensor([[0, 0], [3, 6], [0, 6], [3, 0], [1, 2]], dtype=torch.int32),
        "size": size,
        "flip": torch.tensor([True, True, False, False, True]) if flip else None,
        "colour": torch.randn(5, 3, 4, generator=noise) * 0.2 + torch.eye(3, 4) if colour else None,
    }


def assert_equals_the_reference(found: Tensor, case: dict[str, Any]) -> None:
    exact = squeeze_clips_reference(**case, dtype=torch.float64)
    assert ((found.double() - exact).abs() <= SPACING[found.dtype] / 2 * exact.abs() + 2e-6).all()


# Stores of 8, 4 and 1 values; more pixels in a row than a block takes.
KINDS: dict[str, tuple[torch.dtype, Callable[[], dict[str, Any]]]] = {
    "bf16": (torch.bfloat16, lambda: clips(16, 7, flip=True, colour=False, index_dtype=torch.int64)),
    "bf16, colour": (torch.bfloat16, lambda: clips(16, 6, flip=False, colour=True, index_dtype=torch.int32)),
    "fp32, colour": (torch.float32, lambda: clips(16, 5, flip=True, colour=True, index_dtype=torch.int64)),
    "fp32, 1 pixel": (torch.float32, lambda: clips(16, 1, flip=True, colour=False, index_dtype=torch.int32)),
    "bf16, 12 frames": (torch.bfloat16, lambda: clips(12, 7, flip=True, colour=False, index_dtype=torch.int64)),
    "fp32, 5 frames": (torch.float32, lambda: clips(5, 7, flip=True, colour=False, index_dtype=torch.int64)),
    "bf16, 1 frame": (torch.bfloat16, lambda: clips(1, 131, flip=True, colour=True, index_dtype=torch.int32)),
}


@needs_compiler
@pytest.mark.parametrize(("dtype", "case"), KINDS.values(), ids=KINDS)
def test_on_the_host_equals_the_reference(
    dtype: torch.dtype, case: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    assert_equals_the_reference(squeeze_on_host(tmp_path, case(), dtype), case())


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for _, case in KINDS.values()], ids=KINDS)
def test_on_a_gpu_equals_the_reference(dtype: torch.dtype, case: Callable[[], dict[str, Any]]) -> None:
    pytest.importorskip("cupy", reason="no cupy: pip install 'sqt-fast[gpu]'")
    on_gpu: dict[str, Any] = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in case().items()}
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = squeeze_cuda(**on_gpu, dtype=dtype)
    stream.synchronize()
    assert_equals_the_reference(found.cpu(), case())


@needs_nvrtc
@needs_cuobjdump
@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_machine_code_is_as_meant(architecture: int, dtype: torch.dtype, colour: bool, tmp_path: Path) -> None:
    """Nothing spilled, 16 bytes a load and a store, and room for 1152 threads a multiprocessor at least."""
    text = source(MOST_FRAMES, dtype, colour=colour, long_index=True)
    code = inspect(compile_cuda(text, (*OPTIONS, *AS_CUPY_DOES), architecture), tmp_path)
    assert (code.stack_bytes, code.local_bytes) == (0, 0)
    assert not [name for name in code.instructions if name.startswith(("STL", "LDL"))]
    assert {name for name in code.instructions if name.startswith("STG")} == {"STG.E.128"}
    assert code.instructions["LDG.E.128.CONSTANT"] == -(-MOST_FRAMES // (THREADS // 32))
    assert code.registers <= 48


@needs_nvrtc
@pytest.mark.parametrize("num_frames", range(1, MOST_FRAMES + 1))
def test_compiles_for_any_number_of_frames(num_frames: int) -> None:
    assert compile_cuda(source(num_frames, torch.float16, colour=False, long_index=False), OPTIONS, 90)


@needs_nvrtc
def test_an_error_of_the_compiler_is_shown() -> None:
    with pytest.raises(ValueError, match='identifier "nonsense" is undefined'):
        compile_cuda("__global__ void f() { nonsense; }", (), 90)


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=re.escape("pip install 'sqt-fast[gpu]'")):
        squeeze_cuda(**clips(2, 3, flip=False, colour=False, index_dtype=torch.int64), dtype=torch.float32)


def test_on_the_cpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(ValueError, match="frames on cpu: move all tensors to a CUDA device"):
        squeeze_cuda(**clips(2, 3, flip=False, colour=False, index_dtype=torch.int64), dtype=torch.float32)
