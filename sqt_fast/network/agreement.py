"""Whether kernels that this machine compiled give what PyTorch gives: asked before they are trusted with labels.

What compiles and runs may still be wrong on a GPU, or with a version of the compiler, that nobody has tried. Asked once
for a GPU, its versions and a shape of the network; what agrees is kept in the user's cache. So what is kept also says
what was compiled here before.
"""

import logging
import platform
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Form:
    """How a network is run: the backend's name, the device, and clips (batch_size, 48, size, size) in a precision."""

    backend: str
    device: str
    precision: str
    batch_size: int
    size: int

    def is_trusted(self, model: SqueezeTime) -> bool:
        """Return whether a network of the shape of ``model`` was run so on this machine, and agreed."""
        return self.key(model) in read_findings(FINDINGS)

    def key(self, model: SqueezeTime) -> str:
        """Return under what this is kept: all that may change what is compiled, and how."""
        is_gpu = self.device.startswith("cuda")
        device = torch.cuda.get_device_name(self.device) if is_gpu else f"{platform.machine()} {cpu_name()}"
        versions = " ".join(f"{package} {version}" for package, version in installed(CHECKED_WITH).items())
        config = model.config
        shape = f"depth {config.depth} width {config.width} classes {config.num_classes}"
        how = f"{self.backend} {self.precision} {self.batch_size}x{self.size}"
        return f"{device} | {driver_version()} | {versions} {commit()} | {shape} | {how}"


def why_wrong(backend: InferenceModel, model: SqueezeTime, form: Form) -> str | None:
    """Return in what ``backend``, which runs ``model``, differs from PyTorch by more than rounding, None if in nothing.

    It is given two drawn clips, in a batch as labelling gives them, and its logits are held against float64's beside
    PyTorch's own in this precision and on this device (see ``parity``). What agrees is kept.
    """
    found = _held(backend, model, form)
    log.debug("%s: %s", form.backend, found)
    if not found.holds:
        return f"its logits are not PyTorch's on this machine: {found}"
    keep_finding(FINDINGS, form.key(model), found.as_dict())
    return None


def _held(backend: InferenceModel, model: SqueezeTime, form: Form) -> Parity:
    shown = drawn_clips(min(CLIPS, form.batch_size), form.size)
    batch = torch.zeros((form.batch_size, *shown.shape[1:]), dtype=backend.dtype)
    batch[: len(shown)] = normalised(shown)
    logits, _ = backend.run(batch)
    own = own_logits(model, shown, backend.dtype, form.device)
    return compare(logits[: len(shown)], own, true_logits(model, shown), backend.dtype, LIMITS)
