"""Segments to resized frames: DALI decodes them, on NVDEC, or on the CPU with the decoder that it has there (VP8, VP9).

The decoder turns the wanted frames into RGB (BT.601 whatever the stream says). From where it wrote them,
``kernels/bilinear.py`` makes what the host's route would: right colours, what is displayed, upright, resized.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from nvidia.dali import backend, fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from sqt_fast.clips.colour import from_bt601, from_nvdec
from sqt_fast.clips.resize import resized_size
from sqt_fast.errors import first_line
from sqt_fast.kernels.bilinear import bilinear, bilinear_reference
from sqt_fast.pipelines.sample import SegmentSample

log = logging.getLogger(__name__)
Resize = Callable[..., Tensor]


# A depth of 1 is what run(name=data) needs; then DALI also holds one batch only.
@pipeline_def(prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
def _decode_graph(device: str) -> DataNode:
    data = fn.external_source(name="data", dtype=types.UINT8, ndim=1, batch=True)
    indices = fn.external_source(name="indices", dtype=types.INT32, ndim=1, batch=True)
    # affine: threads pinned to cores would compete with those of other pipelines and of Python.
    return fn.decoders.video(data, device=device, frames=indices, pad_mode="none", affine=False)


def resize_on(device: torch.device) -> Resize:
    """Return our kernel where it runs, tried once; else PyTorch's operations: as exact, and slower."""
    try:
        frames, matrix = torch.zeros((1, 2, 2, 3), dtype=torch.uint8, device=device), from_nvdec(2, full_range=False)
        for chroma_axis in (None, 2):
            bilinear(frames, (1, 1), matrix=matrix, chroma_axis=chroma_axis)
    except Exception as error:  # noqa: BLE001 - Triton raises of all kinds, most often for want of a C compiler
        log.warning("frames are resized by PyTorch, as Triton does not run here: %s", first_line(error))
        return bilinear_reference
    return bilinear


class SegmentPipeline:
    """Decode batches of segments and resize their frames so that their short side has ``short_side`` pixels.

    device_id: the CUDA device, None for the CPU. num_threads: so many samples are decoded at once. One thread at a
    time may call ``run``.
    """

    def __init__(self, short_side: int, *, device_id: int | None, batch_size: int, num_threads: int) -> None:
        self.short_side = short_side
        self._pipeline = _decode_graph(
            "cpu" if device_id is None else "mixed",
            batch_size=batch_size,
            num_threads=num_threads,
            device_id=device_id,
        )
        self._pipeline.build()
        self._resize = bilinear_reference if device_id is None else resize_on(torch.device("cuda", device_id))
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]

    def run(self, samples: Sequence[SegmentSample]) -> list[Tensor]:
        """Return the wanted frames of each of up to ``batch_size`` samples, (F, h, w, 3) uint8, complete and on device.

        They are as they are shown: cropped, upright, in their own colours. They were allocated on a stream of this
        object's own: before work on another stream may read them, that stream must be told to the allocator
        (``record_stream``). One bad sample fails the whole batch, with whatever DALI raises; the object stays usable.
        """
        inputs = {
            "data": [np.frombuffer(sample.data, np.uint8) for sample in samples],
            "indices": [sample.indices for sample in samples],
        }
        if self._stream is None:
            return self._shown(samples, self._pipeline.run(**inputs))
        with torch.cuda.stream(self._stream):
            outputs = self._pipeline.run(self._stream, **inputs)
            try:
                return self._shown(samples, outputs)
            finally:
                self._stream.synchronize()  # DALI takes its memory back when its outputs are gone: all is read by then

    def _shown(self, samples: Sequence[SegmentSample], outputs: tuple[object]) -> list[Tensor]:
        (batch,) = outputs
        return [self._finish(sample, from_dlpack(frames)) for sample, frames in zip(samples, batch, strict=True)]  # type: ignore[call-overload]

    def _finish(self, sample: SegmentSample, frames: Tensor) -> Tensor:
        """Resize frames (F, H, W, 3) in DALI's memory as they are shown."""
        if sample.display_size is not None:
            height, width = sample.display_size
            frames = frames[:, :height, :width]
        turn = sample.orientation
        frames = frames.transpose(1, 2) if turn.transpose else frames
        size = resized_size(frames.shape[1], frames.shape[2], self.short_side)
        if self._stream is None:  # the decoder that DALI has on the CPU converts as swscale does, to the bit
            matrix, chroma_axis = from_bt601(sample.colorspace), None
        else:
            matrix = from_nvdec(sample.colorspace, full_range=sample.full_range)
            chroma_axis = (1 if turn.transpose else 2) if sample.left_chroma else None
        return self._resize(
            frames, size, flip_y=turn.flip_y, flip_x=turn.flip_x, matrix=matrix, chroma_axis=chroma_axis
        )

    def release_memory(self) -> None:
        """Give unused memory of DALI and torch back to the device."""
        with nullcontext() if self._stream is None else torch.cuda.device(self._stream.device):
            backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]  # of the C++ part
            torch.cuda.empty_cache()
