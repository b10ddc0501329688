"""What the network asks of kernels, and what each of its problems must at least take: bytes, FLOPs, seconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import reason
from bench.kernel_providers import mapped
from bench.measure import Ceilings, print_table
from sqt_fast.kernels.launch import Launch, Problem, best_config, executing
from sqt_fast.kernels.squeeze import squeeze, squeeze_clips_reference
from sqt_fast.network.backends import DTYPES
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import ModelConfig, SqueezeTime

SIZE = 224
FRAMES = 16
FRAME = (256, 340)  # height and width of decoded frames, as of Kinetics' videos


@dataclass
class Case:
    """A problem and what any implementation must at least move and compute of it, a multiply-add being two FLOPs.

    times: how often there is one like it. error: why our kernel failed at it, if it did.
    """

    problem: Problem
    moved_bytes: int
    flops: int
    times: int = 0
    error: str = ""

    @classmethod
    def of(cls, problem: Problem) -> "Case":
        """Return the case of a problem of the network: every tensor moves once, products are those of its reference."""
        assert problem.reference is not None
        given, args = problem.reference, problem.launch(problem.heuristic).args
        tensors = {id(value): value for value in args.values() if isinstance(value, Tensor)}
        with FlopCounterMode(display=False) as counter:
            given.func(*_without_memory(given.args), **_without_memory(given.keywords))
        return cls(problem, sum(t.numel() * t.element_size() for t in tensors.values()), counter.get_total_flops())

    def floor_s(self, ceilings: Ceilings, dtype: str) -> float:
        """Return the seconds that nobody can beat."""
        return ceilings.floor_s(self.moved_bytes, self.flops, dtype)

    def limit(self, ceilings: Ceilings, dtype: str) -> str:
        """Return which of the two the floor is."""
        return "bytes" if self.moved_bytes / ceilings.copy > self.flops / ceilings.matmul[dtype] else "FLOPs"


def _without_memory(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else mapped(value, _without_memory)


def cases(dtype: str, batch_size: int, device: str, *, depth: int = 50) -> list[Case]:
    """Return every problem of making clips and of the network, with its inputs; on ``meta`` they have no memory."""
    found: dict[str, Case] = {}

    def take(problem: Problem, make: Callable[[Problem], Case] = Case.of) -> Launch | None:
        name = f"{problem.name} {problem.rows}"
        case = found[name] = found.get(name) or make(problem)
        case.times += 1
        if device == "meta":
            return None
        launch, error = _carry_out(problem)
        case.error = case.error or error
        return launch

    torch.manual_seed(0)
    with torch.device(device):
        model = SqueezeTime(ModelConfig(depth=depth)).eval()
        frames = torch.empty((FRAMES * batch_size, *FRAME, 3), dtype=torch.uint8).random_()
        index = torch.arange(len(frames), dtype=torch.int32).view(batch_size, FRAMES)
        corners = torch.tensor([[(side - SIZE) // 2 for side in FRAME]], dtype=torch.int32).repeat(batch_size, 1)
        clips = torch.randn((batch_size, SIZE, SIZE, 3 * FRAMES), dtype=DTYPES[dtype]).permute(0, 3, 1, 2)
    given: dict[str, Any] = {"corners": corners, "size": SIZE, "dtype": DTYPES[dtype]}
    reference = partial(squeeze_clips_reference, frames, index, **given)

    def squeezing(problem: Problem) -> Case:
        """Of the frames, only what is cropped is read."""
        values = problem.out.numel()
        return Case(replace(problem, reference=reference), values * (1 + problem.out.element_size()), 2 * values)

    with executing(partial(take, make=squeezing)):
        squeeze(frames, index, **given)
    with torch.no_grad(), executing(take):
        FusedNetwork(model, device=device, dtype=DTYPES[dtype])(clips)
    return list(found.values())


def _carry_out(problem: Problem) -> tuple[Launch, str]:
    """Launch. Returns the error, if there is one; what comes after then works on the reference's result."""
    launch = problem.launch(best_config(problem))
    try:
        launch()
        if problem.out.isfinite().all():
            return launch, ""
        error = "leaves values that are not finite"
    except Exception as failure:  # noqa: BLE001  every way to fail is a result
        error = reason(failure)
    assert problem.reference is not None
    problem.out.copy_(problem.reference())
    if launch.args.get("SUMS"):
        launch.args["sums"].zero_()
    return launch, error


def totals(found: Sequence[Case], ceilings: Ceilings, dtype: str) -> tuple[int, int, float]:
    """Return bytes, FLOPs and the sum of the floors (seconds) of all of them, as often as they occur."""
    moved = sum(case.times * case.moved_bytes for case in found)
    flops = sum(case.times * case.flops for case in found)
    return moved, flops, sum(case.times * case.floor_s(ceilings, dtype) for case in found)


def print_floors(found: Sequence[Case], ceilings: Ceilings, dtype: str, batch_size: int) -> None:
    """Print what every problem must move and compute, and how long that takes at least."""
    rows: list[Sequence[str]] = [("kernel", "rows", "times", "MB", "GFLOP", "floor us", "limit")]
    for case in found:
        p, floor_us = case.problem, 1e6 * case.floor_s(ceilings, dtype)
        numbers = (f"{case.moved_bytes / 1e6:.2f}", f"{case.flops / 1e9:.3f}", f"{floor_us:.2f}")
        rows.append((p.name, str(p.rows), str(case.times), *numbers, case.limit(ceilings, dtype)))
    print_table(rows)
    network = [case for case in found if case.problem.op != "squeeze"]
    if not network:
        return
    moved, flops, one_by_one_s = totals(network, ceilings, dtype)
    whole_s = ceilings.floor_s(moved, flops, dtype)
    print(
        f"network kernels above, {dtype}, batch {batch_size}: {moved / batch_size / 1e6:.1f} MB and "
        f"{flops / batch_size / 1e9:.2f} GFLOP a clip; floor {1e6 * whole_s:.0f} us, {batch_size / whole_s:.0f} clips/s"
        f"; one kernel after the other {1e6 * one_by_one_s:.0f} us, {batch_size / one_by_one_s:.0f} clips/s",
        flush=True,
    )
