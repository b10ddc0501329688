"""What an evaluation leaves behind: the summary, the matrix, the classes and the scores."""

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from sqt_fast.errors import ConfigError, OutputError
from sqt_fast.evaluate.evaluation import Evaluation
from sqt_fast.evaluate.matching import Classes
from sqt_fast.evaluate.reports import Outputs, print_evaluation, score_dump

NAMES = ("run", "naïve, “$x_$”", "[b]jump[/b]", "caf\udce9")
METADATA: dict[str, Any] = {
    "settings": {
        "protocol": {"name": "official", "short_side": 224, "crop_size": 224, "num_clips": 10, "num_crops": 3},
        "level": "video",
        "top_k": None,
    },
    "weights": {"name": "k400", "sha256": "0123456789abcdef", "labels": "kinetics400"},
    "choice": {"backend": "eager", "precision": "fp32", "device": "cpu"},
}
SCORES = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.3, 0.0], [np.nan] * 4, [0.1, 0.2, 0.6, 0.1]], np.float32)
LABELS = np.array([0, 0, 1, 2])


def evaluation(**changes: Any) -> Evaluation:
    defaults: dict[str, Any] = {
        "paths": tuple(f"/{i}.mp4" for i in range(4)),
        "classes": Classes(NAMES, LABELS),
        "scores": SCORES,
        "num_kept": 4,
        "failures": (("/2.mp4", "empty_file", "0 bytes"),),
        "metadata": METADATA,
        "notes": (),
    }
    return Evaluation(**{**defaults, **changes})


def printed(what: Evaluation) -> list[str]:
    out = io.StringIO()
    print_evaluation(what, Console(file=out, soft_wrap=True, highlight=False))
    return out.getvalue().splitlines()


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_summary() -> None:
    assert printed(evaluation(notes=("mind [this]\x1b",))) == [
        "top-1       50.00 %, 2 of 4 videos",
        "top-5       75.00 %",
        "mean class  50.00 %, over the classes of the list: 3",
        "no label    1 video, counted as wrong: /2.mp4 (empty_file)",
        "protocol    official: 10 clips x 3 crops at 224, a row a video",
        "weights     k400 (0123456789ab)",
        "network     eager fp32 cpu",
        "worst       naïve, “$x_$”: 0.00 % of 1 video",
        "            run: 50.00 % of 2 videos, 1 labelled naïve, “$x_$”",
        "note        mind [this]\\x1b",
    ]


def test_summary_of_little() -> None:
    """A table of which less is known, and nothing wrong with it."""
    settings = {**METADATA["settings"], "level": "window"}
    settings["protocol"] = {**settings["protocol"], "name": "fast", "num_clips": None, "num_crops": 1}
    right = SCORES[[0, 3]]
    little = evaluation(
        paths=("/a", "/b"),
        classes=Classes(NAMES, np.array([0, 2])),
        scores=right,
        num_kept=3,
        failures=(),
        metadata={"settings": settings},
    )
    assert printed(little) == [
        "top-1       100.00 %, 2 of 2 videos",
        "top-5       unknown",
        "mean class  100.00 %, over the classes of the list: 2",
        "no label    0 videos",
        "protocol    fast: windows x 1 crop at 224, a row a window",
    ]


def test_of_many_failures_and_classes_few_are_named() -> None:
    failures = tuple((f"/caf\udce9{i}.mp4", "error", "x") for i in range(5))
    lines = printed(evaluation(failures=failures))
    assert lines[3].startswith("no label    5 videos, counted as wrong: /caf\\udce90.mp4 (error), ")
    assert lines[3].endswith("/caf\\udce92.mp4 (error) and 2 more")
    many = evaluation(
        classes=Classes(tuple(f"c{i}" for i in range(9)), np.arange(9)),
        paths=("/a",) * 9,
        scores=np.eye(9, dtype=np.float32)[::-1],
    )
    worst = [line[12:] for line in printed(many) if "labelled" in line]
    assert worst == [f"c{i}: 0.00 % of 1 video, 1 labelled c{8 - i}" for i in (0, 1, 2, 3, 5)]


