"""A GPU against the CPU in float64. Needs torch and pytest alone: ``make gpu-check`` runs it from a bare checkout."""

import pytest
import torch

from sqt_fast.clips.batches import CpuBatches
from sqt_fast.clips.device_batches import DeviceBatches
from sqt_fast.clips.gather import Clip
from sqt_fast.config import FAST, OFFICIAL, ClipProtocol
from sqt_fast.kernels.squeeze_host import squeeze_reference
from sqt_fast.network.backends import load_backend
from sqt_fast.network.graphed import graphed_network
from sqt_fast.network.model import ModelConfig, SqueezeTime

pytestmark = pytest.mark.needs_cuda


@pytest.fixture(scope="module")
def model() -> SqueezeTime:
    """A whole network of depth 50, narrow enough for float64 on a CPU."""
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(width=0.25)).eval()


@pytest.mark.parametrize("backend", ["eager", "compile", "triton"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 5e-2), ("fp16", 1e-2)])
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


def test_graphs_are_one_a_shape_and_results_are_the_callers(model: SqueezeTime) -> None:
    network = graphed_network(model, device="cuda", dtype=torch.bfloat16)
    clips = torch.randn((5, 48, 64, 64), device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    first = network(clips)
    kept = [tensor.clone() for tensor in first]
    for size in (1, 2, 3, 4, 5):  # more than are kept
        logits, embeddings = network(clips[:size])
        # Not to the bit: PyTorch's mean and cuBLAS may sum in another order for another size.
        torch.testing.assert_close(embeddings, kept[1][:size], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, kept[0][:size], rtol=1e-2, atol=1e-2)
    network(torch.zeros_like(clips))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(first, kept, strict=True))


def test_a_batch_is_squeezed_where_a_graph_reads_it(model: SqueezeTime) -> None:
    runner = load_backend("triton", model, device="cuda", precision="bf16", batch_size=4, size=224)
    device = DeviceBatches(FAST, torch.bfloat16, "cuda", runner.input)
    copied = DeviceBatches(FAST, torch.bfloat16, "cuda")
    results, wanted = [], []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        images = [torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8, generator=generator) for _ in range(16)]
        views = list(device.views(Clip(0, images, 0)))
        memory = runner.input((4, 48, 224, 224))
        batch = device.batch(views, 4)
        assert memory is not None
        assert batch.is_set_to(memory)
        results.append(runner(batch))  # the next is squeezed before this one is waited for
        wanted.append(runner(copied.batch(views, 4)))
    for ours, others in zip(results, wanted, strict=True):
        assert all(torch.equal(*each) for each in zip(ours, others, strict=True))


def test_a_captured_batch_never_waits_for_the_gpu(model: SqueezeTime) -> None:
    network = graphed_network(model, device="cuda", dtype=torch.bfloat16)
    clips = torch.randn((2, 48, 64, 64), device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    network(clips)
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(clips)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_that_overlap_give_what_they_give_alone(model: SqueezeTime) -> None:
    """Bytes of the next are sent while one computes, into memory that was used before, and results are fetched late."""
    runner = load_backend("triton", model, device="cuda", precision="bf16", batch_size=8, size=224)
    batches = DeviceBatches(FAST, torch.bfloat16, "cuda", runner.input)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8, generator=generator) for _ in range(40)]
    views = [[*batches.views(Clip(0, images[first : first + 16], 0))] * 8 for first in range(20)]
    alone = []
    for each in views:
        alone.append(runner.run(batches.batch(each, 8)))
        torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # nothing waits for the GPU before results are asked for
    try:
        under_way = [runner.start(batches.batch(each, 8)) for each in views]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for started, wanted in zip(under_way, alone, strict=True):
        assert started.logits.is_pinned()
        assert all(torch.equal(*pair) for pair in zip(started.results(), wanted, strict=True))


@pytest.mark.parametrize("protocol", [FAST, OFFICIAL], ids=lambda protocol: protocol.name)
def test_batches_squeezed_there_are_the_hosts(protocol: ClipProtocol) -> None:
    images = [torch.randint(0, 256, (224, 224 if protocol is FAST else 300, 3), dtype=torch.uint8) for _ in range(16)]
    host, device = CpuBatches(protocol, torch.bfloat16), DeviceBatches(protocol, torch.bfloat16, "cuda")
    ours, theirs = ([*batches.views(Clip(0, images, 0))] for batches in (host, device))
    difference = device.batch(theirs, 4).cpu().float() - host.batch(ours, 4).float()
    assert difference.abs().max() <= 2**-6  # a unit in the last place of 2
