"""Reading, fitting and writing weights: what comes back, and what every kind of bad file is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sqt_fast.errors import CheckpointError
from sqt_fast.network.checkpoint import (
    build,
    canonical_name,
    fit,
    infer_config,
    read_checkpoint,
    save_safetensors,
)
from sqt_fast.network.metadata import read_metadata
from sqt_fast.network.model import DEPTHS, ModelConfig, SqueezeTime

TINY = ModelConfig(depth=18, width=1 / 32, num_classes=5, pos_dim=(8, 4, 2, 1))


def tiny(config: ModelConfig = TINY) -> SqueezeTime:
    torch.manual_seed(1)
    return SqueezeTime(config).eval()


def as_mmengine(model: SqueezeTime) -> dict[str, Tensor]:
    return {
        f"cls_head.fc_cls.{name[3:]}" if name.startswith("fc.") else f"backbone.net.{name}": tensor
        for name, tensor in model.state_dict().items()
    }


def assert_same_state(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("conv1.weight", "conv1.weight"),
        ("backbone.net.layer3.2.bn1.bias", "layer3.2.bn1.bias"),
        ("module.backbone.net.bn1.weight", "bn1.weight"),
        ("module._orig_mod.conv1.weight", "conv1.weight"),
        ("cls_head.fc_cls.weight", "fc.weight"),
        ("module.cls_head.fc_cls.bias", "fc.bias"),
        ("net.fc.weight", "fc.weight"),
        ("roi_head.bbox_head.fc_cls.weight", None),
        ("ema_backbone_net_conv1_weight", None),
        ("n_averaged", None),
        ("layer5.0.bn1.weight", None),
        ("", None),
    ],
)
def test_canonical_name(name: str, canonical: str | None) -> None:
    assert canonical_name(name) == canonical


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_round_trip(tmp_path: Path, nest: str | None, prefix: str) -> None:
    model, path = tiny(), tmp_path / "a.pth"
    state = {prefix + name: tensor for name, tensor in as_mmengine(model).items()}
    state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(81, 128)
    torch.save(state if nest is None else {"meta": {"epoch": 1}, nest: state, "optimizer": {"state": {}}}, path)
    assert_same_state(read_checkpoint(path), model.state_dict())


def test_the_release_files_round_trip_to_safetensors(shared: Path, tmp_path: Path) -> None:
    for name in ("r50_w025", "r18_w025", "ava_r50_w025"):
        state = read_checkpoint(shared / "golden" / f"{name}.pth")
        model = build(state, source=name)
        save_safetensors(model, tmp_path / "a.safetensors", {"source": name})
        assert_same_state(read_checkpoint(tmp_path / "a.safetensors"), state)
        assert_same_state(dict(model.state_dict()), state)


def test_safetensors_are_whole_readable_by_others_and_described(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "a.safetensors"
    save_safetensors(model, path, {"source": "here", "source_sha256": "00"})
    save_safetensors(as_mmengine(model), path, {"source": "there"})
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    metadata = read_metadata(path)
    assert metadata["source"] == "there"
    assert json.loads(metadata["config"])["depth"] == TINY.depth
    assert_same_state(read_checkpoint(path), model.state_dict())


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_writing_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing/a.safetensors cannot be written .*; choose another place"):
        save_safetensors(tiny(), tmp_path / "missing" / "a.safetensors")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_safetensors(tiny(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@settings(max_examples=20, deadline=None)
@given(
    depth=st.sampled_from([10, 18, 34, 50, 101]),
    width=st.one_of(st.sampled_from([0.25, 0.5, 1.0, 1 / 3, 1.5, 2.0]), st.floats(1 / 64, 3)),
    num_classes=st.one_of(st.none(), st.integers(1, 1000)),
    spatial_stride=st.tuples(*[st.integers(1, 3)] * 4),
    pos_dim=st.tuples(*[st.integers(1, 60)] * 4),
    input_channels=st.integers(1, 96),
)
def test_a_config_is_read_off_the_tensors(**shape: Any) -> None:
    config = ModelConfig(**shape)
    with torch.device("meta"):
        model = SqueezeTime(config)
        inferred = infer_config(model.state_dict())
        again = SqueezeTime(inferred)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    for field in ("depth", "num_classes", "spatial_stride", "pos_dim", "input_channels", "stage_widths"):
        assert getattr(inferred, field) == getattr(config, field)


@pytest.mark.parametrize("width", [0.25, 0.3, 0.5, 0.75, 1.0, 1.25, 2.0])
def test_a_plain_width_comes_back_as_written(width: float) -> None:
    with torch.device("meta"):
        assert infer_config(SqueezeTime(ModelConfig(depth=10, width=width)).state_dict()).width == width


@pytest.mark.parametrize("depth", [152, 200])
def test_the_deepest_networks_are_told_apart(depth: int) -> None:
    with torch.device("meta"):
        assert infer_config(SqueezeTime(ModelConfig(depth=depth)).state_dict()).depth == depth


def test_stages_that_do_not_belong_together_are_named() -> None:
    state = tiny().state_dict()
    for name in state:
        if name.startswith("layer2.") and ".bn" in name:
            state[name] = torch.zeros(9)
    with pytest.raises(CheckpointError, match=r"\(2, 9, 8, 16\) channels"):
        infer_config(state)


def test_unknown_depths_are_named_with_the_known_ones() -> None:
    state = {name: t for name, t in tiny().state_dict().items() if not name.startswith("layer3.1.")}
    with pytest.raises(CheckpointError, match=r"a\.pth: \[2, 2, 1, 2\] basic blocks.*10, 18, 34, 50, 101, 152, 200"):
        build(state, source="a.pth")
    assert set(DEPTHS) == {10, 18, 34, 50, 101, 152, 200}


def test_a_misfit_names_every_tensor_at_once() -> None:
    state = tiny().state_dict()
    del state["layer1.0.bn1.bias"], state["conv1.weight"]
    state["layer2.1.surprise"] = torch.zeros(1)
    state["fc.extra"] = torch.zeros(2)
    state["layer4.1.conv2.temporal_conv.weight"] = torch.zeros(3, 3, 1, 1)
    state["bn1.running_mean"] = torch.zeros(77)
    with pytest.raises(CheckpointError) as caught:
        build(state, source="a.pth")
    message = str(caught.value)
    assert message == (
        "a.pth does not fit SqueezeTime of depth 18, width 0.032"
        "; 2 missing: conv1.weight, layer1.0.bn1.bias"
        "; 2 unexpected: layer2.1.surprise, fc.extra"
        "; 2 misshapen: bn1.running_mean (77,) instead of (2,)"
        ", layer4.1.conv2.temporal_conv.weight (3, 3, 1, 1) instead of (16, 16, 1, 1)"
        "; give a checkpoint of this network"
    )


def test_missing_batch_norm_counters_are_tolerated() -> None:
    wanted = tiny()
    state = {name: t for name, t in wanted.state_dict().items() if not name.endswith("num_batches_tracked")}
    model = build(state, source="a.pth")
    assert model.state_dict()["bn1.num_batches_tracked"].item() == 0
    clips = torch.randn(1, 48, 32, 32)
    assert torch.equal(model(clips), wanted(clips))


def test_build_gives_an_independent_float32_network_in_evaluation_mode() -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in tiny().state_dict().items()}
    model = build(state, source="a.pth")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert state["conv1.weight"].abs().sum() > 0


def test_fit_fills_a_network_in_place() -> None:
    model, wanted = SqueezeTime(TINY), tiny()
    weight = model.conv1.weight
    fit(model, wanted.state_dict(), source="a.pth")
    assert model.conv1.weight is weight
    assert_same_state(dict(model.state_dict()), dict(wanted.state_dict()))


def test_a_misfit_changes_nothing() -> None:
    model = tiny()
    state = {name: torch.full_like(tensor, 3) for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        fit(model, {**state, "fc.bias": torch.zeros(4)}, source="a.pth")
    assert_same_state(dict(model.state_dict()), dict(tiny().state_dict()))


def test_building_leaves_the_random_numbers_alone() -> None:
    state, before = tiny().state_dict(), torch.random.get_rng_state()
    build(state, source="a.pth")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 118000000\n",
            "is a Git LFS pointer, not weights; fetch it with git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>Not Found</html>", "is a web page, not weights"),
        (b"\n<html><body>rate limit</body></html>", "is a web page, not weights"),
        ("weights will follow. Gruß".encode(), "is a text file, not weights"),
        (b"PK\x03\x04" + b"\0" * 60, "is cut short or damaged"),
        (b"\x80\x02", "is cut short or damaged"),
        (b"\x08\0\0\0\0\0\0\0{garbage", "is cut short or damaged"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0", "is no checkpoint"),
        (bytes(range(256)), "is no checkpoint"),
    ],
    ids=["empty", "lfs", "html", "html body", "text", "zip", "pickle", "safetensors", "program", "bytes"],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / "a"
    if kind == "safetensors":
        save_safetensors(tiny(), path)
    else:
        torch.save(as_mmengine(tiny()), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"is cut short or damaged .*; copy or download it again$"):
        read_checkpoint(path)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"conv1.weight": torch.ones(64)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(64).numpy().tobytes()) + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file; check the path"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a directory; give the checkpoint file inside it"):
        read_checkpoint(tmp_path)


def test_weights_of_something_else_are_named(tmp_path: Path) -> None:
    save_file({"blocks.0.weight": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no tensor of SqueezeTime \(but blocks\.0\.weight\)"):
        read_checkpoint(tmp_path / "vit.safetensors")


def test_two_networks_in_one_file_are_named(tmp_path: Path) -> None:
    torch.save({"backbone.net.bn1.weight": torch.zeros(1), "module.bn1.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds bn1\.weight twice"):
        read_checkpoint(tmp_path / "a.pth")


class Watch(TorchFunctionMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_network_is_not_drawn_at_random_only_to_be_overwritten(tmp_path: Path) -> None:
    model = tiny()
    save_safetensors(model, tmp_path / "tiny.safetensors")
    before = torch.random.get_rng_state()
    draws = {"kaiming_uniform_", "uniform_", "normal_"}
    with Watch() as seen:
        again = build(read_checkpoint(tmp_path / "tiny.safetensors"), source="x")
    assert draws & seen.called == set()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    with Watch() as seen:
        SqueezeTime(TINY)
    assert draws <= seen.called
