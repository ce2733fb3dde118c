"""Reverse distillation (RD4AD): a bottleneck over all teacher scales and a decoder that gives the teacher's features back."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from snl_train.models.resnet import ResNetSpec, initialize, residual_stage


class Bottleneck(nn.Module):
    """Multi-scale feature fusion and one-class embedding: the teacher's scales to one small tensor.

    3x3 convolutions of stride 2, one for each scale between, bring the finer scales to the grid and width of the coarsest; all are concatenated and
    one residual stage halves the grid.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        channels = spec.channels
        self.fuse = nn.ModuleList(nn.Sequential(*(_halve(*pair) for pair in pairwise(channels[scale:]))) for scale in range(len(channels) - 1))
        self.embed = residual_stage(spec, len(channels) * channels[-1], 2 * channels[-1] // spec.block.expansion, depth=spec.oce_depth, stride=2)
        initialize(self)

    def forward(self, teacher: Sequence[Tensor]) -> Tensor:
        """Return (B, 2 * C_K, H_K / 2, W_K / 2) for the teacher's K scales (B, C_k, H_k, W_k), finest first."""
        *finer, coarsest = teacher
        fused = torch.cat([*(fuse(features) for fuse, features in zip(self.fuse, finer, strict=True)), coarsest], 1)  # (B, K * C_K, H_K, W_K)
        embedded: Tensor = self.embed(fused)
        return embedded


class ReverseStudent(nn.Module):
    """Decoder from the bottleneck's tensor to features shaped like the teacher's, coarsest first.

    Args:
        spec: The teacher's channels, and the blocks that the decoder consists of.
        crams: One module per scale, layer1 first, that turns a stage's output into the student's feature; None for the plain method.
        cram_feeds_next: Whether the next stage sees the output of ``crams`` (True) or their input.
    """

    def __init__(self, spec: ResNetSpec, crams: nn.ModuleList | None = None, *, cram_feeds_next: bool = True) -> None:
        super().__init__()
        outputs = spec.channels[::-1]
        inputs = (2 * outputs[0], *outputs[:-1])
        stages = (_decoder_stage(spec, *sizes, depth=depth) for *sizes, depth in zip(inputs, outputs, spec.depths, strict=True))
        self.stages = nn.ModuleList(stages)
        """Coarsest first."""
        initialize(self)
        self.crams = crams
        self.cram_feeds_next = cram_feeds_next

    def forward(self, embedded: Tensor) -> list[Tensor]:
        """Return features shaped like the teacher's, finest first, for the bottleneck's tensor."""
        features: list[Tensor] = []
        x = embedded
        for number, stage in enumerate(self.stages, 1):
            x = stage(x)
            feature = x if self.crams is None else self.crams[-number](x)
            features.insert(0, feature)
            x = feature if self.cram_feeds_next else x
        return features


class DecoderBlock(nn.Module):
    """Residual block whose spatial convolution may double the grid; the mirror of torchvision's BasicBlock or Bottleneck."""

    def __init__(self, spec: ResNetSpec, in_channels: int, planes: int, *, is_doubling: bool) -> None:
        super().__init__()
        out_channels = planes * spec.block.expansion
        if spec.block is BasicBlock:
            layers = [_spatial(in_channels, planes, is_doubling=is_doubling), conv3x3(planes, planes)]
            widths = [planes, planes]
        else:
            width = planes * spec.base_width // 64
            layers = [conv1x1(in_channels, width), _spatial(width, width, is_doubling=is_doubling), conv1x1(width, out_channels)]
            widths = [width, width, out_channels]
        parts: list[nn.Module] = []
        for layer, channels in zip(layers, widths, strict=True):
            parts += [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*parts[:-1])  # the last ReLU follows the sum
        self.shortcut: nn.Module = nn.Identity()
        if is_doubling:
            self.shortcut = nn.Sequential(_doubling(in_channels, out_channels), nn.BatchNorm2d(out_channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, planes * expansion, 2H or H, 2W or W)."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def _decoder_stage(spec: ResNetSpec, in_channels: int, out_channels: int, *, depth: int) -> nn.Sequential:
    planes = out_channels // spec.block.expansion
    first = DecoderBlock(spec, in_channels, planes, is_doubling=True)
    return nn.Sequential(first, *(DecoderBlock(spec, out_channels, planes, is_doubling=False) for _ in range(depth - 1)))


def _halve(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, out_channels, stride=2), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _doubling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2, bias=False)


def _spatial(in_channels: int, out_channels: int, *, is_doubling: bool) -> nn.Module:
    if is_doubling:
        return _doubling(in_channels, out_channels)
    layer: nn.Module = conv3x3(in_channels, out_channels)
    return layer
