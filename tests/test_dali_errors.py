"""What DALI's exceptions say, and whose failure they are."""

import pytest

from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.pipelines.dali_errors import in_words
from tests.test_segment_decoder import DALI_ERROR

MEMORY = (
    "CUDA out of memory. Tried to allocate 2 GiB",
    "CUDA allocation failed",
    "std::bad_alloc",
    "CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2)",
    "Can't allocate 12 bytes on device 0.",
    "CUDA runtime API error cudaErrorMemoryAllocation (2)",
)


def test_errors_are_read() -> None:
    assert in_words(RuntimeError(DALI_ERROR)) == 'Failed to create video decoder for "memory file"'
    assert in_words(ValueError("one\ntwo")) == "one"
    assert in_words(KeyError()) == "KeyError"


@pytest.mark.parametrize("text", MEMORY)
def test_memory_is_known_by_its_words(text: str) -> None:
    assert kind_of(RuntimeError(DALI_ERROR.replace("Failed", text))) is Failure.MEMORY


def test_a_bad_file_is_neither_memory_nor_device() -> None:
    assert kind_of(RuntimeError(DALI_ERROR)) is Failure.FILE
