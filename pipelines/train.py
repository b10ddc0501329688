"""Training clips: DALI decodes what is still encoded, and crops, resizes, changes and normalises every clip.

The same graph for whoever decodes; on a CPU, OpenCV changes the frames (``host_clips.py``). Every choice comes with the
sample (``train/clip_source.py``), so nothing here is random. Output is squeezed: (B, 48, S, S), channel = c * 16 + t.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from sqt_fast.errors import VideoError
from sqt_fast.kernels.squeeze_host import MEAN, STD
from sqt_fast.pipelines.host_clips import changed, squeezed
from sqt_fast.signals import starting_uninterrupted
from sqt_fast.train.clip_source import ClipFeed, ClipSource

# What external_source is told of each field of ``Sample``: type, dimensions, layout.
FIELDS = {
    "pixels": (types.UINT8, 4, "FHWC"),
    "data": (types.UINT8, 1, ""),
    "indices": (types.INT32, 1, ""),
    "encoded": (types.BOOL, 0, ""),
    "colours": (types.FLOAT, 2, ""),
    "order": (types.INT32, 1, ""),
    "box": (types.FLOAT, 1, ""),
    "jitter": (types.FLOAT, 1, ""),
    "erased": (types.FLOAT, 1, ""),
    "noise": (types.INT64, 1, ""),
    "flip": (types.INT32, 0, ""),
    "label": (types.INT64, 1, ""),
    "item": (types.INT64, 1, ""),
    "failures": (types.UINT8, 1, ""),
}
ENCODED = ("data", "indices", "encoded", "colours")  # only where the graph decodes
PREFETCH = 2


def _fields(source: ClipSource) -> list[str]:
    """Return what the graph of a source takes of each sample; DALI warns of what it is given and does not need."""
    unused = (*(() if source.codecs else ENCODED), *(() if _changes_colours(source) else ("jitter",)))
    return [name for name in FIELDS if name not in unused]


def _changes_colours(source: ClipSource) -> bool:
    return source.training and (source.recipe.jitter > 0 or source.recipe.jitter_hue > 0)


@pipeline_def(enable_conditionals=True, prefetch_queue_depth=PREFETCH)  # type: ignore[untyped-decorator]
def _graph(source: ClipSource, gpu: bool, parallel: bool) -> tuple[DataNode, ...]:
    fields = _fields(source)
    fed = fn.external_source(
        source=ClipFeed(source, fields),
        num_outputs=len(fields),
        batch=False,
        parallel=parallel,
        dtype=[FIELDS[name][0] for name in fields],
        ndim=[FIELDS[name][1] for name in fields],
        layout=[FIELDS[name][2] for name in fields],
    )
    sample = {name: fed[place] for place, name in enumerate(fields)}
    frames = sample["pixels"].gpu() if gpu else sample["pixels"]
    if source.codecs:
        if sample["encoded"]:
            frames = fn.decoders.video(
                sample["data"],
                device="mixed" if gpu else "cpu",
                frames=sample["indices"],
                pad_mode="none",
                affine=False,
            )
        else:
            frames = _as_is(frames)
    rest = [sample[name] for name in ("erased", "noise", "label", "item", "failures")]
    if gpu:
        return _on_gpu(source, frames, sample), *rest
    size = source.recipe.crop_size
    given = {name: sample[name] for name in ("colours", "jitter") if name in sample}
    frames = fn.python_function(
        frames, sample["order"], sample["box"], *given.values(), function=partial(_on_host, tuple(given), size)
    )
    return frames, *rest, sample["flip"]


def _on_gpu(source: ClipSource, frames: DataNode, sample: dict[str, DataNode]) -> DataNode:
    """Change the frames of a clip by DALI's operators. Returns (48, S, S) float32, normalised."""
    frames = fn.sequence_rearrange(frames, new_order=sample["order"])
    size = source.recipe.crop_size
    frames = fn.resize(
        frames,
        size=[size, size],
        roi_start=sample["box"][0:2],
        roi_end=sample["box"][2:4],
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )
    if source.codecs:
        frames = fn.coord_transform(frames, MT=sample["colours"], dtype=types.UINT8)
    if _changes_colours(source):
        jitter = sample["jitter"]
        frames = fn.color_twist(frames, brightness=jitter[0], contrast=jitter[1], saturation=jitter[2], hue=jitter[3])
    clips = fn.crop_mirror_normalize(
        frames, mean=list(MEAN), std=list(STD), mirror=sample["flip"], dtype=types.FLOAT, output_layout="CFHW"
    )
    return fn.reshape(clips, shape=[-1, size, size], layout="CHW")


def _on_host(names: tuple[str, ...], size: int, frames: Any, order: Any, box: Any, *values: Any) -> NDArray[np.uint8]:
    """Change the frames of a clip by OpenCV: see ``host_clips.changed``. names: of what ``values`` are."""
    given: dict[str, Any] = {"colours": None, "jitter": None}
    given |= {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
    if given["colours"] is not None:
        given["colours"] = given["colours"][:, :3]  # the rest is for what a GPU decoded
    return changed(np.asarray(frames), np.asarray(order), np.asarray(box), size, **given)


def _as_is(frames: DataNode) -> DataNode:
    """Give the other branch of a condition its value."""
    return frames


class ClipPipeline:
    """Yields batches of a ``ClipSource`` without end.

    device_id: the CUDA device, None for the CPU. num_workers: processes that read and decode; 0 for none, as tests
    want. num_threads: of DALI.
    """

    def __init__(self, source: ClipSource, *, device_id: int | None, num_workers: int, num_threads: int) -> None:
        self._pipeline: Pipeline = _graph(
            source,
            device_id is not None,
            num_workers > 0,
            batch_size=source.batch_size,
            num_threads=num_threads,
            device_id=device_id,
            py_num_workers=max(num_workers, 1),
            py_start_method="spawn",
        )
        if num_workers:
            with starting_uninterrupted():
                self._pipeline.start_py_workers()
        self._pipeline.build()
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[bytes]]:
        """Return the next batch: clips (B, 48, S, S) float32, erased (B, 4), noise (B,), labels (B,), items (B,),
        and the failures of each sample as text. Raises VideoError of ``ClipSource.clip``, RuntimeError of DALI.
        """
        known = None
        try:
            outputs = self._pipeline.run(*(() if self._stream is None else (self._stream,)))
        except Exception as error:
            *_, known = str(error).rpartition(f"{VideoError.__module__}.{VideoError.__name__}: ")
            if known == str(error):
                raise
        if known is not None:  # without DALI's error, which says where that was, and keeps pipeline and processes alive
            raise VideoError("error", known.strip())
        if self._stream is None:
            flips = np.array(outputs[6].as_array()).tolist()
            clips = squeezed([np.asarray(frames) for frames in outputs[0]], flips)
        else:  # a stream of our own: DALI takes its memory back when its output is gone, and by then it must be copied
            with torch.cuda.stream(self._stream):
                clips = from_dlpack(outputs[0].as_tensor()).clone()
            self._stream.synchronize()
            clips.record_stream(torch.cuda.current_stream(self._stream.device))
        erased, noise, labels, items = (torch.from_numpy(np.array(numbers.as_array())) for numbers in outputs[1:5])
        texts = [np.array(text).tobytes().rstrip(b"\0") for text in outputs[5]]
        return clips, erased, noise[:, 0], labels[:, 0], items[:, 0], texts

    def close(self) -> None:
        """Stop the worker processes."""
        del self._pipeline
