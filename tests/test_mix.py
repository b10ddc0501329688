"""Mixup and CutMix: targets are what the pixels are."""

import numpy as np
import pytest
import torch

from sqt_fast.train.mix import mixed

SIZE, CLASSES, COUNT = 20, 5, 6


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose every pixel is the number of its clip, and their targets: each of a class of its own, but one."""
    clips = torch.arange(COUNT, dtype=torch.float32)[:, None, None, None].expand(COUNT, 48, SIZE, SIZE).clone()
    return clips, torch.nn.functional.one_hot(torch.arange(COUNT) % CLASSES, CLASSES).float()


def shares(clips: torch.Tensor) -> torch.Tensor:
    """Return how much of each clip (COUNT, 48, S, S) is of which, (COUNT, COUNT): counted pixels."""
    return torch.stack([(clips == k).float().mean(dim=(1, 2, 3)) for k in range(COUNT)], dim=1)


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_nothing_is_mixed_without_alphas() -> None:
    clips, targets = batch()
    for rng in rngs(5):
        same_clips, same_targets = mixed(clips, targets, rng, mixup=0.0, cutmix=0.0)
        assert same_clips is clips
        assert same_targets is targets


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_targets_are_the_shares_of_pixels(alpha: float) -> None:
    parts = []
    for rng in rngs(100):
        clips, targets = batch()
        before = clips.clone()
        new, new_targets = mixed(clips, targets, rng, mixup=0.0, cutmix=alpha)
        assert torch.equal(clips, before)
        torch.testing.assert_close(new_targets, shares(new) @ targets)
        parts.append(float(shares(new)[0, 0]))
        other = new != before
        for k in range(COUNT):  # one rectangle, in all channels alike
            where = other[k].any(0)
            assert torch.equal(other[k], where.expand_as(other[k]))
            rows, columns = where.any(1), where.any(0)
            assert torch.equal(where, rows[:, None] & columns)
    assert max(parts) > 0.95
    assert min(parts) < 0.3


def test_mixup_is_a_weighted_sum_of_clips_and_targets_alike() -> None:
    parts: list[float] = []
    for rng in rngs(100):
        clips, targets = batch()
        before = clips.clone()
        new, new_targets = mixed(clips, targets, rng, mixup=0.5, cutmix=0.0)
        assert torch.equal(clips, before)
        assert (new == new[:, :1, :1, :1]).all()
        torch.testing.assert_close(new_targets.sum(1), torch.ones(COUNT))
        # The mean of the clips' numbers by their targets' weights is the pixel, where classes tell clips apart.
        again = np.random.default_rng(len(parts))
        part, other = float(again.beta(0.5, 0.5)), torch.from_numpy(again.permutation(COUNT))
        torch.testing.assert_close(new, before * part + before[other] * (1 - part))
        torch.testing.assert_close(new_targets, targets * part + targets[other] * (1 - part))
        parts.append(part)
    assert np.mean(parts) == pytest.approx(0.5, abs=0.12)


def test_both_are_taken_half_of_the_time() -> None:
    cut = 0
    for rng in rngs(200):
        clips, targets = batch()
        new, new_targets = mixed(clips, targets, rng, mixup=0.3, cutmix=1.0)
        torch.testing.assert_close(new_targets.sum(1), torch.ones(COUNT))
        cut += int(((new == new.round()).all()) and not torch.equal(new, new[:, :1, :1, :1].expand_as(new)))
    assert 60 < cut < 120  # of 100; a few cuts take all or nothing


def test_one_clip_is_mixed_with_itself() -> None:
    clips, targets = (tensor[:1] for tensor in batch())
    for rng in rngs(20):
        new, new_targets = mixed(clips, targets, rng, mixup=0.3, cutmix=1.0)
        torch.testing.assert_close(new, clips)
        torch.testing.assert_close(new_targets, targets)
