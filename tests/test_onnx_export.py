"""Export: the network's own numbers in ONNX, nothing in it that TensorRT cannot fuse, nothing of this machine."""

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, OutputError
from sqt_fast.network import onnx_export
from sqt_fast.network.checkpoint import save_safetensors
from sqt_fast.network.model import ModelConfig, ObjectInteraction, SqueezeTime
from sqt_fast.network.onnx_export import (
    ExportConfig,
    ExportedNetwork,
    PlacedInteraction,
    export_onnx,
    network_sha256,
    preprocessing,
)
from sqt_fast.network.parity import drawn_clips, normalised, true_logits
from sqt_fast.network.weights import load_weights
from tests.exports import SIZE, ExportedOnce

side = st.integers(1, 20)


def run(path: Path, clips: Tensor) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(["logits", "embeddings"], {"clips": clips.numpy()})
    return results


# -- the network ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(side, side, st.sampled_from([1, 3, 7, 14]))
@torch.no_grad()
def test_a_position_embedding_in_its_place_changes_nothing(height: int, width: int, pos_dim: int) -> None:
    """Behind the 7x7 convolution, padded as it is, at any size of feature map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(height * 100 + width)
        interaction = ObjectInteraction(24, 8, pos_dim).double().eval()
        torch.nn.init.normal_(interaction.pos_embed)
        interaction.glo_conv[4] = torch.nn.Identity()  # batch norm, which is folded before
        x = torch.randn(2, 24, height, width, dtype=torch.float64)
        truth = interaction.hidden(x)
        placed = PlacedInteraction(interaction, height, width)
    assert placed.map.shape == (1, 16, height, width)
    torch.testing.assert_close(placed.hidden(x), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [33, 64, 72, 96])
@torch.no_grad()
def test_in_float64_it_is_the_network(tiny_model: SqueezeTime, size: int) -> None:
    clips = drawn_clips(2, size)
    network = ExportedNetwork(tiny_model, ExportConfig(size)).eval().double()
    embeddings = network.net.embed(normalised(clips))
    truth = true_logits(tiny_model, clips)
    torch.testing.assert_close(network.net.classify(embeddings), truth, rtol=1e-5, atol=1e-5)  # weights were float32


@torch.no_grad()
def test_bytes_are_normalised_as_index_does(tiny_model: SqueezeTime) -> None:
    clips = drawn_clips(2, 40)
    of_bytes = ExportedNetwork(tiny_model, ExportConfig(40, input="uint8")).eval()
    of_floats = ExportedNetwork(tiny_model, ExportConfig(40)).eval()
    for ours, wanted in zip(of_bytes(clips), of_floats(normalised(clips).float()), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was(tiny_model: SqueezeTime) -> None:
    before = network_sha256(tiny_model)
    network = ExportedNetwork(tiny_model, ExportConfig(40, "bf16"))
    assert network.net.conv1.weight.dtype == torch.bfloat16
    assert network_sha256(tiny_model) == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 31}, "size 31: expected at least 32"),
        ({"precision": "int4"}, "precision int4: expected one of fp32, bf16, fp16, int8, fp8"),
        ({"input": "jpeg"}, "input jpeg: expected one of normalised, uint8"),
    ],
    ids=str,
)
def test_what_cannot_be_exported(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportConfig(**values)


def test_a_backbone_alone_is_refused() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=None))
    with pytest.raises(ConfigError, match="no classifier"):
        ExportedNetwork(model, ExportConfig())


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_file_is_sound_and_holds_nothing_but_what_fuses(exported: ExportedOnce, precision: str) -> None:
    _, path = exported(precision)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert proto.opset_import[0].version == onnx_export.OPSET
    kinds = {node.op_type for node in proto.graph.node}
    assert {"Conv", "Relu", "Sigmoid"} <= kinds
    assert kinds & {"BatchNormalization", "Resize", "Upsample", "Dropout"} == set()
    dims = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in proto.graph.input]
    assert dims == [["batch", 48, SIZE, SIZE]]
    assert [each.name for each in proto.graph.output] == ["logits", "embeddings"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@torch.no_grad()
def test_batches_of_any_size_give_what_pytorch_gives(exported: ExportedOnce, precision: str) -> None:
    network, path = exported(precision)
    clips = normalised(drawn_clips(3, SIZE)).to(network.config.dtype)
    for batch in (1, 3):
        results = run(path, clips[:batch])
        for result, own in zip(results, network.eval()(clips[:batch]), strict=True):
            assert result.dtype == "float32"
            rounding = 1e-4 if precision == "fp32" else 1e-2
            torch.testing.assert_close(torch.from_numpy(result), own, rtol=rounding, atol=rounding * own.abs().max())


def test_metadata_say_what_it_takes_and_nothing_else(exported: ExportedOnce) -> None:
    network, path = exported("fp32")
    proto = onnx.load(path)
    about = {each.key: each.value for each in proto.metadata_props}
    assert set(about) == {"preprocessing", "weights", "labels"}
    assert json.loads(about["labels"]) == ["a", "b"]
    assert json.loads(about["preprocessing"]) == preprocessing(network.config, 48)
    assert json.loads(about["preprocessing"])["shape"] == ["batch", 48, SIZE, SIZE]
    assert all(not node.metadata_props and not node.doc_string for node in proto.graph.node)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nothing_of_this_machine_is_in_the_file(exported: ExportedOnce, precision: str, tmp_path: Path) -> None:
    data = exported(precision)[1].read_bytes()
    for trace in (
        str(Path(__file__).parents[1]),
        str(Path(torch.__file__).parent),
        str(tmp_path.parent),
        'File "',
        ".py",
    ):
        assert trace.encode() not in data, trace
    if getpass.getuser() not in ("root", "user"):
        assert getpass.getuser().encode() not in data


def test_the_same_network_gives_the_same_bytes(exported: ExportedOnce, tmp_path: Path) -> None:
    _, path = exported("fp32")
    again = ExportedNetwork(exported.model, ExportConfig(SIZE))
    export_onnx(again, tmp_path / "again.onnx", max_batch=4, about={"weights": "tiny", "labels": '["a", "b"]'})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


# -- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "said"),
    [(("onnx",), "onnx is not installed"), (("onnx", "onnxscript"), "onnx and onnxscript are not installed")],
    ids=["one", "both"],
)
def test_missing_exporters_are_named(
    tiny_model: SqueezeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name in gone else name)
    network = ExportedNetwork(tiny_model, ExportConfig(40))
    with pytest.raises(BackendError) as caught:
        export_onnx(network, tmp_path / "x.onnx", max_batch=1, about={})
    assert str(caught.value) == f"exporting to ONNX: {said} (pip install 'sqt-fast[onnx]')"
    assert list(tmp_path.iterdir()) == []


def test_what_torch_says_becomes_a_line(
    tiny_model: SqueezeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no translation\nfor op\n  ...")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(BackendError, match=r"^exporting to ONNX: torch \S+ failed \(no translation\)$"):
        export_onnx(ExportedNetwork(tiny_model, ExportConfig(40)), tmp_path / "x.onnx", max_batch=1, about={})


def test_a_place_that_cannot_be_written(
    exported: ExportedOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        model_proto = onnx.load(exported("fp32")[1])

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: Program)
    with pytest.raises(OutputError, match=r"cannot be written .*; choose another place"):
        export_onnx(exported("fp32")[0], tmp_path / "no" / "x.onnx", max_batch=1, about={})


# -- which network it is ----------------------------------------------------------------------------------------------


def test_a_network_is_the_same_from_whatever_file(tiny_model: SqueezeTime, tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_model.state_dict()}, tmp_path / "x.pth")
    save_safetensors(tiny_model, tmp_path / "x.safetensors")
    found = {network_sha256(load_weights(str(tmp_path / name)).model) for name in ("x.pth", "x.safetensors")}
    assert found == {network_sha256(tiny_model)}


def flip(name: str) -> Callable[[SqueezeTime], None]:
    def change(model: SqueezeTime) -> None:
        tensor = model.state_dict()[name].view(-1)
        tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(torch.inf))

    return change


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_mean", "fc.bias"])
def test_one_changed_number_makes_another_network(tiny_model: SqueezeTime, name: str) -> None:
    other = SqueezeTime(tiny_model.config)
    other.load_state_dict(tiny_model.state_dict())
    assert network_sha256(other) == network_sha256(tiny_model)
    flip(name)(other)
    assert network_sha256(other) != network_sha256(tiny_model)
