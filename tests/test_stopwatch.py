"""The clock of kernels: what fails is left for its launch, and a GPU's times obey its memory."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sqt_fast.errors import BackendError
from sqt_fast.kernels.launch import Launch
from sqt_fast.tuning.stopwatch import CudaStopwatch, compile_ahead


class Kernel:
    """Remembers how it was compiled."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []

    def warmup(self, **options: Any) -> SimpleNamespace:
        self.compiled.append(options)
        return SimpleNamespace(n_spills=0)


def test_launches_are_compiled_ahead_and_not_run() -> None:
    kernel = Kernel()
    launches = [Launch(kernel, (3,), {"x": i}, num_warps=4, num_stages=2) for i in range(3)]
    with ThreadPoolExecutor(2) as threads:
        compile_ahead(launches, threads)
    assert [options["x"] for options in kernel.compiled] == [0, 1, 2]
    assert {(options["grid"], options["num_warps"], options["num_stages"]) for options in kernel.compiled} == {
        ((3,), 4, 2)
    }


def test_a_gpu_that_gave_up_is_told_from_a_launch_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = CudaStopwatch.__new__(CudaStopwatch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    watch.check_alive(RuntimeError("out of resources"))

    def dead() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    with pytest.raises(BackendError, match=r"^the GPU gave up \(x\); run .* --resume$"):
        watch.check_alive(RuntimeError("x"))


@pytest.mark.needs_cuda
def test_a_copy_takes_as_long_as_its_bytes_do() -> None:
    watch = CudaStopwatch()
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = watch.network_s(lambda: target.copy_(source))
    watch.close()
    assert 2 * source.numel() / seconds < 20e12  # bytes a second: no memory is faster
