"""Which protocol belongs to which weights: the file's own, or the release's."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, SINGLE, ClipProtocol
from sqt_fast.errors import CheckpointError
from sqt_fast.files import file_sha256
from sqt_fast.network import published
from sqt_fast.network.protocols import find_protocol
from sqt_fast.network.published import PUBLISHED, record_sha256

SMALL = replace(FAST, short_side=64, crop_size=56)
SMALL_OFFICIAL = replace(OFFICIAL, short_side=60, crop_size=60, num_clips=3, num_crops=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which is there."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def saved(path: Path, *protocols: ClipProtocol) -> str:
    about = {"protocols": json.dumps({each.name: asdict(each) for each in protocols})}
    save_file({"fc.bias": torch.zeros(3)}, path, about)
    return str(path)


def test_the_release_has_its_own() -> None:
    for weights in ("k400", "k600", "in1k", "ava", "hmdb51", "random", "some/file.pth"):
        assert find_protocol("fast", weights) == FAST
        assert find_protocol("single", weights) == SINGLE
        assert find_protocol("official", weights) == (OFFICIAL_HMDB51 if weights == "hmdb51" else OFFICIAL)


def test_a_published_file_is_known_by_its_content(cache: Path, tmp_path: Path) -> None:
    """Once it was seen: under any name, and no other file under its name."""
    path = cache / PUBLISHED["hmdb51"].file
    path.write_bytes(b"of HMDB51")
    record_sha256(path, file_sha256(path))
    renamed = tmp_path / "mine.pth"
    renamed.write_bytes(path.read_bytes())
    assert find_protocol("official", str(renamed)) is OFFICIAL_HMDB51
    other = tmp_path / PUBLISHED["hmdb51"].file
    other.write_bytes(b"of another content")
    assert find_protocol("official", str(other)) is OFFICIAL


def test_a_file_comes_first_with_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(tmp_path / "a.safetensors", SMALL, SMALL_OFFICIAL)
    assert find_protocol("fast", weights) == SMALL
    assert find_protocol("official", weights) == SMALL_OFFICIAL
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_protocol("fast", "~/a.safetensors") == SMALL
    named = saved(tmp_path / PUBLISHED["hmdb51"].file, SMALL)  # what it does not say is the release's
    assert find_protocol("fast", named) == SMALL
    assert find_protocol("official", named) == OFFICIAL_HMDB51


def test_a_single_clip_is_one_of_fast(tmp_path: Path) -> None:
    weights = saved(tmp_path / "a.safetensors", SMALL, SMALL_OFFICIAL, replace(SINGLE, num_clips=7))
    assert find_protocol("single", weights) == ClipProtocol("single", 64, 56, num_clips=1, num_crops=1)


def test_what_ships_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "SHIPPED_FOLDER", tmp_path)
    assert find_protocol("fast", "motions") == FAST  # not there: whoever wants to read it will say so
    saved(tmp_path / "motions.safetensors", SMALL, SMALL_OFFICIAL)
    assert find_protocol("fast", "motions") == SMALL
    assert find_protocol("official", "motions") == SMALL_OFFICIAL
    assert find_protocol("single", "motions").crop_size == 56


@pytest.mark.parametrize("name", ["fast", "single", "official"])
def test_protocols_that_are_none_are_named(tmp_path: Path, name: str) -> None:
    save_file({"fc.bias": torch.zeros(3)}, tmp_path / "a.safetensors", {"protocols": "[]"})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: its metadata protocols are none of ours"):
        find_protocol(name, str(tmp_path / "a.safetensors"))
