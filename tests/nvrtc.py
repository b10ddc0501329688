"""Compile CUDA C++ without a GPU and look at the machine code: NVRTC through ctypes, Triton's cuobjdump."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MachineCode:
    """What a kernel became. instructions: how often each is in it, with its modifiers ("STG.E.128")."""

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    instructions: Counter[str]


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """Return NVRTC as the wheel nvidia-cuda-nvrtc brings it (PyTorch for CUDA needs it too), None without it."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvrtc") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((ctypes.CDLL(str(file.locate())) for file in files if file.name.startswith("libnvrtc.so")), None)


@functools.cache
def cuobjdump() -> Path | None:
    """Return the disassembler in Triton's wheel, None without it."""
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (tool := Path(folder, "backends", "nvidia", "bin", "cuobjdump")).exists():
            return tool
    return None


def compile_cuda(source: str, options: tuple[str, ...], architecture: int) -> bytes:
    """Return the machine code (cubin) for one architecture (80, 90, ...). Raises ValueError with NVRTC's own words."""
    library = nvrtc()
    assert library is not None
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    arguments = [o.encode() for o in (*options, f"--gpu-architecture=sm_{architecture}")]
    failed = library.nvrtcCompileProgram(program, len(arguments), (ctypes.c_char_p * len(arguments))(*arguments))
    if failed:
        raise ValueError(_text(library, program, "ProgramLog").decode())
    cubin = _text(library, program, "CUBIN")
    _check(library, library.nvrtcDestroyProgram(ctypes.byref(program)))
    return cubin


def usage(cubin: bytes, folder: Path) -> dict[str, int]:
    """Return what a cubin of one kernel takes: REG, STACK, SHARED, LOCAL. ``folder``: where it may write."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", _run("--dump-resource-usage", path)))
    return {name: int(value) for name, value in found.items()}


def inspect(cubin: bytes, folder: Path) -> MachineCode:
    """Disassemble a cubin of one kernel."""
    used = usage(cubin, folder)
    listing = _run("-sass", folder / "kernel.cubin")
    code = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", listing, re.MULTILINE)
    return MachineCode(used["REG"], used["STACK"], used["LOCAL"], used["SHARED"], Counter(code))


def _run(option: str, path: Path) -> str:
    return subprocess.run([str(cuobjdump()), option, str(path)], check=True, capture_output=True, text=True).stdout


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(library: ctypes.CDLL, result: int) -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(library.nvrtcGetErrorString(result).decode())
