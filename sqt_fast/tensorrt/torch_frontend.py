"""Torch-TensorRT as the other way from the network to an engine: torch's own export, without ONNX.

Its import needs TensorRT's libraries, a PyTorch with CUDA and a GPU, and fails in many ways without; so it is imported
only when it is asked for. Engines go through the same checks and sidecars as those from ONNX.
"""

import importlib
import time
from typing import Any

import torch

from sqt_fast.errors import BackendError, first_line
from sqt_fast.network.onnx_export import INPUT_NAME, OUTPUT_NAMES, ExportedNetwork
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_config import EngineConfig

INSTALL = "pip install 'sqt-fast[torch-tensorrt]', which needs TensorRT's libraries and a PyTorch with CUDA"
# What it calls the outputs, in their order.
NAMES = {INPUT_NAME: INPUT_NAME} | {name: f"output{place}" for place, name in enumerate(OUTPUT_NAMES)}


def build_with_torch(config: EngineConfig, network: ExportedNetwork, device: str) -> Plan:
    """Build the engine that ``config`` asks for on ``device``. Raises BackendError with what the library says."""
    if config.hardware == "same-capability":
        raise BackendError(
            "Torch-TensorRT builds for this GPU or for all from Ampere on: --hardware none or ampere-plus"
        )
    frontend = load_frontend()
    channels, size = network.net.config.input_channels, config.export.size
    least, best, most = ((batch, channels, size, size) for batch in config.batches)
    clips = torch.zeros(2, *best[1:], dtype=config.export.input_dtype, device=device)
    batch = torch.export.Dim("batch", min=1, max=max(2, config.batches.most))
    given = frontend.Input(min_shape=least, opt_shape=best, max_shape=most, dtype=config.export.input_dtype)
    started = time.perf_counter()
    try:
        program = torch.export.export(network.eval().to(device), (clips,), dynamic_shapes={INPUT_NAME: {0: batch}})
        data = frontend.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=[given],
            require_full_compilation=True,
            min_block_size=1,
            assume_dynamic_shape_support=True,
            disable_tf32=not config.tf32,
            optimization_level=config.level,
            workspace_size=(config.workspace_mib or 0) << 20,  # 0: what there is
            hardware_compatible=config.hardware == "ampere-plus",
            version_compatible=config.version_compatible,
        )
    except Exception as error:  # its own, of many kinds
        raise BackendError(f"Torch-TensorRT {frontend.__version__} could not build: {first_line(error)}") from error
    finally:
        network.cpu()
    build_s = time.perf_counter() - started
    library_version = importlib.import_module("tensorrt").__version__
    return Plan(data, library_version, _tensors(network, config), (), build_s, names=NAMES)


def load_frontend() -> Any:
    """Import Torch-TensorRT. Raises BackendError where it is missing or cannot be loaded."""
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # bare ones of its own, AssertionError of torch, OSError of the loader
        raise BackendError(f"Torch-TensorRT cannot be loaded ({first_line(error)}); {INSTALL}") from error


def _tensors(network: ExportedNetwork, config: EngineConfig) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of what goes in and comes out, by the engine's names."""
    shape = network.net.config
    widths = {"logits": shape.num_classes, "embeddings": shape.feature_channels}
    clips = [-1, shape.input_channels, config.export.size, config.export.size]
    given = {INPUT_NAME: {"dtype": str(config.export.input_dtype).removeprefix("torch."), "shape": clips}}
    return given | {NAMES[name]: {"dtype": "float32", "shape": [-1, width]} for name, width in widths.items()}
