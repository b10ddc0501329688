"""The backends, a record each: a new one is one file and one line here. Nothing is imported before it is used."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Names of floating-point formats; torch calls them otherwise (``backends.DTYPES``).
PRECISIONS = ("fp32", "bf16", "fp16")
# Products of 8 bits with float16 between them: engines alone have them.
QUANTISED = ("int8", "fp8")


@dataclass(frozen=True)
class BackendRecord:
    """What there is to know of a backend without importing it.

    load: ``module:function`` of (model, device, dtype) that returns a ``backends.Network``. objection:
    ``module:function`` of (device, model) that returns why it cannot run there, None if it can. compile_s: about how
    long it compiles, to be weighed against what it gains. needs_start: on which kinds of device it has work to do on
    the first batch of a shape, which is better done, and better fails, before there is anything to label.
    must_agree: its arithmetic is ours, and held against PyTorch's before it is trusted (see ``agreement``). extra: what
    installs what it needs. by_request: it runs only where it is asked for, for something must be built for it first.
    precisions: those that it has.
    """

    load: str
    objection: str | None = None
    compile_s: float = 0.0
    needs_start: tuple[str, ...] = ()
    must_agree: bool = False
    extra: str = "gpu"
    by_request: bool = False
    precisions: tuple[str, ...] = PRECISIONS

    def why_not(self, device: str, model: Any) -> str | None:
        """Return why it cannot run this network on this device, None if nothing speaks against it."""
        if self.objection is None:
            return None
        try:
            reason: str | None = load_function(self.objection)(device, model)
        except ModuleNotFoundError as error:  # of an optional dependency
            return f"{error.name} is not installed (pip install 'sqt-fast[{self.extra}]')"
        return reason

    def make(self, model: Any, *, device: str, dtype: Any, **more: Any) -> Callable[..., Any]:
        """Make the network. more: what only this backend takes. Raises BackendError where it cannot run."""
        network: Callable[..., Any] = load_function(self.load)(model, device=device, dtype=dtype, **more)
        return network


# The first is the simplest, which runs everywhere and takes another's place; the later ones take longer to get ready.
BACKENDS = {
    "eager": BackendRecord("sqt_fast.network.eager:eager_network"),
    "triton": BackendRecord(
        "sqt_fast.network.graphed:graphed_network",
        "sqt_fast.network.graphed:why_not",
        compile_s=20.0,  # some 45 kernels, on all cores; less where they were compiled before
        needs_start=("cuda",),
        must_agree=True,
    ),
    "compile": BackendRecord(
        "sqt_fast.network.compiled:compiled_network",
        "sqt_fast.network.compiled:why_not",
        compile_s=60.0,  # seen on 2 cores: 14 to 45
        needs_start=("cpu", "cuda"),
    ),
    "tensorrt": BackendRecord(
        "sqt_fast.tensorrt.engine_runner:tensorrt_network",
        "sqt_fast.tensorrt.engine_runner:tensorrt_why_not",
        needs_start=("cuda",),
        extra="tensorrt",
        by_request=True,
        precisions=(*PRECISIONS, *QUANTISED),
    ),
    "tensorrt-rtx": BackendRecord(
        "sqt_fast.tensorrt.engine_runner:rtx_network",
        "sqt_fast.tensorrt.engine_runner:rtx_why_not",
        needs_start=("cuda",),
        extra="tensorrt-rtx",
        by_request=True,
        precisions=(*PRECISIONS, *QUANTISED),
    ),
}
SIMPLEST = next(iter(BACKENDS))


def load_function(path: str) -> Callable[..., Any]:
    """Import the function that ``path``, ``module:function``, names."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
