"""Memory of the teacher's normal features: how far a feature is from the nearest of many centers that good images gave."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snl_train.features import full_precision
from snl_train.memory_config import MemoryConfig

TILE_CENTERS = 64
"""Centers whose products with all cells exist at a time, which then fit a CPU's cache: 512 centers of layer1 at 256 px in tiles of 64 take 9 ms of
one core, in one piece 19."""
_SMALLEST_NORM = 1e-12
"""Shortest length that a feature is divided by; zero vectors stay zero."""


class FeatureMemory(nn.Module):
    """One codebook of the teacher's normal features per layer, and the weights of their maps and of the student's.

    Every map is divided by its mean peak on good images that neither the codebooks nor the student learned from, so that no map drowns another in the
    sum. Departs from PatchCore (a joint memory bank and Euclidean distances): layers are apart, features have unit length, distances are squared, and
    centers are means of what they stand for.

    Args:
        config: Layers and number of centers.
        channels: Channels of the teacher's layer1, layer2, layer3.

    Attributes:
        layers: Layers of the teacher that are remembered, counted from 1.
        center_count: Centers of each layer.
        codebooks: One :class:`Codebook` for each of them.
        student_weight: () Factor of the student's map; of no effect without a student.
    """

    student_weight: Tensor

    def __init__(self, config: MemoryConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.layers = config.layers
        self.center_count = config.centers
        self.codebooks = nn.ModuleList(Codebook(channels[layer - 1], config.centers) for layer in config.layers)
        self.register_buffer("student_weight", torch.tensor(1.0))

    @property
    def books(self) -> list["Codebook"]:
        """The codebooks, in the order of ``layers``."""
        return [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]

    def take_centers(self, centers: Sequence[Tensor]) -> None:
        """Set the centers of every codebook, (N, D) each, in the order of ``layers``.

        Raises:
            ValueError: If their shapes are not the codebooks', or one is not finite.
        """
        for codebook, of_layer in zip(self.books, centers, strict=True):
            codebook.set_centers(of_layer)

    def forward(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """Return the weighted distances of each layer, (B, H_k, W_k) float32, for the teacher's features [(B, C_k, H_k, W_k)], layer1 first."""
        return [codebook(teacher[layer - 1]) for layer, codebook in zip(self.layers, self.codebooks, strict=True)]


class Codebook(nn.Module):
    """Squared distance of each feature, averaged over 3x3 cells and scaled to unit length, to the nearest of N centers.

    For x of unit length min_n |x - c_n|^2 = 1 - 2 max_n (x.c_n - |c_n|^2 / 2): 1x1 convolutions and a maximum, in tiles of centers, and no
    (D, N, H, W) tensor. A difference of numbers near 1, so float32 whatever the precision of the features. A zero vector counts as 1 + |c|^2: far.

    Attributes:
        tiles: At most 64 centers each.
        weight: () Factor of the distances; 1 until the memory is normalized.
    """

    weight: Tensor

    def __init__(self, channels: int, centers: int) -> None:
        super().__init__()
        sizes = [min(TILE_CENTERS, centers - start) for start in range(0, centers, TILE_CENTERS)]
        self.tiles = nn.ModuleList(_Tile(channels, size) for size in sizes)
        self.register_buffer("weight", torch.tensor(1.0))

    @property
    def centers(self) -> Tensor:
        """All centers, (N, D)."""
        return torch.cat([tile.centers for tile in self._tiles()])

    def set_centers(self, centers: Tensor) -> None:
        """Take centers (N, D).

        Raises:
            ValueError: If their shape is not the codebook's, or one is not finite.
        """
        if centers.shape != self.centers.shape or not torch.isfinite(centers).all():
            raise ValueError(f"centers must be finite with shape {tuple(self.centers.shape)}, got {tuple(centers.shape)}")
        for tile, part in zip(self._tiles(), torch.split(centers, TILE_CENTERS), strict=True):
            tile.centers.copy_(part)
            tile.offset.copy_(-0.5 * part.double().square().sum(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, H, W) float32 for features (B, D, H, W), also under autocast."""
        with full_precision(features.device):
            unit = remembered_features(features)  # (B, D, H, W)
            *equal, last = self._tiles()
            nearest: Tensor = last(unit).amax(1)  # (B, H, W); the last tile may have fewer centers than the others
            if equal:
                products = functools.reduce(lambda largest, tile: torch.maximum(largest, tile(unit)), equal[1:], equal[0](unit))
                nearest = torch.maximum(nearest, products.amax(1))  # one maximum over channels, which is the slow one
            distance: Tensor = (1 - 2 * nearest).clamp_min(0)  # rounding gives distances just below 0
            return distance * self.weight

    def _tiles(self) -> list["_Tile"]:
        return [tile for tile in self.tiles if isinstance(tile, _Tile)]


class _Tile(nn.Module):
    """Buffers of their own, so that the exported graph needs no slice of a constant."""

    centers: Tensor
    offset: Tensor

    def __init__(self, channels: int, centers: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(centers, channels))
        self.register_buffer("offset", torch.zeros(centers))

    def forward(self, unit: Tensor) -> Tensor:
        # A convolution, because TensorRT-RTX has no fp32 matrix product on Turing.
        return F.conv2d(unit, self.centers[:, :, None, None], self.offset)  # (B, D, H, W) -> (B, n, H, W)


def remembered_features(features: Tensor) -> Tensor:
    """Return what is remembered and compared, (B, D, H, W) float32 of unit length along D: the mean of the 3x3 cells around each cell."""
    means = F.avg_pool2d(features.float(), kernel_size=3, stride=1, padding=1, count_include_pad=False)
    length: Tensor = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    return means / length.clamp_min(_SMALLEST_NORM)
