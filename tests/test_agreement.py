"""Kernels that this machine compiled are held against PyTorch before they are trusted."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.files import cache_folder
from sqt_fast.network import agreement
from sqt_fast.network import backends as backends_module
from sqt_fast.network.agreement import CLIPS, FINDINGS, Form, why_wrong
from sqt_fast.network.backends import InferenceModel, load_backend
from sqt_fast.network.choose import Choice, open_backend
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.parity import Parity
from sqt_fast.network.registry import BACKENDS

SIZE, BATCH = 64, 3

pytestmark = pytest.mark.usefixtures("empty_cache")


class Bent(InferenceModel):
    """A network whose logits ``bend`` changes; counts how often it runs."""

    bend: Callable[[Tensor], Tensor] = torch.clone
    runs = 0

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.runs += 1
        logits, embeddings = super().forward(clips)
        return self.bend(logits), embeddings


def backend_of(model: SqueezeTime, precision: str = "fp32", bend: Callable[[Tensor], Tensor] = torch.clone) -> Bent:
    backend = Bent(model, "eager", device="cpu", precision=precision)
    backend.bend = bend
    return backend


def form_of(precision: str = "fp32", batch_size: int = BATCH) -> Form:
    return Form("triton", "cpu", precision, batch_size, SIZE)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_what_agrees_is_trusted(tiny_model: SqueezeTime, precision: str, batch_size: int) -> None:
    form = form_of(precision, batch_size)
    assert not form.is_trusted(tiny_model)
    assert why_wrong(backend_of(tiny_model, precision), tiny_model, form) is None
    assert form.is_trusted(tiny_model)
    ((key, found),) = json.loads((cache_folder() / FINDINGS).read_text()).items()
    assert f"triton {precision} {batch_size}x{SIZE}" in key
    assert found["clips"] == min(CLIPS, batch_size)
    assert found["ratio"] <= 2


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "one class of one clip": lambda logits: logits.index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(9.0)),
    "the clips' order": lambda logits: logits.flip(0),
    "a part in a thousand": lambda logits: logits * 1.001,
    "not a number": lambda logits: logits * math.nan,
    "all zeros": torch.zeros_like,
}


@pytest.mark.parametrize("bend", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_and_not_kept(tiny_model: SqueezeTime, bend: Callable[[Tensor], Tensor]) -> None:
    backend = backend_of(tiny_model, bend=bend)
    for runs in (1, 2):
        reason = why_wrong(backend, tiny_model, form_of())
        assert reason is not None
        assert reason.startswith("its logits are not PyTorch's on this machine: ")
        assert backend.runs == runs
    assert not form_of().is_trusted(tiny_model)
    assert not (cache_folder() / FINDINGS).exists()


def test_another_form_or_network_is_not_trusted(tiny_model: SqueezeTime) -> None:
    form = form_of()
    assert why_wrong(backend_of(tiny_model), tiny_model, form) is None
    for change in ({"backend": "other"}, {"precision": "bf16"}, {"batch_size": 2}, {"size": 32}):
        assert not replace(form, **change).is_trusted(tiny_model)
    assert not form.is_trusted(SqueezeTime(ModelConfig(depth=18)))


@pytest.fixture
def right_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend triton that runs on CPUs."""
    record = replace(BACKENDS["eager"], needs_start=("cpu",), must_agree=True)
    monkeypatch.setitem(BACKENDS, "triton", record)


def load(model: SqueezeTime, batch_size: int = BATCH) -> InferenceModel:
    return load_backend("triton", model, device="cpu", precision="fp32", batch_size=batch_size, size=SIZE)


@pytest.mark.usefixtures("right_triton")
def test_it_is_asked_and_compiled_for_once(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, held = list[tuple[int, ...]](), list[Form]()
    monkeypatch.setattr(InferenceModel, "compile_ahead", lambda self, shape: compiled.append(shape))
    hold = agreement._held

    def listen(backend: InferenceModel, model: SqueezeTime, form: Form) -> Parity:
        held.append(form)
        return hold(backend, model, form)

    monkeypatch.setattr(agreement, "_held", listen)
    for batch_size in (BATCH, BATCH, 2):
        load(tiny_model, batch_size)
    assert compiled == [(BATCH, 48, SIZE, SIZE), (2, 48, SIZE, SIZE)]
    assert held == [form_of(), form_of(batch_size=2)]


@pytest.fixture
def wrong_triton(right_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is wrong."""
    load_network = backends_module.load_network

    def load(name: str, model: SqueezeTime, *, device: str, precision: str) -> backends_module.Network:
        network = load_network(name, model, device=device, precision=precision)
        return (lambda clips: (network(clips)[0] + 1, network(clips)[1])) if name == "triton" else network

    monkeypatch.setattr(backends_module, "load_network", load)


@pytest.mark.usefixtures("wrong_triton")
def test_who_asked_for_it_is_told(tiny_model: SqueezeTime) -> None:
    message = (
        r"^backend triton: its logits are not PyTorch's on this machine: error .*; use --backend eager or compile$"
    )
    with pytest.raises(BackendError, match=message):
        load(tiny_model)


@pytest.mark.usefixtures("wrong_triton")
def test_auto_takes_the_simplest_instead(tiny_model: SqueezeTime) -> None:
    wanted = Choice("triton", "fp32", "cpu", BATCH, "measured")
    choice, backend = open_backend(wanted, tiny_model, size=SIZE, may_fall_back=True)
    assert choice.backend == "eager"
    assert "its logits are not PyTorch's" in choice.reason
    assert choice.reason.endswith("; so eager")
    clips = torch.zeros(1, 48, SIZE, SIZE)
    assert torch.equal(backend.logits(clips), backend_of(tiny_model).logits(clips))


def test_only_our_own_arithmetic_must_agree() -> None:
    """Engines are held against PyTorch when they are built."""
    assert {name for name, record in BACKENDS.items() if record.must_agree} == {"triton"}
