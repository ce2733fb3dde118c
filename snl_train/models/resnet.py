"""ResNet stem to layer3 with torchvision's parameter names, shared by the teacher and the forward student."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from snl_runtime.errors import ConfigError

Block = type[BasicBlock] | type[Bottleneck]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the images that torchvision's networks were trained on, RGB, of values in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetSpec:
    """What tells one ResNet from another, up to layer3."""

    block: Block
    """Residual block of torchvision."""
    depths: tuple[int, ...]
    """Blocks of layer1, layer2, layer3; also of the decoder's stages for 256, 128 and 64 planes (RD4AD does not mirror them)."""
    base_width: int = 64
    """Inner width of a bottleneck block at 64 planes (128 for the wide ResNet)."""
    oce_depth: int = 2
    """Residual blocks of the one-class embedding (RD4AD: 2 for basic blocks, 3 for bottleneck blocks)."""

    widths: tuple[int, ...] = ()
    """Channels of each scale of a teacher that is no ResNet, whose decoder is built of these blocks; empty for a ResNet."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of layer1, layer2, layer3."""
        expansion = self.block.expansion
        return self.widths or (64 * expansion, 128 * expansion, 256 * expansion)


SPECS: dict[str, ResNetSpec] = {
    "resnet18": ResNetSpec(block=BasicBlock, depths=(2, 2, 2)),
    "resnet34": ResNetSpec(block=BasicBlock, depths=(3, 4, 6)),
    "resnet50": ResNetSpec(block=Bottleneck, depths=(3, 4, 6), oce_depth=3),
    "wide_resnet50_2": ResNetSpec(block=Bottleneck, depths=(3, 4, 6), base_width=128, oce_depth=3),
}


def spec_of(architecture: str) -> ResNetSpec:
    """Return the layout of a ResNet.

    Raises:
        ConfigError: If it is not one of ``SPECS``.
    """
    if architecture not in SPECS:
        raise ConfigError(f"teacher must be one of {', '.join(SPECS)}, got '{architecture}'")
    return SPECS[architecture]


class ResNetPyramid(nn.Module):
    """ResNet from the stem to layer3; gives the features of layer1, layer2 and layer3 at strides 4, 8 and 16.

    Attributes:
        architecture: Name as in the configuration.
        channels: Of each scale.
        strides: Of each scale.
        mean: Of the images that it was trained on, RGB, of values in [0, 1].
        std: Standard deviation of the same.
    """

    def __init__(self, architecture: str) -> None:
        super().__init__()
        spec = spec_of(architecture)
        self.architecture = architecture
        self.channels = spec.channels
        self.strides = (4, 8, 16)
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = residual_stage(spec, 64, 64, depth=spec.depths[0], stride=1)
        self.layer2 = residual_stage(spec, spec.channels[0], 128, depth=spec.depths[1], stride=2)
        self.layer3 = residual_stage(spec, spec.channels[1], 256, depth=spec.depths[2], stride=2)
        initialize(self)

    def stem(self, images: Tensor) -> Tensor:
        """Return (B, 64, H/4, W/4) for images (B, 3, H, W)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return [(B, C1, H/4, W/4), (B, C2, H/8, W/8), (B, C3, H/16, W/16)], the first ``stages`` of them, for normalized images (B, 3, H, W)."""
        features: list[Tensor] = []
        x = self.stem(images)
        for stage in (self.layer1, self.layer2, self.layer3)[:stages]:
            x = stage(x)
            features.append(x)
        return features


def residual_stage(spec: ResNetSpec, in_channels: int, planes: int, *, depth: int, stride: int) -> nn.Sequential:
    """Return torchvision's residual stage: the first block changes stride and channels, the others keep them."""
    out_channels = planes * spec.block.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    blocks = [spec.block(in_channels, planes, stride, shortcut, base_width=spec.base_width)]
    blocks += [spec.block(out_channels, planes, base_width=spec.base_width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give convolutions He-normal weights and batch norms the identity, as torchvision and RD4AD do."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
