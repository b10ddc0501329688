"""Networks of 8 bits: what is refused, what is left out, what comes of it; ModelOpt itself where it is installed."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from sqt_fast.cli import main
from sqt_fast.errors import BackendError, ConfigError, ParityError
from sqt_fast.network.backends import load_network
from sqt_fast.network.model import CTL, SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork, export_onnx
from sqt_fast.network.parity import QUANTISED_LIMITS, Limits, Parity, as_given, drawn_clips, onnx_parity
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from sqt_fast.tensorrt.engines import Request, build_engine
from sqt_fast.tensorrt.exports import Exports
from sqt_fast.tensorrt.quantize import (
    Calibration,
    check_calibration,
    gates,
    load_modelopt,
    quantize,
    write_for_onnxruntime,
)
from tests.exports import ExportedOnce

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="NVIDIA ModelOpt is not installed")
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
SIZE = 32
ANYTHING = Limits(max_ratio=None)


def calibration(count: int = 12, *, num_clips: int = 8, limits: Limits = ANYTHING) -> Calibration:
    """Return a calibration with drawn clips, of which there are ``count``."""
    return Calibration(("my videos",), lambda wanted: drawn_clips(min(wanted, count), SIZE), num_clips, limits)


@pytest.fixture(autouse=True)
def _exported_once(exported: ExportedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqt_fast.tensorrt.exports.export_onnx", exported.write)


@pytest.fixture(scope="module")
def tiny_onnx(tiny_model: SqueezeTime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network in a file, as it is before it is quantised."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    network = ExportedNetwork(tiny_model, ExportConfig(SIZE, "int8"))
    export_onnx(network, path, max_batch=4, about={"labels": "[]"})
    return path


class FakeModelOpt(ModuleType):
    """Stands for ModelOpt: remembers what it was asked, prints much, and writes the network with one Q/DQ pair."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("modelopt.onnx.quantization")
        self.error, self.asked = error, {}  # type: ignore[var-annotated]

    def quantize(self, path: str, **asked: Any) -> None:
        print("much noise")
        print("more of it", file=sys.stderr)
        self.asked = asked
        if self.error is not None:
            raise self.error
        proto = onnx.load(path)
        del proto.metadata_props[:]
        first = proto.graph.node[1]  # behind the cast to float32
        scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, (), [0.05])
        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, (), [0])
        proto.graph.initializer.extend([scale, zero])
        pair = [
            onnx.helper.make_node("QuantizeLinear", [first.input[0], "scale", "zero"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        ]
        first.input[0] = "dq"
        nodes = [proto.graph.node[0], *pair, *proto.graph.node[1:]]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        onnx.save(proto, asked["output_path"])


@pytest.fixture
def modelopt(monkeypatch: pytest.MonkeyPatch) -> FakeModelOpt:
    fake = FakeModelOpt()
    for name in ("modelopt", "modelopt.onnx"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


# -- what is refused --------------------------------------------------------------------------------------------------


def sqt(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["build-engine", "--flavour", "rtx", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int8"), "precision int8: needs --calibrate VIDEOS, some of your own videos"),
        (("--precision", "fp8"), "precision fp8: needs --calibrate VIDEOS"),
        (("--precision", "bf16", "--calibrate", "."), "--calibrate is for --precision int8 and fp8"),
        (("--precision", "fp16", "--min-top1", "0.5"), "--min-cosine and --min-top1 are for --precision int8 and fp8"),
        (("--precision", "int8", "--calibrate", ".", "--min-cosine", "1.5"), "min-cosine 1.5: expected -1 to 1"),
        (("--precision", "int8", "--calibrate", ".", "--min-top1", "nan"), "min-top1 nan: expected 0 to 1"),
    ],
    ids=["no videos", "no videos for fp8", "videos for bf16", "limits for fp16", "cosine", "top1"],
)
def test_refusals_are_said_in_words(arguments: tuple[str, ...], message: str) -> None:
    result = sqt("--weights", "motions", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_help_names_the_limits() -> None:
    said = " ".join(CliRunner().invoke(main, ["build-engine", "--help"], terminal_width=1000).output.split())
    assert f"[default: {QUANTISED_LIMITS.min_cosine}]" in said
    assert f"[default: {QUANTISED_LIMITS.min_top1}]" in said


def test_other_backends_have_no_such_precision(tiny_model: SqueezeTime) -> None:
    wanted = "precision int8: not one of backend eager's; use --backend tensorrt or tensorrt-rtx"
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        load_network("eager", tiny_model, device="cpu", precision="int8")


def test_modelopt_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(BackendError, match=r"NVIDIA ModelOpt is not installed: pip install 'sqt-fast\[quantize\]'"):
        load_modelopt()


def test_modelopt_that_cannot_be_loaded_says_why_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("modelopt", "modelopt.onnx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "modelopt").mkdir()
    (tmp_path / "modelopt" / "__init__.py").write_text("print('noise')\nimport warnings\nwarnings.warn('old')\n")
    (tmp_path / "modelopt" / "onnx.py").write_text("import lief_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError, match="cannot be loaded") as caught:
        load_modelopt()
    sys.modules.pop("modelopt")  # the one that was written here; what was there before comes back
    assert "No module named 'lief_that_is_not_there'" in str(caught.value)
    assert "pip install 'sqt-fast[quantize]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_calibration_belongs_to_precisions_of_8_bits() -> None:
    check_calibration(ExportConfig(SIZE, "fp8"), calibration())
    check_calibration(ExportConfig(SIZE, "fp16"), None)
    with pytest.raises(ConfigError, match="needs --calibrate"):
        Request(EngineConfig("rtx", ExportConfig(SIZE, "int8")), "motions")


# -- clips and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted", "calibrated"),
    [(100, (64, 32), (64, 32)), (96, (64, 32), (64, 32)), (48, (64, 32), (32, 16)), (2, (64, 4), (1, 1))],
)
def test_clips_are_held_out(there: int, wanted: tuple[int, int], calibrated: tuple[int, int]) -> None:
    numbered = torch.arange(there)[:, None]
    given = Calibration(("a",), lambda count: numbered[:count], num_clips=wanted[0]).clips(wanted[1])
    assert (len(given[0]), len(given[1])) == calibrated
    assert torch.equal(torch.cat(given), numbered[: sum(calibrated)])


def test_one_clip_is_too_few() -> None:
    with pytest.raises(ConfigError, match="--calibrate a b: one clip comes of these videos, 2 or more are needed"):
        Calibration(("a", "b"), lambda count: torch.zeros(1, 1)).clips(4)


def test_options_ask_for_the_same_calibration() -> None:
    options = Calibration(("my videos", "b.mp4"), lambda count: torch.zeros(count), 16).options()
    assert options == (
        "--calibrate 'my videos' --calibrate b.mp4 --calibration-clips 16 --min-cosine 0.98 --min-top1 0.95"
    )


@pytest.mark.parametrize(
    ("cosine", "top1", "finite", "holds"),
    [
        (0.98, 0.95, True, True),
        (0.9799, 1.0, True, False),
        (1.0, 0.94, True, False),
        (1.0, 1.0, False, False),
        (0.99, 0.97, True, True),
    ],
)
def test_a_quantised_network_is_judged_by_its_answers(cosine: float, top1: float, finite: bool, holds: bool) -> None:
    parity = Parity(32, 1.0, 1e-4, 10_000.0, cosine, top1, finite, QUANTISED_LIMITS)
    assert parity.holds == holds
    assert finite == ("(at least 0.98)" in str(parity) and "(at least 95%)" in str(parity))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("kind", ["normalised", "uint8"])
def test_clips_go_in_as_into_engines_of_fp16(tiny_model: SqueezeTime, precision: str, kind: str) -> None:
    config = ExportConfig(SIZE, precision, kind)
    given = as_given(drawn_clips(2, SIZE), config)
    assert given.dtype == config.input_dtype == (torch.uint8 if kind == "uint8" else torch.float16)
    network = ExportedNetwork(tiny_model, config)
    assert {parameter.dtype for parameter in network.net.parameters()} == {torch.float32}
    with torch.no_grad():
        assert [each.dtype for each in network(given)] == [torch.float32, torch.float32]


# -- what is left out, and what comes of it ---------------------------------------------------------------------------


def test_gates_are_found_in_the_graph(tiny_onnx: Path, tiny_model: SqueezeTime) -> None:
    proto = onnx.load(str(tiny_onnx))
    found, by_name = gates(proto), {node.name: node for node in proto.graph.node}
    ctls = sum(isinstance(module, CTL) for module in tiny_model.modules())
    kinds = [by_name[name].op_type for name in found]
    assert (kinds.count("Conv"), kinds.count("Sigmoid"), len(kinds)) == (2 * ctls, 2 * ctls, 4 * ctls)
    sizes = {init.name: tuple(init.dims) for init in proto.graph.initializer}
    assert {sizes[by_name[name].input[1]][2:] for name in found if by_name[name].op_type == "Conv"} == {(1, 1)}


def test_names_of_gates_stand_for_themselves_alone(tiny_onnx: Path, tmp_path: Path, modelopt: FakeModelOpt) -> None:
    quantize(tiny_onnx, tmp_path / "q.onnx", "int8", as_given(drawn_clips(3, SIZE), ExportConfig(SIZE, "int8")))
    proto = onnx.load(str(tiny_onnx))
    patterns = modelopt.asked["nodes_to_exclude"]
    matched = {n.name for n in proto.graph.node if any(re.match(pattern, n.name) for pattern in patterns)}
    assert matched == set(gates(proto))
    assert modelopt.asked["calibration_data"]["clips"].shape == (3, 48, SIZE, SIZE)
    assert modelopt.asked["calibration_eps"] == ["cpu"]


def test_a_quantised_file_keeps_its_metadata_and_says_nothing(
    tiny_onnx: Path, tmp_path: Path, modelopt: FakeModelOpt, capfd: pytest.CaptureFixture[str]
) -> None:
    assert quantize(tiny_onnx, tmp_path / "q.onnx", "int8", torch.zeros(1)) == 1
    metadata = [
        {each.key: each.value for each in onnx.load(str(path)).metadata_props}
        for path in (tiny_onnx, tmp_path / "q.onnx")
    ]
    assert metadata[0] == metadata[1]
    assert set(metadata[0]) == {"labels", "preprocessing"}
    assert tuple(capfd.readouterr()) == ("", "")


def test_an_error_of_modelopt_is_a_line(tiny_onnx: Path, tmp_path: Path, modelopt: FakeModelOpt) -> None:
    modelopt.error = ValueError("no such thing\nand a page of it")
    with pytest.raises(BackendError, match=r"^quantising to fp8: NVIDIA ModelOpt failed \(no such thing\)$"):
        quantize(tiny_onnx, tmp_path / "q.onnx", "fp8", torch.zeros(1))


def test_what_is_checked_rounds_to_the_nearest(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    scale = float(torch.tensor(0.0433).half())
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["clips", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("clips", kinds.FLOAT16, ["n"])],
        [helper.make_tensor_value_info("y", kinds.FLOAT16, ["n"])],
        [helper.make_tensor("scale", kinds.FLOAT16, (), [scale]), helper.make_tensor("zero", kinds.INT8, (), [0])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), tmp_path / "a.onnx")
    write_for_onnxruntime(tmp_path / "a.onnx", tmp_path / "b.onnx")
    onnx.checker.check_model(str(tmp_path / "b.onnx"), full_check=True)
    x = torch.linspace(-6, 6, 999).half()
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"clips": x.numpy()})[0])
    wanted = ((x.float() / scale).round().clamp(-128, 127) * scale).half()
    assert torch.equal(found, wanted)


def test_a_network_that_lost_too_much_is_refused(
    tiny_weights: tuple[str, str], tmp_path: Path, modelopt: FakeModelOpt
) -> None:
    exports = Exports(tiny_weights[0], ExportConfig(SIZE, "int8"), 4)
    with pytest.raises(ParityError, match=r"in int8 does not give .*: cosine .* \(at least 1\)") as caught:
        exports.quantised(tmp_path / "q.onnx", calibration(limits=Limits(None, 1.0, 1.0)), 4, print)
    assert caught.value.exit_code == 3
    assert "--min-cosine" in str(caught.value)


def built(weights: str, precision: str, path: Path, given: Calibration) -> Any:
    config = EngineConfig("rtx", ExportConfig(SIZE, precision), Batches(1, 2, 4))
    said: list[str] = []
    outcome = build_engine(Request(config, weights, path, clips=4, calibration=given), said.append, lambda *_: None)
    return outcome, said


@needs_rtx
def test_an_engine_says_what_it_was_quantised_by(
    tiny_weights: tuple[str, str], tmp_path: Path, modelopt: FakeModelOpt
) -> None:
    path = tmp_path / "tiny.engine"
    outcome, said = built(tiny_weights[0], "int8", path, calibration())
    about = json.loads((tmp_path / "tiny.engine.json").read_bytes())
    assert outcome.built
    assert about["identity"]["precision"] == "int8"
    assert about["limits"] == {"max_ratio": None, "min_cosine": -1.0, "min_top1": 0.0}
    assert about["onnx_parity"]["clips"] == 4
    assert about["tensors"]["clips"]["dtype"] == "half"
    assert "--precision int8" in about["rebuild"]
    assert "--calibrate 'my videos' --calibration-clips 8" in about["rebuild"]
    assert any("1 Q/DQ pairs" in line for line in said)
    again, _ = built(tiny_weights[0], "int8", path, calibration())
    assert not again.built
    other, _ = built(tiny_weights[0], "fp8", path, calibration())
    assert other.built
    assert "precision" in other.why


# -- ModelOpt ---------------------------------------------------------------------------------------------------------


def quantised_inputs(proto: Any) -> dict[str, bool]:
    """Return for each convolution by its weight whether it multiplies what was quantised."""
    producers = {output: node for node in proto.graph.node for output in node.output}

    def weight(name: str) -> str:
        while name in producers:
            name = producers[name].input[0]
        return name

    return {
        weight(node.input[1]): getattr(producers.get(node.input[0]), "op_type", "") == "DequantizeLinear"
        for node in proto.graph.node
        if node.op_type == "Conv"
    }


def of_tiny(clips: Tensor, tiny_onnx: Path, folder: Path, mode: str) -> Path:
    path = folder / f"{mode}.onnx"
    assert quantize(tiny_onnx, path, mode, as_given(clips, ExportConfig(SIZE, mode))) > 0
    return path


@needs_modelopt
@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_modelopt_leaves_gates_and_the_edges_alone(
    mode: str, tiny_onnx: Path, tmp_path: Path, tiny_model: SqueezeTime, capfd: pytest.CaptureFixture[str]
) -> None:
    clips = drawn_clips(4, SIZE)
    path = of_tiny(clips, tiny_onnx, tmp_path, mode)
    proto = onnx.load(str(path))
    found = quantised_inputs(proto)
    assert {name for name in found if ".param_conv." in name and found[name]} == set()
    assert sum(found.values()) > 10
    kinds = onnx.TensorProto
    types = {each.name: each.type.tensor_type.elem_type for each in (*proto.graph.input, *proto.graph.output)}
    assert types == {"clips": kinds.FLOAT16, "logits": kinds.FLOAT, "embeddings": kinds.FLOAT}
    once = path.read_bytes()
    assert of_tiny(clips, tiny_onnx, tmp_path, mode).read_bytes() == once
    assert capfd.readouterr().out == ""
    write_for_onnxruntime(path, tmp_path / "checked.onnx")
    parity = onnx_parity(
        tiny_model, ExportConfig(SIZE, mode), tmp_path / "checked.onnx", drawn_clips(6, SIZE), ANYTHING
    )
    assert parity is not None
    assert parity.holds


@needs_modelopt
@needs_rtx
@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_trained_weights_pass_the_gate(mode: str, tmp_path: Path) -> None:
    config = EngineConfig("rtx", ExportConfig(64, mode), Batches(1, 2, 4))
    given = Calibration(("drawn",), lambda count: drawn_clips(count, 64))
    request = Request(config, "motions", tmp_path / "m.engine", clips=32, calibration=given)
    outcome = build_engine(request, print, lambda *_: None)
    assert outcome.built
    assert outcome.onnx is not None
    assert outcome.onnx.holds
