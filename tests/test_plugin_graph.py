"""The plugin in an exported network: every CTL ends with it, and with its formula in its place nothing has changed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="exported networks are ONNX: pip install 'sqt-fast[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime runs them: pip install 'sqt-fast[onnx]'")

from sqt_fast.errors import BackendError  # noqa: E402
from sqt_fast.kernels.ctl_plugin import NAME, NAMESPACE  # noqa: E402
from sqt_fast.network.model import ModelConfig, SqueezeTime  # noqa: E402
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork, export_onnx  # noqa: E402
from sqt_fast.tensorrt import plugin_graph  # noqa: E402
from sqt_fast.tensorrt.plugin_graph import make_known, put_plugin  # noqa: E402

SIZE = 32


@pytest.fixture(
    scope="module",
    params=[10, pytest.param(50, marks=pytest.mark.exhaustive)],
    ids=["basic", "bottleneck"],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(depth=request.param, width=0.25, num_classes=5, pos_dim=(8, 4, 2, 1))
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    network = ExportedNetwork(SqueezeTime(config).eval(), ExportConfig(size=SIZE))
    export_onnx(network, path, max_batch=4, about={})
    return path


def formula(relu: int) -> Any:
    """Return the plugin as plain ONNX: a function that ONNX Runtime puts in the place of its nodes."""
    from onnx import helper

    nodes = [
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Mul", ["spatial", "open"], ["part"]),
        helper.make_node("Add", ["temporal", "part"], ["sum"]),
        helper.make_node("Relu" if relu else "Identity", ["sum"], ["out"]),
    ]
    attributes = ["plugin_namespace", "plugin_version", "aot", "relu"]
    imports = [helper.make_opsetid("", 22)]
    names = ["temporal", "spatial", "gate"]
    return helper.make_function(NAMESPACE, f"{NAME}{relu}", names, ["out"], nodes, imports, attributes)


def run(proto: Any) -> list[Any]:
    clips = np.random.default_rng(0).normal(size=(3, 48, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"clips": clips}))


def test_every_ctl_ends_with_it_and_means_the_same(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "with.onnx"
    path.write_bytes(exported.read_bytes())
    before = onnx.load(exported)
    count = put_plugin(path)
    after = onnx.load(path)
    ends = [node for node in after.graph.node if node.op_type == NAME]
    gates = sum(node.op_type == "Sigmoid" for node in before.graph.node)
    assert count == len(ends) == gates / 2  # a CTL has two sigmoids: of importance, and of its gate
    relus = {onnx.helper.get_node_attr_value(node, "relu") for node in ends}
    assert relus == ({0, 1} if count == 8 else {1})
    assert len(before.graph.node) - len(after.graph.node) == sum(
        2 + onnx.helper.get_node_attr_value(node, "relu") for node in ends
    )
    for node in ends:
        assert onnx.helper.get_node_attr_value(node, "plugin_namespace") == NAMESPACE.encode()
        assert onnx.helper.get_node_attr_value(node, "aot") == 1
        node.op_type += str(onnx.helper.get_node_attr_value(node, "relu"))
    after.functions.extend([formula(0), formula(1)])
    for mine, wanted in zip(run(after), run(before), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


def test_tensorrt_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(plugin_graph, "register", lambda plugin, capability: registered.append((plugin, capability)))
    monkeypatch.setattr("sqt_fast.tensorrt.plugin_graph.importlib.import_module", lambda name: f"module {name}")
    make_known(SimpleNamespace(__name__="tensorrt", __version__="11.0.0.114"), 90)
    assert registered == [("module tensorrt.plugin", 90)]
    with pytest.raises(BackendError, match=r"plugins do not work in TensorRT 10.14.1; use another version"):
        make_known(SimpleNamespace(__name__="tensorrt", __version__="10.14.1"), 90)
    monkeypatch.undo()
    with pytest.raises(BackendError, match=r"TensorRT 11.0 has no tensorrt.plugin \(No module named"):
        make_known(SimpleNamespace(__name__="no_tensorrt", __version__="11.0"), 90)


def test_a_network_without_ctls_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", value[:1], value[1:])
    onnx.save(helper.make_model(graph), tmp_path / "none.onnx")
    with pytest.raises(BackendError, match="no CTL that ends as the plugin does"):
        put_plugin(tmp_path / "none.onnx")
