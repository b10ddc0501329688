"""Label what happens when in a folder of videos, with SqueezeTime (arXiv 2405.08344).

Legend used everywhere: B clips, T=16 frames, C channels, H W pixels, K classes, F frames of one video.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sqt_fast.config import IndexConfig
from sqt_fast.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DeviceLostError,
    InterruptedRunError,
    OutputError,
    SqtError,
    VideoError,
)
from sqt_fast.video.archive import path_of

if TYPE_CHECKING:
    from sqt_fast.engine.results import Summary
    from sqt_fast.network.backends import InferenceModel
    from sqt_fast.network.model import SqueezeTime

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DeviceLostError",
    "IndexConfig",
    "InterruptedRunError",
    "OutputError",
    "SqtError",
    "VideoError",
    "__version__",
    "index",
    "load_model",
    "path_of",
]
__version__ = "0.1.0"


def index(inputs: str | Path | Iterable[str | Path], output: str | Path, **options: Any) -> "Summary":
    """Label videos into a table, as ``sqt-fast index`` does, and return what the run did.

    inputs: files, folders, glob patterns, lists (.txt .csv .parquet); one or several. output: the table, ``.parquet``,
    ``.csv`` or ``.jsonl``. options: the other fields of ``IndexConfig``, such as ``weights="k400"``, ``stride_s=1.0``,
    ``embeddings=True``. Nothing is printed. A run that was stopped goes on when the same call is made again.

    Raises ConfigError for options that cannot work, CheckpointError, BackendError and OutputError for what the machine
    refuses, InterruptedRunError after Ctrl-C. Files that cannot be labelled are rows of the table, not exceptions.
    """
    from sqt_fast.run import run  # Arrow and FFmpeg are imported only when something is labelled

    several = (inputs,) if isinstance(inputs, str | Path) else tuple(inputs)
    return run(IndexConfig(inputs=tuple(map(str, several)), output=Path(output), **options))


@overload
def load_model(
    weights: str, *, device: str = "cpu", backend: None = None, precision: str = "fp32"
) -> "SqueezeTime": ...


@overload
def load_model(weights: str, *, device: str = "cpu", backend: str, precision: str = "fp32") -> "InferenceModel": ...


def load_model(
    weights: str, *, device: str = "cpu", backend: str | None = None, precision: str = "fp32"
) -> "SqueezeTime | InferenceModel":
    """Load a SqueezeTime network in evaluation mode.

    weights: a published name (``k400 k600 hmdb51 in1k ava``), ``random``, or a path to a checkpoint (mmengine, bare
    state dict, ``model``-keyed, safetensors). device: where to put it, for example ``cpu`` or ``cuda:0``.

    Without ``backend``: the network itself, float32, an ``nn.Module`` with ``features(clips)``, ``embed(clips)`` and
    ``logits(clips)``, that can be trained further. With one (``eager``, ``compile``, ``triton``): the folded network
    for inference in ``precision`` (``fp32``, ``bf16``, ``fp16``), with ``embed`` and ``logits``. Clips are normalised
    RGB (B, 3, 16, H, W) or (B, 48, H, W) with channel = c * 16 + t.

    Raises ``CheckpointError`` when the file cannot be had, read or fitted, ``BackendError`` when the backend cannot run
    here, ``ConfigError`` for weights, a backend or a precision that there are not.
    """
    from sqt_fast.network.weights import load_weights  # torch is imported only when a network is wanted

    model = load_weights(weights).model
    if backend is None:
        return model.to(device)
    from sqt_fast.network.backends import InferenceModel

    return InferenceModel(model, backend, device=device, precision=precision)
