"""A GPU against the CPU in float64. Needs torch and pytest alone: ``make gpu-check`` runs it from a bare checkout."""

import pytest
import torch

from sqt_fast.backends import load_backend
from sqt_fast.kernels.squeeze import squeeze_reference
from sqt_fast.model import ModelConfig, SqueezeTime

pytestmark = pytest.mark.needs_cuda


@pytest.fixture(scope="module")
def model() -> SqueezeTime:
    """A whole network of depth 50, narrow enough for float64 on a CPU."""
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(width=0.25)).eval()


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 5e-2)])
def test_logits_equal_float64_on_the_cpu(model: SqueezeTime, backend: str, precision: str, tolerance: float) -> None:
    clips = torch.randn(4, 48, 224, 224)
    with torch.inference_mode():
        truth = model.double()(clips.double()).float()
    model.float()
    runner = load_backend(backend, model, device="cuda", precision=precision, batch_size=4, size=224)
    logits, embeddings = runner.run(clips.to(runner.dtype))
    assert logits.device.type == embeddings.device.type == "cpu"
    assert (logits - truth).abs().max() <= tolerance * truth.abs().max()  # fp32: TF32 convolutions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squeeze_equals_the_cpu(dtype: torch.dtype) -> None:
    frames = torch.randint(0, 256, (16, 30, 40, 3), dtype=torch.uint8)
    on_cpu = squeeze_reference(frames, dtype=dtype)
    on_gpu = squeeze_reference(frames.cuda(), dtype=dtype).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
