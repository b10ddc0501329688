"""Which class of the weights each class of a list is: by its name where the list has names, else by its number."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError
from sqt_fast.train.lists import LabelledVideos


@dataclass(frozen=True)
class Classes:
    """names: of K classes, by number. labels: the true class of each video of the list, (N,) int64.

    unknown: classes of the list that are none of those known of the weights.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    unknown: tuple[str, ...] = ()


def match_classes(videos: LabelledVideos, known: Mapping[int, str], *, complete: bool) -> Classes:
    """Find the classes of a list among those of the weights.

    known: their names, by number. complete: those are all. Raises ConfigError for a class of the list that cannot be
    one of the weights.
    """
    count = max(known, default=-1) + 1
    # Names that agree wherever both say one are one numbering, even if a name stands there twice.
    if videos.numbered or all(videos.names[number : number + 1] == (name,) for number, name in known.items()):
        labels = np.array(videos.labels, np.int64)
        if complete and (greatest := int(labels.max())) >= count:
            raise ConfigError(
                f"class {greatest} of the list: the weights have {count} classes, 0 to {count - 1}; "
                "give the list that belongs to the weights, or one with names"
            )
        names = videos.names[:count] if complete else videos.names
        names += tuple(f"class {number}" for number in range(len(names), count))
        return Classes(tuple(known.get(number, name) for number, name in enumerate(names)), labels)
    return _by_name(videos, known, complete=complete)


def _by_name(videos: LabelledVideos, known: Mapping[int, str], *, complete: bool) -> Classes:
    numbers = {name: number for number, name in known.items()}
    shown = [videos.names[label] for label in sorted(set(videos.labels))]
    unknown = tuple(name for name in shown if name not in numbers)
    if unknown and (complete or len(unknown) == len(shown)):
        few = ", ".join(list(numbers)[:3])
        raise ConfigError(
            f"class {unknown[0]!r} of the list: none of the {len(numbers)} classes known of the weights ({few}, ...); "
            "call classes as the weights do, or say with --label-names which has which number"
        )
    count = max(known) + 1
    numbers |= {name: count + i for i, name in enumerate(unknown)}
    names = tuple(known.get(number, f"class {number}") for number in range(count)) + unknown
    return Classes(names, np.array([numbers[videos.names[label]] for label in videos.labels], np.int64), unknown)
