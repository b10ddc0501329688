"""The folded network on the kernels of ``kernels/``: what the triton backend runs.

Activations are (B, H, W, C), dense, from the clip to the head. A Bottleneck is six or seven kernels: conv1 with pooled
sums, the two layers of importance, the two narrow convolutions, the merge, and the closing 1x1 behind it or within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sqt_fast.errors import BackendError
from sqt_fast.files import tuned_file
from sqt_fast.kernels.conv import conv
from sqt_fast.kernels.ctl import position_reference
from sqt_fast.kernels.ctl_merge import Closing, MergeWeights, can_close, merge
from sqt_fast.kernels.downsample import downsample
from sqt_fast.kernels.importance import importance
from sqt_fast.kernels.launch import Launch, Problem, best_config, executing
from sqt_fast.kernels.pointwise import pointwise
from sqt_fast.kernels.pool import pool
from sqt_fast.kernels.tuned import look_in
from sqt_fast.network.fold import fold
from sqt_fast.network.model import CTL, BasicBlock, Block, Bottleneck, SqueezeTime
from sqt_fast.network.precompile import precompile, specialisations


def why_not_network(model: SqueezeTime) -> str | None:
    """Return why the kernels cannot run this network, None if they can."""
    widths = (model.config.input_channels, *model.config.stage_widths)
    if odd := [width for width in widths if width % 16]:
        return f"the kernels need multiples of 16 channels, this network has {odd[0]}"
    return None


class FusedNetwork:
    """Clips to logits and embeddings, with every element-wise step inside a kernel that is there anyway.

    model: any SqueezeTime with a classifier; it is left as it is. dtype: fp32, fp16 or bf16, of weights and
    activations; biases, sums and accumulators are float32. device: ``cuda``, or ``cpu`` under Triton's interpreter.
    Raises BackendError for widths that are no multiples of 16.
    """

    memory_format = torch.channels_last

    def __init__(self, model: SqueezeTime, *, device: str | torch.device, dtype: torch.dtype) -> None:
        if reason := why_not_network(model):
            raise BackendError(f"backend triton: {reason}; use --backend eager or compile")
        look_in(tuned_file())
        folded = fold(model)
        assert folded.fc is not None
        pack = _Packer(torch.device(device), dtype)
        self.dtype = dtype
        self.stem = pack.conv(folded.conv1)
        self.blocks = [pack.block(block) for layer in _layers(folded) for block in layer]
        self.fc_weight, self.fc_bias = pack.weight(folded.fc.weight), pack.weight(folded.fc.bias)

    def compile_ahead(self, shape: Sequence[int]) -> None:
        """Compile what clips of ``shape``, (B, 48, S, S), need, on all cores. Nothing is launched."""
        launches: list[Launch] = []

        def note(problem: Problem) -> None:
            launches.append(problem.launch(best_config(problem)))

        clips = torch.empty(shape, dtype=self.dtype, device=self.fc_weight.device, memory_format=self.memory_format)
        with executing(note):
            self(clips)
        precompile(specialisations(launches))

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips: (B, 48, S, S) of the network's dtype, channels last. Returns (B, K) and (B, C), float32."""
        x = pool(conv(clips.permute(0, 2, 3, 1).contiguous(), *self.stem, stride=2))
        for block in self.blocks:
            x = block(x)
        embeddings = x.mean((1, 2), dtype=torch.float32)
        return nn.functional.linear(embeddings.to(self.dtype), self.fc_weight, self.fc_bias).float(), embeddings


@dataclass
class _FusedCTL:
    """Channel-time learning, ready for the kernels."""

    importance: tuple[Tensor, Tensor, Tensor]
    gated: tuple[Tensor, Tensor]
    mixing: tuple[Tensor, Tensor]
    merging: MergeWeights
    position: "_Position"

    def __call__(
        self, y: Tensor, shares: Tensor, *, residual: Tensor | None = None, closing: Closing | None = None
    ) -> Tensor:
        """y: (B, H, W, C); shares: its sums over pixels, (B, tiles, C) float32. Returns what ``merge`` does."""
        _, height, width, _ = y.shape
        p = importance(shares, *self.importance, pixels=height * width)
        hidden = conv(y, *self.gated, importance=p, position=self.position(height, width))
        return merge(y, conv(hidden, *self.mixing), p, self.merging, residual=residual, closing=closing)


class _Position:
    """A position embedding, stretched once to each size of map that is seen."""

    def __init__(self, pos_embed: Tensor, dtype: torch.dtype) -> None:
        self.pos_embed, self.dtype = pos_embed, dtype
        self._sizes: dict[tuple[int, int], Tensor] = {}

    def __call__(self, height: int, width: int) -> Tensor:
        if (height, width) not in self._sizes:
            stretched = position_reference(self.pos_embed, height, width)[0].permute(1, 2, 0)
            self._sizes[height, width] = stretched.to(self.dtype).contiguous()
        return self._sizes[height, width]


