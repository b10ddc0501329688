"""The ends of CTLs in an exported network, replaced by the plugin of ``kernels/ctl_plugin.py``."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

from sqt_fast.errors import BackendError
from sqt_fast.kernels.ctl_plugin import NAME, NAMESPACE, VERSION, register

# Its plugins that are compiled ahead of time do not work (a bug that its makers know).
BROKEN_VERSION = "10.14."


def make_known(library: Any, capability: int) -> None:
    """Register the plugin with TensorRT, for a GPU of a compute capability, as 90. Raises BackendError."""
    if library.__version__.startswith(BROKEN_VERSION):
        raise BackendError(f"plugin ctl: plugins do not work in TensorRT {library.__version__}; use another version")
    try:
        plugin = importlib.import_module(f"{library.__name__}.plugin")
    except ImportError as error:
        raise BackendError(f"plugin ctl: TensorRT {library.__version__} has no tensorrt.plugin ({error})") from error
    register(plugin, capability=capability)


def put_plugin(path: Path) -> int:
    """Replace every ``temporal + spatial * sigmoid(gate)``, and the ReLU behind it, in the ONNX file ``path``.

    Returns how many there were. Raises BackendError for none.
    """
    import onnx

    proto = onnx.load(str(path))
    count = _replace(proto)
    if not count:
        raise BackendError("plugin ctl: the exported network has no CTL that ends as the plugin does")
    proto.opset_import.add(domain=NAMESPACE, version=1)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return count


def _replace(proto: Any) -> int:
    """Replace what there is in a model, in place, and return how many there were."""
    from onnx import helper

    graph = proto.graph
    uses = Counter(name for node in graph.node for name in node.input) + Counter(each.name for each in graph.output)
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = {name: node for node in graph.node for name in node.input if uses[name] == 1}
    gone: set[str] = set()  # what nodes are known by: the name of their first output
    ends: dict[str, Any] = {}
    for add in graph.node:
        if add.op_type != "Add" or (found := _operands(add, made_by, uses)) is None:
            continue
        operands, inner = found
        behind = used_by.get(add.output[0])
        relu = behind is not None and behind.op_type == "Relu"
        last = behind if behind is not None and relu else add
        about: dict[str, Any] = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION, "aot": 1, "relu": int(relu)}
        ends[last.output[0]] = helper.make_node(NAME, operands, [last.output[0]], domain=NAMESPACE, **about)
        gone |= {node.output[0] for node in (*inner, add, last)}
    kept = [
        ends.get(node.output[0], node) for node in graph.node if node.output[0] not in gone or node.output[0] in ends
    ]
    del graph.node[:]
    graph.node.extend(kept)
    return len(ends)


def _operands(add: Any, made_by: dict[str, Any], uses: Counter[str]) -> tuple[list[str], list[Any]] | None:
    """Return the names of temporal, spatial and gate of an Add, and its inner nodes; None if it is no end of a CTL."""
    for temporal, product in (add.input, reversed(add.input)):
        times = made_by.get(product)
        if times is None or times.op_type != "Mul" or uses[product] != 1:
            continue
        for spatial, gated in (times.input, reversed(times.input)):
            sigmoid = made_by.get(gated)
            if sigmoid is not None and sigmoid.op_type == "Sigmoid" and uses[gated] == 1:
                return [temporal, spatial, sigmoid.input[0]], [sigmoid, times]
    return None
