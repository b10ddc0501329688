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
from sqt_fast.network import backends as backends_module
from sqt_fast.network.agreement import CLIPS, FINDINGS, why_wrong
from sqt_fast.network.backends import InferenceModel, load_backend
from sqt_fast.network.choose import Choice, open_backend
from sqt_fast.network.model import SqueezeTime
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


def ask(backend: InferenceModel, model: SqueezeTime, precision: str = "fp32", batch_size: int = BATCH) -> str | None:
    return why_wrong(backend, model, name="triton", precision=precision, batch_size=batch_size, size=SIZE)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_what_agrees_is_asked_once(tiny_model: SqueezeTime, precision: str, batch_size: int) -> None:
    backend = backend_of(tiny_model, precision)
    for _ in range(2):
        assert ask(backend, tiny_model, precision, batch_size) is None
    assert backend.runs == 1
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
        reason = ask(backend, tiny_model)
        assert reason is not None
        assert reason.startswith("its logits are not PyTorch's on this machine: ")
        assert backend.runs == runs
    assert not (cache_folder() / FINDINGS).exists()


def test_another_shape_is_asked_again(tiny_model: SqueezeTime) -> None:
    backend = backend_of(tiny_model)
    for batch_size in (BATCH, BATCH, 2):
        assert ask(backend, tiny_model, batch_size=batch_size) is None
    assert backend.runs == 2


@pytest.fixture
def wrong_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend triton that runs on CPUs and is wrong."""
    record = replace(BACKENDS["eager"], needs_start=("cpu",), must_agree=True)
    monkeypatch.setitem(BACKENDS, "triton", record)
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
        load_backend("triton", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)


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