@dataclass
class _FusedBottleneck:
    downsample: tuple[Tensor, Tensor] | None
    conv1: tuple[Tensor, Tensor]
    ctl: _FusedCTL
    conv3: tuple[Tensor, Tensor]
    shortcut: Tensor | None  # its bias is in conv3's

    def __call__(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = downsample(x, *self.downsample)
        pixels = x.flatten(1, 2)
        y, shares = pointwise(pixels, *self.conv1, sums=True)
        assert shares is not None
        y = _as_map(y, x)
        residual = x if self.shortcut is None else None
        if can_close(y.shape[3], y.dtype):
            second = None if self.shortcut is None else (x, self.shortcut)
            return self.ctl(y, shares, residual=residual, closing=Closing(*self.conv3, second))
        z = self.ctl(y, shares).flatten(1, 2)
        second = None if self.shortcut is None else (pixels, self.shortcut)
        out, _ = pointwise(z, *self.conv3, second=second, residual=None if residual is None else pixels)
        return _as_map(out, x)


@dataclass
class _FusedBasicBlock:
    downsample: tuple[Tensor, Tensor] | None
    ctl1: _FusedCTL
    ctl2: _FusedCTL
    shortcut: tuple[Tensor, Tensor] | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = downsample(x, *self.downsample)
        residual = x
        if self.shortcut is not None:
            shortcut, _ = pointwise(x.flatten(1, 2), *self.shortcut, relu=False)
            residual = _as_map(shortcut, x)
        y = self.ctl1(x, _sums(x))
        return self.ctl2(y, _sums(y), residual=residual)


def _as_map(pixels: Tensor, x: Tensor) -> Tensor:
    """(B, H * W, C) to (B, H, W, C), H and W being those of x."""
    return pixels.view(*x.shape[:3], pixels.shape[2])


def _sums(x: Tensor) -> Tensor:
    """(B, H, W, C) to the sums over pixels, (B, 1, C) float32."""
    return x.flatten(1, 2).sum(1, keepdim=True, dtype=torch.float32)


def _layers(model: SqueezeTime) -> tuple[nn.Sequential, ...]:
    return model.layer1, model.layer2, model.layer3, model.layer4


class _Packer:
    """Puts folded weights into the kernels' layouts."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def weight(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def bias(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, torch.float32).contiguous()

    def conv(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(N, C, KH, KW) to (KH, KW, C, N), and its bias."""
        assert isinstance(module, nn.Conv2d)
        assert module.bias is not None
        return self.weight(module.weight.permute(2, 3, 1, 0)), self.bias(module.bias)

    def pointwise(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(N, C, 1, 1) to (C, N), and its bias."""
        weight, bias = self.conv(module)
        return weight[0, 0], bias

    def block(self, block: nn.Module) -> _FusedBottleneck | _FusedBasicBlock:
        assert isinstance(block, Block)
        down = None if block.downsample is None else self._downsample(block.downsample[0])
        shortcut = None if block.shortcut_conv is None else self.pointwise(block.shortcut_conv[0])
        if isinstance(block, BasicBlock):
            return _FusedBasicBlock(down, self._ctl(block.conv1), self._ctl(block.conv2), shortcut)
        assert isinstance(block, Bottleneck)
        weight, bias = self.pointwise(block.conv3)
        if shortcut is not None:
            bias = bias + shortcut[1]
        conv1, ctl = self.pointwise(block.conv1), self._ctl(block.conv2)
        return _FusedBottleneck(down, conv1, ctl, (weight, bias), None if shortcut is None else shortcut[0])

    def _downsample(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Depth-wise (C, 1, s, s) to (s, s, C), and its bias."""
        weight, bias = self.conv(module)
        return weight[:, :, 0], bias

    def _ctl(self, ctl: CTL) -> _FusedCTL:
        spatial = ctl.spatial_conv
        w1, b1 = self.pointwise(ctl.param_conv[1])
        second = ctl.param_conv[4]
        assert isinstance(second, nn.Conv2d)
        return _FusedCTL(
            importance=(w1, self.weight(b1), self.weight(second.weight[:, :, 0, 0].t())),
            gated=self.conv(spatial.glo_conv[0]),
            mixing=self.conv(spatial.glo_conv[3]),
            merging=MergeWeights(
                *self.conv(spatial.short_conv), *self.conv(spatial.glo_conv[6]), *self.pointwise(ctl.temporal_conv)
            ),
            position=_Position(self.bias(spatial.pos_embed), self.dtype),
        )
