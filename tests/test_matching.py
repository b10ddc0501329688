"""Classes of a list and classes of weights: by name, or by number where the list has no names."""

import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.evaluate.matching import match_classes
from sqt_fast.train.lists import LabelledVideos

KNOWN = {0: "run", 1: "walk", 2: "jump"}


def videos(names: tuple[str, ...], *labels: int, numbered: bool = False) -> LabelledVideos:
    return LabelledVideos(tuple(f"/{i}.mp4" for i in range(len(labels))), labels, names, numbered)


def numbered(*labels: int) -> LabelledVideos:
    return videos(tuple(f"class {i}" for i in range(max(labels) + 1)), *labels, numbered=True)


def test_numbers_are_those_of_the_weights() -> None:
    classes = match_classes(numbered(1, 0), KNOWN, complete=True)
    assert classes.names == ("run", "walk", "jump")
    assert classes.labels.tolist() == [1, 0]


def test_names_are_found_whatever_their_order() -> None:
    classes = match_classes(videos(("jump", "run"), 0, 1, 0), KNOWN, complete=True)
    assert classes.names == ("run", "walk", "jump")
    assert classes.labels.tolist() == [2, 0, 2]
    assert classes.unknown == ()


def test_only_classes_that_have_videos_must_be_known() -> None:
    classes = match_classes(videos(("fly", "jump"), 1, 1), KNOWN, complete=True)
    assert classes.labels.tolist() == [2, 2]


def test_one_numbering_may_hold_a_name_twice() -> None:
    classes = match_classes(videos(("other", "run", "other"), 2, 0), {0: "other", 1: "run", 2: "other"}, complete=True)
    assert classes.labels.tolist() == [2, 0]


@pytest.mark.parametrize(("label", "said"), [(3, "class 3 of the list"), (9999, "class 9999 of the list")])
def test_numbers_beyond(label: int, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}: the weights have 3 classes, 0 to 2"):
        match_classes(numbered(label, 0), KNOWN, complete=True)


def test_names_that_the_weights_do_not_have() -> None:
    with pytest.raises(
        ConfigError, match=r"class 'fly' of the list: none of the 3 classes .*\(run, walk, jump, \.\.\.\)"
    ):
        match_classes(videos(("fly", "run"), 0, 1), KNOWN, complete=True)


def test_a_table_that_keeps_some_classes_may_not_name_all() -> None:
    known = {5: "run", 2: "jump"}
    classes = match_classes(videos(("fly", "run"), 0, 1), known, complete=False)
    assert classes.unknown == ("fly",)
    assert classes.names == ("class 0", "class 1", "jump", "class 3", "class 4", "run", "fly")
    assert classes.labels.tolist() == [6, 5]
    with pytest.raises(ConfigError, match="class 'fly' of the list: none of the 2 classes"):
        match_classes(videos(("fly", "swim"), 0, 1), known, complete=False)


def test_numbers_beyond_what_such_a_table_names() -> None:
    classes = match_classes(numbered(4, 0), {5: "run", 2: "jump"}, complete=False)
    assert classes.names == ("class 0", "class 1", "jump", "class 3", "class 4", "run")
    assert match_classes(numbered(9), {5: "run"}, complete=False).names[5:] == (
        "run",
        *(f"class {i}" for i in (6, 7, 8, 9)),
    )


def test_a_full_list_of_names_numbers_what_such_a_table_leaves_out() -> None:
    names = ("run", "walk", "jump", "fly")
    classes = match_classes(videos(names, 3, 0), {0: "run", 2: "jump"}, complete=False)
    assert (classes.names, classes.labels.tolist(), classes.unknown) == (names, [3, 0], ())


def test_where_nothing_is_labelled_the_list_says_what_there_is() -> None:
    classes = match_classes(videos(("jump", "run"), 0, 1), {}, complete=False)
    assert (classes.names, classes.labels.tolist()) == (("jump", "run"), [0, 1])
