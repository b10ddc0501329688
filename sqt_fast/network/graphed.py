"""The triton backend: the network on our own kernels, as CUDA graphs."""

import torch
import triton

from sqt_fast.network.fused import FusedNetwork, why_not_network
from sqt_fast.network.graph_runner import GraphRunner
from sqt_fast.network.model import SqueezeTime

OLDEST_CAPABILITY = (8, 0)


def why_not(device: str, model: SqueezeTime | None = None) -> str | None:
    """Return why the kernels cannot run on this device, or this network, None if nothing speaks against it."""
    if not device.startswith("cuda"):
        if not triton.knobs.runtime.interpret:
            return "the kernels need an NVIDIA GPU (--device cuda)"
        return None if model is None else why_not_network(model)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        name, have = torch.cuda.get_device_name(device), "{}.{}".format(*capability)
        return f"the kernels need compute capability 8.0 (Ampere) or newer, {name} has {have}"
    return None if model is None else why_not_network(model)


def graphed_network(model: SqueezeTime, *, device: str, dtype: torch.dtype) -> GraphRunner:
    """Return the folded network on the kernels."""
    return GraphRunner(FusedNetwork(model, device=device, dtype=dtype))
