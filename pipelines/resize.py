"""Host frames to resized frames: one DALI graph on the CPU.

The settings equal OpenCV's bilinear resize, which mmaction2 uses: no antialiasing, the source window stretched to the
target (``subpixel_scale=False``), size ``int(x * scale + .5)``. The difference to OpenCV is its own fixed-point
rounding: at most 1 level, mean about 0.1 (tests/test_resize.py). The frame is read once and written once.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack


@pipeline_def(batch_size=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
def _resize_graph(short_side: int) -> DataNode:
    # no_copy: the caller keeps the array until run() has returned, so DALI may read it in place.
    frames = fn.external_source(name="frames", layout="FHWC", dtype=types.UINT8, ndim=4, batch=True, no_copy=True)
    return fn.resize(
        frames,
        resize_shorter=short_side,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
        subpixel_scale=False,
    )


class HostResizer:
    """Resize frames on the host so that their short side has ``short_side`` pixels. One object a thread."""

    def __init__(self, short_side: int, *, num_threads: int = 1) -> None:
        self.short_side = short_side
        self._pipeline = _resize_graph(short_side, num_threads=num_threads)
        self._pipeline.build()

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        """frames: (F, H, W, 3) uint8, C-contiguous. Returns (F, h, w, 3) uint8 on the host."""
        if min(frames.shape[1:3]) == self.short_side:
            return torch.from_numpy(frames)  # bilinear at scale 1 is the identity
        (out,) = self._pipeline.run(frames=[frames])
        resized: Tensor = from_dlpack(out.as_tensor())[0]
        return resized
