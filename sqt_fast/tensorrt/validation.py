"""The gate: an engine is run beside PyTorch, on its GPU, before it may be used, and timed beside the other backends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.network.parity import ROUNDED, Limits, Parity, as_given, compare, own_logits, true_logits
from sqt_fast.tensorrt.engine_config import Batches

# Another form of the network: clips (B, 48, S, S) on its device -> logits (B, K) and embeddings there.
Run = Callable[[Tensor], tuple[Tensor, Tensor]]
# Median seconds of a call on the GPU.
Clock = Callable[[Callable[[], object]], float]
RIVALS = ("triton", "compile", "eager")


@dataclass(frozen=True)
class Validation:
    """What came of it. parities: by batch size; same_again: two runs gave the same; speeds: clips/s by backend."""

    parities: Mapping[int, Parity]
    same_again: bool
    speeds: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether the engine may be used."""
        return self.same_again and all(parity.holds for parity in self.parities.values())

    @property
    def faults(self) -> str:
        """What is wrong with it, on one line."""
        wrong = [f"batch {batch}: {parity}" for batch, parity in self.parities.items() if not parity.holds]
        return "; ".join([*wrong, *([] if self.same_again else ["two runs of the same clips differ"])])

    @property
    def in_words(self) -> str:
        """What came of it, on one line; slower than PyTorch is said in the end."""
        found, batches = self.parities.values(), ", ".join(map(str, self.parities))
        words = [f"at most {max(each.ratio for each in found):.2f} times as wrong as PyTorch in batches of {batches}"]
        if any(each.limits.max_ratio is None for each in found):
            cosine, top1 = min(each.cosine for each in found), min(each.top1 for each in found)
            words = [f"cosine {cosine:.4f} or more, same best class in {top1:.0%} or more, in batches of {batches}"]
        words += [", ".join(f"{name} {speed:.0f} clips/s" for name, speed in self.speeds.items())]
        if self.faster is not None:
            words.append(f"slower than --backend {self.faster}")
        return "; ".join(words)

    @property
    def faster(self) -> str | None:
        """The fastest other backend if it is faster than the engine."""
        best = max(self.speeds, key=self.speeds.__getitem__, default="engine")
        return None if best == "engine" else best

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {
            "holds": self.holds,
            "parities": {str(batch): parity.as_dict() for batch, parity in self.parities.items()},
            "same_again": self.same_again,
            "clips_per_s": {name: round(speed, 1) for name, speed in self.speeds.items()},
        }


def odd_sizes(batches: Batches) -> list[int]:
    """Return the sizes of batch to try: the fewest, the best, the most, and an odd one between."""
    between = (batches.least + batches.most) // 2 | 1
    return sorted({*batches, between if batches.least <= between <= batches.most else batches.most})


@torch.no_grad()
def validate(
    run: Run,
    model: SqueezeTime,
    config: ExportConfig,
    clips: Tensor,
    batches: Batches,
    device: str,
    clock: Clock,
    limits: Limits = ROUNDED,
) -> Validation:
    """Hold an engine's ``run`` against PyTorch at several sizes of batch, and time both.

    config: how the network was exported. clips: (N, 48, S, S) uint8 on the CPU; batches repeat them. clock: see
    ``Clock``.
    """
    given = as_given(clips, config).to(device)
    truth, own = true_logits(model, clips), own_logits(model, clips, config.dtype, device)
    parities, same_again = {}, True
    for batch in odd_sizes(batches):
        places = torch.arange(batch) % len(clips)
        some = given[places.to(device)].contiguous()
        logits, again = (run(some)[0].float().cpu() for _ in range(2))
        same_again &= torch.equal(logits, again) or not torch.isfinite(logits).all()
        parities[batch] = compare(logits, own[places], truth[places], config.body_dtype, limits)
    best = given[(torch.arange(batches.best) % len(clips)).to(device)].contiguous()
    speeds = {"engine": len(best) / clock(lambda: run(best))}
    if config.input == "normalised":
        speeds |= _rivals(model, best, config.float_precision, device, clock)
    return Validation(parities, same_again, speeds)


def _rivals(model: SqueezeTime, clips: Tensor, precision: str, device: str, clock: Clock) -> dict[str, float]:
    """Return the clips/s of the other backends, of those that run here."""
    speeds = {}
    for name in RIVALS:
        try:
            rival = InferenceModel(model, name, device=device, precision=precision)
            batch = clips.contiguous(memory_format=torch.channels_last)
            speeds[name] = len(clips) / clock(lambda rival=rival, batch=batch: rival(batch))  # type: ignore[misc]
        except (BackendError, torch.OutOfMemoryError):
            continue
    return speeds


def gpu_clock(call: Callable[[], object]) -> float:
    """Return the median seconds of a call on the GPU, after a warm-up."""
    from triton.testing import do_bench

    milliseconds: float = do_bench(call, warmup=100, rep=500, return_mode="median")
    return milliseconds / 1000
