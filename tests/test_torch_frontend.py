"""Torch-TensorRT, which cannot be imported without a GPU: what it is asked, and what is made of its failures."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sqt_fast.errors import BackendError
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from sqt_fast.tensorrt.torch_frontend import build_with_torch, load_frontend

SIZE, CLASSES = 32, 5


@pytest.fixture
def network() -> ExportedNetwork:
    config = ModelConfig(depth=10, width=0.25, num_classes=CLASSES, pos_dim=(8, 4, 2, 1))
    return ExportedNetwork(SqueezeTime(config).eval(), ExportConfig(size=SIZE))


class Frontend:
    """Stands in for it: keeps what it is asked and runs the program that it is given."""

    __version__ = "2.13.0"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=self.convert)
        self.failure: Exception | None = None
        self.asked: dict[str, Any] = {}
        self.outputs: tuple[torch.Tensor, ...] = ()
        tensorrt: Any = ModuleType("tensorrt")
        tensorrt.__version__ = "11.0.0.114"
        monkeypatch.setitem(sys.modules, "torch_tensorrt", self)
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)

    def Input(self, **about: Any) -> dict[str, Any]:
        return about

    def convert(self, program: Any, **asked: Any) -> bytes:
        if self.failure is not None:
            raise self.failure
        self.asked = asked
        self.outputs = program.module()(torch.ones(3, 48, SIZE, SIZE))
        return b"an engine"


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(export=ExportConfig(size=SIZE), batches=Batches(1, 4, 8), frontend="torch", **settings)


def test_what_it_is_asked(network: ExportedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    frontend = Frontend(monkeypatch)
    plan = build_with_torch(config(level=2, tf32=False, workspace_mib=3, hardware="ampere-plus"), network, "cpu")
    assert (plan.data, plan.library_version) == (b"an engine", "11.0.0.114")
    (given,) = frontend.asked.pop("arg_inputs")
    shapes = [(batch, 48, SIZE, SIZE) for batch in (1, 4, 8)]
    assert given == {
        "min_shape": shapes[0],
        "opt_shape": shapes[1],
        "max_shape": shapes[2],
        "dtype": torch.float32,
    }
    assert frontend.asked == {
        "require_full_compilation": True,
        "min_block_size": 1,
        "assume_dynamic_shape_support": True,
        "disable_tf32": True,
        "optimization_level": 2,
        "workspace_size": 3 << 20,
        "hardware_compatible": True,
        "version_compatible": False,
    }


def test_its_program_is_the_network_for_any_batch(network: ExportedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    frontend = Frontend(monkeypatch)
    plan = build_with_torch(config(), network, "cpu")
    for mine, wanted in zip(frontend.outputs, network(torch.ones(3, 48, SIZE, SIZE)), strict=True):
        torch.testing.assert_close(mine, wanted)
    assert plan.names == {"clips": "clips", "logits": "output0", "embeddings": "output1"}
    assert plan.tensors["output0"] == {"dtype": "float32", "shape": [-1, CLASSES]}
    assert plan.tensors["output1"]["shape"] == [-1, frontend.outputs[1].shape[1]]
    assert plan.tensors["clips"] == {"dtype": "float32", "shape": [-1, 48, SIZE, SIZE]}


def test_what_fails_is_one_line(network: ExportedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    frontend = Frontend(monkeypatch)
    frontend.failure = RuntimeError("no converter\nfor that")
    with pytest.raises(BackendError, match=r"^Torch-TensorRT 2.13.0 could not build: no converter$"):
        build_with_torch(config(), network, "cpu")
    with pytest.raises(BackendError, match="--hardware none or ampere-plus"):
        build_with_torch(config(hardware="same-capability"), network, "cpu")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ModuleNotFoundError("No module named 'torch_tensorrt'"), "No module named 'torch_tensorrt'"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (Exception("import error when try to import _TensorRTProxyModule\nmore"), "import error when try to import"),
    ],
    ids=["missing", "no CUDA", "no libraries"],
)
def test_an_import_that_fails_says_what_it_needs(
    failure: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise failure

    monkeypatch.setattr("sqt_fast.tensorrt.torch_frontend.importlib.import_module", fail)
    with pytest.raises(BackendError) as caught:
        load_frontend()
    assert str(caught.value).startswith(f"Torch-TensorRT cannot be loaded ({said}")
    assert "sqt-fast[torch-tensorrt]" in str(caught.value)
    assert "\n" not in str(caught.value)
