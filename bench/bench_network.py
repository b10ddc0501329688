"""The network alone: milliseconds a clip of every backend and precision, against the release's way of running it.

    python -m bench.bench_network [--device cuda] [--batch-size 8] [--precision bf16] [--only triton eager]

The baseline, ``official``, is the network as the release runs it. FLOPs are counted as 2 a multiply-add, 10.96 G a
clip of 224x224 (depth 50).

On a CPU, clips and results are where a backend takes and leaves them. On a GPU, both stay there, and times are the
GPU's own, its L2 cache cold (``triton.testing.do_bench``, the clock of ``sqt-fast tune`` too). ``kernels alone`` is
triton without the copies in front of and behind its CUDA graph, ``from the host`` is triton with clips and results in
the host's memory. cuDNN may choose its fastest algorithms. The floor is the larger of two times: of 49 MB a clip in 16
bits, and the weights once, at the rate of a copy; of the FLOPs at that of a matrix product. Both rates are measured on
this GPU first.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import reason
from bench.measure import (
    Ceilings,
    captured,
    environment,
    gpu_seconds,
    gpu_slug,
    gpu_state,
    interleaved,
    measure_ceilings,
    peak_bytes,
    print_table,
    spread,
    write,
)
from sqt_fast.errors import BackendError
from sqt_fast.network.backends import DTYPES, InferenceModel, Started, load_backend, load_network
from sqt_fast.network.eager import eager_network
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS

GFLOP_A_CLIP = 10.96
MB_A_CLIP = 49  # in 16 bits: what a network fused as far as can be moves, without weights
SIZE = 224
HEADS = (
    "provider",
    "batch",
    "ms/clip",
    "p20",
    "p80",
    "clips/s",
    "TFLOP/s",
    "% floor",
    "official/this",
    "start s",
    "MB",
)
Call = Callable[[], object]


class OfficialBackend:
    """The network as the release runs it: eager, fp32, contiguous, batch norm not folded."""

    dtype = torch.float32

    def __init__(self, model: SqueezeTime, device: str) -> None:
        self.model, self.device = copy.deepcopy(model).to(device), device

    def net(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: (B, 48, S, S) on the device. Returns logits (B, K) and embeddings (B, C) there."""
        embeddings = self.model.embed(clips)
        return self.model.classify(embeddings), embeddings

    def release_memory(self) -> None:
        """It holds none."""

    @torch.inference_mode()
    def start(self, clips: Tensor) -> Started:
        """See ``backends.Backend``."""
        logits, embeddings = self.net(clips.to(self.device).contiguous())
        return Started(logits.cpu(), embeddings.cpu())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, keep. On a GPU, exits with 1 where our kernels fail."""
    args = _arguments(argv)
    args.failed = []
    torch.manual_seed(0)
    model = SqueezeTime().eval()
    circumstances = environment(args.device)
    ceilings = None
    if args.cuda:
        torch.backends.cudnn.benchmark = True
        ceilings = measure_ceilings()
        circumstances["ceilings"] = vars(ceilings)
        print(f"{circumstances['device']}: {ceilings}", flush=True)
    args.deadline = time.monotonic() + args.budget
    records: list[dict[str, Any]] = []
    for batch_size in args.batch_size:
        torch.compiler.reset()  # or the shapes before count towards torch.compile's limit of recompilations
        with torch.no_grad():
            calls, starts = _calls(model, args, batch_size)
            peaks = {name: peak_bytes(call) for name, call in calls.items()} if args.cuda else {}
            if args.cuda:
                seconds = gpu_seconds(calls, round_s=0.1)
            else:
                seconds = interleaved(calls, repeats=args.repeats, warmup=2)
        clocks = {"clocks": gpu_state()} if args.cuda else {}
        for record in _records(seconds, starts, batch_size, ceilings, sum(p.numel() for p in model.parameters())):
            peak = {"peak_bytes": peaks[record["provider"]]} if args.cuda else {}
            records.append({**record, **peak, **clocks, **circumstances})
        del calls
        path = write(records, args.results, f"network_{gpu_slug(circumstances['device']) if args.cuda else 'cpu'}")
    print_table([HEADS, *(_cells(record) for record in records)])
    print(path)
    if args.cuda and any(name.startswith("triton") for name in args.failed):
        raise SystemExit(1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.bench_network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, nargs="+", help="1 8 16; on a GPU 256 64 8 1")
    parser.add_argument("--repeats", type=int, default=10, help="on a CPU")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="fp32 bf16; on a GPU all")
    parser.add_argument("--only", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="and official")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile in this mode too; takes minutes")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; then torch.compile is left out")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(argv)
    args.cuda = args.device.startswith("cuda")
    if args.cuda and not torch.cuda.is_available():
        raise SystemExit(
            f"bench.bench_network --device {args.device}: torch sees no CUDA GPU; --device cpu works without"
        )
    args.batch_size = args.batch_size or ([256, 64, 8, 1] if args.cuda else [1, 8, 16])
    args.precision = args.precision or (list(PRECISIONS) if args.cuda else ["fp32", "bf16"])
    return args


def _calls(model: SqueezeTime, args: argparse.Namespace, batch_size: int) -> tuple[dict[str, Call], dict[str, float]]:
    """Return a call for each provider, and the seconds each took to get ready."""
    calls: dict[str, Call] = {}
    starts: dict[str, float] = {}
    for name, make in _providers(model, args, batch_size):
        if name.startswith("compile") and time.monotonic() > args.deadline:
            print(f"{name}, batch {batch_size}: left out, --budget is spent", flush=True)
            continue
        started = time.perf_counter()
        try:
            call = make()
            if args.cuda:
                call()  # captures, or compiles
        except BackendError as error:
            print(f"{name}: skipped, {error}", flush=True)
            args.failed.append(name)
            continue
        except Exception as error:  # on a GPU, that one cannot be had must not cost the others
            if not args.cuda:
                raise
            print(f"{name}, batch {batch_size}: failed, {reason(error)}", flush=True)
            args.failed.append(name)
            continue
        calls[name], starts[name] = call, time.perf_counter() - started
    return calls, starts


def _providers(
    model: SqueezeTime, args: argparse.Namespace, batch_size: int
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Yield names, and what makes their calls. What takes longest to get ready comes last."""
    yield "official", partial(_official, model, args, batch_size)
    for name in sorted(args.only, key=list(BACKENDS).index):
        for precision in args.precision:
            yield f"{name} {precision}", partial(_backend, model, args, batch_size, name, precision)
    if not args.cuda:
        return
    for precision in args.precision:
        if "triton" in args.only:
            yield f"triton {precision}, kernels alone", partial(_kernels_alone, model, args, batch_size, precision)
            yield f"triton {precision}, from the host", partial(_from_host, model, args, batch_size, precision)
        if args.max_autotune and "compile" in args.only:
            yield f"compile max-autotune {precision}", partial(_max_autotune, model, args, batch_size, precision)


