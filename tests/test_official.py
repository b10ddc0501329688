"""The official protocol on real videos, against a reference that knows nothing of plans, segments and clips.

Every frame is decoded by PyAV, turned by the angle that FFmpeg gives, resized by OpenCV and cut as mmaction2's test
pipeline does (SampleFrames, Resize, ThreeCrop, Normalize). What the network makes of it is tested elsewhere: here a
small one stands in its place, for both.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast import index
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.model import SqueezeTime
from tests.conftest import TINY_LABELS
from tests.test_crops import mmaction_crops

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
SIDE, CLIPS, FRAMES = 224, 10, 16


def pictures(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            assert isinstance(frame, av.VideoFrame)
            yield frame


def resized(frame: av.VideoFrame, size: tuple[int, int]) -> NDArray[np.uint8]:
    pixels = frame.reformat(*size, format="rgb24").to_ndarray().astype(np.uint8)
    upright = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    height, width = upright.shape[:2]
    scale = SIDE / min(height, width)
    new = int(width * scale + 0.5), int(height * scale + 0.5)
    return np.asarray(cv2.resize(upright, new, interpolation=cv2.INTER_LINEAR), np.uint8)


def views(path: Path) -> Tensor:
    """Return (30, 48, 224, 224), normalised."""
    sizes = [(frame.width, frame.height) for frame in pictures(path)]
    last_start = max(len(sizes) - (4 * (FRAMES - 1) + 1), 0)
    starts = np.round(np.arange(CLIPS) * (last_start / (CLIPS - 1))).astype(int)
    numbers = (starts[:, None] + 4 * np.arange(FRAMES)) % len(sizes)
    wanted = set(numbers.ravel().tolist())
    images = {n: resized(frame, sizes[0]) for n, frame in enumerate(pictures(path)) if n in wanted}
    height, width = next(iter(images.values())).shape[:2]
    made = []
    for clip in numbers:
        for left, top, right, bottom in mmaction_crops(height, width, SIDE, 3):
            cut = np.stack([images[n][top:bottom, left:right] for n in clip.tolist()])
            made.append(((cut - MEAN) / STD).transpose(3, 0, 1, 2).reshape(3 * FRAMES, SIDE, SIDE))
    return torch.from_numpy(np.stack(made)).float()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quiet_ffmpeg")
def test_official_scores_of_real_videos(
    shared: Path, tmp_path: Path, tiny_weights: tuple[str, str], tiny_model: SqueezeTime
) -> None:
    """Of those that are turned, cut by edit lists, without order or packed, and every sixth of the others.

    All 36 agree; they take some minutes.
    """
    every = sorted(p for p in (shared / "videos").iterdir() if p.is_file() and p.suffix != ".md")
    special = ("270_rotated", "video_90", "edit", "unordered", "res_change", "RATRACE")
    paths = [path for k, path in enumerate(every) if k % 6 == 5 or any(name in path.name for name in special)]
    assert len(paths) > 9
    output, (weights, labels) = tmp_path / "a.parquet", tiny_weights
    network = {"backend": "eager", "precision": "fp32", "device": "cpu"}
    index(paths, output, weights=weights, labels=labels, protocol="official", top_k=99, batch_size=6, **network)
    rows = {row["path"]: row for row in pq.read_table(output).to_pylist() if row["status"] == "ok"}
    model, wrong = InferenceModel(tiny_model, **network), {}
    for path in paths:
        wanted = torch.cat([model.logits(part) for part in torch.split(views(path), 6)]).softmax(1).mean(0)
        scores = np.zeros(len(TINY_LABELS))
        scores[rows[str(path)]["topk_ids"]] = rows[str(path)]["topk_scores"]
        difference = float(np.abs(scores - wanted.numpy()).max())
        if not difference < 1e-6:
            wrong[path.name] = difference
    assert wrong == {}
