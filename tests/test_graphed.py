"""The triton backend: the network's own numbers, or one clear line that names what can run."""

import pytest
import torch
import triton
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network import graphed
from sqt_fast.network.backends import DTYPES, load_backend
from sqt_fast.network.eager import LogitsAndEmbeddings
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.registry import PRECISIONS

SIZE = 32


@pytest.fixture(scope="module")
def network() -> SqueezeTime:
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=7)).eval()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn((3, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.cpu().double() - truth).abs().max() / truth.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_gives_the_networks_numbers(network: SqueezeTime, clips: Tensor, precision: str, kernel_device: str) -> None:
    backend = load_backend("triton", network, device=kernel_device, precision=precision, batch_size=3, size=SIZE)
    assert backend.dtype == DTYPES[precision]
    results = backend.run(clips.to(backend.dtype))
    truth = LogitsAndEmbeddings(network).double().net
    embeddings = truth.embed(clips.double())
    own = LogitsAndEmbeddings(network).to(backend.dtype)(clips.to(backend.dtype))
    for result, eager, exact in zip(results, own, (truth.classify(embeddings), embeddings), strict=True):
        assert result.dtype == torch.float32
        assert result.device.type == "cpu"
        assert error(result, exact) <= 2 * error(eager, exact) + 1e-6


def test_without_a_gpu_it_says_what_can_run(network: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(BackendError, match=r"backend triton: .* NVIDIA GPU .*; use --backend eager or compile"):
        load_backend("triton", network, device="cpu", precision="fp32", batch_size=1, size=SIZE)


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old One")
    assert graphed.why_not("cuda:0") == ("the kernels need compute capability 8.0 (Ampere) or newer, Old One has 7.5")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert graphed.why_not("cuda:0") is None


def test_a_network_too_narrow_is_refused(kernel_device: str) -> None:
    narrow = SqueezeTime(ModelConfig(depth=10, width=0.1, num_classes=7))
    with pytest.raises(BackendError, match="of 16 channels, this network has 6; use --backend eager or compile"):
        load_backend("triton", narrow, device=kernel_device, precision="fp32", batch_size=1, size=SIZE)
