"""Clips of videos for calibration: those that labelling would show the network, as bytes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sqt_fast.clips.batches import CpuBatches
from sqt_fast.clips.gather import Clip
from sqt_fast.config import ClipProtocol
from sqt_fast.engine.calibration import ByteBatches, Recorder, clips_of_videos
from sqt_fast.errors import ConfigError
from sqt_fast.network.parity import normalised
from sqt_fast.samples.encoding import SampleSet, make_samples
from sqt_fast.video.archive import find_videos

PROTOCOL = ClipProtocol("fast", short_side=32, crop_size=24, num_clips=None, num_crops=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_samples(folder, SampleSet(count=3, seconds=3.0, short_side=64))
    return folder


def pairs(clips: Tensor) -> int:
    """Return how many different clips there are."""
    return len({clip.numpy().tobytes() for clip in clips})


@pytest.mark.parametrize("size", [(24, 24), (32, 41), (37, 25)])
def test_bytes_are_the_centre_that_labelling_normalises(size: tuple[int, int]) -> None:
    images = list(torch.randint(0, 256, (16, *size, 3), dtype=torch.uint8))
    clip = Clip(5, images, 2)
    (view,) = ByteBatches(24).views(clip)
    (wanted,) = CpuBatches(PROTOCOL, torch.float32).views(clip)
    assert (view.clip_index, view.crop, view.missing) == (wanted.clip_index, wanted.crop, wanted.missing)
    assert view.clip.dtype == torch.uint8
    torch.testing.assert_close(normalised(view.clip[None])[0].float(), wanted.clip, rtol=0, atol=1e-6)


def test_batches_are_not_padded() -> None:
    (view,) = ByteBatches(24).views(Clip(0, list(torch.ones(16, 24, 24, 3, dtype=torch.uint8)), 0))
    assert ByteBatches(24).batch([view, view], 8).shape == (2, 48, 24, 24)


def test_a_recorder_keeps_what_it_is_shown_once() -> None:
    clips, recorder = torch.randint(0, 256, (3, 48, 8, 8), dtype=torch.uint8), Recorder()
    for batch in (clips[:2], clips):
        logits, embeddings = recorder.start(batch).results()
        assert len(logits) == len(embeddings) == len(batch)
    recorder.release_memory()
    assert pairs(torch.stack(list(recorder.clips.values()))) == len(recorder.clips) == 3


def test_clips_are_spread_over_videos_and_the_same_every_time(videos: Path) -> None:
    clips = clips_of_videos([str(videos)], PROTOCOL, 6)
    assert clips.shape == (6, 48, 24, 24)
    assert clips.dtype == torch.uint8
    assert pairs(clips) == 6
    assert torch.equal(clips, clips_of_videos([str(videos)], PROTOCOL, 6))
    alone = clips_of_videos([find_videos([str(videos)])[0].path], PROTOCOL, 1)
    assert alone.shape == (1, 48, 24, 24)


def test_of_many_videos_some_are_taken(videos: Path) -> None:
    assert clips_of_videos([str(videos)], PROTOCOL, 2).shape == (2, 48, 24, 24)


def test_damaged_videos_are_named_and_passed_over(videos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all" * 100)
    said: list[str] = []
    assert len(clips_of_videos([str(videos), str(broken)], PROTOCOL, 4, said.append))
    assert len(said) == 1
    assert said[0].startswith("1 of 4 videos are damaged or cannot be read (")
    assert "broken.mp4" in said[0]
    with pytest.raises(ConfigError, match=r"--calibrate .*broken\.mp4: no clips, for 1 of 1 videos"):
        clips_of_videos([str(broken)], PROTOCOL, 4)


def test_no_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no video files found there"):
        clips_of_videos([str(tmp_path)], PROTOCOL, 4)
