"""Whole evaluations: every video of the list counts, by a run of the network or by a table that is there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import Event, Loaded, VideoFinished
from sqt_fast.errors import ConfigError, InterruptedRunError
from sqt_fast.evaluate.evaluation import EvaluateConfig, Evaluation, evaluate
from sqt_fast.run import run
from sqt_fast.table.schema import Row, to_table
from sqt_fast.video.archive import path_of
from tests.conftest import TINY_LABELS
from tests.tables import read_table, write_table
from tests.test_run import in_process
from tests.watching import Remembering

RUN = {"backend": "eager", "precision": "fp32", "device": "cpu", "batch_size": 4}
SETTINGS = {
    "protocol": {"name": "fast", "short_side": 256, "crop_size": 224, "num_clips": None, "num_crops": 1},
    "level": "window",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label in this process: to start another takes seconds."""
    assert run.__kwdefaults__ is not None
    monkeypatch.setitem(run.__kwdefaults__, "launch", in_process)
    monkeypatch.setattr("sqt_fast.run.estimate_clips", lambda videos, recipe: len(videos))


@pytest.fixture
def judged(tiny_weights: tuple[str, str]) -> Callable[..., Evaluation]:
    """Evaluate the tiny network on a list, one clip a video."""

    def judged(source: Path, report: Any = lambda event: None, **options: Any) -> Evaluation:
        defaults = {"weights": tiny_weights[0], "label_names": tiny_weights[1], "protocol": "single", **RUN}
        return evaluate(EvaluateConfig(source, **{**defaults, **options}), report)

    return judged


def sound(archive: Path, *suffixes: str) -> list[str]:
    """Return the good videos of the archive that end so."""
    return [str(p) for p in sorted(archive.rglob("*")) if p.suffix in suffixes and p.parent.name != "broken"]


def listed(folder: Path, *lines: tuple[str, Any]) -> Path:
    source = folder / "list.txt"
    source.write_bytes(b"".join(os.fsencode(f"{path} {label}\n") for path, label in lines))
    return source


def table(folder: Path, *rows: Row, top_k: int | None = None) -> Path:
    write_table(to_table(rows, None), folder / "t.parquet", {"settings": {**SETTINGS, "top_k": top_k}})
    return folder / "t.parquet"


def window(path: str, **scores: float) -> Row:
    """Return an ok row; names begin with a letter that says the number: a0, b1."""
    ids = [ord(name[0]) - ord("a") for name in scores]
    return Row(path, topk_ids=ids, topk_labels=list(scores), topk_scores=list(scores.values()))


# -- with a network ---------------------------------------------------------------------------------------------------


def test_every_video_counts_and_equals_what_index_says(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], judged: Callable[..., Evaluation]
) -> None:
    videos = sound(archive, ".avi", ".mkv", ".ts")
    broken = [str(archive / "broken" / name) for name in ("empty.mp4", "text.mp4", "cut.mkv", "gone.mp4")]
    table = tmp_path / "index.parquet"
    options: Any = {"weights": tiny_weights[0], "labels": tiny_weights[1], "protocol": "single", "top_k": 2, **RUN}
    run(IndexConfig(inputs=(*videos, *broken), output=table, **options))
    rows = [row for row in read_table(table)[0].to_pylist() if row["status"] == "ok"]
    said = {row["path"]: row["topk_ids"] for row in rows}
    assert set(videos) < set(said)
    truth = {path: said[path][0] if i % 2 else said[path][1] for i, path in enumerate(sorted(said))}
    lines = [(path, truth.get(path, 3)) for path in [*videos, *broken, str(tmp_path / "nowhere.mp4")]]
    watcher = Remembering()
    evaluation = judged(listed(tmp_path, *lines), watcher)

    metrics, printed = evaluation.metrics, evaluation.as_dict()
    right = [path for i, path in enumerate(sorted(said)) if i % 2]
    assert metrics.top1 == printed["top1"] == len(right) / len(lines)
    assert metrics.top5 == printed["top5"] == len(said) / len(lines)
    shown = {label: [path for path, each in lines if each == label] for label in {label for _, label in lines}}
    recalls = [sum(path in right for path in paths) / len(paths) for paths in shown.values()]
    assert metrics.mean_class == pytest.approx(np.mean(recalls), rel=1e-12)
    assert evaluation.classes.names == TINY_LABELS
    assert evaluation.paths == tuple(path for path, _ in lines)
    sums = [float(path in said) for path in evaluation.paths]
    assert np.nansum(evaluation.scores, axis=1) == pytest.approx(sums, abs=1e-5)

    failed = {path: status for path, status, _ in evaluation.failures}
    assert failed == {
        broken[0]: "empty_file",
        broken[1]: "not_a_video",
        broken[3]: "unreadable",
        str(tmp_path / "nowhere.mp4"): "unreadable",
    }
    assert printed["failed"] == len(failed) == metrics.confusion[:, -1].sum()
    assert printed["videos"] == len(lines) == metrics.confusion.sum()
    assert printed["protocol"]["name"] == "single"
    assert Loaded(TINY_LABELS) in watcher.events
    assert sorted(tmp_path.iterdir()) == [table, tmp_path / "list.txt"]


