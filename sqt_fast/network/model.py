"""SqueezeTime: the network of arXiv 2405.08344, numerically the official release's.

Module names follow the release's state dict (without its ``backbone.net.`` prefix), so published checkpoints load
by name. Legend: B clips, T=16 frames, C channels, H W pixels, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from sqt_fast.errors import ConfigError
from sqt_fast.kernels.ctl import ctl_merge_reference, position_reference
from sqt_fast.video.sampling import NUM_FRAMES

INPUT_CHANNELS = 3 * NUM_FRAMES
HIDDEN_CHANNELS = 16
STAGE_WIDTHS = (64, 128, 256, 512)

# depth -> (bottleneck blocks?, blocks of each stage)
DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    200: (True, (3, 24, 36, 3)),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a network.

    ``num_classes=None`` builds the backbone alone. ``pos_dim`` is the side of each stage's position embedding;
    (56, 28, 14, 7) are the feature map sizes of a 224x224 clip. ``spatial_stride`` (1, 2, 2, 1) is AVA's.
    """

    depth: int = 50
    width: float = 1.0
    num_classes: int | None = 400
    spatial_stride: tuple[int, int, int, int] = (1, 2, 2, 2)
    pos_dim: tuple[int, int, int, int] = (56, 28, 14, 7)
    input_channels: int = INPUT_CHANNELS
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise ConfigError(f"depth {self.depth}: no such network; choose one of {', '.join(map(str, DEPTHS))}")
        if not self.stage_widths[0]:
            raise ConfigError(f"width {self.width}: the narrowest stage would have no channel; use 1/64 or more")
        for name in ("spatial_stride", "pos_dim"):
            values = getattr(self, name)
            if len(values) != 4 or min(values) < 1:
                raise ConfigError(f"{name} {values}: give four whole numbers of at least 1, one for each stage")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes {self.num_classes}: give at least 1, or None for the backbone alone")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage before expansion."""
        return tuple(int(w * self.width) for w in STAGE_WIDTHS)

    @property
    def feature_channels(self) -> int:
        """Channels of the backbone's output."""
        return self.stage_widths[3] * (4 if DEPTHS[self.depth][0] else 1)


