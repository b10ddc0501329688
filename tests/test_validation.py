"""The gate: engines that are right pass, those that are slightly wrong do not, and slow ones are told of."""

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork
from sqt_fast.network.parity import compare, drawn_clips
from sqt_fast.tensorrt import validation as module
from sqt_fast.tensorrt.engine_config import Batches
from sqt_fast.tensorrt.validation import Validation, gpu_clock, odd_sizes, validate

SIZE = 40
BATCHES = Batches(1, 2, 4)


@pytest.fixture(autouse=True)
def _eager_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no other backend: kernels are interpreted here."""
    monkeypatch.setattr(module, "RIVALS", ("eager",))


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return drawn_clips(3, SIZE)


def clock(call: Callable[[], object]) -> float:
    call()
    return 0.5


def tried(
    model: SqueezeTime, clips: Tensor, change: Callable[[Tensor], Tensor], *, precision: str = "fp32", **values: Any
) -> Validation:
    """Validate an engine that is the exported network, but for what is done to its logits."""
    network = ExportedNetwork(model, ExportConfig(SIZE, precision, values.pop("input", "normalised"))).eval()

    def run(given: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = network(given)
        return change(logits), embeddings

    return validate(run, model, network.config, clips, BATCHES, "cpu", **{"clock": clock, **values})


def as_it_is(logits: Tensor) -> Tensor:
    return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_right_passes_at_every_size(tiny_model: SqueezeTime, clips: Tensor, precision: str) -> None:
    found = tried(tiny_model, clips, as_it_is, precision=precision)
    assert found.holds
    assert found.faults == ""
    assert list(found.parities) == [1, 2, 3, 4]
    assert [parity.clips for parity in found.parities.values()] == [1, 2, 3, 4]
    assert found.speeds == {"engine": 4.0, "eager": 4.0}
    plain = found.as_dict()
    assert (plain["holds"], plain["same_again"], list(plain["parities"])) == (True, True, ["1", "2", "3", "4"])


def test_bytes_are_given_as_bytes(tiny_model: SqueezeTime, clips: Tensor) -> None:
    found = tried(tiny_model, clips, as_it_is, input="uint8")
    assert found.holds
    assert list(found.speeds) == ["engine"]  # the others take clips that are normalised


@pytest.mark.parametrize("factor", [1.001, 1.1, -1.0])
def test_scaled_logits_do_not_pass(tiny_model: SqueezeTime, clips: Tensor, factor: float) -> None:
    found = tried(tiny_model, clips, lambda logits: logits * factor)
    assert not found.holds
    assert found.faults.startswith("batch 1: error ")
    assert found.faults.count("; batch ") == 3
    assert "\n" not in found.faults


def test_clips_that_get_their_neighbours_logits_do_not_pass(tiny_model: SqueezeTime, clips: Tensor) -> None:
    found = tried(tiny_model, clips, lambda logits: logits.roll(1, 0))
    assert not found.holds
    assert "batch 1" not in found.faults
    assert "batch 2: error" in found.faults


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_does_not_pass(tiny_model: SqueezeTime, clips: Tensor, value: float) -> None:
    found = tried(tiny_model, clips, lambda logits: logits.index_fill(1, torch.tensor([2]), value))
    assert not found.holds
    assert found.faults == "; ".join(f"batch {n}: NaN or infinity among the logits" for n in (1, 2, 3, 4))


def test_what_is_not_the_same_again_does_not_pass(tiny_model: SqueezeTime, clips: Tensor) -> None:
    calls = iter(range(1000))
    found = tried(tiny_model, clips, lambda logits: logits + 1e-9 * (next(calls) % 2) * logits.abs().max() * 1e3)
    assert not found.holds
    assert found.faults == "two runs of the same clips differ"
    assert all(parity.holds for parity in found.parities.values())


def test_clips_are_left_as_they_were(tiny_model: SqueezeTime, clips: Tensor) -> None:
    before = clips.clone()
    tried(tiny_model, clips, as_it_is)
    assert torch.equal(clips, before)


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [
        ((1, 64, 64), [1, 33, 64]),
        ((1, 2, 4), [1, 2, 3, 4]),
        ((1, 1, 1), [1]),
        ((8, 8, 8), [8]),
        ((1, 1, 2), [1, 2]),
        ((2, 3, 4), [2, 3, 4]),
        ((64, 64, 256), [64, 161, 256]),
    ],
    ids=str,
)
def test_an_odd_size_is_tried(batches: tuple[int, int, int], sizes: list[int]) -> None:
    assert odd_sizes(Batches(*batches)) == sizes


# -- speed ------------------------------------------------------------------------------------------------------------


def validation(speeds: Mapping[str, float]) -> Validation:
    truth = torch.eye(2, dtype=torch.float64)
    return Validation({1: compare(truth, truth, truth, torch.float32)}, same_again=True, speeds=speeds)


def test_slower_than_pytorch_is_said_last() -> None:
    slow = validation({"engine": 100.0, "triton": 90.0, "compile": 120.4})
    assert slow.holds
    assert slow.faster == "compile"
    assert slow.in_words == (
        "at most 0.00 times as wrong as PyTorch in batches of 1; engine 100 clips/s, triton 90 clips/s, compile 120 "
        "clips/s; slower than --backend compile"
    )
    fast = validation({"engine": 200.0, "triton": 90.0})
    assert fast.faster is None
    assert fast.in_words.endswith("; engine 200 clips/s, triton 90 clips/s")


def test_rivals_that_cannot_run_are_left_out(
    tiny_model: SqueezeTime, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RIVALS", ("triton", "compile", "eager"))
    real: Any = InferenceModel

    def make(model: SqueezeTime, name: str, **values: Any) -> Any:
        if name == "triton":
            raise BackendError("the kernels need a GPU")
        if name == "compile":
            raise torch.OutOfMemoryError
        return real(model, name, **values)

    monkeypatch.setattr(module, "InferenceModel", make)
    assert list(tried(tiny_model, clips, as_it_is).speeds) == ["engine", "eager"]


def test_seconds_are_the_median_of_tritons_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def do_bench(call: Callable[[], object], **values: Any) -> float:
        seen.update(values)
        return 12.0

    monkeypatch.setitem(sys.modules, "triton.testing", SimpleNamespace(do_bench=do_bench))
    assert gpu_clock(lambda: None) == 0.012
    assert seen["return_mode"] == "median"
