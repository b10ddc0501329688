"""Batches squeezed on the device: bytes travel once, and a device without the kernel says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from sqt_fast.clips import device_batches as module
from sqt_fast.clips.device_batches import DeviceBatches
from sqt_fast.errors import BackendError
from sqt_fast.kernels.squeeze import squeeze
from tests.test_batches import CLIPS, ONE_CROP, THREE_CROPS, views_of


def test_crops_share_their_bytes(kernel_device: str) -> None:
    views = views_of(DeviceBatches(THREE_CROPS, torch.float32, kernel_device), [CLIPS[0]])
    assert len(views) == 3
    assert len({view.clip.data_ptr() for view in views}) == 1
    assert views[0].clip.dtype == torch.uint8
    assert [(view.top, view.left) for view in views] == [(0, 0), (0, 4), (0, 2)]


def test_a_kernel_that_does_not_run_is_known_at_once(monkeypatch: pytest.MonkeyPatch, kernel_device: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr("sqt_fast.clips.device_batches.squeeze", fail)
    with pytest.raises(BackendError, match=r"^no kernel image is available$"):
        DeviceBatches(ONE_CROP, torch.float32, kernel_device)


def test_the_fastest_kernel_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch, kernel_device: str) -> None:
    calls: list[int] = []

    def other(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return squeeze(*args, **options)

    def broken(*args: object, **options: object) -> None:
        raise TypeError("CompileException: no such header")

    for candidates, taken in (((broken, squeeze), squeeze), ((other, broken), other), ((broken, other), other)):
        monkeypatch.setattr(module, "squeezers", lambda device, candidates=candidates: candidates)
        batches = DeviceBatches(ONE_CROP, torch.float32, kernel_device)
        assert batches.squeeze is taken
        calls.clear()
        batches.batch(views_of(batches, [CLIPS[0]]), 1)
        assert len(calls) == (taken is other)


def test_a_batch_is_squeezed_where_the_network_reads_it(kernel_device: str) -> None:
    """What a batch before it has left there does not show: not in its clips, and not behind the last of them."""
    lent: list[tuple[int, ...]] = []
    memory = torch.full((3, 48, 16, 16), 7.0, device=kernel_device).contiguous(memory_format=torch.channels_last)

    def lend(shape: tuple[int, ...]) -> torch.Tensor | None:
        lent.append(shape)
        return memory if shape == memory.shape else None

    ours, usual = (
        DeviceBatches(ONE_CROP, torch.float32, kernel_device, lend),
        DeviceBatches(ONE_CROP, torch.float32, kernel_device),
    )
    lent.clear()
    for clips in ([CLIPS[3], CLIPS[3], CLIPS[3]], [CLIPS[3]], []):
        batch = ours.batch(views_of(ours, clips), 3)
        assert batch is memory
        assert torch.equal(batch, usual.batch(views_of(usual, clips), 3))
    assert ours.batch(views_of(ours, [CLIPS[3]]), 2).data_ptr() != memory.data_ptr()  # batches got smaller
    assert lent == [(3, 48, 16, 16)] * 3 + [(2, 48, 16, 16)]


class Stream:
    """Notes in ``said`` what is done on it, and for which other it waits."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def wait_stream(self, other: "Stream") -> None:
        self.said.append(f"{self.name} waits for {other.name}")


class OnAGpu(torch.Tensor):
    """A clip that says it lies on a GPU."""

    # Or what is done with it would be noted twice.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_bytes_are_sent_beside_the_network_and_squeezed_behind_it(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is taken, filled and handed over so that no stream touches what another still works with."""
    if kernel_device != "cpu":
        pytest.skip("streams are real there: test_cuda.py")
    batches = DeviceBatches(ONE_CROP, torch.float32, "cpu")
    host, decoded_there = views_of(batches, [CLIPS[3], CLIPS[3]])
    decoded_there = replace(decoded_there, clip=decoded_there.clip.as_subclass(OnAGpu))
    truth = batches.batch([host, host], 2)

    said: list[str] = []
    current = [Stream("network", said)]
    squeeze, copy = batches.squeeze, torch.Tensor.copy_

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def note(what: str, call: Any) -> Any:
        def noted(*args: Any, **options: Any) -> Any:
            said.append(f"{current[-1].name}: {what}")
            return call(*args, **options)

        return noted

    def taken(self: torch.Tensor, stream: Stream) -> None:
        said.append(f"{stream.name} keeps {self.dtype} {tuple(self.shape)}")

    batches.sending = cast(Any, Stream("sending", said))
    batches.squeeze = note("squeeze", squeeze)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", taken)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", note("copy", copy))
        batch = batches.batch([host, decoded_there], 2)
    assert torch.equal(batch, truth)
    assert said == [
        "sending: copy",  # the host's clip
        "network waits for sending",
        "network keeps torch.uint8 (2, 16, 16, 16, 3)",
        "network keeps torch.int32 (2, 16)",
        "network keeps torch.int32 (2, 2)",
        "network: copy",  # the clip that was decoded there
        "network: squeeze",
    ]


@pytest.mark.parametrize(
    ("device", "has_cupy", "names"),
    [
        ("cuda", True, ["squeeze_cuda", "squeeze"]),
        ("cuda:1", True, ["squeeze_cuda", "squeeze"]),
        ("cuda", False, ["squeeze"]),
        ("cpu", True, ["squeeze"]),
    ],
)
def test_cuda_goes_first_where_cupy_is(
    device: str, has_cupy: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object() if has_cupy else None)
    assert [kernel.__name__ for kernel in module.squeezers(device)] == names
