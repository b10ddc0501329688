"""The whole run, from files to the table: nothing is lost, nothing is done twice, nothing is mixed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import Report
from sqt_fast.engine.labelling import Labelling
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.results import Summary, VideoResult
from sqt_fast.engine.supervisor import Labeller, Launch, Supervisor
from sqt_fast.engine.worker import Worker
from sqt_fast.errors import BackendError, ConfigError, InterruptedRunError, OutputError, SqtError
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.choose import Choice
from sqt_fast.network.registry import BACKENDS
from sqt_fast.run import run
from sqt_fast.table.parts import Parts
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import FFMPEG
from tests.poison import Poison, Slow, descendants, is_alive, wait_until
from tests.tables import read_table
from tests.watching import Remembering

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
Rows = list[dict[str, Any]]


RESOURCES = Resources(1, 1 << 30, cores=2)


@pytest.fixture(autouse=True)
def _no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs choose nothing by the number of clips; looking at the videos first would take as long again."""
    monkeypatch.setattr("sqt_fast.run.estimate_clips", lambda videos, recipe: len(videos))


def in_process(config: IndexConfig, report: Report) -> Labeller:
    """Label in this very process: quick to start, and tests can change it."""
    return Worker(config, RESOURCES, report=report)


class Lab:
    """Runs ``index`` on one folder with the tiny network."""

    def __init__(self, folder: Path, output: Path, weights: tuple[str, str]) -> None:
        self.folder, self.output, self.weights = folder, output, weights
        self.watcher = Remembering()

    @property
    def parts(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    def run(self, launch: Launch = in_process, **options: Any) -> Summary:
        defaults = {
            "inputs": (str(self.folder),),
            "output": self.output,
            "weights": self.weights[0],
            "labels": self.weights[1],
            "backend": "eager",
            "precision": "fp32",
            "device": "cpu",
            "batch_size": 4,
        }
        self.watcher = Remembering()
        return run(IndexConfig(**{**defaults, **options}), self.watcher, launch=launch)

    def rows(self) -> Rows:
        rows: Rows = read_table(self.output)[0].to_pylist()
        return rows

    def seen(self) -> list[str]:
        """Names of the files that the last run looked at."""
        return sorted(Path(name).name for name in self.watcher.finished)


@pytest.fixture
def few(archive: Path, tmp_path: Path) -> Path:
    """A folder of our own: three good videos (a.mp4, b.mkv, c.avi) and an empty one (e.mp4)."""
    folder = tmp_path / "few"
    folder.mkdir()
    for suffix, name in ((".mp4", "a.mp4"), (".mkv", "b.mkv"), (".avi", "c.avi")):
        source = next(p for p in sorted(archive.rglob(f"*{suffix}")) if p.parent.name != "broken")
        shutil.copy2(source, folder / name)
    (folder / "e.mp4").touch()
    return folder


@pytest.fixture
def lab(few: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> Lab:
    return Lab(few, tmp_path / "labels.parquet", tiny_weights)


class KilledError(BaseException):
    """What no handler expects."""


def kill_after(monkeypatch: pytest.MonkeyPatch, videos: int, error: type[BaseException] = KilledError) -> None:
    """End the next run with ``error`` when it has finished so many videos, each brought to disk."""
    take, count = Labelling._result, iter(range(10**6))

    def result(self: Labelling, job: Any, sheet: Any) -> VideoResult:
        if next(count) == videos:
            raise error
        return take(self, job, sheet)

    monkeypatch.setattr(Labelling, "_result", result)
    monkeypatch.setattr("sqt_fast.run.MAX_FLUSH_S", -1.0)


# -- one run ----------------------------------------------------------------------------------------------------------


@SUFFIXES
def test_an_archive(archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], suffix: str) -> None:
    lab = Lab(archive, tmp_path / "new" / f"labels{suffix}", tiny_weights)
    summary = lab.run(embeddings=True)
    rows = lab.rows()
    assert {Path(row["path"]) for row in rows} == {
        p for p in archive.rglob("*") if p.is_symlink() or (p.is_file() and p.suffix != ".csv")
    }
    order = [(r["path"], r["start_s"] is None, r["start_s"] or 0, r["clip_index"] is None) for r in rows]
    assert order == sorted(order)
    failed = Counter(r["status"] for r in rows if r["status"] != "ok")
    assert failed == {"empty_file": 1, "not_a_video": 1, "no_video_stream": 1, "unreadable": 1, "damaged": 1}
    for row in rows:
        if row["status"] == "ok":
            assert row["label"] == Path(tiny_weights[1]).read_text(encoding="utf-8").split("\n")[row["label_id"]]
            assert len(row["topk_ids"]) == len(row["topk_scores"]) == len(row["topk_labels"]) == 5
            assert row["score"] == row["topk_scores"][0] >= row["topk_scores"][-1] > 0
            assert len(row["embedding"]) == 128
            assert row["decoder"] == "cpu"
            assert row["size_bytes"] == Path(row["path"]).stat().st_size
            assert row["mtime_ns"] == Path(row["path"]).stat().st_mtime_ns
        else:
            assert row["error_message"]
            assert row["label"] is row["embedding"] is None
    assert (summary.videos, summary.labelled, summary.already_done, summary.rows) == (13, 13, 0, len(rows))
    assert summary.failed == 5
    assert summary.failures == failed
    assert summary.counters.clips == sum(r["status"] == "ok" for r in rows)
    assert summary.wall_s > summary.start_s > 0
    assert not lab.parts.exists()
    assert [p.name for p in lab.output.parent.iterdir()] == [lab.output.name]


def test_formats_hold_the_same(lab: Lab, tmp_path: Path) -> None:
    tables = []
    for suffix in (".parquet", ".csv", ".jsonl"):
        lab.output = tmp_path / f"same{suffix}"
        lab.run(embeddings=True)
        tables.append(repr(lab.rows()))
    assert tables[0] == tables[1] == tables[2]


def test_metadata(lab: Lab) -> None:
    import hashlib

    lab.run(stride_s=1.0)
    metadata = json.loads(pq.read_schema(lab.output).metadata[b"sqt_fast"])
    sha256 = hashlib.sha256(Path(lab.weights[0]).read_bytes()).hexdigest()
    assert metadata["weights"]["sha256"] == metadata["settings"]["weights_sha256"] == sha256
    assert metadata["settings"]["stride_s"] == 1.0
    assert metadata["choice"]["backend"] == metadata["settings"]["backend"] == "eager"
    assert metadata["choice"]["batch_size"] == 4
    assert metadata["labels_mean_nothing"] is False
    assert set(metadata["versions"]) == {
        "torch",
        "nvidia-dali-cuda130",
        "av",
        "numpy",
        "opencv-python-headless",
        "pyarrow",
    }
    assert metadata["sqt_fast"]


def test_levels_and_protocols(lab: Lab) -> None:
    """One row a file; a broken file has one anyway."""
    lab.run(level="video", top_k=99)
    rows = lab.rows()
    assert [r["clip_index"] for r in rows] == [None] * 4
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "empty_file"]
    assert len(rows[0]["topk_ids"]) == 7
    lab.run(protocol="official", overwrite=True)
    official = lab.rows()
    assert [r["clip_index"] for r in official] == [None] * 4
    assert [r["score"] for r in official[:3]] != [r["score"] for r in rows[:3]]


