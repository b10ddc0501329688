"""Whether another form of the network gives what the network gives: its error beside that of PyTorch's own arithmetic.

Random weights make networks that amplify every rounding, so differences alone say little. The measure is the error
against float64, as a multiple of the error that PyTorch makes in the same precision. A quantised network is wrong on
purpose, by far more: of it is asked how alike its logits are, and how often it names the same class.
"""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, first_line
from sqt_fast.kernels.squeeze_host import mean_and_std
from sqt_fast.network.eager import eager_network
from sqt_fast.network.fold import fold
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import INPUT_NAME, ExportConfig
from sqt_fast.samples.scenes import MOTIONS, draw, random_scene

# A form of the network may be so many times as wrong as PyTorch in the same precision: another order of sums is.
MAX_RATIO = 2.0
# Relative to the largest logit: where PyTorch happens to be nearly exact, another may still round.
FLOORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SECONDS = 2.5  # that a clip spans


@dataclass(frozen=True)
class Limits:
    """What is asked of a form of the network, see ``Parity``. max_ratio: None for a quantised one."""

    max_ratio: float | None = MAX_RATIO
    min_cosine: float = -1.0
    min_top1: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (("min-cosine", self.min_cosine, -1), ("min-top1", self.min_top1, 0)):
            if not least <= value <= 1:
                raise ConfigError(f"{name} {value:g}: expected {least} to 1")


ROUNDED = Limits()
# Of quantised networks, which no rounding excuses.
QUANTISED_LIMITS = Limits(max_ratio=None, min_cosine=0.98, min_top1=0.95)


@dataclass(frozen=True)
class Parity:
    """What came of a comparison, over all clips.

    error, own_error: mean absolute difference of logits from float64's, of the form and of PyTorch in that precision;
    ratio: the one as a multiple of the other. cosine: the lowest of a clip. top1: part of clips with the same best
    class. finite: no NaN or infinity came. limits: what was asked.
    """

    clips: int
    error: float
    own_error: float
    ratio: float
    cosine: float
    top1: float
    finite: bool
    limits: Limits = ROUNDED

    @property
    def holds(self) -> bool:
        """Whether the form may stand for the network."""
        asked = self.limits
        near = asked.max_ratio is None or self.ratio <= asked.max_ratio
        return self.finite and near and self.cosine >= asked.min_cosine and self.top1 >= asked.min_top1

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.finite:
            return "NaN or infinity among the logits"
        asked, same = self.limits, f"same best class in {self.top1:.0%} of {self.clips} clips"
        if asked.max_ratio is None:
            return (
                f"cosine {self.cosine:.4f} (at least {asked.min_cosine:g}), {same} (at least {asked.min_top1:.0%}); "
                f"error {self.error:.2e} against float64"
            )
        return (
            f"error {self.error:.2e} against float64, PyTorch's own {self.own_error:.2e} (ratio {self.ratio:.2f}, at "
            f"most {asked.max_ratio:g}); cosine {self.cosine:.6f}, {same}"
        )


def compare(logits: Tensor, own: Tensor, truth: Tensor, dtype: torch.dtype, limits: Limits = ROUNDED) -> Parity:
    """Hold logits (B, K) of some form against PyTorch's ``own`` of the same precision, and float64's ``truth``."""
    finite = bool(torch.isfinite(logits).all())
    double = logits.double().nan_to_num(0, 0, 0)
    error, own_error = ((each - truth).abs().mean().item() for each in (double, own.double()))
    allowed = max(own_error, FLOORS[dtype] * truth.abs().max().item(), torch.finfo(torch.float64).tiny)
    return Parity(
        clips=len(logits),
        error=error,
        own_error=own_error,
        ratio=error / allowed,
        cosine=torch.nn.functional.cosine_similarity(double, truth, dim=1).min().item(),
        top1=(double.argmax(1) == truth.argmax(1)).double().mean().item(),
        finite=finite,
        limits=limits,
    )


def drawn_clips(count: int, size: int) -> Tensor:
    """Return clips of drawn scenes as the network's channels have them, (count, 48, size, size) uint8."""
    clips = []
    for number in range(count):
        scene = random_scene(MOTIONS[number % len(MOTIONS)], [11, number], split="train", clean=False)
        frames = np.stack(list(draw(scene, np.linspace(0, SECONDS, 16, endpoint=False), (size, size))))
        clips.append(torch.from_numpy(frames).permute(3, 0, 1, 2).flatten(0, 1))
    return torch.stack(clips)


def normalised(clips: Tensor) -> Tensor:
    """Return clips (B, 3 * T, H, W) uint8 as the network takes them, float64."""
    mean, std = mean_and_std(clips.shape[1] // 3, dtype=torch.float64)
    return (clips.double() - mean[:, None, None]) / std[:, None, None]


def as_given(clips: Tensor, config: ExportConfig) -> Tensor:
    """Return clips (N, 48, S, S) uint8 as a network that was exported with ``config`` takes them."""
    return clips if config.input == "uint8" else normalised(clips).to(config.dtype)


@torch.no_grad()
def true_logits(model: SqueezeTime, clips: Tensor) -> Tensor:
    """Return what the network gives in float64 on the CPU, (B, K). clips: uint8."""
    return fold(model).double().logits(normalised(clips))


@torch.no_grad()
def own_logits(
    model: SqueezeTime, clips: Tensor, dtype: torch.dtype, device: str = "cpu", given: torch.dtype | None = None
) -> Tensor:
    """Return what PyTorch gives in ``dtype``, (B, K) float32 on the CPU: of the model, not of what was exported.

    given: the dtype that clips come in, ``dtype`` if None.
    """
    shown = normalised(clips).to(device, given or dtype).to(dtype)
    logits: Tensor = eager_network(model, device=device, dtype=dtype)(shown)[0]
    return logits.cpu()


@torch.no_grad()
def onnx_parity(
    model: SqueezeTime, config: ExportConfig, path: Path, clips: Tensor, limits: Limits = ROUNDED
) -> Parity | None:
    """Run the exported file with ONNX Runtime and hold it against PyTorch; None in bfloat16, which it cannot run.

    clips: (B, 48, S, S) uint8. A quantised file is run as it is written, for what ONNX Runtime would make of it for a
    CPU says nothing of an engine. Raises BackendError where ONNX Runtime is missing or fails.
    """
    if config.dtype == torch.bfloat16:
        return None
    if find_spec("onnxruntime") is None:
        raise BackendError("checking the exported network: onnxruntime is not installed (pip install 'sqt-fast[onnx]')")
    import onnxruntime

    given = as_given(clips, config)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if config.quantised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {INPUT_NAME: given.numpy()})[0]
    except Exception as error:  # its own, of many kinds
        raise BackendError(f"ONNX Runtime cannot run the exported network ({first_line(error)})") from error
    own = own_logits(model, clips, config.body_dtype, given=config.dtype)
    return compare(torch.from_numpy(logits), own, true_logits(model, clips), config.body_dtype, limits)
