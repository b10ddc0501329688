"""The folded network against the unfolded one, in float64."""

import copy

import pytest
import torch
import torch.nn as nn

from sqt_fast.network.fold import fold
from sqt_fast.network.model import ModelConfig, SqueezeTime


def trained(depth: int) -> SqueezeTime:
    """Return a small float64 network whose batch norms have the statistics of no fresh network."""
    torch.manual_seed(depth)
    model = SqueezeTime(ModelConfig(depth=depth, width=1 / 16, num_classes=7, pos_dim=(16, 8, 4, 2))).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
    return model


@pytest.mark.parametrize("depth", [18, 50], ids=["basic", "bottleneck"])
@torch.inference_mode()
def test_folded_equals_unfolded(depth: int) -> None:
    model, clips = trained(depth), torch.randn(2, 48, 64, 80, dtype=torch.float64)
    folded = fold(model)
    torch.testing.assert_close(folded.features(clips), model.features(clips), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(clips), model(clips), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [10, 50], ids=["basic", "bottleneck"])
def test_no_batch_norm_is_left(depth: int) -> None:
    folded = fold(trained(depth))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any("running_" in name for name in folded.state_dict())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_the_network_given_is_left_alone() -> None:
    model = trained(10).train()
    before = copy.deepcopy(model.state_dict())
    fold(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.inference_mode()
def test_float32_weights_are_rounded_once() -> None:
    model = trained(10)
    clips = torch.randn(2, 48, 64, 64)
    wanted = copy.deepcopy(model)(clips.double())
    single = model.float()
    error = (fold(single)(clips).double() - wanted).abs().max()
    plain = (single(clips).double() - wanted).abs().max()
    assert error <= 2 * plain + 1e-6 * wanted.abs().max()


def test_a_batch_norm_without_statistics_cannot_be_folded() -> None:
    model = trained(10)
    model.bn1 = nn.BatchNorm2d(4, track_running_stats=False).double()
    with pytest.raises(ValueError, match="without running statistics"):
        fold(model)
