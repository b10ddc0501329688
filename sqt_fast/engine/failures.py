"""Tell apart, in one place, whose failure an exception is: the file's, the memory's or the device's.

What the file did becomes a row. What ran out of memory is tried again with less at once. A lost device ends the worker;
the supervisor starts another and tries the same videos again, for they did nothing wrong.
"""

import re
from enum import Enum


class Failure(Enum):
    """Whose failure it is."""

    FILE = "file"
    MEMORY = "memory"
    DEVICE = "device"


# RuntimeError is what torch, Triton and the GPU's decoder raise for almost everything; only the words tell them apart.
_OUT_OF_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|CUDA allocation failed|(can't|cannot|failed to) allocate|MemoryAllocation|bad_?alloc",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"CUDA error|CUDA driver error|cuda(Error|runtime)|CUDNN_STATUS|cuDNN error|CUBLAS_STATUS|NVML", re.IGNORECASE
)


def kind_of(error: BaseException) -> Failure:
    """Return whose failure ``error`` is. Imports torch's classes by name only, so it costs nothing without a GPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or _OUT_OF_MEMORY.search(text):
        return Failure.MEMORY
    if "AcceleratorError" in names or (isinstance(error, RuntimeError) and _DEVICE.search(text)):
        return Failure.DEVICE
    return Failure.FILE
