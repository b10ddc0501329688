"""Errors: one line each, and the same in every process."""

import pickle

import pytest

from sqt_fast import errors
from sqt_fast.errors import ConfigError, SqtError, VideoError, first_line, system_reason
from sqt_fast.table.schema import STATUSES


def test_errors_of_a_file_pass_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError("too_large", "so large")))
    assert (type(error), error.status, str(error)) == (VideoError, "too_large", "so large")


def test_what_nobody_foresaw_has_a_status_of_the_table() -> None:
    error = VideoError.unforeseen(KeyError("x"))
    assert error.status in STATUSES
    assert str(error) == "KeyError: 'x'"


def test_usage_is_told_from_failure() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SqtError)]
    assert {kind.__name__ for kind in kinds if kind.exit_code == 2} == {ConfigError.__name__}


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (ValueError(), "ValueError"), (ValueError("\n three"), "three")],
)
def test_the_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "no space left on device"),
        (OSError("only 5 bytes came"), "only 5 bytes came"),
        (OSError(), "oserror"),
    ],
)
def test_what_the_system_says_reads_as_part_of_a_sentence(error: OSError, reason: str) -> None:
    assert system_reason(error) == reason
