"""Shares of right labels: by hand, against plain loops, and against torchmetrics."""

from collections import Counter

import numpy as np
import pytest
import torch

from sqt_fast.evaluate.metrics import among_best, best_classes, measure

NAN = float("nan")


def array(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


def drawn(num_videos: int, num_classes: int, seed: int = 0, levels: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """Return random scores (N, K) and labels (N,) in which every class appears. levels: few make ties."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (num_videos, num_classes)) / levels).astype(np.float32)
    labels = rng.permutation(np.arange(num_videos) % num_classes)
    return scores, labels


def test_a_list_by_hand() -> None:
    scores = array(
        [
            [0.7, 0.2, 0.1],  # of class 0: right
            [0.3, 0.6, 0.1],  # of class 0: taken for 1
            [NAN, NAN, NAN],  # of class 0: no label
            [0.1, 0.8, 0.1],  # of class 1: right
            [0.5, 0.1, 0.4],  # of class 2: taken for 0
        ]
    )
    metrics = measure(scores, np.array([0, 0, 0, 1, 2]))
    assert metrics.confusion.tolist() == [[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert metrics.videos.tolist() == [3, 1, 1]
    assert metrics.predicted.tolist() == [2, 2, 0]
    assert metrics.top1 == 2 / 5
    assert metrics.top5 == 4 / 5  # of three classes all are among the 5 best, but not of a video without a label
    assert metrics.recall.tolist() == [1 / 3, 1.0, 0.0]
    assert metrics.mean_class == pytest.approx((1 / 3 + 1 + 0) / 3, rel=1e-12)
    assert metrics.precision[:2].tolist() == [1 / 2, 1 / 2]
    assert np.isnan(metrics.precision[2])


def test_classes_without_videos_are_left_out_of_the_mean() -> None:
    metrics = measure(array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]]), np.array([0, 0]))
    assert metrics.mean_class == 0.5
    assert np.isnan(metrics.recall[1:]).all()
    assert metrics.top5_hits.tolist() == [2, 0, 0]


def test_of_equal_scores_the_lower_number_is_better() -> None:
    scores = array([[0.25, 0.25, 0.25, 0.25]] * 4)
    labels = np.arange(4)
    assert best_classes(scores).tolist() == [0, 0, 0, 0]
    for k in range(1, 5):
        assert among_best(scores, labels, k).tolist() == [label < k for label in range(4)]


def test_what_nobody_said_is_no_hit_and_stands_in_nobodys_way() -> None:
    scores = array([[NAN, NAN, 0.2, 0.1, NAN, NAN], [NAN, 0.0, NAN, 0.0, NAN, NAN]])
    assert best_classes(scores).tolist() == [2, 1]
    assert among_best(scores, np.array([0, 0]), 6).tolist() == [False, False]
    assert among_best(scores, np.array([3, 3]), 1).tolist() == [False, False]
    assert among_best(scores, np.array([3, 3]), 2).tolist() == [True, True]


@pytest.mark.parametrize("levels", [1 << 20, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("num_classes", [1, 2, 5, 6, 40])
def test_against_plain_loops(num_classes: int, levels: int) -> None:
    scores, labels = drawn(200, num_classes, seed=num_classes, levels=levels)
    scores[::17] = NAN
    metrics = measure(scores, labels)
    pairs: Counter[tuple[int, int]] = Counter()
    top5 = 0
    recalls: dict[int, list[bool]] = {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(num_classes), key=lambda number: -row[number])  # Python's sort is stable
        has_label = row[0] == row[0]
        pairs[label, order[0] if has_label else num_classes] += 1
        top5 += has_label and label in order[:5]
        recalls.setdefault(label, []).append(has_label and label == order[0])
    assert {(i, j): n for (i, j), n in np.ndenumerate(metrics.confusion) if n} == dict(pairs)
    assert metrics.top1 == sum(n for (i, j), n in pairs.items() if i == j) / 200
    assert metrics.top5 == top5 / 200
    assert metrics.mean_class == pytest.approx(np.mean([np.mean(each) for each in recalls.values()]), rel=1e-12)


def test_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, labels = drawn(700, 30, seed=1)
    scores[np.arange(0, 700, 2), labels[::2]] += 0.7
    metrics = measure(scores, labels)
    ours, truth = torch.from_numpy(scores), torch.from_numpy(labels)

    def accuracy(average: str, top_k: int) -> float:
        return float(functional.multiclass_accuracy(ours, truth, num_classes=30, average=average, top_k=top_k))

    assert metrics.top1 == pytest.approx(accuracy("micro", 1), rel=1e-6)
    assert metrics.top5 == pytest.approx(accuracy("micro", 5), rel=1e-6)
    assert metrics.mean_class == pytest.approx(accuracy("macro", 1), rel=1e-6)
    assert 0.2 < metrics.top1 < metrics.top5 < 0.99
    confusion = functional.multiclass_confusion_matrix(ours, truth, num_classes=30)
    assert metrics.confusion[:, :-1].tolist() == confusion.tolist()
    assert not metrics.confusion[:, -1].any()
    precision = functional.multiclass_precision(ours, truth, num_classes=30, average=None)
    assert metrics.precision == pytest.approx(precision.numpy(), rel=1e-6)
