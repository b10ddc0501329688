"""Read, fit and write weights, whoever wrote them. Names are those of ``SqueezeTime().state_dict()`` throughout."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sqt_fast.errors import CheckpointError, ConfigError
from sqt_fast.files import replace_file
from sqt_fast.network.model import DEPTHS, INPUT_CHANNELS, STAGE_WIDTHS, ModelConfig, SqueezeTime
from sqt_fast.network.torchfile import read_torch

_AGAIN = "copy or download it again"
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
_HEADS = ("cls_head.fc_cls.", "cls_head.fc.", "head.fc.")
_OURS = re.compile(r"(conv1|bn1|layer[1-4]\.\d+|fc)\.")


def canonical_name(name: str) -> str | None:
    """Return the name that ``SqueezeTime`` uses for a tensor of a file, None for a tensor of something else."""
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    if head := next((h for h in _HEADS if name.startswith(h)), ""):
        name = f"fc.{name.removeprefix(head)}"
    return name if _OURS.match(name) else None


def _only_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to canonical names and drop other heads and training state."""
    ours: dict[str, Tensor] = {}
    for original, value in state.items():
        if (name := canonical_name(original)) is None:
            continue
        if name in ours:
            raise CheckpointError(f"holds {name} twice, under two prefixes; save one network alone")
        ours[name] = value
    if not ours:
        seen = ", ".join(list(state)[:3]) or "no tensor at all"
        raise CheckpointError(f"holds no tensor of SqueezeTime (but {seen}); give a SqueezeTime checkpoint")
    return ours


def _refuse_lookalike(head: bytes) -> None:
    """Say plainly what a file is that people mistake for weights. head: its first bytes."""
    if not head:
        raise CheckpointError(f"is empty; {_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not weights; fetch it with git lfs pull")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        raise CheckpointError("is a web page, not weights; download the file itself")
    if head[:4] != b"PK\x03\x04" and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        raise CheckpointError("is a text file, not weights; give a .pth or .safetensors file")