def test_the_table_is_kept_gone_on_with_and_judged_again(
    archive: Path, tmp_path: Path, judged: Callable[..., Evaluation]
) -> None:
    videos = sound(archive, ".avi", ".mkv")
    output = tmp_path / "kept.parquet"

    def interrupt(event: Event) -> None:
        if isinstance(event, VideoFinished):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="run the same command again to go on"):
        judged(listed(tmp_path, *((path, 0) for path in videos)), interrupt, output=output)
    again = Remembering()
    first = judged(tmp_path / "list.txt", again, output=output)
    assert 0 < len(again.finished) < len(videos)
    nothing = Remembering()
    judged(tmp_path / "list.txt", nothing, output=output)
    assert nothing.finished == []
    by_table = evaluate(EvaluateConfig(tmp_path / "list.txt", table=output))
    assert np.array_equal(first.scores, by_table.scores)
    assert by_table.as_dict() == first.as_dict()
    assert all(len(row["topk_ids"]) == len(TINY_LABELS) for row in read_table(output)[0].to_pylist())


def test_any_name_links_and_repeated_lines_count(
    archive: Path, tmp_path: Path, judged: Callable[..., Evaluation]
) -> None:
    (video,) = sound(archive, ".avi")
    names = ["a b.avi", "“ü”.avi", os.fsdecode(b"caf\xe9.avi"), r"\xe9.avi", "-", "list.csv", "link.avi", "a[b]*.avi"]
    for name in names:
        (tmp_path / name).symlink_to(video)
    source = tmp_path / "all.txt"
    source.write_bytes(b"".join(os.fsencode(f"{name} {i % 2}\n") for i, name in enumerate([*names, names[0]])))
    evaluation = judged(source)
    assert evaluation.failures == ()
    assert evaluation.metrics.videos.tolist() == [5, 4, *[0] * 5]
    assert (evaluation.scores == evaluation.scores[0]).all()


def test_classes_are_compared_before_anything_is_labelled(
    archive: Path, tmp_path: Path, judged: Callable[..., Evaluation]
) -> None:
    (video,) = sound(archive, ".avi")
    watcher = Remembering()
    with pytest.raises(ConfigError, match="class 'fly' of the list: none of the 7 classes"):
        judged(listed(tmp_path, (video, "fly")), watcher, label_names=None, output=tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="class 7 of the list: the weights have 7 classes, 0 to 6"):
        judged(listed(tmp_path, (video, 7)), watcher, label_names=None)
    assert watcher.finished == []
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


def test_names_of_the_list_are_enough_for_weights_that_carry_names(
    archive: Path, tmp_path: Path, tiny_model: Any, judged: Callable[..., Evaluation]
) -> None:
    import json

    from sqt_fast.network.checkpoint import save_safetensors

    weights = tmp_path / "named.safetensors"
    save_safetensors(tiny_model, weights, {"labels": json.dumps(TINY_LABELS)})
    (video,) = sound(archive, ".avi")
    evaluation = judged(listed(tmp_path, (video, "up"), (video, "turn")), weights=str(weights), label_names=None)
    assert evaluation.classes.labels.tolist() == [3, 6]
    assert evaluation.classes.names == TINY_LABELS


