"""The compiled network: the eager one through torch.compile with frozen, pre-packed weights.

Compiling takes half a minute the first time; Inductor keeps the result in its cache.
"""

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from sqt_fast.network.eager import eager_network
from sqt_fast.network.model import SqueezeTime

CXX_COMPILERS = ("g++", "clang++", "c++")


def why_not(device: str, model: SqueezeTime) -> str | None:
    """Return why it cannot run here, None if nothing speaks against it."""
    del model
    if device == "cpu" and not any(shutil.which(name) for name in CXX_COMPILERS):
        return "torch.compile needs a C++ compiler on a CPU (g++ or clang++), and none is installed"
    return None


def compiled_network(
    model: SqueezeTime, *, device: str, dtype: torch.dtype
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the folded network, to be compiled when it first sees a shape of batch."""
    # freezing: weights become constants, convolutions are pre-packed and fused with what follows them (CPU).
    net = eager_network(model, device=device, dtype=dtype)
    return torch.compile(net, dynamic=False, options={"freezing": device == "cpu"})
