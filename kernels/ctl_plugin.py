"""The end of a CTL as a kernel that TensorRT can call: a plugin whose compiled code goes into the engine.

``out = temporal + spatial * sigmoid(gate)``, and a ReLU behind it where ``relu``; all (N,) elements of one float dtype,
whatever their layout, as long as it is one for all; float32 inside. Reads three tensors and writes one.

Off unless it is asked for: TensorRT fuses these steps into the convolutions before them, which a plugin prevents
(docs/tensorrt.md). It is called through quick-deployable plugins, ahead of time (TensorRT 10.9 and newer): the
kernel's PTX is compiled here, for the GPU that the engine is for, and no Python is needed when the engine runs.

Source: the spatial branch of the release's CTL, batch norm folded.
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sqt_fast.errors import BackendError

NAMESPACE, NAME, VERSION = "sqt_fast", "ctl_end", "1"
PLUGIN = f"{NAMESPACE}::{NAME}"
INPUTS = 3
# Elements a program and its warps; TensorRT times each as a tactic, numbered from 1.
TACTICS = ((512, 4), (1024, 4), (2048, 8))
DTYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
# Layouts: channels apart, and 8 channels of a pixel together, which convolutions on tensor cores prefer.
LAYOUTS = ("LINEAR", "HWC8")


@triton.jit
def _ctl_end_kernel(
    temporal,  # (N,)
    spatial,  # (N,)
    gate,  # (N,)
    N,
    out,  # (N,); behind the sizes, for so TensorRT passes them
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_temporal = tl.load(temporal + o_n, mask=m_n).to(tl.float32)
    b_spatial = tl.load(spatial + o_n, mask=m_n).to(tl.float32)
    b_gate = tl.load(gate + o_n, mask=m_n).to(tl.float32)
    b_out = b_temporal + b_spatial * tl.sigmoid(b_gate)
    if RELU:
        b_out = tl.maximum(b_out, 0.0)
    tl.store(out + o_n, b_out.to(out.dtype.element_ty), mask=m_n)


def ctl_end(temporal: Tensor, spatial: Tensor, gate: Tensor, *, relu: bool, tactic: int = 1) -> Tensor:
    """Run the kernel on tensors of one shape, dtype and layout, as TensorRT would. Returns a new one."""
    block, num_warps = TACTICS[tactic - 1]
    out = torch.empty_like(temporal)
    grid = (triton.cdiv(out.numel(), block),)
    _ctl_end_kernel[grid](temporal, spatial, gate, out.numel(), out, RELU=relu, BLOCK=block, num_warps=num_warps)
    return out


def ctl_end_reference(temporal: Tensor, spatial: Tensor, gate: Tensor, *, relu: bool) -> Tensor:
    """Return ``temporal + spatial * sigmoid(gate)``, with a ReLU where asked for, of the same shape and dtype."""
    merged = temporal + spatial * torch.sigmoid(gate)
    return torch.relu(merged) if relu else merged


@dataclass(frozen=True)
class Compiled:
    """The kernel for one GPU family: PTX with the parameters that TensorRT passes, and how it is launched."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int


