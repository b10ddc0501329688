"""The compile backend: the folded network through torch.compile with frozen, pre-packed weights.

Compiling takes half a minute the first time; Inductor keeps the result in its cache.
"""

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from sqt_fast.eager import EagerBackend, eager_network
from sqt_fast.errors import BackendError, first_line
from sqt_fast.model import SqueezeTime

CXX_COMPILERS = ("g++", "clang++", "c++")


def why_not(device: str) -> str | None:
    """Return why this backend cannot run here, None if nothing speaks against it."""
    if device == "cpu" and not any(shutil.which(name) for name in CXX_COMPILERS):
        return "torch.compile needs a C++ compiler on a CPU (g++ or clang++), and none is installed"
    return None


def compiled_network(
    model: SqueezeTime, *, device: str, dtype: torch.dtype
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the folded network, to be compiled when it first sees a shape of batch.

    Raises BackendError where it cannot be.
    """
    if reason := why_not(device):
        raise BackendError(f"backend compile: {reason}; install one or use --backend eager")
    # freezing: weights become constants, convolutions are pre-packed and fused with what follows them (CPU).
    net = eager_network(model, device=device, dtype=dtype)
    return torch.compile(net, dynamic=False, options={"freezing": device == "cpu"})


class CompiledBackend(EagerBackend):
    """Needs a C++ compiler on a CPU. Compiles on construction, for one batch shape. See ``backends.Backend``."""

    def __init__(self, model: SqueezeTime, *, device: str, dtype: torch.dtype, batch_size: int, size: int) -> None:
        self.device, self.dtype = device, dtype
        self.net = compiled_network(model, device=device, dtype=dtype)
        clips = torch.zeros(batch_size, model.config.input_channels, size, size, dtype=dtype)
        try:
            self.run(clips.to(memory_format=torch.channels_last))
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            reason = f"torch.compile failed ({first_line(error)})"
            raise BackendError(f"backend compile: {reason}; use --backend eager") from error
