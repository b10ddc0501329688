"""Whether kernels that this machine compiled give what PyTorch gives: asked before they are trusted with labels.

What compiles and runs may still be wrong on a GPU, or with a version of the compiler, that nobody has tried. Asked once
for a GPU, its versions and a shape of the network; what agrees is kept in the user's cache.
"""

import logging
import platform

import torch

from sqt_fast.files import keep_finding, read_findings
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.parity import Limits, Parity, compare, drawn_clips, normalised, own_logits, true_logits
from sqt_fast.versions import commit, cpu_name, driver_version, installed

log = logging.getLogger(__name__)

FINDINGS = "agreement.json"
CHECKED_WITH = ("sqt-fast", "torch", "triton")
CLIPS = 2
# Tests hold kernels to 2 on many clips; a wrong kernel is wrong by far more, even on two.
LIMITS = Limits(max_ratio=4.0)


def why_wrong(
    backend: InferenceModel, model: SqueezeTime, *, name: str, precision: str, batch_size: int, size: int
) -> str | None:
    """Return in what ``backend``, which runs ``model``, differs from PyTorch by more than rounding, None if in nothing.

    It is given two drawn clips of size x size pixels, in a batch of batch_size as labelling gives them, and its logits
    are held against float64's beside PyTorch's own in this precision and on its device (see ``parity``).
    """
    key = _key(backend, model, f"{name} {precision} {batch_size}x{size}")
    if key in read_findings(FINDINGS):
        return None
    found = _held(backend, model, batch_size, size)
    log.debug("%s: %s", name, found)
    if not found.holds:
        return f"its logits are not PyTorch's on this machine: {found}"
    keep_finding(FINDINGS, key, found.as_dict())
    return None


def _held(backend: InferenceModel, model: SqueezeTime, batch_size: int, size: int) -> Parity:
    shown = drawn_clips(min(CLIPS, batch_size), size)
    batch = torch.zeros((batch_size, *shown.shape[1:]), dtype=backend.dtype)
    batch[: len(shown)] = normalised(shown)
    logits, _ = backend.run(batch)
    own = own_logits(model, shown, backend.dtype, backend.device)
    return compare(logits[: len(shown)], own, true_logits(model, shown), backend.dtype, LIMITS)


def _key(backend: InferenceModel, model: SqueezeTime, how: str) -> str:
    is_gpu = backend.device.startswith("cuda")
    device = torch.cuda.get_device_name(backend.device) if is_gpu else f"{platform.machine()} {cpu_name()}"
    versions = " ".join(f"{package} {version}" for package, version in installed(CHECKED_WITH).items())
    config = model.config
    shape = f"depth {config.depth} width {config.width} classes {config.num_classes}"
    return f"{device} | {driver_version()} | {versions} {commit()} | {shape} | {how}"
