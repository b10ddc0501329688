"""The compile backend: the folded network through torch.compile with frozen, pre-packed weights.

Compiling takes half a minute the first time; Inductor keeps the result in its cache.
"""

import shutil

import torch

from sqt_fast.eager import EagerBackend
from sqt_fast.errors import BackendError
from sqt_fast.model import SqueezeTime

CXX_COMPILERS = ("g++", "clang++", "c++")


def why_not(device: str) -> str | None:
    """Return why this backend cannot run here, None if nothing speaks against it."""
    if device == "cpu" and not any(shutil.which(name) for name in CXX_COMPILERS):
        return "torch.compile needs a C++ compiler on a CPU (g++ or clang++), and none is installed"
    return None


class CompiledBackend(EagerBackend):
    """Needs a C++ compiler on a CPU. Compiles on construction, for one batch shape. See ``backends.Backend``."""

    def __init__(self, model: SqueezeTime, *, device: str, dtype: torch.dtype, batch_size: int, size: int) -> None:
        if reason := why_not(device):
            raise BackendError(f"backend compile: {reason}; install one or use --backend eager")
        super().__init__(model, device=device, dtype=dtype, batch_size=batch_size, size=size)
        # freezing: weights become constants, convolutions are pre-packed and fused with what follows them (CPU).
        self.net = torch.compile(self.net, dynamic=False, options={"freezing": device == "cpu"})
        clips = torch.zeros(batch_size, model.config.input_channels, size, size, dtype=dtype)
        try:
            self.run(clips.to(memory_format=torch.channels_last))
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise BackendError(f"backend compile: torch.compile failed ({first_line}); use --backend eager") from error
