"""What the network asks of kernels, and what each of its problems must at least take: bytes, FLOPs, seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import reason
from bench.measure import Ceilings, print_table
from sqt_fast.kernels.launch import Problem, best_config, executing, launch_best
from sqt_fast.kernels.squeeze import squeeze, squeeze_clips_reference
from sqt_fast.network.backends import DTYPES
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import ModelConfig, SqueezeTime

SIZE = 224
FRAMES = 16
FRAME = (256, 340)  # height and width of decoded frames, as of Kinetics' videos


@dataclass
class Case:
    """A problem, how often there is one like it, and why our kernel failed at it, if it did."""

    problem: Problem
    times: int = 0
    error: str = ""


def cases(dtype: str, batch_size: int, device: str, *, depth: int = 50) -> list[Case]:
    """Return every problem of making clips and of the network, with its inputs; on ``meta`` they have no memory."""
    found: dict[str, Case] = {}

    def take(problem: Problem) -> None:
        case = found.setdefault(f"{problem.name} {problem.rows}", Case(problem))
        case.times += 1
        if device != "meta":
            case.error = case.error or _carry_out(problem)

    torch.manual_seed(0)
    with torch.device(device):
        model = SqueezeTime(ModelConfig(depth=depth)).eval()
        frames = torch.empty((FRAMES * batch_size, *FRAME, 3), dtype=torch.uint8).random_()
        index = torch.arange(len(frames), dtype=torch.int32).view(batch_size, FRAMES)
        corners = torch.tensor([[(side - SIZE) // 2 for side in FRAME]], dtype=torch.int32).repeat(batch_size, 1)
        clips = torch.randn((batch_size, SIZE, SIZE, 3 * FRAMES), dtype=DTYPES[dtype]).permute(0, 3, 1, 2)
    given: dict[str, Any] = {"corners": corners, "size": SIZE, "dtype": DTYPES[dtype]}
    reference = partial(squeeze_clips_reference, frames, index, **given)
    with executing(lambda problem: take(replace(problem, reference=reference))):
        squeeze(frames, index, **given)
    with torch.no_grad(), executing(take):
        FusedNetwork(model, device=device, dtype=DTYPES[dtype])(clips)
    return list(found.values())


def _carry_out(problem: Problem) -> str:
    """Launch. Returns the error, if there is one; what comes after then works on the reference's result."""
    args = problem.launch(best_config(problem)).args
    try:
        launch_best(problem)
        if not args["out"].isfinite().all():
            return _give_up(problem, args, "leaves values that are not finite")
    except Exception as error:  # noqa: BLE001  every way to fail is a result
        return _give_up(problem, args, reason(error))
    return ""


def _give_up(problem: Problem, args: Mapping[str, Any], error: str) -> str:
    assert problem.reference is not None
    args["out"].copy_(problem.reference())
    if args.get("SUMS"):
        args["sums"].zero_()
    return error


def totals(found: Sequence[Case], ceilings: Ceilings, dtype: str) -> tuple[int, int, float]:
    """Return bytes, FLOPs and the sum of the floors (seconds) of all of them, as often as they occur."""
    moved = sum(case.times * case.problem.moved_bytes for case in found)
    flops = sum(case.times * case.problem.flops for case in found)
    return moved, flops, sum(case.times * floor_s(case.problem, ceilings, dtype) for case in found)


def floor_s(problem: Problem, ceilings: Ceilings, dtype: str) -> float:
    """Return the seconds that nobody can beat."""
    return ceilings.floor_s(problem.moved_bytes, problem.flops, dtype)


def limit(problem: Problem, ceilings: Ceilings, dtype: str) -> str:
    """Return which of the two the floor is."""
    return "bytes" if problem.moved_bytes / ceilings.copy > problem.flops / ceilings.matmul[dtype] else "FLOPs"


def print_floors(found: Sequence[Case], ceilings: Ceilings, dtype: str, batch_size: int) -> None:
    """Print what every problem must move and compute, and how long that takes at least."""
    rows: list[Sequence[str]] = [("kernel", "rows", "times", "MB", "GFLOP", "floor us", "limit")]
    for case in found:
        p, floor_us = case.problem, 1e6 * floor_s(case.problem, ceilings, dtype)
        numbers = (f"{p.moved_bytes / 1e6:.2f}", f"{p.flops / 1e9:.3f}", f"{floor_us:.2f}")
        rows.append((p.name, str(p.rows), str(case.times), *numbers, limit(p, ceilings, dtype)))
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