def _clips(batch_size: int, device: str, dtype: torch.dtype) -> Tensor:
    """Return random clips, channels last."""
    return torch.randn((batch_size, SIZE, SIZE, 48), device=device, dtype=dtype).permute(0, 3, 1, 2)


def _official(model: SqueezeTime, args: argparse.Namespace, batch_size: int) -> Call:
    backend = OfficialBackend(model, args.device)
    clips = _clips(batch_size, args.device, torch.float32).contiguous()
    return partial(backend.net if args.cuda else backend.start, clips)


def _backend(model: SqueezeTime, args: argparse.Namespace, batch_size: int, name: str, precision: str) -> Call:
    clips = _clips(batch_size, args.device, DTYPES[precision])
    if not args.cuda:
        return partial(_load(model, args, batch_size, name, precision).run, clips)
    return partial(load_network(name, model, device=args.device, precision=precision), clips)


def _load(model: SqueezeTime, args: argparse.Namespace, batch_size: int, name: str, precision: str) -> InferenceModel:
    return load_backend(name, model, device=args.device, precision=precision, batch_size=batch_size, size=SIZE)


def _kernels_alone(model: SqueezeTime, args: argparse.Namespace, batch_size: int, precision: str) -> Call:
    net = FusedNetwork(model, device=args.device, dtype=DTYPES[precision])
    clips = _clips(batch_size, args.device, net.dtype)
    return captured([partial(net, clips)])


def _from_host(model: SqueezeTime, args: argparse.Namespace, batch_size: int, precision: str) -> Call:
    backend = _load(model, args, batch_size, "triton", precision)
    return partial(backend.run, _clips(batch_size, args.device, backend.dtype).cpu().pin_memory())


def _max_autotune(model: SqueezeTime, args: argparse.Namespace, batch_size: int, precision: str) -> Call:
    dtype = DTYPES[precision]
    net = torch.compile(eager_network(model, device=args.device, dtype=dtype), dynamic=False, mode="max-autotune")
    return partial(net, _clips(batch_size, args.device, dtype))


def _records(
    seconds: Mapping[str, Sequence[float]],
    starts: Mapping[str, float],
    batch_size: int,
    ceilings: Ceilings | None,
    num_weights: int,
) -> Iterator[dict[str, Any]]:
    baseline = spread(seconds["official"])["median"] if "official" in seconds else None
    for name, times in seconds.items():
        ms = spread(times, 1000 / batch_size)
        rate = 1000 / ms["median"]
        record: dict[str, Any] = {
            "op": "network",
            "provider": name,
            "shape": [batch_size, 48, SIZE, SIZE],
            "ms_a_clip": ms,
            "clips_per_s": round(rate, 1),
            "tflop_per_s": round(rate * GFLOP_A_CLIP / 1000, 3),
            "start_s": round(starts[name], 2),
        }
        if baseline is not None:
            record["official_over_this"] = round(baseline / spread(times)["median"], 3)
        if ceilings is not None:
            precision = next((precision for precision in PRECISIONS if precision in name), "fp32")
            floor_s = network_floor_s(ceilings, precision, batch_size, num_weights)
            record["percent_of_floor"] = round(100 * floor_s / spread(times)["median"], 2)
            record["floor_clips_per_s"] = round(batch_size / floor_s)
        yield record


def network_floor_s(ceilings: Ceilings, precision: str, batch_size: int, num_weights: int) -> float:
    """Return the seconds a batch must at least take."""
    itemsize = DTYPES[precision].itemsize
    moved_bytes = batch_size * MB_A_CLIP * 1e6 * itemsize / 2 + num_weights * itemsize
    return ceilings.floor_s(moved_bytes, batch_size * GFLOP_A_CLIP * 1e9, precision)


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    ms = [f"{record['ms_a_clip'][name]:.4f}" for name in ("median", "p20", "p80")]
    names = ("clips_per_s", "tflop_per_s", "percent_of_floor", "official_over_this", "start_s")
    rates = [f"{record[name]:.2f}" if name in record else "" for name in names]
    peak = f"{record['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in record else ""
    return (record["provider"], str(record["shape"][0]), *ms, *rates, peak)


if __name__ == "__main__":
    main()
