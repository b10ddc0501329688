"""The compile backend: the folded network through torch.compile with frozen, pre-packed weights.

Compiling takes half a minute the first time; Inductor keeps the result in its cache.
"""

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from sqt_fast.eager import LogitsAndEmbeddings
from sqt_fast.errors import BackendError
from sqt_fast.model import SqueezeTime

CXX_COMPILERS = ("g++", "clang++", "c++")


def why_not(device: str) -> str | None:
    """Return why this backend cannot run here, None if nothing speaks against it."""
    if device == "cpu" and not any(shutil.which(name) for name in CXX_COMPILERS):
        return "torch.compile needs a C++ compiler on a CPU (g++ or clang++), and none is installed"
    return None


class CompiledBackend:
    """Needs a C++ compiler on a CPU. Compiles on construction, for one batch shape. See ``backends.Backend``."""

    def __init__(self, model: SqueezeTime, *, device: str, dtype: torch.dtype, batch_size: int, size: int) -> None:
        if reason := why_not(device):
            raise BackendError(f"backend compile: {reason}; install one or use --backend eager")
        self.device, self.dtype = device, dtype
        net = LogitsAndEmbeddings(model).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # freezing: weights become constants, convolutions are pre-packed and fused with what follows them (CPU).
        self.net: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(
            net, dynamic=False, options={"freezing": device == "cpu"}
        )
        clips = torch.zeros(batch_size, model.config.input_channels, size, size, dtype=dtype)
        try:
            self.run(clips.to(memory_format=torch.channels_last))
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise BackendError(f"backend compile: torch.compile failed ({first_line}); use --backend eager") from error

    @torch.no_grad()  # not inference_mode: its tensors are of a kind of their own, for which all is compiled again
    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.net(clips.to(self.device, self.dtype, memory_format=torch.channels_last))
        return logits.cpu(), embeddings.cpu()