def test_limit_takes_the_first(lab: Lab) -> None:
    assert lab.run(limit=2).videos == 2
    assert lab.seen() == ["a.mp4", "b.mkv"]
    assert lab.run().already_done == 2
    assert lab.seen() == ["c.avi", "e.mp4"]
    assert {Path(r["path"]).name for r in lab.rows()} == {"a.mp4", "b.mkv", "c.avi", "e.mp4"}


def test_on_error_fail_stops_and_keeps_what_is_done(lab: Lab) -> None:
    with pytest.raises(SqtError, match=r"e\.mp4: empty_file: .*--on-error fail") as caught:
        lab.run(on_error="fail")
    assert caught.value.exit_code == 1
    assert not lab.output.exists()
    (lab.folder / "e.mp4").unlink()
    lab.run(on_error="fail")
    assert {r["status"] for r in lab.rows()} == {"ok"}


def test_auto_says_why_and_keeps_to_it(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that goes on must not choose anew: one table, one precision."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    first = Choice("eager", "bf16", "cpu", 2, "the moon is full")
    monkeypatch.setattr("sqt_fast.engine.worker.choose", lambda *args, **options: first)
    auto: dict[str, Any] = {"backend": None, "precision": None, "device": None, "batch_size": None}
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(KilledError):
            lab.run(**auto)
    monkeypatch.setattr("sqt_fast.engine.worker.choose", lambda *args, **options: pytest.fail("chose anew"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert lab.run(**auto).backend == "eager bf16 cpu"
    assert "eager bf16 on cpu: the moon is full" in lab.watcher.notes


# -- again ------------------------------------------------------------------------------------------------------------


def test_again_when_complete_decodes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(embeddings=True)
    before, written = lab.rows(), lab.output.stat()
    monkeypatch.setattr(
        "sqt_fast.engine.worker.open_backend", lambda *args, **options: pytest.fail("a network was opened")
    )
    summary = lab.run(embeddings=True)
    assert (summary.labelled, summary.already_done, summary.rows) == (0, 4, len(before))
    assert (summary.failed, summary.failures) == (1, {"empty_file": 1})
    assert summary.counters.packets_read == summary.counters.clips == 0
    assert lab.output.stat().st_mtime_ns == written.st_mtime_ns
    assert repr(lab.rows()) == repr(before)
    assert not lab.parts.exists()


def test_new_and_changed_files_are_taken_in(lab: Lab) -> None:
    lab.run(embeddings=True)
    before = lab.rows()
    shutil.copy2(lab.folder / "b.mkv", lab.folder / "new.mkv")
    os.utime(lab.folder / "a.mp4", ns=(1, 10**18))
    (lab.folder / "c.avi").write_text("no longer a video")
    summary = lab.run(embeddings=True)
    assert lab.seen() == ["a.mp4", "c.avi", "new.mkv"]
    assert (summary.labelled, summary.already_done) == (3, 2)
    after = {Path(r["path"]).name: r for r in lab.rows() if not r["clip_index"]}
    old = {Path(r["path"]).name: r for r in before if not r["clip_index"]}
    assert repr(after["b.mkv"]) == repr(old["b.mkv"])
    assert repr(after["a.mp4"]) == repr(old["a.mp4"] | {"mtime_ns": 10**18})
    assert [r["status"] for r in lab.rows() if r["path"].endswith("c.avi")] == ["not_a_video"]
    assert repr(after["new.mkv"]) == repr(old["b.mkv"] | {"path": str(lab.folder / "new.mkv")})
    lab.run(embeddings=True)
    assert lab.seen() == []


def test_vanished_files_are_reported_and_keep_their_rows(lab: Lab) -> None:
    lab.run()
    before = lab.rows()
    (lab.folder / "a.mp4").unlink()
    (lab.folder / "e.mp4").unlink()
    summary = lab.run()
    assert summary.vanished == 2
    gone = f"gone from disk: {lab.folder}/a.mp4, {lab.folder}/e.mp4; their rows stay (--prune removes them)"
    assert gone in lab.watcher.notes
    assert lab.rows() == before
    shutil.copy2(lab.folder / "b.mkv", lab.folder / "new.mkv")
    assert lab.run().vanished == 2
    assert {Path(r["path"]).name for r in lab.rows()} == {"a.mp4", "b.mkv", "c.avi", "e.mp4", "new.mkv"}


def test_pruning_removes_the_rows_of_vanished_files_and_no_others(lab: Lab) -> None:
    lab.run()
    before = lab.rows()
    (lab.folder / "a.mp4").unlink()
    summary = lab.run(prune=True)
    assert (summary.labelled, summary.vanished, summary.pruned) == (0, 1, 1)
    assert lab.rows() == [row for row in before if not row["path"].endswith("a.mp4")]
    (lab.folder / "c.avi").unlink()
    shutil.copy2(lab.folder / "b.mkv", lab.folder / "new.mkv")
    lab.run(prune=True)
    assert {Path(r["path"]).name for r in lab.rows()} == {"b.mkv", "e.mp4", "new.mkv"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_cannot_grow_is_not_touched(lab: Lab, suffix: str) -> None:
    lab.output = lab.output.with_suffix(suffix)
    lab.run()
    before = lab.output.read_bytes()
    with pytest.raises(OutputError, match=rf"is there, and {suffix} cannot be added to; use --overwrite, or --out"):
        lab.run()
    assert lab.output.read_bytes() == before
    assert not lab.parts.exists()
    lab.run(overwrite=True)
    assert lab.output.read_bytes() == before


def test_other_files_are_counted(lab: Lab) -> None:
    for name in ("notes.txt", "poster.jpg", "clip.gif"):
        (lab.folder / name).touch()
    assert lab.run().other_files == 3
    assert not any(row["path"].endswith((".txt", ".jpg", ".gif")) for row in lab.rows())


def test_videos_of_a_list_that_vanish_keep_their_rows(lab: Lab) -> None:
    """As when a disk is not mounted: labels that took days must not become 'unreadable'."""
    paths = [str(lab.folder / name) for name in ("a.mp4", "b.mkv", "never.mp4")]
    lab.folder.joinpath("list.txt").write_text("\n".join(paths))
    listed = (str(lab.folder / "list.txt"),)
    lab.run(inputs=listed)
    before = lab.rows()
    assert before[-1]["status"] == "unreadable"
    (lab.folder / "a.mp4").rename(lab.folder / "away.mp4")
    for retry_failed in (False, True):
        summary = lab.run(inputs=listed, retry_failed=retry_failed)
        assert summary.vanished == 1
        assert lab.rows() == before
    (lab.folder / "away.mp4").rename(lab.folder / "a.mp4")
    assert lab.run(inputs=listed).vanished == 0
    assert lab.seen() == []
    shutil.copy2(lab.folder / "b.mkv", lab.folder / "never.mp4")  # it has come at last
    lab.run(inputs=listed)
    assert lab.seen() == ["never.mp4"]


def test_files_elsewhere_are_not_vanished(lab: Lab) -> None:
    lab.run()
    assert lab.run(inputs=(str(lab.folder / "a.mp4"),)).vanished == 0


def test_retry_failed(lab: Lab) -> None:
    lab.run()
    lab.run()
    assert lab.seen() == []

    def no_network(config: IndexConfig, report: Report) -> Labeller:
        pytest.fail("a network was started for a file that cannot be opened")

    lab.run(no_network, retry_failed=True)
    assert lab.seen() == ["e.mp4"]
    assert lab.rows()[-1]["status"] == "empty_file"
    shutil.copy(lab.folder / "b.mkv", lab.folder / "e.mp4")
    summary = lab.run(retry_failed=True)
    assert lab.seen() == ["e.mp4"]
    assert summary.failed == 0
    assert {r["status"] for r in lab.rows()} == {"ok"}
    lab.run(retry_failed=True)
    assert lab.seen() == []


def test_a_retry_that_was_interrupted_is_not_retried(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run()
    shutil.copy(lab.folder / "b.mkv", lab.folder / "e.mp4")
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        patch.setattr("sqt_fast.run.merge", lambda *args, **options: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            lab.run(retry_failed=True)
    assert lab.seen() == ["e.mp4"]
    lab.run(retry_failed=True)
    assert lab.seen() == []
    assert {r["status"] for r in lab.rows()} == {"ok"}


def test_a_repaired_file_is_taken_in_without_being_asked(lab: Lab) -> None:
    lab.run()
    shutil.copy(lab.folder / "b.mkv", lab.folder / "e.mp4")
    assert lab.run().failed == 0
    assert lab.seen() == ["e.mp4"]


# -- other settings, other tables -------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(lab: Lab) -> None:
    lab.run()
    before = lab.output.read_bytes()
    with pytest.raises(ConfigError, match=r"--top-k 5, now 3; --embeddings False, now True; .*--overwrite") as caught:
        lab.run(top_k=3, embeddings=True)
    assert "stride" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert lab.output.read_bytes() == before
    assert not lab.parts.exists()
    lab.run(top_k=3, embeddings=True, overwrite=True)
    assert {len(r["topk_ids"]) for r in lab.rows() if r["status"] == "ok"} == {3}
    assert "embedding" in lab.rows()[0]


def test_other_weights_and_labels_are_other_settings(lab: Lab, tmp_path: Path) -> None:
    lab.run()
    names = Path(lab.weights[1]).read_text(encoding="utf-8").split("\n")
    (tmp_path / "other.txt").write_text("\n".join(reversed(names)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--labels .*, now "):
        lab.run(labels=str(tmp_path / "other.txt"))
    (tmp_path / "moved.txt").write_text("\n".join(names), encoding="utf-8")
    shutil.copy(lab.weights[0], tmp_path / "moved.safetensors")
    assert lab.run(weights=str(tmp_path / "moved.safetensors"), labels=str(tmp_path / "moved.txt")).already_done == 4


def test_an_unfinished_run_of_other_settings_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KilledError):
            lab.run()
    with pytest.raises(ConfigError, match=r"an unfinished run, was made with other settings: --top-k 5, now 2"):
        lab.run(top_k=2)
    assert lab.run().already_done == 2
    assert {len(r["topk_ids"]) for r in lab.rows() if r["status"] == "ok"} == {5}


def test_an_unfinished_run_can_be_thrown_away(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KilledError):
            lab.run()
    assert lab.run(top_k=2, overwrite=True).already_done == 0
    assert {len(r["topk_ids"]) for r in lab.rows() if r["status"] == "ok"} == {2}


@pytest.mark.parametrize("again", [{"overwrite": True}, {}], ids=["with", "without"])
def test_an_overwrite_that_was_interrupted_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, again: dict[str, Any]
) -> None:
    """Twice, with --overwrite given again or not: the old rows never come back."""
    lab.run()
    old = lab.rows()
    for done in (1, 1):
        with monkeypatch.context() as patch:
            kill_after(patch, done)
            with pytest.raises(KilledError):
                lab.run(top_k=2, **({"overwrite": True} if not lab.parts.exists() else again))
        assert lab.rows() == old  # until the new table is complete
    summary = lab.run(top_k=2, **again)
    assert (summary.already_done, summary.labelled) == (2, 2)
    rows = lab.rows()
    assert [r["path"] for r in rows] == [r["path"] for r in old]
    assert {len(r["topk_ids"]) for r in rows if r["status"] == "ok"} == {2}
    assert not lab.parts.exists()


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_files_of_others_are_not_touched(lab: Lab, tmp_path: Path, name: str) -> None:
    lab.output = tmp_path / name
    lab.output.write_text("path,label\nx,y\n")
    with pytest.raises(OutputError, match="--overwrite"):
        lab.run()
    assert lab.output.read_text() == "path,label\nx,y\n"
    assert not lab.parts.exists()
    lab.run(overwrite=True)
    assert len(lab.rows()) >= 4


def test_parquet_of_others_is_not_touched(lab: Lab) -> None:
    pq.write_table(pa.table({"path": ["a"]}), lab.output)
    with pytest.raises(OutputError, match="--overwrite"):
        lab.run()
    assert pq.read_table(lab.output).num_rows == 1


def test_metadata_without_settings_is_a_strangers(lab: Lab) -> None:
    lab.run()
    pq.write_table(pq.read_table(lab.output).replace_schema_metadata({b"sqt_fast": b"{}"}), lab.output)
    with pytest.raises(OutputError, match="not written by sqt-fast"):
        lab.run()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": ("nowhere",)}, ConfigError, "no such file or folder"),
        ({"weights": "nowhere.pth"}, ConfigError, "no such file"),
        ({"labels": "kinetics400"}, ConfigError, "400 names for the 7 classes"),
        ({"device": "cuda:77"}, ConfigError, "CUDA devices"),
        ({"device": "banana"}, ConfigError, "no such device"),
        ({"output": Path("/proc/nowhere/t.csv")}, OutputError, "cannot write beside it"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(lab: Lab, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        lab.run(**options)
    assert "\n" not in str(caught.value)
    assert not lab.output.exists()
    assert not lab.parts.exists()


def test_an_empty_folder_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no video files found"):
        lab.run(inputs=(str(tmp_path / "empty"),))


def test_a_backbone_is_refused(lab: Lab, tmp_path: Path) -> None:
    from sqt_fast.network.checkpoint import save_safetensors
    from sqt_fast.network.model import ModelConfig, SqueezeTime

    save_safetensors(SqueezeTime(ModelConfig(depth=10, width=1 / 32, num_classes=None)), tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="backbone"):
        lab.run(weights=str(tmp_path / "b.safetensors"), labels=None)


def test_a_backend_that_was_asked_for_does_not_fall_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqt_fast.network.compiled.why_not", lambda device, model: "there is no compiler")
    with pytest.raises(BackendError, match="there is no compiler"):
        lab.run(backend="compile")
    assert "compile" in BACKENDS


def test_names_that_are_not_utf8(lab: Lab) -> None:
    good, bad = os.fsdecode(b"caf\xe9.mkv"), os.fsdecode(b"\xff.mp4")
    shutil.copy2(lab.folder / "b.mkv", lab.folder / good)
    (lab.folder / bad).write_bytes(b"\0" * 4096)
    for suffix in (".csv", ".jsonl", ".parquet"):
        lab.output = lab.output.with_suffix(suffix)
        lab.run()
        status = {Path(r["path"]).name: r["status"] for r in lab.rows()}
        assert status[r"caf\xe9.mkv"] == "ok"
        assert status[r"\xff.mp4"] != "ok"
    lab.run()
    assert lab.seen() == []


# -- interrupted ------------------------------------------------------------------------------------------------------


@SUFFIXES
@pytest.mark.parametrize("error", [KilledError, KeyboardInterrupt])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    lab: Lab, suffix: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.output = lab.output.with_suffix(suffix)
    lab.run(embeddings=True)
    whole = lab.rows()
    for path in lab.output.parent.glob(f"{lab.output.name}*"):
        path.unlink()
    for done in (1, 1, 0):
        with monkeypatch.context() as patch:
            kill_after(patch, done, error)
            with pytest.raises(KilledError if error is KilledError else InterruptedRunError) as caught:
                lab.run(embeddings=True)
        assert not lab.output.exists()
    if error is KeyboardInterrupt:
        assert "2 of 4 videos are done" in str(caught.value)
        assert "run the same command again" in str(caught.value)
    summary = lab.run(embeddings=True)
    assert (summary.already_done, summary.labelled) == (2, 2)
    assert repr(lab.rows()) == repr(whole)


@pytest.mark.parametrize("moment", ["before the table", "after the table", "while the parts go", "with the sidecar"])
def test_killed_at_the_very_end(lab: Lab, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: for a new table and for one that takes in a changed file."""
    lab.run()
    whole = lab.rows()
    for path in lab.output.parent.glob(f"{lab.output.name}*"):
        path.unlink()

    def killed(*args: Any, **options: Any) -> None:
        raise KilledError

    def some_parts_gone(folder: Path) -> None:
        for part in sorted(folder.glob("part-*"))[:1]:
            part.unlink()
        raise KilledError

    replace = Path.replace

    def renamed_but_the_table(self: Path, target: Path) -> Path:
        if target == lab.output:
            raise KilledError
        return replace(self, target)

    patches: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "before the table": (sys.modules["sqt_fast.run"], "merge", killed),
        "with the sidecar": (Path, "replace", renamed_but_the_table),
        "after the table": (Parts, "remove", killed),
        "while the parts go": (sys.modules["sqt_fast.table.parts"].shutil, "rmtree", some_parts_gone),
    }
    for again in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(*patches[moment])
            with pytest.raises(KilledError):
                lab.run()
        assert lab.parts.exists()
        summary = lab.run()
        assert (summary.labelled, summary.already_done) == (0, 4)
        assert [r | {"mtime_ns": 0} for r in lab.rows()] == [r | {"mtime_ns": 0} for r in whole]
        assert not lab.parts.exists()
        assert lab.run().labelled == 0
        if not again:
            os.utime(lab.folder / "a.mp4", ns=(1, 10**18))


def test_parts_of_a_finished_table_never_come_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the folder was removed, then started anew with other settings."""
    with monkeypatch.context() as patch:
        patch.setattr("sqt_fast.table.parts.shutil.rmtree", lambda folder: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            lab.run()
    lab.run(top_k=2, overwrite=True)
    assert len(lab.watcher.finished) == 4
    assert {len(r["topk_ids"]) for r in lab.rows() if r["status"] == "ok"} == {2}


def test_a_resumed_run_begins_with_the_batches_that_fit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    start = InferenceModel.start

    def small(self: InferenceModel, clips: Any) -> Any:
        if len(clips) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(self, clips)

    lab.run()
    whole = lab.rows()
    with monkeypatch.context() as patch:
        patch.setattr(InferenceModel, "start", small)
        kill_after(patch, 2)
        with pytest.raises(KilledError):
            lab.run(overwrite=True)
    assert json.loads((lab.parts / "run.json").read_text())["metadata"]["choice"]["batch_size"] == 2
    seen: list[int] = []

    def watched(self: InferenceModel, clips: Any) -> Any:
        seen.append(len(clips))
        return start(self, clips)

    monkeypatch.setattr(InferenceModel, "start", watched)
    lab.run(batch_size=None)
    assert set(seen) == {2}
    assert [r | {"score": 0, "topk_scores": 0} for r in lab.rows()] == [
        r | {"score": 0, "topk_scores": 0} for r in whole
    ]


# -- other processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 videos: enough that a run can be caught at work."""
    folder = tmp_path_factory.mktemp("many")
    sources = [p for p in sorted(archive.rglob("*.*")) if p.parent.name != "broken" and p.suffix != ".csv"]
    sources = [p for p in sources if p.is_file()]
    for i in range(60):
        shutil.copy2(sources[i % len(sources)], folder / f"{i:02}{sources[i % len(sources)].suffix}")
    (folder / "x.mp4").touch()
    return folder


# A shell starts what it puts into the background with Ctrl-C ignored, and the program rightly leaves that so.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from sqt_fast.cli import main
main()
"""


def start(lab: Lab, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "index", str(lab.folder)]
    options = ["-o", lab.output, "--weights", lab.weights[0], "--labels", lab.weights[1], "--embeddings", "-q"]
    how = ["--backend", "eager", "--precision", "fp32", "--device", "cpu", "--batch-size", "1"]
    return subprocess.Popen([*command, *map(str, options), *how, *more], stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], seen: Callable[[], bool]) -> bool:
    """Wait until ``seen()``. Returns whether the process is still at work."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if seen():
            return True
        time.sleep(0.01)
    return False


def all_gone(pids: list[int]) -> bool:
    """Whether these processes end by themselves, and soon."""
    return wait_until(lambda: not any(map(is_alive, pids)), 2)


@pytest.mark.exhaustive
def test_kill_9_at_any_moment(many: Path, tmp_path: Path, tiny_weights: tuple[str, str], clean: pa.Table) -> None:
    lab = Lab(many, tmp_path / "killed.parquet", tiny_weights)
    dice = random.Random(7)
    caught, survivors = 0, []
    for wanted in (-2, 1, -1, 2):
        with start(lab) as process:
            before = len(list(lab.parts.glob("part-*")))

            def seen(wanted: int = wanted, before: int = before) -> bool:
                if wanted == -2:
                    return lab.parts.exists()
                if wanted == -1:
                    return (lab.parts / "run.json").exists()
                return len(list(lab.parts.glob("part-*"))) >= before + wanted

            caught += wait_for(process, seen)
            time.sleep(dice.random() * 0.5)
            below = descendants(process.pid)
            process.kill()
        assert all_gone(below), "a process outlived the run"
        survivors.append(len(list(lab.parts.glob("part-*"))))
        if lab.output.exists():
            break
    assert caught >= 2, "the runs were too short to be killed"
    assert max(survivors) >= 1
    with start(lab) as process:
        assert process.wait(60) == 0, process.communicate()[1]
    assert not lab.parts.exists()
    assert lab.run(embeddings=True, batch_size=1).labelled == 0
    assert read_table(lab.output)[0].equals(clean)


SOON_S = 10.0  # 0.4 s alone; beside what other tests left running it takes up to 5


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signals_stop_it(many: Path, tmp_path: Path, tiny_weights: tuple[str, str], sign: signal.Signals) -> None:
    lab = Lab(many, tmp_path / "stopped.csv", tiny_weights)
    with start(lab, "--stride", "0.05") as process:  # many clips: not over before the signal comes
        assert wait_for(process, lambda: any(lab.parts.glob("part-*")))
        below = descendants(process.pid)
        assert len(below) >= 2  # a device and a decoder
        process.send_signal(sign)
        _, said = process.communicate(timeout=SOON_S)
    assert all_gone(below)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "of 61 videos are done" in said
    assert "run the same command again to go on" in said
    assert not lab.output.exists()
    with Parts(lab.output) as parts:
        done = {path for part in parts.files() for path in read_table(part)[0]["path"].to_pylist()}
        assert 0 < len(done) < 61
        assert f"stopped: {len(done)} of 61" in said


def is_locked(path: Path) -> bool:
    return path.exists() and f":{path.stat().st_ino} " in Path("/proc/locks").read_text()


def test_a_signal_at_the_start_stops_too(many: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> None:
    lab = Lab(many, tmp_path / "early.parquet", tiny_weights)
    with start(lab) as process:
        assert wait_for(process, lambda: is_locked(lab.parts / "lock"))
        with pytest.raises(OutputError, match="another run is writing it"):
            lab.run()
        below = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SOON_S)
    assert all_gone(below)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "run the same command again" in said


# -- devices and decoders that die ------------------------------------------------------------------------------------


def with_tools(tools: Any, hang_s: float = 60.0, *, supervised: bool = True) -> Launch:
    """Label with these decoders, in a process of its own or in this one."""
    resources = Resources(2, 1 << 30, cores=2, hang_s=hang_s)

    def launch(config: IndexConfig, report: Report) -> Labeller:
        if supervised:
            return Supervisor(config, resources, report, tools)
        return Worker(config, resources, tools, report)

    return launch


@pytest.fixture
def poisoned(lab: Lab) -> Lab:
    """A folder with one more video, whose name has "poison" in it."""
    shutil.copy2(lab.folder / "b.mkv", lab.folder / "b-poison.mkv")
    return lab


def test_supervised_gives_the_same_table(lab: Lab, tmp_path: Path) -> None:
    lab.run(embeddings=True)
    wanted = repr(lab.rows())
    lab.output = tmp_path / "supervised.parquet"
    summary = lab.run(launch=with_tools(FFMPEG), embeddings=True)
    assert repr(lab.rows()) == wanted
    assert (summary.labelled, summary.rows, summary.failed) == (4, len(lab.rows()), 1)
    assert summary.counters.clips == sum(row["status"] == "ok" for row in lab.rows())
    assert summary.counters.frames_decoded >= summary.counters.frames_wanted > 0
    assert lab.watcher.num_clips == summary.counters.clips
    assert "eager fp32 on cpu: as asked" in lab.watcher.notes
    assert not descendants(os.getpid())


@pytest.mark.parametrize(
    ("poison", "supervised", "status", "said"),
    [
        (Poison("SIGSEGV"), True, "crashed", "decoder was killed by SIGSEGV, 3 times"),
        (Poison("SIGSEGV", at=4), False, "crashed", "decoder was killed by SIGSEGV, 3 times"),
        (Poison("exit", at=0), False, "crashed", "decoder ended unasked (exit code 3), 3 times"),
        (Poison("hang", at=0), False, "crashed", "decoder hung: it did nothing for 2 s, 2 times"),
        (Poison("hang"), True, "crashed", "decoder hung: it did nothing for 2 s, 2 times"),
        (Poison("memory", at=4), False, "too_large", "not enough memory to decode it"),
        (Poison("value"), False, "error", "ValueError: what nobody foresaw"),
    ],
    ids=str,
)
def test_one_file_that_kills_decoders_costs_its_row_only(
    poisoned: Lab, poison: Poison, supervised: bool, status: str, said: str, tmp_path: Path
) -> None:
    poisoned.run(embeddings=True)
    clean = poisoned.rows()
    poisoned.output = tmp_path / "poisoned.parquet"
    summary = poisoned.run(launch=with_tools(poison, 2.0, supervised=supervised), embeddings=True)
    rows = poisoned.rows()
    assert repr([r for r in rows if "poison" not in r["path"]]) == repr([r for r in clean if "poison" not in r["path"]])
    (bad,) = (r for r in rows if "poison" in r["path"])
    assert (bad["status"], bad["error_message"]) == (status, said)
    assert bad["label"] is bad["embedding"] is None
    assert summary.failures == {"empty_file": 1, status: 1}
    assert not descendants(os.getpid())


@pytest.mark.parametrize("supervised", [True, False])
def test_a_crash_that_does_not_come_again_leaves_no_trace(poisoned: Lab, supervised: bool, tmp_path: Path) -> None:
    poisoned.run(embeddings=True)
    clean = poisoned.output.read_bytes(), poisoned.rows()
    poisoned.output = tmp_path / "poisoned.parquet"
    tools = Poison("SIGSEGV", at=4, once=str(tmp_path / "struck"))
    poisoned.run(launch=with_tools(tools, supervised=supervised), embeddings=True)
    assert (tmp_path / "struck").exists()
    assert repr(poisoned.rows()) == repr(clean[1])


class Assassin(threading.Thread):
    """Kills processes below this one at random, no more often than one video may survive."""

    def __init__(self, seed: int, begin: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.dice, self.begin = random.Random(seed), begin
        self.victims: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        wait_until(self.begin, 60)
        devices = decoders = 0
        life: int | None = None
        end = time.monotonic() + 12
        while time.monotonic() < end and not self.enough.wait(self.dice.uniform(0.05, 1.0)):
            children = [pid for pid in descendants(os.getpid()) if parent_of(pid) == os.getpid()]
            grandchildren = [pid for pid in descendants(os.getpid()) if pid not in children]
            if children and children[0] != life:  # another device: its decoders may die as often again
                life, decoders = children[0], 0
            if children and devices < 2 and self.dice.random() < 0.3:
                devices += self.kill(children[0], "device")
            elif grandchildren and decoders < 2:
                decoders += self.kill(self.dice.choice(grandchildren), "decoder")

    def kill(self, pid: int, kind: str) -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.victims.append(kind)
            return True
        return False


def parent_of(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [1, 2])
def test_processes_killed_at_random_leave_no_trace(
    many: Path, tmp_path: Path, tiny_weights: tuple[str, str], seed: int, clean: pa.Table
) -> None:
    lab = Lab(many, tmp_path / "killed.parquet", tiny_weights)
    assassin = Assassin(seed, (lab.parts / "run.json").exists)
    assassin.start()
    try:
        summary = lab.run(launch=with_tools(Slow(0.1)), embeddings=True, batch_size=1)
    finally:
        assassin.enough.set()
        assassin.join()
    assert {"device", "decoder"} <= set(assassin.victims), assassin.victims
    assert len(assassin.victims) >= 3
    assert read_table(lab.output)[0].equals(clean)
    assert summary.labelled == 61
    assert not descendants(os.getpid())


@pytest.fixture(scope="module")
def clean(many: Path, tmp_path_factory: pytest.TempPathFactory, tiny_weights: tuple[str, str]) -> pa.Table:
    """The table of ``many`` when nobody is killed."""
    lab = Lab(many, tmp_path_factory.mktemp("clean") / "whole.parquet", tiny_weights)
    lab.run(embeddings=True, batch_size=1)
    return read_table(lab.output)[0]


# -- odds and ends ----------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_stat_is_in_the_table(lab: Lab) -> None:
    """A dangling link has a row, and is not tried again and again."""
    (lab.folder / "link.mp4").symlink_to("nowhere.mp4")
    lab.run()
    row = next(r for r in lab.rows() if r["path"].endswith("link.mp4"))
    assert (row["status"], row["size_bytes"], row["mtime_ns"]) == ("unreadable", None, None)
    assert lab.run().labelled == 0
    assert VideoFile(row["path"], None, None).key[0] == row["path"]
