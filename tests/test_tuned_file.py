"""The file of tuned tiles: what is found is added, what is there of others stays."""

import json
from pathlib import Path

import pytest

from sqt_fast.errors import ConfigError, OutputError
from sqt_fast.kernels import tuned
from sqt_fast.tuning.tuned_file import TunedFile
from tests.fake_gpu import GPU, A, B, a_file, a_problem, on_disk

PLACE = a_problem(A, rows=1000)
SMALL = a_problem(A, rows=130)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    tuned.look_in(tmp_path / "cache" / "kernels.json")
    tuned.forget()
    return tmp_path / "cache"


def test_other_families_and_findings_stay() -> None:
    for architecture in (80, 90):
        a_file(architecture).keep_tiles(PLACE, A, heuristic_s=1.0, best_s=1.0)
    file = a_file()
    file.keep_tiles(SMALL, B, heuristic_s=1.0, best_s=1.0)
    file.keep_network("bf16", {"eager": 1.23456})
    assert list(on_disk()) == ["sm_80", "sm_90"]
    assert on_disk()["sm_80"]["tiles"] == {PLACE.name: {"10": list(A)}}
    assert on_disk()["sm_90"]["tiles"] == {PLACE.name: {"10": list(A), "7": list(B)}}
    assert (a_file().tiles(PLACE), a_file().tiles(SMALL)) == (A, B)
    assert a_file().tiles(a_problem(A, rows=3000)) is None
    assert tuned.network_speeds(90, "bf16") == ({"eager": 1.2}, GPU)
    assert tuned.network_speeds(80, "bf16") is None


def test_another_gpu_of_the_family_starts_anew() -> None:
    a_file().keep_tiles(PLACE, A, heuristic_s=1.0, best_s=1.0)
    assert a_file(gpu="another").tiles(PLACE) is None
    assert on_disk()["sm_90"]["gpu"] == "another"


def test_overwriting_starts_anew() -> None:
    a_file().keep_tiles(PLACE, A, heuristic_s=1.0, best_s=1.0)
    assert a_file(overwrite=True).tiles(PLACE) is None
    assert on_disk()["sm_90"]["tiles"] == {}


@pytest.mark.parametrize("name", ["commit", "versions"])
def test_findings_of_other_circumstances_are_dropped(name: str, cache: Path) -> None:
    """They would stand under a commit and versions that they were not found with."""
    a_file().keep_tiles(PLACE, A, heuristic_s=1.0, best_s=1.0)
    content = on_disk()
    content["sm_90"][name] = "another"
    (cache / "kernels.json").write_text(json.dumps(content))
    assert a_file().tiles(PLACE) is None
    assert on_disk()["sm_90"][name] != "another"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"sm_90": 5}', '{"sm_90": {"gpu": "x"}}', '{"a": "b"}'])
def test_a_file_of_another_form_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: must be a file that sqt-fast tune wrote .*; remove it or choose"):
        TunedFile(path, architecture=90, gpu=GPU)
    assert path.read_text() == text


def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ConfigError, OutputError), match="choose another --out"):
        TunedFile(tmp_path / "file" / "x.json", architecture=90, gpu=GPU)
    with pytest.raises(ConfigError, match="choose another --out"):
        TunedFile(tmp_path, architecture=90, gpu=GPU)
