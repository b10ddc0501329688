"""Quantisation: an exported network multiplies numbers of 8 bits, through NVIDIA's ModelOpt, on a CPU.

ModelOpt measures on clips how large values become, writes pairs of QuantizeLinear and DequantizeLinear into the ONNX
file, and turns the rest into float16; what goes in and comes out stays as it was. The gates stay float16 too: they cost
next to nothing, and an error of theirs is an error of whole feature maps.
"""

import importlib
import io
import logging
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, first_line
from sqt_fast.files import naming, replace_file
from sqt_fast.network.onnx_export import INPUT_NAME, ExportConfig
from sqt_fast.network.parity import QUANTISED_LIMITS, Limits

log = logging.getLogger(__name__)

INSTALL = "pip install 'sqt-fast[quantize]'"
# A range is as large as the largest value. On 32 clips that earlier motions weights were not calibrated with, int8 had
# a mean cosine of 0.9998, the worst 0.9995; by entropy, which took minutes more, 0.9976 and 0.9607.
METHOD = "max"
# What multiplies. With sums and products of feature maps rounded too, those were 0.9996 and 0.9982.
QUANTISED_OPERATIONS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Calibration:
    """What a network is quantised by.

    videos: files and folders, as the user named them. record: returns up to so many clips of those, (N, 48, S, S)
    uint8, any part of them a sample. num_clips: to calibrate with. limits: what is asked of the quantised network.
    """

    videos: tuple[str, ...]
    record: Callable[[int], Tensor]
    num_clips: int = 64
    limits: Limits = QUANTISED_LIMITS

    def clips(self, num_held_out: int) -> tuple[Tensor, Tensor]:
        """Return the clips to calibrate with, and others of the same videos to judge by.

        Where there are not enough, both are fewer. Raises ConfigError where there are not even two.
        """
        wanted = self.num_clips + num_held_out
        clips = self.record(wanted)
        if len(clips) < 2:
            raise ConfigError(
                f"--calibrate {' '.join(self.videos)}: one clip comes of these videos, 2 or more are needed: one to "
                "calibrate with and another to judge by; name more videos"
            )
        place = max(1, len(clips) * self.num_clips // wanted)
        return clips[:place], clips[place:]

    def options(self) -> str:
        """Return the options of ``sqt-fast build-engine`` that ask for it."""
        words = [f"--calibrate {shlex.quote(video)}" for video in self.videos]
        words += [f"--calibration-clips {self.num_clips}"]
        words += [f"--min-cosine {self.limits.min_cosine:g}", f"--min-top1 {self.limits.min_top1:g}"]
        return " ".join(words)


def check_calibration(config: ExportConfig, calibration: Calibration | None) -> None:
    """Raise ConfigError where a network is to be quantised without clips, or there are clips and it is not."""
    if config.quantised and calibration is None:
        raise ConfigError(
            f"precision {config.precision}: needs --calibrate VIDEOS, some of your own videos, to measure on them how "
            "large values become"
        )
    if not config.quantised and calibration is not None:
        raise ConfigError(f"--calibrate is for --precision int8 and fp8; {config.precision} measures nothing")


def load_modelopt() -> Any:
    """Import ModelOpt's quantisation of ONNX files. Raises BackendError where it is missing or cannot be loaded."""
    try:
        with _quiet():
            return importlib.import_module("modelopt.onnx.quantization")
    except Exception as error:  # it needs much that it does not declare, and compiles a part of itself
        if isinstance(error, ModuleNotFoundError) and error.name in ("modelopt", "modelopt.onnx"):
            raise BackendError(f"--precision int8 and fp8: NVIDIA ModelOpt is not installed: {INSTALL}") from None
        raise BackendError(
            f"--precision int8 and fp8: NVIDIA ModelOpt cannot be loaded ({first_line(error)}); in an environment of "
            f"its own, {INSTALL} brings the versions that fit"
        ) from error


def gates(proto: Any) -> list[str]:
    """Return the names of the nodes of an exported network that are not to be quantised.

    proto: ``onnx.ModelProto``. The sigmoids, and the two 1x1 convolutions of each CTL that see the mean of a feature
    map alone and say how much each channel counts.
    """
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "Sigmoid" or (node.op_type == "Conv" and ".param_conv." in node.input[1])
    ]


@torch.no_grad()
def quantize(onnx_path: Path, out_path: Path, mode: str, clips: Tensor) -> int:
    """Write the network of ``onnx_path`` quantised to ``out_path``, and return how many Q/DQ pairs it has.

    mode: int8 or fp8. clips: as the network takes them. The same clips give the same bytes. Raises BackendError where
    ModelOpt is missing or fails, OutputError where the file cannot be written.
    """
    modelopt = load_modelopt()
    import onnx

    source = onnx.load(str(onnx_path))
    try:
        with _quiet():
            modelopt.quantize(
                str(onnx_path),
                quantize_mode=mode,
                calibration_data={INPUT_NAME: clips.numpy()},
                calibration_method=METHOD,
                calibration_eps=["cpu"],
                op_types_to_quantize=list(QUANTISED_OPERATIONS),
                # It takes patterns, and beginnings for the whole: conv_1 would stand for conv_10 too.
                nodes_to_exclude=[f"{re.escape(name)}$" for name in gates(source)],
                high_precision_dtype="fp16",
                output_path=str(out_path),
                log_level="WARNING",
            )
    except Exception as error:  # its own and ONNX Runtime's, of many kinds
        raise BackendError(f"quantising to {mode}: NVIDIA ModelOpt failed ({first_line(error)})") from error
    proto = onnx.load(str(out_path))
    del proto.metadata_props[:]
    proto.metadata_props.extend(source.metadata_props)  # ModelOpt forgets them
    with naming(out_path):
        replace_file(out_path, lambda file: file.write(proto.SerializeToString(deterministic=True)))
    return sum(node.op_type == "DequantizeLinear" for node in proto.graph.node)


def write_for_onnxruntime(path: Path, target: Path) -> None:
    """Write a quantised network as ONNX Runtime runs it rightly on a CPU: it quantises float32, not float16.

    Its QuantizeLinear of float16 to int8 cuts off instead of rounding (1.24.4; 1.31.1 rounds), which alone made the
    error of weights motions 12 times as large. Both are the same mathematics.
    """
    import onnx

    proto, kinds = onnx.load(str(path)), onnx.TensorProto
    halves = {each.name for each in proto.graph.initializer if each.data_type == kinds.FLOAT16}
    nodes = []
    for number, node in enumerate(proto.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[1] in halves:
            for place in range(2):  # what is quantised, and its scale
                name = f"float_{number}_{place}"
                nodes.append(onnx.helper.make_node("Cast", [node.input[place]], [name], to=kinds.FLOAT))
                node.input[place] = name
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))  # the list that holds it is emptied
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, str(target))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to the log what ModelOpt prints: on standard output results are expected."""
    said, logger = io.StringIO(), logging.getLogger("modelopt")
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate
        logging.getLogger("modelopt.onnx").handlers.clear()  # they would write to where it was redirected
        for line in said.getvalue().splitlines():
            log.debug("%s", line)