class ObjectInteraction(nn.Module):
    """Inter-temporal object interaction: a 3x3 path gated by what a narrow 7x7 path sees (holds parameters only)."""

    def __init__(self, in_channels: int, out_channels: int, pos_dim: int) -> None:
        super().__init__()
        self.short_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.glo_conv = nn.Sequential(
            nn.Conv2d(in_channels, HIDDEN_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(HIDDEN_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 7, padding=3),
            nn.BatchNorm2d(HIDDEN_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(HIDDEN_CHANNELS, out_channels, 3, padding=1),
            nn.Sigmoid(),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, HIDDEN_CHANNELS, pos_dim, pos_dim))

    def hidden(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), already weighted by importance. Returns (B, 16, H, W)."""
        h = self.glo_conv[:3](x)
        h = h + position_reference(self.pos_embed, *h.shape[-2:]).to(h.dtype)
        hidden: Tensor = self.glo_conv[3:6](h)
        return hidden


class CTL(nn.Module):
    """Channel-time learning: see ``kernels/ctl.py`` for the formula."""

    def __init__(self, in_channels: int, out_channels: int, pos_dim: int) -> None:
        super().__init__()
        self.param_conv = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.Sigmoid(),
        )
        self.temporal_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.spatial_conv = ObjectInteraction(in_channels, out_channels, pos_dim)

    def forward(self, x: Tensor) -> Tensor:
        importance = self.param_conv(x)
        temporal, short, gate = self.temporal_conv, self.spatial_conv.short_conv, self.spatial_conv.glo_conv[6]
        assert isinstance(gate, nn.Conv2d)
        hidden = self.spatial_conv.hidden(x * importance)
        return ctl_merge_reference(
            x, importance, hidden, temporal.weight, temporal.bias, short.weight, short.bias, gate.weight, gate.bias
        )


class Block(nn.Module):
    """What both kinds of residual block share: down-sampling on top, shortcut, final ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        self.shortcut_conv: nn.Sequential | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, in_channels, stride, stride=stride, groups=in_channels),
                nn.BatchNorm2d(in_channels),
            )
        if in_channels != out_channels:
            self.shortcut_conv = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def residual(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) after down-sampling. Returns the change to add, (B, C_out, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        shortcut = x if self.shortcut_conv is None else self.shortcut_conv(x)
        y: Tensor = self.relu(self.residual(x) + shortcut)
        return y


class BasicBlock(Block):
    """CTL, CTL: the block of depths 10, 18 and 34."""

    def __init__(self, in_channels: int, width: int, stride: int, pos_dim: int) -> None:
        super().__init__(in_channels, width, stride)
        # The release builds the first CTL with 7 whatever the stage (its conv3x3x3 default); checkpoints hold it so.
        self.conv1 = CTL(in_channels, width, pos_dim=7)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = CTL(width, width, pos_dim)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y


class Bottleneck(Block):
    """1x1, CTL, 1x1: the block of depths 50 and up."""

    def __init__(self, in_channels: int, width: int, stride: int, pos_dim: int) -> None:
        super().__init__(in_channels, width * 4, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = CTL(width, width, pos_dim)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)

    def residual(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        z: Tensor = self.bn3(self.conv3(y))
        return z


def squeezed(clips: Tensor, input_channels: int) -> Tensor:
    """clips: (B, 3, T, H, W) or (B, 3 * T, H, W). Returns (B, 3 * T, H, W). Raises ValueError for other shapes."""
    if clips.ndim == 5:
        clips = clips.flatten(1, 2)
    if clips.ndim != 4 or clips.shape[1] != input_channels:
        raise ValueError(
            f"clips of shape {tuple(clips.shape)}: give (B, 3, {input_channels // 3}, H, W) "
            f"or (B, {input_channels}, H, W)"
        )
    return clips


class SqueezeTime(nn.Module):
    """Label clips: time squeezed into channels, then a 2D residual network.

    Input is normalised RGB, (B, 3, 16, H, W) or already squeezed (B, 48, H, W) with channel = c * 16 + t, of any
    H and W. Output of ``forward`` and ``logits`` is (B, K).

    Source: the release's mmaction/models/backbones/SqueezeTime.py and heads/i2d_head.py.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        bottleneck, blocks = DEPTHS[config.depth]
        stem = config.stage_widths[0]
        self.conv1 = nn.Conv2d(config.input_channels, stem, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem
        for i, (width, count) in enumerate(zip(config.stage_widths, blocks, strict=True)):
            out_channels = width * 4 if bottleneck else width
            kind = Bottleneck if bottleneck else BasicBlock
            strides = (config.spatial_stride[i], *[1] * (count - 1))
            inputs = (channels, *[out_channels] * (count - 1))
            stage = [kind(c, width, s, config.pos_dim[i]) for c, s in zip(inputs, strides, strict=True)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            channels = out_channels
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, config.num_classes) if config.num_classes is not None else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ObjectInteraction):
                nn.init.kaiming_normal_(module.pos_embed, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def features(self, clips: Tensor) -> Tensor:
        """clips: (B, 3, 16, H, W) or (B, 48, H, W) float. Returns the feature map (B, C, h, w)."""
        clips = squeezed(clips, self.config.input_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features

    def embed(self, clips: Tensor) -> Tensor:
        """Return the pooled features (B, C) that the classifier sees."""
        return self.features(clips).mean(dim=(2, 3))

    def classify(self, embeddings: Tensor) -> Tensor:
        """embeddings: (B, C). Returns logits (B, K)."""
        if self.fc is None:
            raise ConfigError("this network has no classifier (its checkpoint holds a backbone alone); use features()")
        logits: Tensor = self.fc(self.dropout(embeddings))
        return logits

    def logits(self, clips: Tensor) -> Tensor:
        """clips: (B, 3, 16, H, W) or (B, 48, H, W) float. Returns (B, K), before softmax."""
        return self.classify(self.embed(clips))

    def forward(self, clips: Tensor) -> Tensor:
        return self.logits(clips)
