"""Batches made on the device against those made on the host, and both against what the network is to see."""

import pytest
import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, CpuBatches, View
from sqt_fast.clips.device_batches import DeviceBatches
from sqt_fast.clips.gather import Clip
from sqt_fast.config import ClipProtocol
from sqt_fast.kernels.squeeze_host import squeeze_reference

ONE_CROP = ClipProtocol("fast", short_side=20, crop_size=16, num_clips=None, num_crops=1)
THREE_CROPS = ClipProtocol("official", short_side=16, crop_size=16, num_clips=10, num_crops=3)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def a_clip(number: int, height: int, width: int, missing: int = 0) -> Clip:
    """16 images, the second of which is the first again."""
    generator = torch.Generator().manual_seed(number)
    images = [torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator) for _ in range(15)]
    return Clip(number, [images[0], *images], missing)


def views_of(batches: Batches, clips: list[Clip]) -> list[View]:
    return [view for clip in clips for view in batches.views(clip)]


# Sizes change and come again within a batch, as when videos of several shapes are labelled at once.
CLIPS = [a_clip(0, 16, 21), a_clip(1, 16, 21, missing=3), a_clip(2, 27, 16), a_clip(3, 16, 16), a_clip(4, 16, 21)]


def error(batch: Tensor, truth: Tensor) -> float:
    return float((batch.cpu().double() - truth.double()).abs().max())


@DTYPES
@pytest.mark.parametrize("protocol", [ONE_CROP, THREE_CROPS], ids=lambda protocol: protocol.name)
def test_the_device_makes_the_hosts_batches(protocol: ClipProtocol, dtype: torch.dtype, kernel_device: str) -> None:
    host, device = CpuBatches(protocol, dtype), DeviceBatches(protocol, dtype, kernel_device)
    clips = [clip for clip in CLIPS if protocol.num_crops == 3 or clip.images[0].shape[:2] == (16, 16)]
    ours, theirs = views_of(host, clips), views_of(device, clips)
    key = [(v.clip_index, v.crop, v.missing) for v in ours]
    assert key == [(v.clip_index, v.crop, v.missing) for v in theirs]
    batch, truth = device.batch(theirs, len(theirs) + 2), host.batch(ours, len(ours) + 2)
    assert batch.shape == truth.shape
    assert batch.dtype == truth.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert truth.is_contiguous(memory_format=torch.channels_last)
    # The kernel multiplies where the host divides: the last digit may differ.
    spacing = {torch.float32: 2**-22, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    assert error(batch, truth) <= spacing
    assert not batch[len(ours) :].any()
    assert not truth[len(ours) :].any()


def test_a_host_view_is_a_crop_of_the_squeezed_clip() -> None:
    clip = CLIPS[2]
    views = views_of(CpuBatches(THREE_CROPS, torch.float32), [clip])
    whole = squeeze_reference(clip.images)
    for view, top in zip(views, (0, 10, 5), strict=True):
        assert torch.equal(view.clip, whole[:, top : top + 16])


def test_an_empty_batch_is_zeros(kernel_device: str) -> None:
    for batches in (
        CpuBatches(ONE_CROP, torch.float32),
        DeviceBatches(ONE_CROP, torch.float32, kernel_device),
    ):
        batch = batches.batch([], 2)
        assert batch.shape == (2, 48, 16, 16)
        assert not batch.any()
