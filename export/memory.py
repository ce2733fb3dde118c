"""The memory of normal features, written so that inference libraries run it quickly."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snl_train.models.memory import TILE_CENTERS, Codebook, FeatureMemory

from .channels import channel_length, channel_sum, not_negative


class InferenceMemory(nn.Module):
    """What :class:`snl_train.models.memory.FeatureMemory` computes.

    Args:
        memory: Fitted memory; its numbers are copied.

    Attributes:
        layers: Layers of the teacher that are remembered, counted from 1.
        student_weight: () Factor of the student's map.
    """

    student_weight: Tensor

    def __init__(self, memory: FeatureMemory) -> None:
        super().__init__()
        self.layers = memory.layers
        self.codebooks = nn.ModuleList(InferenceCodebook(codebook) for codebook in memory.books)
        self.register_buffer("student_weight", memory.student_weight.detach().float().cpu())

    def forward(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """Return the weighted distances of each layer, (N, 1, H_k, W_k) float32, for the teacher's features [(N, C_k, H_k, W_k)], layer1 first."""
        return [codebook(teacher[layer - 1]) for layer, codebook in zip(self.layers, self.codebooks, strict=True)]


class InferenceCodebook(nn.Module):
    """Squared distance of each feature to the nearest center, with half as many maxima as tiles.

    A maximum of two products is one of them and what the other has more, max(a, b) = a + ReLU(b - a), and b - a is a product with the difference of
    centers. ONNX Runtime adds and clips in the blocked layout of its convolutions; for a maximum it copies both tensors out of it.

    Args:
        codebook: Its centers and weight are copied. Tiles have the same number of centers, for which the last center may be repeated.
    """

    weight: Tensor

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        tiles = _even_tiles(codebook.centers.detach().double().cpu())
        self.pairs = nn.ModuleList(_Pair(first, second) for first, second in zip(tiles[::2], tiles[1::2], strict=True))
        self.register_buffer("weight", codebook.weight.detach().float().cpu())

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, 1, H, W) float32 for features (N, D, H, W) of any precision."""
        means = F.avg_pool2d(features.float(), kernel_size=3, stride=1, padding=1, count_include_pad=False)
        unit = means / channel_length(means)
        largest: Tensor = functools.reduce(torch.maximum, [pair(unit) for pair in self.pairs])  # (N, centers of a tile, H, W)
        nearest = largest.amax(dim=1, keepdim=True)
        known = nearest + 0 * channel_sum(unit)  # NaN where a feature is: OpenVINO's ReLU and maximum lose it, a sum does not
        return not_negative(1 - 2 * known) * self.weight  # rounding gives distances just below 0


class _Pair(nn.Module):
    """The larger of x.c - |c|^2 / 2 for the centers c of two tiles, (N, n, H, W): one result for each two centers."""

    centers: Tensor
    offset: Tensor
    added_centers: Tensor
    added_offset: Tensor

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        offset, other_offset = (-0.5 * centers.square().sum(1) for centers in (first, second))
        for name, values in {"centers": first, "added_centers": second - first}.items():
            self.register_buffer(name, values[:, :, None, None].float().contiguous())
        for name, values in {"offset": offset, "added_offset": other_offset - offset}.items():
            self.register_buffer(name, values.float())

    def forward(self, unit: Tensor) -> Tensor:
        # Convolutions, because TensorRT-RTX has no fp32 matrix product on Turing.
        return F.conv2d(unit, self.centers, self.offset) + F.relu(F.conv2d(unit, self.added_centers, self.added_offset))


def _even_tiles(centers: Tensor) -> tuple[Tensor, ...]:
    """Return an even number of tiles of equal size, at most ``TILE_CENTERS`` of the centers (N, D) in each."""
    count = 2 * -(-len(centers) // (2 * TILE_CENTERS))
    size = -(-len(centers) // count)
    repeated = centers[-1:].expand(count * size - len(centers), -1)
    return torch.split(torch.cat([centers, repeated]), size)
