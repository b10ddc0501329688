"""Who carries out a kernel's problem in bench_kernels: ours, and everybody else who can.

A provider takes a problem and how many copies of its inputs to work on in turn, and returns a call for each copy: an
empty list where it has no answer to such a problem. What it lacks comes out as an exception. A call returns what the
operation returns, or a tuple that begins with it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sqt_fast.kernels.launch import Launch, Problem, best_config
from sqt_fast.kernels.squeeze_host import MEAN, STD

Calls = list[Callable[[], Any]]


def triton(problem: Problem, copies: int) -> Calls:
    """Our kernel with the tiles that it would use. It writes to memory of its own: its output is another's input."""
    launch = problem.launch(best_config(problem))
    own = ["out", "sums"] if launch.args.get("SUMS") else ["out"]

    def call(i: int) -> Callable[[], Any]:
        args = copied(dict(launch.args), i)
        return partial(_launched, replace(launch, args=args | {name: torch.empty_like(args[name]) for name in own}))

    return [call(i) for i in range(copies)]


def eager(problem: Problem, copies: int) -> Calls:
    """The kernel's reference as PyTorch runs it; where the kernel gives sums too, with a sum behind it."""
    return _references(problem, copies, _whole(problem))


def compiled(problem: Problem, copies: int, *, mode: str | None = None) -> Calls:
    """The same through torch.compile."""
    if problem.op == "squeeze":
        return []  # a loop over clips: hundreds of copies of its body to compile
    torch.compiler.reset()  # or the shapes before count towards its limit of recompilations
    return _references(problem, copies, torch.compile(_whole(problem), dynamic=False, mode=mode))


def cudnn(problem: Problem, copies: int) -> Calls:
    """A convolution with bias and ReLU as cuDNN fuses them."""
    given = problem.reference
    assert given is not None
    if problem.op != "conv" or any(given.keywords.get(name) is not None for name in ("importance", "position")):
        return []
    x, weight, bias = given.args
    stride, padding = given.keywords["stride"], given.keywords["padding"]
    pad = weight.shape[0] // 2 if padding is None else padding
    kernel = weight.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    bias = bias.to(x.dtype)

    def call(x: Tensor) -> Tensor:
        out = torch.cudnn_convolution_relu(x.permute(0, 3, 1, 2), kernel, bias, [stride] * 2, [pad] * 2, [1, 1], 1)
        return out.permute(0, 2, 3, 1)

    return [partial(call, copied(x, i)) for i in range(copies)]


def cupy(problem: Problem, copies: int) -> Calls:
    """Our kernel in CUDA C++."""
    if problem.op != "squeeze":
        return []
    from sqt_fast.kernels.squeeze_cuda import squeeze_cuda

    return _references(problem, copies, squeeze_cuda)


def dali(problem: Problem, copies: int) -> Calls:
    """DALI's crop_mirror_normalize on frames that are gathered already: channels first, fp16 in bf16's place."""
    if problem.op != "squeeze":
        return []
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    given = problem.reference
    assert given is not None
    frames, index = given.args
    size, dtype = given.keywords["size"], given.keywords["dtype"]
    top, left = given.keywords["corners"][0].tolist()
    on_gpu = frames.is_cuda

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=len(index), num_threads=4, device_id=0 if on_gpu else None, prefetch_queue_depth=1
    )
    def graph() -> Any:
        clips = fn.external_source(
            name="clips", device="gpu" if on_gpu else "cpu", layout="FHWC", batch=True, no_copy=True
        )
        return fn.crop_mirror_normalize(
            clips,
            dtype=types.FLOAT if dtype == torch.float32 else types.FLOAT16,
            output_layout="CFHW",
            crop=(size, size),
            crop_pos_x=left / max(1, frames.shape[2] - size),
            crop_pos_y=top / max(1, frames.shape[1] - size),
            mean=list(MEAN),
            std=list(STD),
        )

    pipeline = graph()
    pipeline.build()
    clips = frames[index.long()] if on_gpu else frames[index.long()].numpy()

    def call() -> Tensor:
        stream = [torch.cuda.current_stream()] if on_gpu else []
        (out,) = pipeline.run(*stream, clips=clips)
        result: Tensor = from_dlpack(out.as_tensor())
        return result.flatten(1, 2)

    return [call] * copies


# Name to provider, in the order of the table. OURS must be right.
PROVIDERS: dict[str, Callable[[Problem, int], Calls]] = {
    "triton": triton,
    "cupy": cupy,
    "eager": eager,
    "compile": compiled,
    "cudnn": cudnn,
    "dali": dali,
}
OURS = ("triton", "cupy")
# What waits for the GPU, or for Python, cannot be captured as a CUDA graph.
UNCAPTURED = (("squeeze", "eager"), ("squeeze", "dali"))


def copied(value: Any, number: int = 1) -> Any:
    """Return ``value`` with every tensor in it, however deep in tuples and dicts, copied; number 0 is the original."""
    if number == 0:
        return value
    if isinstance(value, Tensor):
        return value.clone()
    return mapped(value, copied)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return ``value`` with ``function`` of each of its parts, if it is a tuple or a dict; else as it is."""
    if isinstance(value, dict):
        return {name: function(part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [function(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def compiled_kernel(problem: Problem) -> dict[str, Any]:
    """Return the tiles of our kernel, and what the compiler made of it: registers a thread, spilled ones, bytes."""
    config = best_config(problem)
    made = problem.launch(config).compiled()
    shared = getattr(getattr(made, "metadata", None), "shared", None)
    registers, spills = (getattr(made, name, None) for name in ("n_regs", "n_spills"))
    return {"tiles": list(config), "registers": registers, "spills": spills, "shared_bytes": shared}


def _launched(launch: Launch) -> tuple[Tensor, ...]:
    launch()
    return (launch.args["out"], launch.args["sums"]) if launch.args.get("SUMS") else (launch.args["out"],)


def _references(problem: Problem, copies: int, function: Callable[..., Any]) -> Calls:
    given = problem.reference
    assert given is not None
    return [partial(function, *copied(given.args, i), **copied(given.keywords, i)) for i in range(copies)]


def _whole(problem: Problem) -> Callable[..., Any]:
    """Return the reference; with what it lacks of our kernel's results."""
    assert problem.reference is not None
    reference = problem.reference.func
    if not problem.launch(best_config(problem)).args.get("SUMS"):
        return reference

    def with_sums(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        out = reference(*args, **kwargs)
        return out, out.sum(1, dtype=torch.float32)

    return with_sums
