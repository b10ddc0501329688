"""The compiled network: the eager one's numbers, or one line that says why not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network import compiled
from sqt_fast.network.backends import load_backend
from sqt_fast.network.model import SqueezeTime
from tests.test_backends import BATCH, SIZE, eager


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tiny_model: SqueezeTime) -> None:
    monkeypatch.setattr("sqt_fast.network.compiled.shutil.which", lambda name: None)
    assert compiled.why_not("cuda:0", tiny_model) is None
    with pytest.raises(BackendError, match=r"needs a C\+\+ compiler .*--backend eager") as caught:
        load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=1, size=SIZE)
    assert "\n" not in str(caught.value)


def test_a_compiler_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: SqueezeTime
) -> None:
    """What torch says of it comes out as one line."""

    def broken(*args: object, **options: object) -> object:
        def run(clips: Tensor) -> object:
            raise torch._dynamo.exc.TorchDynamoException("g++ is broken\nline 2\nline 3")

        return run

    monkeypatch.setattr("sqt_fast.network.compiled.why_not", lambda device, model: None)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        BackendError, match=r"backend compile: compiling failed \(g\+\+ is broken\); use --backend eager"
    ) as caught:
        load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=1, size=SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports Inductor
def test_compile_equals_eager(tiny_model: SqueezeTime, network_clips: Tensor) -> None:
    if reason := compiled.why_not("cpu", tiny_model):
        pytest.skip(reason)
    backend = load_backend("compile", tiny_model, device="cpu", precision="fp32", batch_size=BATCH, size=SIZE)
    truth = eager(tiny_model).run(network_clips)
    for ours, wanted in zip(backend.run(network_clips), truth, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-5)
    for ours, wanted in zip(backend.run(network_clips.roll(2, 0)), backend.run(network_clips), strict=True):
        assert torch.equal(ours.roll(-2, 0), wanted)
