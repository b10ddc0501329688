"""What a dry run says of an archive."""

import json
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from sqt_fast import survey as survey_module
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST, OFFICIAL
from sqt_fast.engine.decoder_process import DecoderProcess
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.survey import Finding, Totals, estimate_clips, survey
from sqt_fast.video.archive import VideoFile, find_videos
from tests.poison import Poison, PoisonedRecipe, Slow, descendants


def encode(path: Path, num_frames: int, encoder: str = "libx264") -> None:
    form = Format(path.suffix[1:], encoder, "yuv420p", (64, 48), Fraction(25))
    edges = list(range(num_frames + 1))
    encoding.encode_video(path, form, draw(random_scene("up", 0), (t / 25 for t in edges[:-1]), form.size), edges)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    encode(folder / "a.mp4", 20)
    encode(folder / "b.mkv", 150)
    encode(folder / "c.avi", 100, "mpeg4")
    (folder / "d.mp4").write_bytes(b"")
    (folder / "e.mp4").write_text("not a video, but text\n")
    (folder / "f.mp4").symlink_to(folder / "gone")
    (folder / os.fsdecode(b"g\xff.mp4")).write_bytes(b"")
    return folder


def find(archive: Path) -> list[VideoFile]:
    return find_videos([str(archive)])


def test_findings_come_in_order_and_count_clips(archive: Path) -> None:
    videos = find(archive)
    findings = list(survey(videos, Recipe(FAST)))
    assert [finding.video for finding in findings] == videos
    assert [finding.num_clips for finding in findings] == [1, 3, 2, 0, 0, 0, 0]
    statuses = [finding.error.status if finding.error else "ok" for finding in findings]
    assert statuses == ["ok", "ok", "ok", "empty_file", "not_a_video", "unreadable", "empty_file"]


def added_up(findings: Iterable[Finding]) -> dict[str, Any]:
    totals = Totals()
    for finding in findings:
        totals.add(finding)
    return totals.as_dict()


@pytest.mark.parametrize(
    ("recipe", "clips"),
    [
        pytest.param(Recipe(FAST), 6, id="windows"),
        pytest.param(Recipe(OFFICIAL), 90, id="official: ten clips of three crops"),
        pytest.param(Recipe(FAST, stride_s=1.0), 1 + 5 + 3, id="a window a second"),
        pytest.param(Recipe(FAST, target_fps=12.5), 1 + 2 + 1, id="half the rate"),
    ],
)
def test_totals_add_up(archive: Path, recipe: Recipe, clips: int) -> None:
    videos = find(archive)
    sums = added_up(survey(videos, recipe))
    assert sums == {
        "videos": 7,
        "already_done": 0,
        "failed": 4,
        "failures": {"empty_file": 2, "not_a_video": 1, "unreadable": 1},
        "clips": clips,
        "duration_s": pytest.approx(270 / 25, abs=0.01),
        "size_bytes": sum(path.stat().st_size for path in archive.iterdir() if path.is_file()),
        "codecs": {"h264": 2, "mpeg4": 1},
    }


def test_a_good_file_as_json(archive: Path) -> None:
    (finding,) = survey(find_videos([str(archive / "b.mkv")]), Recipe(FAST))
    found = json.loads(json.dumps(finding.as_dict()))
    assert found == {
        "path": str(archive / "b.mkv"),
        "status": "ok",
        "error_message": None,
        "size_bytes": (archive / "b.mkv").stat().st_size,
        "container": "matroska,webm",
        "codec": "h264",
        "width": 64,
        "height": 48,
        "fps": pytest.approx(25, abs=0.01),
        "is_vfr": False,
        "num_frames": 150,
        "duration_s": pytest.approx(6, abs=0.01),
        "broken": None,
        "rotation": 0,
        "clips": 3,
    }


def test_a_bad_file_as_json(archive: Path) -> None:
    (finding,) = survey(find_videos([os.fsdecode(os.fsencode(archive) + b"/g\xff.mp4")]), Recipe(FAST))
    assert json.loads(json.dumps(finding.as_dict())) == {
        "path": f"{archive}/g\\xff.mp4",
        "status": "empty_file",
        "error_message": "the file is empty (0 bytes)",
        "size_bytes": 0,
    }


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("value", "error", "ValueError: what nobody foresaw"),
        ("SIGSEGV", "crashed", "decoder was killed by SIGSEGV"),
        ("hang", "crashed", "decoder hung: it did nothing for 2 s"),
    ],
)
def test_whatever_a_file_does_the_others_are_looked_at(archive: Path, how: str, status: str, said: str) -> None:
    first, second, third, *_ = survey(find(archive), Recipe(FAST), tools=Poison(how, name="a.mp4"), hang_s=2.0)
    assert first.error is not None
    assert (first.error.status, str(first.error)) == (status, said)
    assert (second.num_clips, third.num_clips) == (3, 2)
    assert not descendants(os.getpid())


def test_a_bug_in_planning_costs_one_file(archive: Path) -> None:
    videos = find(archive)
    bad = next(v for v in videos if v.path.endswith(".avi"))
    findings = {f.video.path: f for f in survey(videos, PoisonedRecipe(FAST, name=bad.path))}
    error = findings.pop(bad.path).error
    assert (error and error.status, str(error)) == ("error", "IndexError: beyond the end")
    assert any(f.error is None for f in findings.values())


def test_who_stops_looking_leaves_nothing_behind(archive: Path) -> None:
    findings = survey(find(archive) * 50, Recipe(FAST), tools=Slow(20.0, name="b.mkv"))
    next(findings)
    findings.close()  # type: ignore[attr-defined]
    assert not descendants(os.getpid())


def test_an_estimate_from_few_files_is_exact(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "SHORT_BYTES", 0)
    assert estimate_clips(find(archive), Recipe(FAST)) == 6
    assert estimate_clips(find(archive), Recipe(OFFICIAL)) == 90
    assert estimate_clips([], Recipe(FAST)) == 0


def test_an_estimate_looks_at_few_files_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over the list: the second half of this archive has videos three times as long."""
    videos = [VideoFile(f"{i:04d}.mp4", 10**6, 1) for i in range(1000)]
    looked: list[str] = []

    def look(video: VideoFile, recipe: Recipe, host: DecoderProcess) -> Finding:
        looked.append(video.path)
        return Finding(video, num_clips=2 if int(video.path[:4]) < 500 else 6)

    monkeypatch.setattr(survey_module, "_look", look)
    assert estimate_clips(videos, Recipe(FAST)) == pytest.approx(4000, rel=0.1)
    assert len(looked) == survey_module.ESTIMATE_FROM


def test_totals_of_nothing() -> None:
    assert added_up([]) == {
        "videos": 0,
        "already_done": 0,
        "failed": 0,
        "failures": {},
        "clips": 0,
        "duration_s": 0,
        "size_bytes": 0,
        "codecs": {},
    }


def test_a_job_that_is_short_by_its_bytes_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_look", lambda *args: pytest.fail("a file was opened"))
    videos = [VideoFile("a.mp4", 300_000, 1), VideoFile("b.mp4", None, None, "gone")]
    assert estimate_clips(videos, Recipe(FAST)) == 2 + 300_000 // survey_module.WINDOW_BYTES
    assert estimate_clips(videos, Recipe(OFFICIAL)) >= 2 * 30
