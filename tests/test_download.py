"""Downloads, from a server on this machine: whole or not at all, and one line for what goes wrong."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.errors import CheckpointError
from sqt_fast.network.download import download
from sqt_fast.network.published import PUBLISHED, Published

BODY = os.urandom(700_000)  # more than one chunk


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no proxy between the tests and their server."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache"


@dataclass
class Server:
    """Serves ``body`` for every path after announcing ``size_bytes``."""

    body: bytes = BODY
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
        monkeypatch.setattr(Published, "url", property(lambda known: f"{at}/{known.file}"))
        yield state
        http.shutdown()
        thread.join()


def test_a_file_comes_whole_to_its_place(server: Server, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    download("hmdb51", progress=True)
    path = cache / PUBLISHED["hmdb51"].file
    assert path.read_bytes() == BODY
    assert list(cache.iterdir()) == [path]
    assert server.requests == [f"/{path.name}"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == f"downloaded {PUBLISHED['hmdb51'].url} to {path}\n"  # no bar where nobody sees it move


def test_nothing_is_said_unless_asked(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    download("hmdb51", progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_bar(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    download("hmdb51", progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert PUBLISHED["hmdb51"].file in captured.err
    assert "700.0/700.0 kB" in captured.err
    assert "downloaded" not in captured.err


@pytest.mark.parametrize("size_bytes", [10, 1_000_000], ids=["short", "long"])
def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path, size_bytes: int) -> None:
    server.body, server.size_bytes = b"PK\x03\x04", size_bytes
    with pytest.raises(CheckpointError, match=r"k400: cannot download .*; fetch it elsewhere"):
        download("k400", progress=False)
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
        download("k400", progress=False)
    assert list(cache.iterdir()) == []


def test_a_missing_release_is_one_line_with_url_and_place(server: Server, cache: Path) -> None:
    server.status = 404
    with pytest.raises(CheckpointError) as caught:
        download("k400", progress=False)
    assert str(caught.value) == (
        f"k400: cannot download {PUBLISHED['k400'].url} (HTTP 404); fetch it elsewhere and put it at "
        f"{cache / 'SqueezeTime_K400_71.64.pth'}, or give the path of a file with --weights PATH"
    )


def test_no_connection_is_one_line_with_url_and_place(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Published, "url", property(lambda known: f"http://127.0.0.1:9/{known.file}"))
    with pytest.raises(CheckpointError) as caught:
        download("ava", progress=True)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("ava: cannot download http://127.0.0.1:9/SqueezeTime-AVA2.1.pth (ConnectionError); fetch")
    assert f"put it at {cache / 'SqueezeTime-AVA2.1.pth'}, or give" in message
    assert capfd.readouterr().err.strip() == ""


def test_a_cache_that_cannot_be_made_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(CheckpointError, match=r"k400: cannot download .*Not a directory.*; fetch it elsewhere"):
        download("k400", progress=False)
    assert server.requests == []
