"""RandomErasing: the rectangle and nothing else, and noise that is even, and the same wherever it is made."""

import numpy as np
import pytest
import torch

from sqt_fast.kernels.squeeze_host import MEAN, STD
from sqt_fast.train.erase import erase, random_bytes

CPU = torch.device("cpu")


def as_bytes(clips: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation of clips (B, 48, S, S)."""
    mean, std = (torch.tensor(values).repeat_interleave(16)[:, None, None] for values in (MEAN, STD))
    return clips * std + mean


def clips(count: int, size: int = 32) -> torch.Tensor:
    return torch.randn((count, 48, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("rectangle", "rows", "columns"),
    [
        ((0.25, 0.5, 0.5, 0.25), (8, 24), (16, 24)),
        ((0.0, 0.0, 1.0, 1.0), (0, 32), (0, 32)),
        ((0.0, 0.9, 1.0, 0.1), (0, 32), (29, 32)),
        ((0.02, 0.0, 0.03, 1.0), (1, 2), (0, 32)),
    ],
    ids=str,
)
def test_a_rectangle_is_erased_in_all_frames_and_nothing_else(
    rectangle: tuple[float, ...], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    before = clips(2)
    after = before.clone()
    erase(after, torch.tensor([[0.3, 0.3, 0.0, 0.0], rectangle]), torch.tensor([1, 2]))
    changed = before != after
    wanted = torch.zeros_like(changed)
    wanted[1, :, slice(*rows), slice(*columns)] = True
    assert torch.equal(changed, wanted)


def test_noise_is_bytes_each_as_likely_and_another_for_every_pixel_and_channel() -> None:
    batch = clips(1, 64)
    erase(batch, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([12345]))
    values = as_bytes(batch)[0].round()
    assert torch.allclose(as_bytes(batch)[0], values, atol=1e-3)
    counts = np.bincount(values.flatten().int().numpy(), minlength=256)
    assert len(counts) == 256
    expected = 48 * 64 * 64 / 256
    assert abs(counts - expected).max() < 5 * expected**0.5
    # chi-square of 255 degrees of freedom: mean 255, deviation 22.6
    assert 255 - 5 * 22.6 < float(((counts - expected) ** 2 / expected).sum()) < 255 + 5 * 22.6
    table = values.flatten(1).numpy()
    correlations = np.corrcoef(table) - np.eye(48)
    assert abs(correlations).max() < 0.1  # channels, and so frames, have noise of their own
    for axis in (1, 2):
        moved = torch.roll(values, 1, axis)
        assert abs(np.corrcoef(values.flatten(), moved.flatten())[0, 1]) < 0.02


def test_noise_does_not_depend_on_the_batch() -> None:
    rectangles, keys = torch.rand((4, 4), generator=torch.Generator().manual_seed(1)) * 0.5, torch.arange(4) * 7919
    together = clips(4)
    erase(together, rectangles, keys)
    for k in (2, 0, 3, 1):
        alone = clips(4)[k : k + 1]
        erase(alone, rectangles[k : k + 1], keys[k : k + 1])
        assert torch.equal(alone[0], together[k])


def test_another_key_other_noise() -> None:
    batch = torch.zeros((3, 48, 32, 32))
    erase(batch, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3), torch.tensor([0, 1, (1 << 31) - 1]))
    values = as_bytes(batch).round()
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (values[a] == values[b]).float().mean() == pytest.approx(1 / 256, abs=2e-3)
        assert abs(np.corrcoef(values[a].flatten(), values[b].flatten())[0, 1]) < 0.02


def test_bytes_are_those_of_the_hash() -> None:
    """The same arithmetic in 32 bits, by NumPy."""
    key, count = 1_999_999_999, 70_000
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(key) * np.uint32(0x85EBCA77)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        x = x ^ (x >> np.uint32(16))
    assert np.array_equal(random_bytes(key, count, CPU).numpy(), x & np.uint32(255))


@pytest.mark.needs_cuda
def test_a_gpu_makes_the_same_noise() -> None:
    keys = (0, 1, (1 << 31) - 1)
    for key in keys:
        assert torch.equal(random_bytes(key, 1 << 20, torch.device("cuda")).cpu(), random_bytes(key, 1 << 20, CPU))