def _read(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        head = file.read(256)
        _refuse_lookalike(head)
    if head.startswith(b"PK\x03\x04"):
        return read_torch(path, is_zip=True)
    if head[8:9] == b"{":
        return load_file(path)
    if head.startswith(b"\x80"):
        return read_torch(path, is_zip=False)
    raise CheckpointError(f"is no checkpoint (it starts with {head[:8]!r}); give a .pth or .safetensors file")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the network's tensors from an mmengine, torch or safetensors file; nothing in the file is executed.

    Weights under ``state_dict``, ``model`` and the like are found. Tensors of other heads, optimizers and so on are
    dropped. Returns CPU tensors by canonical name, in the file's dtypes. Raises CheckpointError, on one line, for
    whatever is not such a file.
    """
    path = Path(path)
    try:
        return _only_ours(_read(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory; give the checkpoint file inside it") from None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read; check its permissions") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is cut short or damaged ({reason}); {_AGAIN}") from error


def _usual(values: Iterable[int]) -> int | None:
    """Return the commonest value, so that one misshapen tensor does not decide."""
    common = Counter(values).most_common(1)
    return common[0][0] if common else None


def _infer_width(stages: tuple[int, ...]) -> float:
    """Return the shortest decimal w with ``int(64 * w), int(128 * w), ...`` equal to the stages' widths."""
    low = max(n / full for n, full in zip(stages, STAGE_WIDTHS, strict=True))
    high = min((n + 1) / full for n, full in zip(stages, STAGE_WIDTHS, strict=True))
    if low >= high:
        raise CheckpointError(f"stages of {stages} channels are no multiple of {STAGE_WIDTHS}; give a SqueezeTime file")
    rounded = (-(-low * 10**digits // 1) / 10**digits for digits in range(1, 7))
    return next((w for w in rounded if low <= w < high), low)


def infer_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """Read the shape of a network off its tensors alone.

    Depth comes from the blocks, width from the stages' channels, stride from the down-sampling's kernel (none: 1).
    Where tensors disagree the majority decides; ``fit`` names the others. Raises CheckpointError if no SqueezeTime
    has such blocks or widths.
    """

    def sizes(pattern: str, axis: int) -> list[int]:
        return [t.shape[axis] for name, t in state.items() if re.fullmatch(pattern, name) and t.ndim > axis]

    blocks: list[int] = []
    widths: list[int] = []
    strides: list[int] = []
    pos_dim: list[int] = []
    for i, default_pos in zip((1, 2, 3, 4), ModelConfig.pos_dim, strict=True):
        members = [int(name.split(".")[1]) for name in state if name.startswith(f"layer{i}.")]
        blocks.append(max(members, default=-1) + 1)
        widths.append(_usual(sizes(rf"layer{i}\.\d+\.bn[12]\.weight", 0)) or 0)
        has_downsample = any(name.startswith(f"layer{i}.0.downsample.") for name in state)
        strides.append(_usual(sizes(rf"layer{i}\.0\.downsample\.0\.weight", 3)) or (2 if has_downsample else 1))
        pos_dim.append(_usual(sizes(rf"layer{i}\.\d+\.conv2\.spatial_conv\.pos_embed", 3)) or default_pos)
    bottleneck = any(name.endswith(".conv3.weight") for name in state)
    depth = next((d for d, shape in DEPTHS.items() if shape == (bottleneck, tuple(blocks))), None)
    if depth is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise CheckpointError(f"{blocks} {kind} blocks are no SqueezeTime; depths are {', '.join(map(str, DEPTHS))}")
    try:
        return ModelConfig(
            depth=depth,
            width=_infer_width(tuple(widths)),
            num_classes=_usual(sizes(r"fc\.(weight|bias)", 0)),
            spatial_stride=(strides[0], strides[1], strides[2], strides[3]),
            pos_dim=(pos_dim[0], pos_dim[1], pos_dim[2], pos_dim[3]),
            input_channels=_usual(sizes(r"conv1\.weight", 1)) or INPUT_CHANNELS,
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _complaint(kind: str, names: list[str]) -> str:
    return f"; {len(names)} {kind}: {', '.join(names)}" if names else ""


def fit(model: SqueezeTime, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy every tensor of ``state`` (canonical names) into ``model``, cast to its dtypes.

    Missing batch norm counters become 0: networks with a fixed momentum never read them. Raises one CheckpointError
    naming every missing, unexpected and misshapen tensor, and then changes nothing.
    """
    wanted = model.state_dict()
    counters = {n: torch.zeros((), dtype=t.dtype) for n, t in wanted.items() if n.endswith("num_batches_tracked")}
    given = counters | dict(state)
    shapes = [(n, tuple(given[n].shape), tuple(t.shape)) for n, t in wanted.items() if n in given]
    complaints = (
        _complaint("missing", [n for n in wanted if n not in given])
        + _complaint("unexpected", [n for n in given if n not in wanted])
        + _complaint("misshapen", [f"{n} {have} instead of {want}" for n, have, want in shapes if have != want])
    )
    if complaints:
        about = f"SqueezeTime of depth {model.config.depth}, width {model.config.width:g}"
        raise CheckpointError(f"{source} does not fit {about}{complaints}; give a checkpoint of this network")
    model.load_state_dict(given)


class _Undrawn(TorchFunctionMode):
    """Leaves the weights of new layers as the memory is: drawing random ones takes longer than reading the right ones.

    Not by the meta device, whose first use imports 800 modules (1 s).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draws = func.__name__ in ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_")
        return None if draws else func(*args, **(kwargs or {}))


def build(state: Mapping[str, Tensor], *, source: str) -> SqueezeTime:
    """Make the network that ``state`` (canonical names) belongs to: float32, on the CPU, in evaluation mode.

    source: what errors call it, such as the file's path. Raises CheckpointError if it is no whole SqueezeTime.
    """
    try:
        config = infer_config(state)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with _Undrawn():
        model = SqueezeTime(config)
    fit(model, state, source=source)
    return model.eval()


def save_safetensors(
    weights: SqueezeTime | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights under canonical names, whole or not at all.

    metadata: text to keep beside them, such as ``source`` and ``source_sha256``; ``config``, the network's shape as
    JSON, is added. Raises CheckpointError if the file cannot be written or the tensors are no SqueezeTime.
    """
    path = Path(path)
    named = weights.state_dict() if isinstance(weights, SqueezeTime) else weights
    state = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in _only_ours(named).items()}
    config = weights.config if isinstance(weights, SqueezeTime) else infer_config(state)
    content = save(state, {"config": json.dumps(asdict(config)), **(metadata or {})})
    try:
        replace_file(path, lambda file: file.write(content))  # not save_file: only its owner may read what it makes
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}); choose another place") from None
