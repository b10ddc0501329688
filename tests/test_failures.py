"""Whose failure an exception is."""

import pytest
import torch

from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.errors import VideoError

CASES = [
    (MemoryError(), Failure.MEMORY),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Failure.MEMORY),
    (RuntimeError("CUDA error: out of memory"), Failure.MEMORY),
    (RuntimeError("std::bad_alloc"), Failure.MEMORY),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Failure.DEVICE),
    (RuntimeError("CUDA error: unspecified launch failure"), Failure.DEVICE),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Failure.DEVICE),
    (RuntimeError("CUDA driver error: device not ready"), Failure.DEVICE),
    (RuntimeError("shapes do not match"), Failure.FILE),
    (ValueError("CUDA error in a name of a file"), Failure.FILE),
    (VideoError("error", "broken"), Failure.FILE),
]


@pytest.mark.parametrize(("error", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_each_failure_has_one_owner(error: BaseException, expected: Failure) -> None:
    assert kind_of(error) is expected
