"""A network in a file: exported to ONNX, quantised if that is asked for, and held against PyTorch."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sqt_fast import __version__
from sqt_fast.errors import ParityError
from sqt_fast.files import naming, replace_file
from sqt_fast.network.onnx_export import OPSET, ExportConfig, ExportedNetwork, export_onnx
from sqt_fast.network.parity import ROUNDED, Limits, Parity, as_given, drawn_clips, onnx_parity
from sqt_fast.network.weights import Weights, load_weights
from sqt_fast.tensorrt.quantize import Calibration, load_modelopt, quantize, write_for_onnxruntime

PARITY_CLIPS = 4  # for the exported network, which is checked on the CPU
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A network in a file, and what it was made from. clips: to judge an engine of it by, uint8; None: drawn ones."""

    weights: Weights
    path: Path
    parity: Parity | None
    clips: Tensor | None = None
    limits: Limits = ROUNDED


@dataclass(frozen=True)
class Exports:
    """A network that is to be exported: weights by name or path, and the most clips at once."""

    weights: str
    config: ExportConfig
    max_batch: int

    def write(self, path: Path, say: Say) -> str:
        """Write the network to ``path`` as ONNX, hold it against PyTorch, and return what is known, on a line.

        Raises ParityError where it does not give what the network gives, and writes nothing then.
        """
        with tempfile.TemporaryDirectory() as folder:
            exported = self.export(Path(folder) / "network.onnx", say)
            keep(exported.path, path)
        config = self.config
        return f"{path}: {config.precision}, {config.input} clips of {config.size}x{config.size}, opset {OPSET}"

    def export(self, path: Path, say: Say) -> Exported:
        """Write the network to ``path``, whatever becomes of it, and hold it against PyTorch."""
        weights = load_weights(self.weights)
        say("exporting to ONNX")
        export_onnx(ExportedNetwork(weights.model, self.config), path, max_batch=self.max_batch, about=_about(weights))
        parity = onnx_parity(weights.model, self.config, path, drawn_clips(PARITY_CLIPS, self.config.size))
        if parity is not None and not parity.holds:
            raise ParityError(f"the exported network does not give what the network gives: {parity}")
        unknown = "not run, for it has no bfloat16 convolution on CPUs"
        say(f"exported, and in ONNX Runtime: {parity or unknown}")
        return Exported(weights, path, parity)

    def quantised(self, path: Path, calibration: Calibration, num_clips: int, say: Say) -> Exported:
        """Write the network to ``path`` quantised, whatever becomes of it, and hold it against PyTorch.

        num_clips: how many to judge it by, of the same videos as those that it is calibrated with.
        """
        load_modelopt()  # before the minutes
        say("taking clips from videos")
        clips, held_out = calibration.clips(max(num_clips, PARITY_CLIPS))
        source = self.export(path.with_suffix(".float.onnx"), say)
        mode, started = self.config.precision, time.perf_counter()
        say(f"quantising to {mode}, with {len(clips)} clips")
        pairs = quantize(source.path, path, mode, as_given(clips, self.config))
        say(f"quantised in {time.perf_counter() - started:.0f} s: {pairs} Q/DQ pairs")
        model, limits = source.weights.model, calibration.limits
        checked = path.with_suffix(".checked.onnx")
        write_for_onnxruntime(path, checked)
        parity = onnx_parity(model, self.config, checked, held_out, limits)
        assert parity is not None  # its body is no bfloat16
        if not parity.holds:
            raise ParityError(
                f"the network in {mode} does not give what the network gives, on clips that it was not calibrated "
                f"with: {parity}; use more --calibration-clips, another precision, or lower limits (--min-cosine, "
                "--min-top1)"
            )
        say(f"in {mode}, in ONNX Runtime, on clips that it was not calibrated with: {parity}")
        return Exported(source.weights, path, parity, held_out, limits)


def _about(weights: Weights) -> dict[str, str]:
    """Return what the metadata of an exported network says of its weights."""
    about = {"weights": weights.name, "weights_sha256": weights.sha256, "made_by": f"sqt-fast {__version__}"}
    return about | ({"labels": json.dumps(weights.labels)} if weights.labels else {})


def keep(path: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Raises OutputError."""
    with naming(target):
        replace_file(target, lambda file: file.write(path.read_bytes()))
