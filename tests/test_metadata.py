"""What weights say of themselves: read from the first bytes, without torch, whatever stands there."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51
from sqt_fast.errors import CheckpointError
from sqt_fast.network import metadata
from sqt_fast.network.metadata import labels_in, protocol_in, read_metadata

SMALL = replace(FAST, short_side=64, crop_size=56)


def saved(folder: Path, about: dict[str, str] | None) -> Path:
    """Write a file as safetensors itself does."""
    save_file({"fc.bias": torch.zeros(3)}, folder / "a.safetensors", about)
    return folder / "a.safetensors"


def with_header(folder: Path, header: bytes, size: int | None = None) -> Path:
    """Write a file by hand, with the length that its header has or claims to have."""
    (folder / "b.safetensors").write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header)
    return folder / "b.safetensors"


# -- any file ---------------------------------------------------------------------------------------------------------


def test_metadata_is_what_safetensors_wrote(tmp_path: Path) -> None:
    about = {"source": "k400", "labels": '["naïve, “quoted”"]', "empty": ""}
    assert read_metadata(saved(tmp_path, about)) == about
    assert read_metadata(str(saved(tmp_path, None))) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\x01", b'{"__metadata__": {"labels": "[]"}}'], ids=str)
def test_other_files_say_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "zip.pth")
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a", "zip.pth", "old.pth", "nowhere", "."):
        path = tmp_path / name
        assert (read_metadata(path), labels_in(path), protocol_in(path, "fast")) == ({}, None, None), name


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b'{"__metadata__": {"labels": "[1]"', id="cut short"),
        pytest.param(b'{"__metadata__": 5}', id="a number"),
        pytest.param(b'{"__metadata__": ["ab", "cd"]}', id="a list"),
        pytest.param(b'{"__metadata__": null}', id="null"),
        pytest.param(b'{"__metadata__": {"labels": 5}}', id="no text"),
        pytest.param(b'{"labels": "[]"}', id="elsewhere"),
        pytest.param(b'{"__metadata__": {"labels": "\xff"}}', id="no UTF-8"),
        pytest.param(b'[{"__metadata__": {"labels": "[]"}}]', id="no object"),
        pytest.param(b'{"a": ' * 100_000, id="brackets"),
    ],
)
def test_a_damaged_header_says_nothing(tmp_path: Path, header: bytes) -> None:
    path = with_header(tmp_path, header)
    assert (read_metadata(path), labels_in(path), protocol_in(path, "fast")) == ({}, None, None)


def test_a_file_is_read_as_far_as_its_header_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b'{"__metadata__": {"source": "x"}}'
    path = with_header(tmp_path, header)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read_metadata(path) == {"source": "x"}
    monkeypatch.setattr(metadata, "MAX_HEADER_BYTES", len(header))
    assert read_metadata(path) == {"source": "x"}
    monkeypatch.setattr(metadata, "MAX_HEADER_BYTES", len(header) - 1)
    assert read_metadata(path) == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["fast", "labels", "a"]), inner),
    max_leaves=6,
)


@given(
    about=_JSON | st.fixed_dictionaries({"labels": _JSON, "protocols": _JSON}),
    encoded=st.booleans(),
    cut=st.integers(0, 9),
)
def test_no_file_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, about: Any, encoded: bool, cut: int) -> None:
    if encoded and isinstance(about, dict):
        about = {name: json.dumps(each) for name, each in about.items()}
    header = json.dumps({"__metadata__": about}).encode()
    path = with_header(tmp_path_factory.getbasetemp(), header, len(header) - max(0, cut - 5))
    found = read_metadata(path)
    if cut <= 5:
        assert found == ({k: v for k, v in about.items() if isinstance(v, str)} if isinstance(about, dict) else {})
    for read in (labels_in, lambda path: protocol_in(path, "fast")):
        try:
            read(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: its metadata ")


def test_torch_is_not_needed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"labels": '["a", "b"]', "protocols": json.dumps({"fast": asdict(SMALL)})})
    code = """if True:
        import sys
        from sqt_fast.network.metadata import labels_in
        from sqt_fast.network.protocols import find_protocol
        print(labels_in(sys.argv[1]), find_protocol("fast", sys.argv[1]).crop_size)
        print([m for m in ("torch", "numpy", "safetensors", "pooch", "rich") if m in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "('a', 'b') 56\n[]\n"


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_labels(tmp_path: Path) -> None:
    names = ("left", "naïve, “quoted”", "")
    assert labels_in(saved(tmp_path, {"labels": json.dumps(names)})) == names
    assert labels_in(saved(tmp_path, {"labels": "[1, 2]"})) == ("1", "2")
    assert labels_in(saved(tmp_path, {"source": "x"})) is None


@pytest.mark.parametrize("text", ["{}", "not json", "5", '"abc"', "[" * 100_000], ids=lambda text: text[:9])
def test_bad_labels_are_named(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, {"labels": text})
    with pytest.raises(CheckpointError) as caught:
        labels_in(path)
    assert str(caught.value) == f"{path}: its metadata labels are no JSON list; say the class names with --labels"


def test_protocols(tmp_path: Path) -> None:
    path = saved(tmp_path, {"protocols": json.dumps({"fast": asdict(SMALL), "official": asdict(OFFICIAL_HMDB51)})})
    assert protocol_in(path, "fast") == SMALL
    assert protocol_in(path, "official") == OFFICIAL_HMDB51
    assert protocol_in(path, "single") is None
    assert protocol_in(saved(tmp_path, {"source": "x"}), "fast") is None


@pytest.mark.parametrize(
    "protocols",
    [
        pytest.param("fast", id="text"),
        pytest.param([asdict(OFFICIAL)], id="a list"),
        pytest.param(5, id="a number"),
        pytest.param({"official": None}, id="none"),
        pytest.param({"official": 224}, id="a size"),
        pytest.param({"official": {"name": "official", "short_side": 224}}, id="fields missing"),
        pytest.param({"official": {**asdict(OFFICIAL), "fps": 30}}, id="another field"),
        pytest.param({"official": {**asdict(OFFICIAL), "crop_size": "224"}}, id="a size in words"),
        pytest.param({"official": {**asdict(OFFICIAL), "short_side": 224.5}}, id="part of a pixel"),
        pytest.param({"official": {**asdict(OFFICIAL), "crop_size": 0}}, id="no pixels"),
        pytest.param({"official": {**asdict(OFFICIAL), "crop_size": 225}}, id="a crop beyond the frame"),
        pytest.param({"official": {**asdict(OFFICIAL), "num_clips": 0}}, id="no clips"),
        pytest.param({"official": {**asdict(OFFICIAL), "num_crops": 2}}, id="two crops"),
    ],
)
def test_bad_protocols_are_named(tmp_path: Path, protocols: Any) -> None:
    path = saved(tmp_path, {"protocols": protocols if isinstance(protocols, str) else json.dumps(protocols)})
    with pytest.raises(CheckpointError) as caught:
        protocol_in(path, "official")
    message = f"{path}: its metadata protocols are none of ours; train or convert it again"
    assert str(caught.value) == message
