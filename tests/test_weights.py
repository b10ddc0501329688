"""Weights by name: downloads (from a server on this machine), the cache, hashes and class names."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from sqt_fast import load_model
from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, SINGLE
from sqt_fast.errors import CheckpointError, ConfigError
from sqt_fast.files import cache_folder, file_sha256
from sqt_fast.network import weights
from sqt_fast.network.checkpoint import save_safetensors
from sqt_fast.network.class_names import read_labels
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.weights import PUBLISHED, find_protocol, load_weights


def tiny(num_classes: int | None) -> SqueezeTime:
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=num_classes, pos_dim=(4, 2, 1, 1)))


def pth(folder: Path, num_classes: int | None) -> Path:
    path = folder / f"classes{num_classes}.pth"
    torch.save({"state_dict": tiny(num_classes).state_dict()}, path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no proxy between the tests and their server."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache"


@dataclass
class Server:
    """Serves ``body`` for every path after announcing ``size_bytes``."""

    body: bytes = b""
    size_bytes: int | None = None
    status: int = 200
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            self.send_response(state.status)
            self.send_header("Content-Length", str(state.size_bytes or len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        at = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(weights.Published, "url", property(lambda published: f"{at}/{published.file}"))
        yield state
        http.shutdown()
        thread.join()


def test_published_files_are_those_of_the_release() -> None:
    at = "https://github.com/xinghaochen/SqueezeTime/releases/download/ckpts/"
    assert {name: published.url.removeprefix(at) for name, published in PUBLISHED.items()} == {
        "k400": "SqueezeTime_K400_71.64.pth",
        "k600": "SqueezeTime_K600_76.06.pth",
        "hmdb51": "SqueezeTime_HMDB51_65.56.pth",
        "in1k": "SqueezeTime_in1k_pretrain.pth",
        "ava": "SqueezeTime-AVA2.1.pth",
    }


def test_a_name_is_downloaded_once_recorded_and_fitted(
    server: Server, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.body = pth(tmp_path, 51).read_bytes()
    weights = load_weights("hmdb51")
    path = cache / PUBLISHED["hmdb51"].file
    assert (weights.name, weights.path, weights.meaningless) == ("hmdb51", path, False)
    assert weights.sha256 == file_sha256(path)
    assert weights.labels == read_labels("hmdb51")
    assert weights.labels_source == "hmdb51, which belongs to hmdb51"
    assert sorted(cache.iterdir()) == [path, path.with_name(path.name + ".sha256")]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert path.name in captured.err
    again = load_weights("hmdb51")
    assert again.sha256 == weights.sha256
    assert server.requests == [f"/{path.name}"]
    assert capfd.readouterr().err == ""


def test_the_recorded_hash_is_that_of_sha256sum(server: Server, cache: Path, tmp_path: Path) -> None:
    server.body = pth(tmp_path, 51).read_bytes()
    load_weights("hmdb51", progress=False)
    name = PUBLISHED["hmdb51"].file
    text = (cache / f"{name}.sha256").read_text()
    assert text == f"{file_sha256(cache / name)}  {name}\n"


def test_no_progress_is_drawn_unless_asked(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.body = pth(tmp_path, 51).read_bytes()
    load_weights("hmdb51", progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_changed_in_the_cache_is_refused(cache: Path) -> None:
    cache.mkdir()
    path = cache / PUBLISHED["hmdb51"].file
    pth(cache, 51).rename(path)  # put there by hand, for want of a connection
    first = load_weights("hmdb51")
    torch.save({"state_dict": tiny(51).train().state_dict(), "epoch": 2}, path)
    with pytest.raises(CheckpointError) as caught:
        load_weights("hmdb51")
    message = str(caught.value)
    assert f"{path} has changed: SHA-256 {file_sha256(path)}, at first use {first.sha256}" in message
    assert f"delete it and {path}.sha256 to download it again" in message
    Path(f"{path}.sha256").unlink()
    assert load_weights("hmdb51").sha256 == file_sha256(path)


def test_a_bad_first_file_is_not_recorded(server: Server, cache: Path, tmp_path: Path) -> None:
    server.body = b"<!DOCTYPE html><html>sign in</html>"
    with pytest.raises(CheckpointError, match="is a web page"):
        load_weights("hmdb51", progress=False)
    path = cache / PUBLISHED["hmdb51"].file
    path.write_bytes(pth(tmp_path, 51).read_bytes())
    assert load_weights("hmdb51").labels == read_labels("hmdb51")


@pytest.mark.parametrize("size_bytes", [10, 1_000_000], ids=["short", "long"])
def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path, size_bytes: int) -> None:
    server.body, server.size_bytes = b"PK\x03\x04", size_bytes
    with pytest.raises(CheckpointError, match=r"k400: cannot download .*; fetch it elsewhere"):
        load_weights("k400", progress=False)
    assert list(cache.iterdir()) == []


def test_a_short_body_is_noticed_even_if_requests_does_not(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    class Careless:
        def __init__(self, progressbar: Any, chunk_size: int) -> None:
            self.bar = progressbar

        def __call__(self, url: str, output_file: str, owner: object) -> None:
            self.bar.total = 9
            Path(output_file).write_bytes(b"half")

    monkeypatch.setattr(pooch, "HTTPDownloader", Careless)
    with pytest.raises(CheckpointError, match="only 4 of 9 bytes came"):
        load_weights("k400", progress=False)
    assert list(cache.iterdir()) == []


def test_a_missing_release_is_one_line_with_url_and_place(server: Server, cache: Path) -> None:
    server.status = 404
    with pytest.raises(CheckpointError) as caught:
        load_weights("k400", progress=False)
    assert str(caught.value) == (
        f"k400: cannot download {PUBLISHED['k400'].url} (HTTP 404); fetch it elsewhere and put it at "
        f"{cache / 'SqueezeTime_K400_71.64.pth'}, or give the path of a file with --weights PATH"
    )


def test_no_connection_is_one_line_with_url_and_place(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights.Published, "url", property(lambda published: f"http://127.0.0.1:9/{published.file}"))
    with pytest.raises(CheckpointError) as caught:
        load_weights("ava")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("ava: cannot download http://127.0.0.1:9/SqueezeTime-AVA2.1.pth (ConnectionError); fetch")
    assert f"put it at {cache / 'SqueezeTime-AVA2.1.pth'}, or give" in message
    assert capfd.readouterr().err.strip() == ""


def test_a_cache_that_cannot_be_written_still_gives_weights(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    pth(cache, 51).rename(cache / PUBLISHED["hmdb51"].file)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sqt_fast.network.weights.replace_file", refuse)
    assert load_weights("hmdb51").labels
    assert "the hash could not be recorded" in caplog.text


def test_the_cache_is_the_users_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQT_FAST_CACHE")
    assert cache_folder().name == "sqt_fast"


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
        ConfigError, match="weights k40: no such file, and not one of k400, k600, hmdb51, in1k, ava, random"
    ):
        load_weights("k40")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory"):
        load_weights(str(tmp_path))


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


@pytest.mark.parametrize("text", ["{}", "not json"])
def test_bad_labels_in_metadata_are_named(tmp_path: Path, text: str) -> None:
    save_safetensors(tiny(3), tmp_path / "a.safetensors", {"labels": text})
    with pytest.raises(CheckpointError, match="its metadata labels are no JSON list"):
        load_weights(str(tmp_path / "a.safetensors"))


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


def test_protocols_belong_to_the_published_weights() -> None:
    assert find_protocol("fast", "hmdb51") is FAST
    assert find_protocol("single", "hmdb51") is SINGLE
    assert find_protocol("single", "some/file.pth") is SINGLE
    assert find_protocol("official", "k400") is OFFICIAL
    assert find_protocol("official", "some/file.pth") is OFFICIAL
    assert find_protocol("official", "hmdb51") is OFFICIAL_HMDB51


def test_the_protocol_of_a_published_file_is_known_by_its_content(cache: Path, tmp_path: Path) -> None:
    """Once it was seen: under any name, and no other file under its name."""
    cache.mkdir()
    path = cache / PUBLISHED["hmdb51"].file
    pth(cache, 51).rename(path)
    load_weights("hmdb51", progress=False)
    renamed = tmp_path / "mine.pth"
    renamed.write_bytes(path.read_bytes())
    assert find_protocol("official", str(renamed)) is OFFICIAL_HMDB51
    other = tmp_path / PUBLISHED["hmdb51"].file
    other.write_bytes(b"of another content")
    assert find_protocol("official", str(other)) is OFFICIAL
