"""From scores and truths to shares: how often the right class is the best, or among the best.

N videos, K classes. A score is NaN where nobody said one; a video of which nobody said any is wrong, never left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Metrics:
    """What is counted of a list, and the shares that follow, from 0 to 1.

    confusion: (K, K + 1) int64 videos, a row a true class, a column a predicted one, the last column those without a
    label. top5_hits: (K,) int64 videos of each class that have it among their 5 best.
    """

    confusion: Int64
    top5_hits: Int64

    @property
    def videos(self) -> Int64:
        """Videos of each class, (K,)."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def hits(self) -> Int64:
        """Videos of each class that are labelled rightly, (K,)."""
        return np.asarray(self.confusion.diagonal())

    @property
    def predicted(self) -> Int64:
        """Videos that are labelled as each class, rightly or not, (K,)."""
        return np.asarray(self.confusion[:, :-1].sum(axis=0))

    @property
    def recall(self) -> Float64:
        """Share of each class's videos that are labelled rightly, (K,); NaN for a class without videos."""
        return _shares(self.hits, self.videos)

    @property
    def precision(self) -> Float64:
        """Share of what is labelled as each class that is of it, (K,); NaN for a class that nothing is labelled as."""
        return _shares(self.hits, self.predicted)

    @property
    def top1(self) -> float:
        """Share of the videos that are labelled rightly."""
        return float(self.hits.sum() / self.videos.sum())

    @property
    def top5(self) -> float:
        """Share of the videos that have their class among the 5 best."""
        return float(self.top5_hits.sum() / self.videos.sum())

    @property
    def mean_class(self) -> float:
        """Mean recall of the classes that have videos: mean class accuracy."""
        return float(np.nanmean(self.recall))


def measure(scores: Float32, labels: Int64) -> Metrics:
    """Compare scores (N, K) with true class numbers (N,). Of equal scores, that of the lower class number is better."""
    num_classes = scores.shape[1]
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(confusion, (labels, best_classes(scores)), 1)
    return Metrics(confusion, np.bincount(labels[among_best(scores, labels, 5)], minlength=num_classes))


def best_classes(scores: Float32) -> Int64:
    """Return the number of the best class of each video, (N,) int64: K where no score is there."""
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    return np.asarray(np.where(np.isnan(scores).all(axis=1), scores.shape[1], best))


def among_best(scores: Float32, labels: Int64, k: int) -> Bool:
    """Return whether the class ``labels`` (N,) of each video is among its ``k`` best, (N,) bool."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    is_lower = np.arange(scores.shape[1]) < labels[:, None]
    is_before = (scores > own) | ((scores == own) & is_lower)
    return np.asarray(~np.isnan(own[:, 0]) & (is_before.sum(axis=1) < k))


def _shares(counts: Int64, totals: Int64) -> Float64:
    return np.asarray(np.divide(counts, totals, out=np.full(len(totals), np.nan), where=totals > 0))