@functools.cache
def compiled(dtype: str, *, relu: bool, tactic: int, capability: int) -> Compiled:
    """Compile the kernel for a compute capability, as 90, and a dtype, as ``bf16``; no GPU is needed.

    Raises BackendError where it cannot be called as TensorRT does.
    """
    block, num_warps = TACTICS[tactic - 1]
    pointers = dict.fromkeys(("temporal", "spatial", "gate", "out"), f"*{dtype}")
    signature = pointers | {"N": "i32", "RELU": "constexpr", "BLOCK": "constexpr"}
    ordered = {name: signature[name] for name in _ctl_end_kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(ordered.values()) if kind[0] == "*"}
    source = ASTSource(_ctl_end_kernel, ordered, {"RELU": relu, "BLOCK": block}, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    metadata = kernel.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise BackendError(
            "plugin ctl: this version of Triton wants memory of its own, which TensorRT does not give it"
        )
    ptx = without_scratch(kernel.asm["ptx"], metadata.name, keep=len(pointers) + 1)
    return Compiled(metadata.name, ptx, 32 * metadata.num_warps, metadata.shared)


def without_scratch(ptx: str, name: str, *, keep: int) -> str:
    """Return PTX whose kernel ``name`` takes its first ``keep`` parameters only.

    Triton adds two pointers to memory that it uses for debugging; TensorRT passes what the plugin declares and no more.
    Raises BackendError if one that is dropped is used.
    """
    head, entry, rest = ptx.partition(f".entry {name}(")
    listed, _, body = rest.partition(")")
    parameters = [line.strip().rstrip(",") for line in listed.strip().splitlines()]
    if not entry or len(parameters) < keep:
        raise BackendError(f"plugin ctl: the compiled kernel has {len(parameters)} parameters, {keep} are wanted")
    for parameter in parameters[keep:]:
        if re.search(rf"\b{re.escape(parameter.split()[-1])}\b", body):
            raise BackendError(f"plugin ctl: the kernel uses {parameter.split()[-1]}, which TensorRT does not pass")
    kept = ",\n\t".join(parameters[:keep])
    return f"{head}{entry}\n\t{kept}\n){body}"


def digest(capability: int) -> str:
    """Return what tells the plugin's code from another version's: part of what tells engines apart."""
    texts = [
        compiled(dtype, relu=relu, tactic=tactic + 1, capability=capability).ptx
        for dtype in DTYPES.values()
        for relu in (False, True)
        for tactic in range(len(TACTICS))
    ]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def register(plugin: Any, *, capability: int) -> None:
    """Make the plugin known to TensorRT. plugin: its module ``tensorrt.plugin``; capability: of the GPU, as 90.

    TensorRT reads the annotations and counts the parameters of these functions.
    """

    @plugin.register(PLUGIN)
    def describe(
        temporal: plugin.TensorDesc, spatial: plugin.TensorDesc, gate: plugin.TensorDesc, relu: int
    ) -> plugin.TensorDesc:
        del spatial, gate, relu
        return temporal.like()

    @plugin.autotune(PLUGIN)
    def combinations(
        temporal: plugin.TensorDesc,
        spatial: plugin.TensorDesc,
        gate: plugin.TensorDesc,
        relu: int,
        outputs: tuple[plugin.TensorDesc],
    ) -> list[plugin.AutoTuneCombination]:
        del temporal, spatial, gate, relu, outputs
        tactics = list(range(1, len(TACTICS) + 1))
        names = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}
        return [
            plugin.AutoTuneCombination(
                ", ".join([names[dtype]] * (INPUTS + 1)), ", ".join([layout] * (INPUTS + 1)), tactics
            )
            for dtype in DTYPES.values()
            for layout in LAYOUTS
            if not (dtype == "fp32" and layout != "LINEAR")
        ]

    @plugin.aot_impl(PLUGIN)
    def launch(
        temporal: plugin.TensorDesc,
        spatial: plugin.TensorDesc,
        gate: plugin.TensorDesc,
        relu: int,
        outputs: tuple[plugin.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymExprs]:
        del spatial, gate, outputs
        tactic = tactic if 1 <= tactic <= len(TACTICS) else 1  # 0 where TensorRT times none
        kernel = compiled(DTYPES[temporal.dtype.name], relu=bool(relu), tactic=tactic, capability=capability)
        count = temporal.shape_expr.numel()
        how = plugin.KernelLaunchParams()
        how.grid_x = plugin.cdiv(count, TACTICS[tactic - 1][0])
        how.block_x, how.shared_mem = kernel.threads, kernel.shared_bytes
        sizes = plugin.SymIntExprs(1)
        sizes[0] = plugin.SymInt32(count)
        return kernel.name, kernel.ptx.encode(), how, sizes
