"""Class names: the bundled lists, and a user's own."""

from pathlib import Path

import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.network.class_names import LABEL_LISTS, LABELS_FOLDER, read_labels


def test_a_label_file_that_is_nowhere_is_named() -> None:
    with pytest.raises(
        ConfigError, match="labels kinetics: neither a file nor one of the lists hmdb51, jester, kinetics400"
    ):
        read_labels("kinetics")


@pytest.mark.parametrize("name", LABEL_LISTS)
def test_bundled_lists_are_whole_and_those_of_the_shared_folder(shared: Path, name: str) -> None:
    names = read_labels(name)
    assert len(names) == len(set(names)) == LABEL_LISTS[name]
    assert (LABELS_FOLDER / f"{name}.txt").read_bytes() == (shared / "labels" / f"{name}.txt").read_bytes()


def test_no_two_lists_have_as_many_classes() -> None:
    """A checkpoint's count tells its list."""
    assert len(set(LABEL_LISTS.values())) == len(LABEL_LISTS)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffjump \nsit, down\nnaïve\n\n".encode())
    assert read_labels(path) == ("jump", "sit, down", "naïve")
    path.write_text("jump\n\nsit\n")
    with pytest.raises(ConfigError, match="line 2 is empty; give one class name a line"):
        read_labels(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_labels(path)
