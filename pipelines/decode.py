"""Segments to resized frames: one DALI graph, on NVDEC, or on the CPU with the decoder that DALI has there (VP8, VP9).

Per sample: the decoder turns the wanted frames into RGB (BT.601 whatever the stream says: ``colour.correct`` puts that
right), and a resize as in ``clips/resize.py`` reads the displayed part of them. Full-size RGB is written once and
read once; only resized frames leave the graph. Where a cropped picture is enlarged, its last row and column are mixed
with what lies beyond (encoders repeat the edge there).
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from nvidia.dali import backend, fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from sqt_fast.pipelines.sample import SegmentSample

# Larger than any picture: the graph takes the smaller of this and the decoded size.
_WHOLE = (2**31 - 1, 2**31 - 1)


# A depth of 1 is what run(name=data) needs; then DALI also holds one batch only.
@pipeline_def(prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
def _decode_graph(short_side: int, device: str) -> DataNode:
    data = fn.external_source(name="data", dtype=types.UINT8, ndim=1, batch=True)
    indices = fn.external_source(name="indices", dtype=types.INT32, ndim=1, batch=True)
    display_size = fn.external_source(name="display_size", dtype=types.INT64, ndim=1, batch=True)
    # affine: threads pinned to cores would compete with those of other pipelines and of Python.
    frames = fn.decoders.video(data, device=device, frames=indices, pad_mode="none", affine=False)
    size = math.min(display_size, frames.shape()[1:3])
    return fn.resize(
        frames,
        roi_start=[0.0, 0.0],
        roi_end=fn.cast(size, dtype=types.FLOAT),
        resize_shorter=short_side,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
        subpixel_scale=False,
    )


class SegmentPipeline:
    """Decode batches of segments and resize their frames so that their short side has ``short_side`` pixels.

    device_id: the CUDA device, None for the CPU. num_threads: so many samples are decoded at once. One thread at a
    time may call ``run``.
    """

    def __init__(self, short_side: int, *, device_id: int | None, batch_size: int, num_threads: int) -> None:
        device = "cpu" if device_id is None else "mixed"
        self._pipeline = _decode_graph(
            short_side, device, batch_size=batch_size, num_threads=num_threads, device_id=device_id
        )
        self._pipeline.build()
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]

    def run(self, samples: Sequence[SegmentSample]) -> list[Tensor]:
        """Return the wanted frames of each of up to ``batch_size`` samples, (F, h, w, 3) uint8, complete and on device.

        They are copies, so that DALI can use its memory again. They were allocated on a stream of this object's own:
        before work on another stream may read them, that stream must be told to the allocator (``record_stream``).
        One bad sample fails the whole batch, with whatever DALI raises; the object stays usable.
        """
        inputs = {
            "data": [np.frombuffer(sample.data, np.uint8) for sample in samples],
            "indices": [sample.indices for sample in samples],
            "display_size": [np.array(sample.display_size or _WHOLE, np.int64) for sample in samples],
        }
        if self._stream is None:
            return _copies(self._pipeline.run(**inputs))
        try:
            with torch.cuda.stream(self._stream):
                return _copies(self._pipeline.run(self._stream, **inputs))
        finally:
            self._stream.synchronize()  # DALI takes its memory back when its tensors are gone, the copies must be made

    def release_memory(self) -> None:
        """Give unused memory of DALI and torch back to the device."""
        with nullcontext() if self._stream is None else torch.cuda.device(self._stream.device):
            backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]  # of the C++ part
            torch.cuda.empty_cache()


def _copies(outputs: tuple[object]) -> list[Tensor]:
    (batch,) = outputs
    return [from_dlpack(sample).clone() for sample in batch]  # type: ignore[attr-defined]
