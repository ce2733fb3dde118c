"""Teachers that timm or torchvision build: their scales, strides and preprocessing are read from the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from snl_runtime.errors import ConfigError
from snl_train.models.resnet import IMAGENET_MEAN, IMAGENET_STD

STRIDES = (4, 8, 16)
"""Scales that are taken of a network that has them, as of the ResNets."""
_DEPTH_OF_ONE_SCALE = 2 / 3
"""Block of a transformer whose features are taken: later ones say what the image shows rather than where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidLayout:
    """What a network gives and wants.

    Attributes:
        channels: Of each scale, finest first.
        strides: Input pixels per cell of each scale, each twice the one before.
        mean: Of the images that it was trained on, RGB, of values in [0, 1].
        std: Standard deviation of the same.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class PyramidNetwork(nn.Module):
    """A network cut behind its last scale; gives the features of each scale, finest first.

    Attributes:
        architecture: Name as in the configuration.
        channels: Of each scale.
        strides: Of each scale.
        mean: See :class:`PyramidLayout`.
        std: See :class:`PyramidLayout`.
    """

    def __init__(self, architecture: str, layout: PyramidLayout) -> None:
        super().__init__()
        self.architecture = architecture
        self.channels, self.strides = layout.channels, layout.strides
        self.mean, self.std = layout.mean, layout.std

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return [(B, C_k, H / s_k, W / s_k)], the first ``stages`` of them, for normalized images (B, 3, H, W)."""
        raise NotImplementedError

    def own_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file for the whole network under the names that this one has; what was cut off is left out."""
        raise NotImplementedError


class TimmPyramid(PyramidNetwork):
    """A network of timm; its intermediate features are what timm calls so, before any last norm."""

    def __init__(self, architecture: str, model: Any, indices: list[int]) -> None:
        infos = [model.feature_info[index] for index in indices]
        mean, std = (tuple(map(float, model.pretrained_cfg[key])) for key in ("mean", "std"))
        layout = PyramidLayout(
            channels=tuple(int(info["num_chs"]) for info in infos), strides=tuple(int(info["reduction"]) for info in infos), mean=mean, std=std
        )
        super().__init__(architecture, layout)
        self._names_before = frozenset(model.state_dict())
        self._indices = indices
        model.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
        self.network = model

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return the features, see :class:`PyramidNetwork`."""
        indices = self._indices[:stages]
        features: list[Tensor] = self.network.forward_intermediates(
            images, indices=indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return features

    def own_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under timm's names, those of other packages translated and position embeddings resized."""
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

        if isinstance(self.network, VisionTransformer):
            state = checkpoint_filter_fn(dict(state), self.network)
        elif any(name.startswith("_blocks.") for name in state):
            state = efficientnet_state(state, self.network.state_dict())
        kept = self.network.state_dict()
        return {f"network.{name}": tensor for name, tensor in state.items() if name in kept or name not in self._names_before}


class TorchvisionPyramid(PyramidNetwork):
    """A network of torchvision that runs its parts one after the other: ResNets and those with ``features``."""

    def __init__(self, architecture: str, parts: Mapping[str, nn.Module], layout: PyramidLayout, *, ends: list[str], prefix: str) -> None:
        super().__init__(architecture, layout)
        self.parts = nn.ModuleDict(parts)
        self._ends = ends
        self._prefix = prefix

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return the features, see :class:`PyramidNetwork`."""
        features: list[Tensor] = []
        x = images
        for name, part in self.parts.items():
            x = part(x)
            if name in self._ends[:stages]:
                features.append(x)
            if len(features) == len(self._ends[:stages]):
                break
        return features

    def own_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the parts that are left."""
        named = {name.removeprefix(self._prefix): tensor for name, tensor in state.items() if name.startswith(self._prefix)}
        return {f"parts.{name}": tensor for name, tensor in named.items() if name.split(".")[0] in self.parts}


def is_pyramid(architecture: str) -> bool:
    """Return whether a teacher is named after the package that builds it, ``timm:NAME`` or ``torchvision:NAME``."""
    return ":" in architecture


def build_pyramid(architecture: str, size_hw: tuple[int, int] | None) -> PyramidNetwork:
    """Return a network with weights drawn from torch's global generator.

    Args:
        architecture: ``timm:NAME`` or ``torchvision:NAME``.
        size_hw: Height and width of the input in pixels; transformers are built for one, by default for timm's.

    Raises:
        ConfigError: If the package or the network is not there, or the network has no features on grids of cells.
    """
    package, _, name = architecture.partition(":")
    return _from_timm(architecture, name, size_hw) if package == "timm" else _from_torchvision(architecture, name)


def _from_timm(architecture: str, name: str, size_hw: tuple[int, int] | None) -> PyramidNetwork:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"teacher {architecture} needs the package timm: pip install 'snl-edge[teachers]'") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'; see timm.list_models(), or take another --teacher")
    pretrained = timm.models.get_pretrained_cfg(name)
    is_fixed = pretrained is not None and pretrained.fixed_input_size
    try:
        model = timm.create_model(name, pretrained=False, **({"img_size": size_hw} if is_fixed else {}))
        return TimmPyramid(architecture, model, _scales([int(info["reduction"]) for info in model.feature_info], architecture))
    except (AttributeError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"timm's {name} cannot be a teacher for images of {size_hw} pixels: {' '.join(str(error).split())}") from error


