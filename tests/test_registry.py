"""Backends as records: what is missing is named, and a new one is a line."""

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network.backends import load_backend
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.registry import BACKENDS, SIMPLEST, BackendRecord
from tests.test_backends import BATCH, SIZE, eager


def test_a_backend_whose_library_is_missing_says_what_to_install(tiny_model: SqueezeTime) -> None:
    record = BackendRecord("nowhere:load", "a_library_that_is_not_there:why_not")
    reason = "a_library_that_is_not_there is not installed (pip install 'sqt-fast[gpu]')"
    assert record.why_not("cpu", tiny_model) == reason


def test_a_new_backend_is_a_line(
    tiny_model: SqueezeTime, network_clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its record knows its name."""
    monkeypatch.setitem(BACKENDS, "mine", BackendRecord("sqt_fast.network.eager:eager_network"))
    mine = load_backend("mine", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
    assert torch.equal(mine.run(network_clips)[0], eager(tiny_model).run(network_clips)[0])
    assert SIMPLEST == "eager"


def test_what_must_be_built_first_runs_by_request_alone(
    tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither chosen nor recommended, though it could run."""
    assert [name for name, record in BACKENDS.items() if record.by_request] == ["tensorrt", "tensorrt-rtx"]
    monkeypatch.setitem(BACKENDS, "mine", BackendRecord("sqt_fast.network.eager:eager_network", by_request=True))
    with pytest.raises(BackendError) as caught:
        load_backend("tensorrt", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
    assert "; use --backend eager" in str(caught.value)
    assert "mine" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BackendError("no engine was built; build one"), "^no engine was built; build one$"),
        (RuntimeError("broken\nmore"), r"^backend mine: compiling failed \(broken\); use --backend eager"),
    ],
    ids=["which it foresaw", "which nobody foresaw"],
)
def test_what_a_first_batch_fails_with(
    tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def network(model: SqueezeTime, **options: object) -> object:
        def run(clips: Tensor) -> None:
            raise error

        return run

    monkeypatch.setattr("sqt_fast.network.eager.eager_network", network)
    monkeypatch.setitem(BACKENDS, "mine", BackendRecord("sqt_fast.network.eager:eager_network", needs_start=("cpu",)))
    with pytest.raises(BackendError, match=said):
        load_backend("mine", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
