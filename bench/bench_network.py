"""The network alone: milliseconds a clip of every backend and precision, against the release's way of running it.

    python -m bench.bench_network [--device cuda] [--batch-size 8] [--repeats 10]

The baseline, ``official``, is the network as the release runs it. FLOPs are counted as 2 a multiply-add, 10.96 G a
clip of 224x224 (depth 50).
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.measure import environment, interleaved, print_table, spread, write
from sqt_fast.backends import BACKENDS, PRECISIONS, load_backend
from sqt_fast.errors import BackendError
from sqt_fast.model import SqueezeTime

GFLOP_A_CLIP = 10.96
SIZE = 224
HEADS: Sequence[str] = ("provider", "batch", "ms/clip", "p20", "p80", "clips/s", "TFLOP/s", "official/this", "start s")


class OfficialBackend:
    """The network as the release runs it: eager, fp32, contiguous, batch norm not folded."""

    dtype = torch.float32

    def __init__(self, model: SqueezeTime, device: str) -> None:
        self.model, self.device = copy.deepcopy(model).to(device), device

    @torch.inference_mode()
    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """See ``backends.Backend``."""
        embeddings = self.model.embed(clips.to(self.device).contiguous())
        return self.model.classify(embeddings).cpu(), embeddings.cpu()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    batch_sizes = args.batch_size or ([1, 8, 64, 256] if args.device.startswith("cuda") else [1, 8, 16])
    torch.manual_seed(0)
    model = SqueezeTime().eval()
    records: list[dict[str, Any]] = []
    rows: list[Sequence[str]] = [HEADS]
    for batch_size in batch_sizes:
        torch.compiler.reset()  # or the shapes before count towards torch.compile's limit of recompilations
        calls, starts = _calls(model, args.device, batch_size)
        seconds = interleaved(calls, repeats=args.repeats, warmup=2)
        baseline = spread(seconds["official"])["median"]
        for name, times in seconds.items():
            ms = spread(times, 1000 / batch_size)
            rate = 1000 / ms["median"]
            ratio = baseline / spread(times)["median"]
            record = {
                "op": "network",
                "provider": name,
                "shape": [batch_size, 48, SIZE, SIZE],
                "ms_a_clip": ms,
                "clips_per_s": round(rate, 1),
                "tflop_per_s": round(rate * GFLOP_A_CLIP / 1000, 3),
                "official_over_this": round(ratio, 3),
                "start_s": round(starts[name], 2),
            }
            records.append({**record, **environment(args.device)})
            cells = (ms["median"], ms["p20"], ms["p80"], rate, rate * GFLOP_A_CLIP / 1000, ratio, starts[name])
            rows.append((name, str(batch_size), *(f"{value:.2f}" for value in cells)))
    print_table(rows)
    kind = "cuda" if args.device.startswith("cuda") else "cpu"
    print(write(records, args.results, f"network_{kind}"))


def _calls(
    model: SqueezeTime, device: str, batch_size: int
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Return a call for each provider, and the seconds each took to get ready."""
    clips = torch.randn(batch_size, 48, SIZE, SIZE)
    official = OfficialBackend(model, device)
    calls: dict[str, Callable[[], object]] = {"official": lambda: official.run(clips)}
    starts = {"official": 0.0}
    for name in BACKENDS:
        for precision in PRECISIONS:
            started = time.perf_counter()
            try:
                backend = load_backend(
                    name, model, device=device, precision=precision, batch_size=batch_size, size=SIZE
                )
            except BackendError as error:
                print(f"{name} {precision}: skipped, {error}")
                continue
            x = clips.to(device, backend.dtype, memory_format=torch.channels_last)
            calls[f"{name} {precision}"] = lambda backend=backend, x=x: backend.run(x)  # type: ignore[misc]
            starts[f"{name} {precision}"] = time.perf_counter() - started
    return calls, starts


if __name__ == "__main__":
    main()
