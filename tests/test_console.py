"""What people see: progress on stderr, findings on stdout, and file names shown as they are."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST
from sqt_fast.console import ProgressConsole, counted, print_findings, print_summary, printable
from sqt_fast.engine.events import Alive, BatchSizeChanged, Begun, ClipsLabelled, Note, VideoFinished
from sqt_fast.engine.results import RunCounters, Summary
from sqt_fast.survey import Totals, survey
from sqt_fast.video.archive import VideoFile

BAD = VideoFinished("[red]x.mp4", 0.0, "[red]x.mp4: empty_file: 0 bytes")
GOOD = VideoFinished("y.mp4", 10.0, None)


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqt_fast.console.PLAIN_EVERY_S", -1.0)
    with ProgressConsole() as watcher:
        watcher(Begun(2, done=3))
        watcher(BAD)
        watcher(ClipsLabelled(8))
        watcher(GOOD)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "3 videos done before"
    assert lines[1].startswith("1/2 videos  1 failed  0.0 clips/s  0.0x realtime  ETA ")
    assert lines[-1].startswith("2/2 videos  1 failed  ")
    assert lines[-1].endswith("ETA 0:00:00")


def test_no_line_before_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressConsole() as watcher:
        watcher(Begun(2, done=0))
        watcher(ClipsLabelled(1))
        watcher(BAD)
    assert capsys.readouterr() == ("", "")


def test_what_is_for_others_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressConsole(verbose=True) as watcher:
        watcher(BatchSizeChanged(2))
        watcher(Alive())
    assert capsys.readouterr() == ("", "")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqt_fast.console.PLAIN_EVERY_S", -1.0)
    with ProgressConsole(quiet=True, verbose=True) as watcher:
        watcher(Begun(1, done=1))
        watcher(Note("hello"))
        watcher(BAD)
    assert capsys.readouterr() == ("", "")


def test_verbose_names_failures_with_brackets_untouched(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressConsole(verbose=True) as watcher:
        watcher(Begun(2, done=0))
        watcher(BAD)
        watcher(GOOD)
    assert capsys.readouterr().err == "[red]x.mp4: empty_file: 0 bytes\n"


def test_a_bar_on_a_terminal() -> None:
    screen = io.StringIO()
    with ProgressConsole() as watcher:
        watcher.console = Console(file=screen, force_terminal=True, width=100, highlight=False)
        watcher(Begun(2, done=0))
        watcher(ClipsLabelled(4))
        watcher(BAD)
        assert watcher.bar is not None
        watcher.bar.refresh()
        watcher(Note("beside [it]"))
    assert "1/2 videos" in screen.getvalue()
    assert "1 failed" in screen.getvalue()
    assert "beside [it]" in screen.getvalue()


def summary_text(summary: Summary) -> str:
    screen = io.StringIO()
    print_summary(summary, Console(file=screen, width=120))
    return screen.getvalue()


def test_summary() -> None:
    text = summary_text(
        Summary(
            output="[out].csv",
            videos=9,
            labelled=5,
            failed_now=2,
            already_done=4,
            vanished=1,
            other_files=3,
            rows=20,
            failed=3,
            failures={"empty_file": 2, "damaged": 1},
            wall_s=12,
            start_s=2,
            counters=RunCounters(clips=100, video_s=50, frames_decoded=640, frames_wanted=160, network_s=1),
            backend="eager fp32 cpu",
            labels_mean_nothing=True,
        )
    )
    for part in (
        "[out].csv  (labels mean nothing)",
        "5 videos labelled, 2 of them not ok; 4 done before; 1 gone from disk; 3 other files",
        "20 rows, 3 videos not ok: 2 empty_file, 1 damaged",
        "640 decoded, 160 wanted",
        "12.0 s, 2.0 s of it to start the network",
        "100, 10.0 a second",
        "5.0x realtime",
        "limited by: start",
        "eager fp32 cpu",
    ):
        assert part in text


def test_names_of_files_cannot_command_the_terminal() -> None:
    """A title set, a screen cleared, text turned round."""
    assert printable("a\x1b]0;title\x07b\x1b[2J\x9b1mc\u202ed") == r"a\x1b]0;title\x07b\x1b[2J\x9b1mc\u202ed"
    screen = io.StringIO()
    watcher = ProgressConsole()
    watcher.console = Console(file=screen, width=100, highlight=False)
    watcher(Note("\x1b[2J[bold]gone.mp4"))
    assert screen.getvalue() == "\\x1b[2J[bold]gone.mp4\n"
    assert "\x1b" not in summary_text(Summary(output="\x1b[2J.csv"))


@pytest.mark.parametrize(("number", "text"), [(0, "0 videos"), (1, "1 video"), (2, "2 videos")])
def test_plurals(number: int, text: str) -> None:
    assert counted(number, "video") == text


def test_summary_of_nothing_to_do() -> None:
    text = summary_text(Summary(output="t.csv", videos=2, already_done=2, rows=2))
    assert "realtime" not in text
    assert "mean nothing" not in text


def test_findings(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(p for p in archive.rglob("*.m*") if p.suffix in (".mp4", ".mkv"))
    videos = [VideoFile(str(p), p.stat().st_size if p.exists() else None, 1) for p in files]
    findings = list(survey(videos, Recipe(FAST)))
    print_findings(findings, Totals())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(files) + 4
    assert any(line.endswith("empty.mp4  empty_file: the file is empty (0 bytes)") for line in lines)
    assert any("  h264 320x240  25.00 fps  2.52 s  1 clip" in line or "25.00 fps  2.48 s" in line for line in lines)
    assert any("(varies)" in line for line in lines)
    assert lines[-4].startswith(f"{len(files)} videos, 0:00:")
    assert lines[-2].startswith("cannot be labelled: 4 (")
    assert lines[-1].startswith("would label ")