def test_stopped_without_a_table_to_keep(
    archive: Path, tmp_path: Path, judged: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise InterruptedRunError("stopped: 1 of 2 videos are done and kept in a folder that is gone")

    monkeypatch.setattr("sqt_fast.evaluate.evaluation.run", interrupt)
    source = listed(tmp_path, *((path, 0) for path in sound(archive, ".avi")))
    with pytest.raises(InterruptedRunError, match=r"^stopped: nothing is kept without --out"):
        judged(source)
    with pytest.raises(InterruptedRunError, match=r"^stopped: 1 of 2 videos"):
        judged(source, output=tmp_path / "t.parquet")


# -- with a table -----------------------------------------------------------------------------------------------------


def test_windows_of_a_table(tmp_path: Path) -> None:
    rows = [
        window("/a.mp4", b1=0.5, a0=0.4),
        window("/a.mp4", a0=0.6, c2=0.2),
        window("/b.mp4", c2=0.9, b1=0.1),
        Row("/b.mp4", "damaged", "the end is lost"),
        Row("/c.mp4", "error", "x"),
    ]
    source = listed(tmp_path, ("/a.mp4", "a0"), ("/b.mp4", "b1"), ("/c.mp4", "a0"), ("/d.mp4", "z9"))
    evaluation = evaluate(EvaluateConfig(source, table=table(tmp_path, *rows, top_k=2)))
    assert evaluation.classes.names == ("a0", "b1", "c2", "z9")
    assert evaluation.scores[0].tolist()[:3] == np.array([0.5, 0.25, 0.1], np.float32).tolist()
    assert np.isnan(evaluation.scores[0][3])
    assert evaluation.metrics.top1 == 1 / 4
    assert evaluation.as_dict()["top5"] is None
    assert [status for _, status, _ in evaluation.failures] == ["error", "not_in_table"]
    assert evaluation.notes == (
        "top-5 needs a table with --top-k 5 or more; this one has the best 2",
        "approximate: scores are means over windows, in which all but the best 2 classes count as 0",
        "classes of the list that no row of the table names: z9",
    )


def test_classes_one_by_one(tmp_path: Path) -> None:
    rows = [window(f"/{i}.mp4", **scores) for i, scores in enumerate([{"a0": 1.0, "b1": 0.0}, {"b1": 1.0, "a0": 0.0}])]
    lines = [("/0.mp4", 0), ("/1.mp4", 0), ("/1.mp4", 1), ("/0.mp4", 0), ("/2.mp4", 0)]
    evaluation = evaluate(EvaluateConfig(listed(tmp_path, *lines), table=table(tmp_path, *rows)))
    first, second = evaluation.per_class
    assert (first.label, first.videos, first.without_label, first.top1, first.top5) == ("a0", 4, 1, 0.5, 0.75)
    assert (first.predicted, first.precision, first.confused_with, first.confused) == (2, 1.0, "b1", 1)
    assert (second.top1, second.precision, second.confused_with, second.confused) == (1.0, 0.5, None, 0)
    assert evaluation.worst_classes(5) == [first]


def test_a_table_of_other_videos(tmp_path: Path) -> None:
    source = listed(tmp_path, ("a.mp4", 0))
    with pytest.raises(ConfigError, match=f"none of the 1 videos of the list, such as {tmp_path}/a.mp4 .it has /b.mp4"):
        evaluate(EvaluateConfig(source, table=table(tmp_path, window("/b.mp4", a0=1.0))))
    with pytest.raises(ConfigError, match="it has no video"):
        evaluate(EvaluateConfig(source, table=table(tmp_path)))


def test_a_table_in_which_nothing_has_a_label(tmp_path: Path) -> None:
    rows = [Row("/a.mp4", "error", "x")]
    evaluation = evaluate(EvaluateConfig(listed(tmp_path, ("/a.mp4", "run")), table=table(tmp_path, *rows)))
    assert (evaluation.metrics.top1, evaluation.metrics.top5, evaluation.metrics.mean_class) == (0.0, 0.0, 0.0)
    assert evaluation.classes.names == ("run",)


def test_random_weights_are_told(tmp_path: Path) -> None:
    path = table(tmp_path, window("/a.mp4", a0=1.0))
    write_table(read_table(path)[0], path, {"settings": {**SETTINGS, "top_k": None}, "labels_mean_nothing": True})
    evaluation = evaluate(EvaluateConfig(listed(tmp_path, ("/a.mp4", 0)), table=path))
    assert evaluation.notes == ("the weights are random, never trained: these numbers mean nothing",)


def test_paths_of_failures_are_written_as_in_the_table(tmp_path: Path) -> None:
    name = os.fsdecode(b"/caf\xe9.mp4")
    evaluation = evaluate(
        EvaluateConfig(listed(tmp_path, (name, 0)), table=table(tmp_path, Row(r"/caf\xe9.mp4", "error", "x")))
    )
    assert evaluation.failures == ((r"/caf\xe9.mp4", "error", "x"),)
    assert path_of(evaluation.failures[0][0]) == evaluation.paths[0] == name


# -- what was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--weights or --table: neither is given"),
        ({"weights": "k400", "table": Path("t.parquet")}, "--weights or --table: k400 and t.parquet"),
        ({"table": Path("t.parquet"), "protocol": "fast"}, "--protocol: no network runs with --table"),
        ({"table": Path("t.parquet"), "output": Path("x.parquet")}, "--out: no network runs"),
        ({"table": Path("t.parquet"), "overwrite": True}, "--overwrite: no network runs"),
        ({"table": Path("t.parquet"), "batch_size": 1}, "--batch-size: no network runs"),
        ({"table": Path("t.parquet"), "memory_bytes": 1}, "--memory: no network runs"),
        ({"weights": "k400", "output": Path("x.csv")}, "--out x.csv: the name must end in .parquet"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig(Path("list.txt"), **options)
    assert str(caught.value).startswith(said)


def test_a_run_keeps_every_class_of_every_video() -> None:
    config = EvaluateConfig(Path("l"), weights="w", label_names="ucf101", overwrite=True, device="cuda", memory_bytes=7)
    assert config.run_config(Path("t.parquet")) == IndexConfig(
        inputs=("-",),
        output=Path("t.parquet"),
        weights="w",
        labels="ucf101",
        protocol="official",
        level="video",
        top_k=None,
        null=True,
        all_links=True,
        overwrite=True,
        device="cuda",
        memory_bytes=7,
    )
