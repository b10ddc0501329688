"""The triton backend and models for inference: the network's own numbers, or one clear line that names what can run."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import triton
from torch import Tensor

from sqt_fast import load_model, triton_backend
from sqt_fast.backends import PRECISIONS, load_backend
from sqt_fast.eager import LogitsAndEmbeddings
from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.inference import NETWORKS, InferenceModel
from sqt_fast.model import ModelConfig, SqueezeTime
from sqt_fast.triton_backend import GraphedNetwork

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
    assert backend.dtype == PRECISIONS[precision]
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
    with pytest.raises(BackendError, match=r"backend triton: .* NVIDIA GPU .*; use --backend compile or eager"):
        load_backend("triton", network, device="cpu", precision="fp32", batch_size=1, size=SIZE)


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old One")
    assert triton_backend.why_not("cuda:0") == (
        "the kernels need compute capability 8.0 (Ampere) or newer, Old One has 7.5"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert triton_backend.why_not("cuda:0") is None


def test_a_network_too_narrow_is_refused(kernel_device: str) -> None:
    narrow = SqueezeTime(ModelConfig(depth=10, width=0.1, num_classes=7))
    with pytest.raises(BackendError, match="multiples of 16 channels, this network has 6; use --backend compile"):
        load_backend("triton", narrow, device=kernel_device, precision="fp32", batch_size=1, size=SIZE)


class FakeCuda:
    """Stands in for CUDA's streams and graphs: a graph replays by running the network again on its own memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: list[str] = []
        self.replays = 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        fakes = {
            "device": lambda device: nullcontext(),
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda stream: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def graph(self, graph: object, capture_error_mode: str) -> AbstractContextManager[None]:
        self.modes.append(capture_error_mode)
        return nullcontext()

    def replay(self) -> None:
        self.replays += 1


class Elsewhere(Tensor):
    """A tensor that says it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def doubled(clips: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * clips.float().sum((1, 2, 3)), clips.float().mean((2, 3))


def on_a_gpu(batch: int) -> Tensor:
    return torch.ones(batch, 48, 4, 4).as_subclass(Elsewhere)


def test_graphs_are_captured_once_a_shape_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(doubled, "dtype", torch.float32, raising=False)
    network = GraphedNetwork(doubled)  # type: ignore[arg-type]
    for batch in (1, 2, 1, 3, 4, 1):
        network(on_a_gpu(batch))
    assert cuda.modes == ["thread_local"] * 4
    assert cuda.replays == 6
    network(on_a_gpu(5))  # instead of 2, the longest unused
    network(on_a_gpu(1))
    assert len(cuda.modes) == 5
    network(on_a_gpu(2))
    assert len(cuda.modes) == 6


def test_a_captured_batch_is_copied_in_and_results_are_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    monkeypatch.setattr(doubled, "dtype", torch.float32, raising=False)
    captured = triton_backend._Captured(doubled, on_a_gpu(2))  # type: ignore[arg-type]
    assert captured.clips.is_contiguous(memory_format=torch.channels_last)
    logits, _ = captured(3 * torch.ones(2, 48, 4, 4))
    assert torch.equal(captured.clips.as_subclass(Tensor), 3 * torch.ones(2, 48, 4, 4))
    captured.logits.fill_(7)
    assert not (logits == 7).any()


# -- models for inference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "triton"])
@torch.no_grad()
def test_load_model_with_a_backend(
    backend: str, tiny_weights: tuple[str, str], tiny_model: SqueezeTime, kernel_device: str
) -> None:
    model = load_model(tiny_weights[0], backend=backend, device=kernel_device)
    clips = torch.randn((1, 3, 16, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    logits, embeddings = model(clips)
    torch.testing.assert_close(logits.cpu(), tiny_model.logits(clips), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(embeddings.cpu(), tiny_model.embed(clips), rtol=1e-3, atol=1e-5)


def test_clips_may_be_squeezed_already(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((2, 3, 16, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.logits(clips.flatten(1, 2)), model.logits(clips))
    assert torch.equal(model.embed(clips), model(clips)[1])


def test_precision_is_the_models_inside_only(tiny_weights: tuple[str, str]) -> None:
    model = load_model(tiny_weights[0], backend="eager", precision="bf16")
    exact = load_model(tiny_weights[0], backend="eager")
    clips = torch.randn((1, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    assert model.logits(clips).dtype == torch.float32
    assert not torch.equal(model.logits(clips), exact.logits(clips))
    torch.testing.assert_close(model.logits(clips), exact.logits(clips), rtol=0.1, atol=0.05)


def test_what_there_is_not_is_named(tiny_model: SqueezeTime, tiny_weights: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="backend tensorflow: no such backend; choose one of eager, compile, triton"):
        load_model(tiny_weights[0], backend="tensorflow")
    with pytest.raises(ConfigError, match="precision fp8: no such precision; choose one of fp32, bf16, fp16"):
        load_model(tiny_weights[0], backend="eager", precision="fp8")
    backbone = SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        InferenceModel(backbone, "eager", device="cpu", precision="fp32")
    with pytest.raises(ValueError, match=r"clips of shape \(2, 3, 32, 32\): give \(B, 3, 16, H, W\)"):
        InferenceModel(tiny_model, "eager", device="cpu", precision="fp32").logits(torch.zeros(2, 3, 32, 32))


def test_every_backend_has_a_network() -> None:
    from sqt_fast.backends import BACKENDS

    assert NETWORKS.keys() == BACKENDS.keys()
