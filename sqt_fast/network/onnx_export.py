"""Export: the folded network as ONNX, for TensorRT and whatever else reads it.

No batch norm is left and no resize: position embeddings are stretched for the size of the input, put through the 7x7
convolution behind them, which is linear, and added to its bias, in float64. So every CTL is convolutions with sums,
gates and ReLUs behind them, which TensorRT fuses (TensorRT-RTX 1.7: but for the sum with the position's map).
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqt_fast.errors import BackendError, ConfigError, first_line
from sqt_fast.files import naming, replace_file
from sqt_fast.kernels.ctl import position_reference
from sqt_fast.kernels.squeeze_host import MEAN, STD, mean_and_std
from sqt_fast.network.backends import DTYPES
from sqt_fast.network.fold import fold
from sqt_fast.network.model import ObjectInteraction, SqueezeTime
from sqt_fast.network.registry import PRECISIONS, QUANTISED

OPSET = 22  # the first whose convolutions take bfloat16
INPUTS = ("normalised", "uint8")
INPUT_NAME, OUTPUT_NAMES = "clips", ("logits", "embeddings")
MIN_SIZE = 32  # the network halves it five times


@dataclass(frozen=True)
class ExportConfig:
    """What an exported network takes. size: pixels of the square; input: clips normalised already, or as bytes.

    A network of int8 or fp8 is exported in float32 and quantised then; beside it stands PyTorch in float16.
    """

    size: int = 224
    precision: str = "fp32"
    input: str = "normalised"

    def __post_init__(self) -> None:
        if self.size < MIN_SIZE:
            raise ConfigError(f"size {self.size}: expected at least {MIN_SIZE} pixels, for the network halves it often")
        for name, value, allowed in (
            ("precision", self.precision, (*PRECISIONS, *QUANTISED)),
            ("input", self.input, INPUTS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} {value}: expected one of {', '.join(allowed)}")

    @property
    def quantised(self) -> bool:
        """Whether the exported network is to be quantised."""
        return self.precision in QUANTISED

    @property
    def float_precision(self) -> str:
        """The precision of PyTorch that it compares with."""
        return "fp16" if self.quantised else self.precision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it takes normalised clips in, and that the network calculates in once it is an engine."""
        return DTYPES[self.float_precision]

    @property
    def body_dtype(self) -> torch.dtype:
        """The dtype that it is exported in: ranges are measured best in float32."""
        return torch.float32 if self.quantised else self.dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the clips."""
        return torch.uint8 if self.input == "uint8" else self.dtype


class PlacedInteraction(nn.Module):
    """An ObjectInteraction for one size of feature map: its position embedding is in the bias of the 7x7 convolution.

    ``conv(h + position) + bias == conv(h) + (conv(position) + bias)``; the sum on the right, (1, 16, H, W), is ``map``.
    """

    def __init__(self, interaction: ObjectInteraction, height: int, width: int) -> None:
        super().__init__()
        self.short_conv, self.glo_conv = interaction.short_conv, interaction.glo_conv
        wide = self.glo_conv[3]
        assert isinstance(wide, nn.Conv2d)
        position = position_reference(interaction.pos_embed.double(), height, width)
        placed = nn.functional.conv2d(position, wide.weight.double(), _double(wide.bias), padding=wide.padding)
        self.map = nn.Parameter(placed.to(wide.weight.dtype), requires_grad=False)
        wide.bias = None

    def hidden(self, x: Tensor) -> Tensor:
        """See ``ObjectInteraction.hidden``."""
        return torch.relu(self.glo_conv[3](self.glo_conv[:3](x)) + self.map)


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.double()


class ExportedNetwork(nn.Module):
    """What is exported. clips (B, 48, S, S), normalised or uint8 -> logits (B, K), embeddings (B, C), float32."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: SqueezeTime, config: ExportConfig) -> None:
        super().__init__()
        if model.fc is None:
            raise ConfigError("these weights hold no classifier, so there is nothing to label with: choose others")
        self.config = config
        self.net = _placed(fold(model), config.size)
        mean, std = mean_and_std(model.config.input_channels // 3, dtype=torch.float64)
        self.register_buffer("scale", (1 / std).float()[:, None, None])
        self.register_buffer("shift", (-mean / std).float()[:, None, None])
        self.net.to(config.body_dtype)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.input == "uint8":
            clips = clips.to(self.scale.dtype) * self.scale + self.shift
        embeddings = self.net.embed(clips.to(self.net.conv1.weight.dtype))
        return self.net.classify(embeddings).float(), embeddings.float()


@torch.no_grad()
def _placed(folded: SqueezeTime, size: int) -> SqueezeTime:
    """Put the position embeddings of a folded network in their places for clips of size x size pixels, in place."""
    sizes: dict[str, torch.Size] = {}
    ctls = {name: m for name, m in folded.named_modules() if isinstance(getattr(m, "spatial_conv", None), nn.Module)}

    def remember(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        sizes[name] = inputs[0].shape[-2:]

    hooks = [m.spatial_conv.glo_conv[3].register_forward_pre_hook(partial(remember, n)) for n, m in ctls.items()]
    folded.embed(torch.zeros(1, folded.config.input_channels, size, size))
    for hook in hooks:
        hook.remove()
    for name, ctl in ctls.items():
        assert isinstance(ctl.spatial_conv, ObjectInteraction)
        ctl.spatial_conv = PlacedInteraction(ctl.spatial_conv, *sizes[name])
    return folded


def why_not() -> str | None:
    """Return what is missing to export, None for nothing."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed (pip install 'sqt-fast[onnx]')"
    )


def network_sha256(model: SqueezeTime) -> str:
    """Return what tells a network's numbers from all others', wherever they were read from."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def export_onnx(network: ExportedNetwork, path: Path, *, max_batch: int, about: dict[str, str]) -> None:
    """Write ``network`` to ``path``, one file with all weights in it; batches of 1 to ``max_batch`` clips.

    about: text for the model's metadata, beside what it takes and gives. Raises BackendError where exporters are
    missing or fail, OutputError where the file cannot be written.
    """
    if reason := why_not():
        raise BackendError(f"exporting to ONNX: {reason}")
    config = network.config
    channels = network.net.config.input_channels
    clips = torch.zeros(2, channels, config.size, config.size, dtype=config.input_dtype)
    batch = torch.export.Dim("batch", min=1, max=max(2, max_batch))
    try:
        with _quiet():
            program = torch.onnx.export(
                network.eval(),
                (clips,),
                dynamo=True,
                dynamic_shapes={"clips": {0: batch}},
                input_names=[INPUT_NAME],
                output_names=OUTPUT_NAMES,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, of many kinds
        raise BackendError(f"exporting to ONNX: torch {torch.__version__} failed ({first_line(error)})") from error
    assert program is not None
    proto = program.model_proto
    del proto.metadata_props[:]
    for name, text in ({"preprocessing": json.dumps(preprocessing(config, channels))} | about).items():
        proto.metadata_props.add(key=name, value=text)
    _forget_sources(proto)
    with naming(path):
        replace_file(path, lambda file: file.write(proto.SerializeToString(deterministic=True)))


def preprocessing(config: ExportConfig, channels: int) -> dict[str, Any]:
    """Return in plain values what clips must be for a network that was exported with ``config``."""
    return {
        "shape": ["batch", channels, config.size, config.size],
        "channels": "RGB; channel = colour * frames + frame",
        "frames": channels // 3,
        "input": config.input,
        "mean": list(MEAN),
        "std": list(STD),
    }


def _forget_sources(proto: Any) -> None:
    """Take out what the exporter notes of Python's call stacks, paths of this machine among it."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        graph.doc_string = ""
        for each in (*graph.node, *graph.value_info):
            del each.metadata_props[:]
            each.doc_string = ""
    for each in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on packages that it does not need to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
