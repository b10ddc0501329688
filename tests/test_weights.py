"""Weights by name or path: where they are found, that they are checked, and the class names that belong to them."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from sqt_fast import load_model
from sqt_fast.errors import CheckpointError, ConfigError
from sqt_fast.files import file_sha256
from sqt_fast.network import published, weights
from sqt_fast.network.checkpoint import save_safetensors
from sqt_fast.network.class_names import read_labels
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.published import PUBLISHED, sidecar_of
from sqt_fast.network.weights import load_weights, weights_sha256


def tiny(num_classes: int | None) -> SqueezeTime:
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=num_classes, pos_dim=(4, 2, 1, 1)))


def pth(folder: Path, num_classes: int | None) -> Path:
    path = folder / f"classes{num_classes}.pth"
    torch.save({"state_dict": tiny(num_classes).state_dict()}, path)
    return path


@dataclass
class Release:
    """What is downloaded, and what was: (name, whether progress is to be drawn)."""

    body: bytes = b""
    downloads: list[tuple[str, bool]] = field(default_factory=list)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def release(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """What there is to download; test_download.py has what can go wrong on the way."""
    state = Release()

    def download(name: str, *, progress: bool) -> None:
        state.downloads.append((name, progress))
        cache.mkdir(exist_ok=True)
        PUBLISHED[name].path.write_bytes(state.body)

    monkeypatch.setattr(weights, "download", download)
    return state


# -- names and files --------------------------------------------------------------------------------------------------


def test_a_name_is_downloaded_once_recorded_and_fitted(release: Release, cache: Path, tmp_path: Path) -> None:
    release.body = pth(tmp_path, 51).read_bytes()
    weights = load_weights("hmdb51")
    path = cache / PUBLISHED["hmdb51"].file
    assert (weights.name, weights.path, weights.meaningless) == ("hmdb51", path, False)
    assert weights.sha256 == file_sha256(path)
    assert weights.labels == read_labels("hmdb51")
    assert weights.labels_source == "hmdb51, which belongs to hmdb51"
    assert sorted(cache.iterdir()) == [path, sidecar_of(path)]
    again = load_weights("hmdb51", progress=False)
    assert again.sha256 == weights.sha256
    assert release.downloads == [("hmdb51", True)]


def test_progress_is_drawn_where_it_is_wanted(release: Release) -> None:
    for progress in (False, True):
        with pytest.raises(CheckpointError, match="is empty"):
            load_weights("k400", progress=progress)
        PUBLISHED["k400"].path.unlink()
    assert release.downloads == [("k400", False), ("k400", True)]


def test_a_file_that_changed_in_the_cache_is_refused(release: Release, cache: Path) -> None:
    cache.mkdir()
    path = cache / PUBLISHED["hmdb51"].file
    pth(cache, 51).rename(path)  # put there by hand, for want of a connection
    first = load_weights("hmdb51")
    torch.save({"state_dict": tiny(51).train().state_dict(), "epoch": 2}, path)
    with pytest.raises(CheckpointError, match=f"has changed: SHA-256 {file_sha256(path)}, at first use {first.sha256}"):
        load_weights("hmdb51")
    sidecar_of(path).unlink()
    assert load_weights("hmdb51").sha256 == file_sha256(path)
    assert release.downloads == []


def test_a_bad_first_file_is_not_recorded(release: Release, cache: Path, tmp_path: Path) -> None:
    release.body = b"<!DOCTYPE html><html>sign in</html>"
    with pytest.raises(CheckpointError, match="is a web page"):
        load_weights("hmdb51")
    path = cache / PUBLISHED["hmdb51"].file
    path.write_bytes(pth(tmp_path, 51).read_bytes())
    assert load_weights("hmdb51").labels == read_labels("hmdb51")


def test_what_ships_is_neither_downloaded_nor_recorded(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(published, "SHIPPED_FOLDER", folder)
    with pytest.raises(CheckpointError, match=r"weights motions: cannot be read \(no such file or directory\)$"):
        load_weights("motions")
    names = [f"move {i}" for i in range(16)]
    save_safetensors(tiny(16), folder / "motions.safetensors", {"labels": json.dumps(names)})
    found = load_weights("motions")
    assert (found.path, found.meaningless) == (folder / "motions.safetensors", False)
    assert (found.labels, found.labels_source) == (tuple(names), "the metadata of the checkpoint")
    assert found.sha256 == weights_sha256("motions") == file_sha256(folder / "motions.safetensors")
    assert list(folder.iterdir()) == [folder / "motions.safetensors"]
    assert release.downloads == []


def test_random_is_the_same_every_time_and_says_it_means_nothing() -> None:
    before = torch.random.get_rng_state()
    first, second = load_weights("random"), load_weights("random")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (first.path, first.meaningless, first.sha256) == (None, True, second.sha256)
    assert first.sha256 != load_weights("random", seed=1).sha256
    assert first.model.config == ModelConfig()
    assert not first.model.training
    assert first.labels == read_labels("kinetics400")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="weights k40: no such file, and not one of k400, k600, hmdb51, in1k, ava, motions, random"
    ):
        load_weights("k40")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory"):
        load_weights(str(tmp_path))


# -- class names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "name"),
    [(27, "jester"), (51, "hmdb51"), (101, "ucf101"), (174, "sthv2"), (400, "kinetics400"), (700, "kinetics700")],
)
def test_labels_are_guessed_from_the_number_of_classes(tmp_path: Path, num_classes: int, name: str) -> None:
    weights = load_weights(str(pth(tmp_path, num_classes)))
    assert weights.labels == read_labels(name)
    assert weights.labels_source == f"{name}, guessed from the number of classes ({num_classes})"


def test_classes_without_a_list_are_numbered(tmp_path: Path) -> None:
    weights = load_weights(str(pth(tmp_path, 3)))
    assert weights.labels == ("class 0", "class 1", "class 2")
    assert "no list of 3 classes is known" in weights.labels_source


def test_labels_of_a_file_are_used(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffcut\npaste \nslide\n\n", encoding="utf-8")
    weights = load_weights(str(pth(tmp_path, 3)), labels=tmp_path / "names.txt")
    assert weights.labels == ("cut", "paste", "slide")
    assert weights.labels_source == f"{tmp_path / 'names.txt'}, as asked"


def test_a_bundled_list_can_be_asked_for(tmp_path: Path) -> None:
    assert load_weights(str(pth(tmp_path, 600)), labels="kinetics600").labels == read_labels("kinetics600")


def test_labels_travel_in_the_metadata_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(tiny(51), path, {"labels": json.dumps([f"move {i}" for i in range(51)])})
    weights = load_weights(str(path))
    assert weights.labels is not None
    assert weights.labels[50] == "move 50"
    assert weights.labels_source == "the metadata of the checkpoint"
    assert load_weights(str(path), labels="hmdb51").labels == read_labels("hmdb51")


def test_a_wrong_number_of_labels_names_both_counts(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    path = pth(tmp_path, 3)
    with pytest.raises(ConfigError) as caught:
        load_weights(str(path), labels=str(tmp_path / "names.txt"))
    assert str(caught.value) == (
        f"labels {tmp_path / 'names.txt'}, as asked: 2 names for the 3 classes of {path}; "
        "give a list of 3 with --labels"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\n\nb\n", "line 2 is empty"), (b"\xff\xfe\0", "cannot be read as text"), (b"", "line 1 is empty|0 names")],
    ids=["gap", "binary", "empty"],
)
def test_bad_label_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_weights(str(pth(tmp_path, 3)), labels=tmp_path / "names.txt")


def test_a_backbone_alone_has_no_labels(tmp_path: Path) -> None:
    path = str(pth(tmp_path, None))
    weights = load_weights(path)
    assert (weights.labels, weights.model.fc) == (None, None)
    assert "backbone alone" in weights.labels_source
    with pytest.raises(ConfigError, match="leave --labels out"):
        load_weights(path, labels="hmdb51")


def test_load_model_gives_the_network(tmp_path: Path) -> None:
    model = load_model(str(pth(tmp_path, 3)))
    assert not model.training
    assert model(torch.zeros(1, 3, 16, 32, 32)).shape == (1, 3)


def test_importing_the_zoo_imports_no_torch() -> None:
    """So that ``--help`` can name the published weights at once."""
    code = "import sys, sqt_fast.network.weights; print([m for m in ('torch', 'pooch', 'rich') if m in sys.modules])"
    folder = Path(weights.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