def _scales(reductions: list[int], architecture: str) -> list[int]:
    """Return which features are taken: the last one of each stride in ``STRIDES``, or of a network of one stride a single one."""
    if len(set(reductions)) == 1:
        return [round(_DEPTH_OF_ONE_SCALE * len(reductions)) - 1]
    last = {reduction: index for index, reduction in enumerate(reductions)}
    indices = [last[stride] for stride in STRIDES if stride in last]
    if not indices:
        raise ConfigError(f"teacher {architecture} has features at strides {sorted(last)} and none at 4, 8 or 16; take another one")
    return indices


def _from_torchvision(architecture: str, name: str) -> PyramidNetwork:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ConfigError(f"torchvision has no model '{name}'; see torchvision.models.list_models(), or take another --teacher")
    model = get_model(name, weights=None)
    features = getattr(model, "features", None)
    prefix, whole = ("features.", features) if isinstance(features, nn.Sequential) else ("", model)
    parts, ends = _parts_up_to(dict(whole.named_children()), architecture)
    layout = PyramidLayout(channels=tuple(channels for _, _, channels in ends), strides=tuple(stride for _, stride, _ in ends))
    return TorchvisionPyramid(architecture, parts, layout, ends=[end for end, _, _ in ends], prefix=prefix)


def _parts_up_to(children: Mapping[str, nn.Module], architecture: str) -> tuple[dict[str, nn.Module], list[tuple[str, int, int]]]:
    """Return the parts as far as stride 16, and (name, stride, channels) of the last one of each stride."""
    side = 8 * STRIDES[-1]
    found: dict[int, tuple[str, int, int]] = {}
    parts: dict[str, nn.Module] = {}
    x = torch.zeros(1, 3, side, side)
    try:
        for name, part in children.items():
            with torch.no_grad():
                x = part.eval()(x)
            if x.shape[2] != x.shape[3] or side / x.shape[2] > STRIDES[-1]:
                break
            parts[name] = part
            found[side // x.shape[2]] = (name, side // x.shape[2], x.shape[1])
    except (RuntimeError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ConfigError(f"teacher {architecture} does not run its parts one after the other; take the one of timm (timm:NAME)") from error
    ends = [found[stride] for stride in STRIDES if stride in found]
    if not ends or any(later[1] != 2 * earlier[1] for earlier, later in pairwise(ends)):
        raise ConfigError(f"teacher {architecture} has parts at strides {sorted(found)} and not at 4, 8, 16; take the one of timm (timm:NAME)")
    last = list(parts).index(ends[-1][0])
    return {name: part.train() for name, part in list(parts.items())[: last + 1]}, ends


_CONVOLUTIONS = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}


def efficientnet_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the packages ``efficientnet-pytorch`` and ``efficientnet-lite-pytorch`` under timm's names.

    Their blocks are counted through, timm's stage by stage; norms are counted from 0, and from 1 in timm; a block that does not expand has one
    convolution and one norm less, and its projection is called ``conv_pw``.

    Args:
        state: Names such as ``_blocks.3._depthwise_conv.weight``.
        wanted: State dict of timm's network, which says how many blocks each stage has.
    """
    blocks = sorted({(int(stage), int(block)) for stage, block in re.findall(r"^blocks\.(\d+)\.(\d+)\.", "\n".join(wanted), re.MULTILINE)})
    expanding = {int(found[1]) for name in state if (found := re.match(r"_blocks\.(\d+)\._expand_conv\.", name))}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "_blocks":
            number, part, kind = rest.split(".", 2)
            if int(number) < len(blocks):
                stage, block = blocks[int(number)]
                renamed[f"blocks.{stage}.{block}.{_block_part(part, is_expanding=int(number) in expanding)}.{kind}"] = tensor
        elif first in ("_conv_stem", "_bn0"):
            renamed[f"{'conv_stem' if first == '_conv_stem' else 'bn1'}.{rest}"] = tensor
    return renamed


def _block_part(part: str, *, is_expanding: bool) -> str:
    if part.startswith("_bn"):
        return f"bn{int(part[3:]) + (1 if is_expanding else 0)}"
    return "conv_pw" if part == "_project_conv" and not is_expanding else _CONVOLUTIONS[part]