def test_the_matrix_as_csv(tmp_path: Path) -> None:
    Outputs(confusion=tmp_path / "m.csv").write(evaluation())
    names = [*NAMES[:3], "caf\\udce9"]
    assert rows_of(tmp_path / "m.csv") == [
        ["truth / prediction", *names, "(no label)"],
        [names[0], "1", "1", "0", "0", "0"],
        [names[1], "0", "0", "0", "0", "1"],
        [names[2], "0", "0", "1", "0", "0"],
        [names[3], "0", "0", "0", "0", "0"],
    ]


@pytest.mark.parametrize("num_classes", [4, 100])
def test_the_matrix_as_a_picture(tmp_path: Path, num_classes: int) -> None:
    pytest.importorskip("matplotlib")
    import cv2

    scores = np.pad(SCORES, ((0, 0), (0, num_classes - 4)))
    names = (NAMES * 25)[:num_classes]
    Outputs(confusion=tmp_path / "m.PNG").write(evaluation(classes=Classes(names, LABELS), scores=scores))
    picture = cv2.imread(str(tmp_path / "m.PNG"))
    assert picture is not None
    assert min(picture.shape[:2]) > 500
    assert picture.std() > 10
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_needs_matplotlib_and_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib; pip install 'sqt-fast\[train\]', or give a \.csv"):
        Outputs(confusion=tmp_path / "m.png")
    Outputs(confusion=tmp_path / "m.csv")


def test_the_classes(tmp_path: Path) -> None:
    Outputs(per_class=tmp_path / "c.csv").write(evaluation())
    header, *rows = rows_of(tmp_path / "c.csv")
    assert [dict(zip(header, row, strict=True)) for row in rows[:2]] == [
        {
            "label_id": "0",
            "label": "run",
            "videos": "2",
            "without_label": "0",
            "top1": "0.5",
            "top5": "1.0",
            "predicted": "1",
            "precision": "1.0",
            "confused_with": NAMES[1],
            "confused": "1",
        },
        {
            "label_id": "1",
            "label": NAMES[1],
            "videos": "1",
            "without_label": "1",
            "top1": "0.0",
            "top5": "0.0",
            "predicted": "1",
            "precision": "0.0",
            "confused_with": "",
            "confused": "0",
        },
    ]
    assert len(rows) == 4
    assert rows[3][4:8] == ["", "", "0", ""]


def test_the_scores_are_those_of_mmaction2(tmp_path: Path) -> None:
    Outputs(dump=tmp_path / "s.pkl").write(evaluation())
    with (tmp_path / "s.pkl").open("rb") as file:
        dump = pickle.load(file)
    assert [each["filename"] for each in dump] == ["/0.mp4", "/1.mp4", "/2.mp4", "/3.mp4"]
    for each, scores, label, best in zip(dump, np.nan_to_num(SCORES), LABELS, (0, 1, -1, 2), strict=True):
        assert set(each) == {"filename", "num_classes", "pred_score", "pred_label", "gt_label"}
        assert each["num_classes"] == 4
        assert torch.equal(each["pred_score"], torch.from_numpy(scores))
        assert torch.equal(each["gt_label"], torch.tensor([label]))
        assert torch.equal(each["pred_label"], torch.tensor([best]))
        assert (each["pred_score"].dtype, each["gt_label"].dtype) == (torch.float32, torch.int64)


def test_a_video_carries_its_own_scores_only() -> None:
    scores = np.zeros((500, 400), np.float32)
    classes = Classes(tuple(map(str, range(400))), np.zeros(500, np.int64))
    dump = score_dump(evaluation(paths=("/a",) * 500, classes=classes, scores=scores))
    assert len(pickle.dumps(dump[:1])) < 4 * 400 + 2000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("confusion m.jpg", "--confusion m.jpg: the name must end in .csv or .png"),
        ("per_class c", "--per-class c: the name must end in .csv"),
        ("dump s.json", "--dump s.json: the name must end in .pkl"),
        ("dump nowhere/s.pkl", "--dump nowhere/s.pkl: cannot write to the folder nowhere"),
    ],
)
def test_what_could_not_be_written_is_told_before_any_work(name: str, said: str) -> None:
    option, path = name.split()
    with pytest.raises(ConfigError) as caught:
        Outputs(**{option: Path(path)})
    assert str(caught.value).startswith(said)


def test_what_cannot_be_written_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "s.pkl").mkdir()
    with pytest.raises(OutputError, match=r"s\.pkl: cannot be written"):
        Outputs(dump=tmp_path / "s.pkl").write(evaluation())
