"""Batches squeezed on the device: bytes travel once, and a device without the kernel says so."""

import pytest
import torch

from sqt_fast.clips.device_batches import DeviceBatches
from sqt_fast.errors import BackendError
from tests.test_batches import CLIPS, ONE_CROP, THREE_CROPS, views_of


def test_crops_share_their_bytes(kernel_device: str) -> None:
    views = views_of(DeviceBatches(THREE_CROPS, torch.float32, kernel_device), [CLIPS[0]])
    assert len(views) == 3
    assert len({view.clip.data_ptr() for view in views}) == 1
    assert views[0].clip.dtype == torch.uint8
    assert [(view.top, view.left) for view in views] == [(0, 0), (0, 4), (0, 2)]


def test_a_kernel_that_does_not_run_is_known_at_once(monkeypatch: pytest.MonkeyPatch, kernel_device: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr("sqt_fast.clips.device_batches.squeeze", fail)
    with pytest.raises(BackendError, match=r"^no kernel image is available$"):
        DeviceBatches(ONE_CROP, torch.float32, kernel_device)
