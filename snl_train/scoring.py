"""Anomaly map and score from teacher and student features, SNL Eq. 1 and 10 to 14."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from snl_train.affinity import DEFAULT_TILE_ROWS, mean_affinity_error
from snl_train.config import Alignment, ScoreConfig
from snl_train.features import full_precision, paired_scales, unit_vectors
from snl_train.models.memory import FeatureMemory


def anomaly_map(  # noqa: PLR0913 - the readings that the paper leaves open
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    size_hw: tuple[int, int],
    *,
    affinity_weight: float = 1.0,
    alignment: Alignment = "half-pixel",
    smoothing_sigma: float = 0.0,
    tile_rows: int = DEFAULT_TILE_ROWS,
    whitening: Iterable[nn.Module] | None = None,
) -> Tensor:
    """Return the pixel-level anomaly score, 0 where teacher and student agree.

    Sum over scales of the cosine distance (Eq. 1, 10) and ``affinity_weight`` times the mean affinity error (Eq. 11, 12) per position, resized to
    the image. Computed in float32, or in float64 if an input is, also under autocast.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        size_hw: Height and width of the result in pixels.
        affinity_weight: 1 is Eq. 13; 0 leaves the affinity error out and does not compute it.
        alignment: Where a feature cell lies on the image, see ``upsampling_weights``; the paper does not say.
        smoothing_sigma: Standard deviation in pixels of a Gaussian over the map; the paper names none, RD4AD uses 4.
        tile_rows: Rows of the affinity matrix held at a time.
        whitening: One ``ResidualWhitening`` per scale, which takes the place of the cosine distance; None for Eq. 1 and 10.

    Returns:
        (B, 1, H, W), values in [0, 4 * number of scales] for ``affinity_weight`` 1 without whitening, from 0 with it.

    Raises:
        ValueError: If the two lists differ in length or in any shape.
    """
    scales = paired_scales(teacher, student)
    with full_precision(scales[0][0].device):
        resized = []
        distances = [None] * len(scales) if whitening is None else list(whitening)
        for (of_teacher, of_student), distance in zip(scales, distances, strict=True):
            cells = cell_scores(of_teacher, of_student, affinity_weight=affinity_weight, tile_rows=tile_rows, whitening=distance)  # (B, H_k, W_k)
            resized.append(resized_map(cells, size_hw, alignment=alignment, smoothing_sigma=smoothing_sigma))
        return functools.reduce(torch.add, resized)[:, None]


def anomaly_score(maps: Tensor, *, top_k: int = 1) -> Tensor:
    """Return the image-level score (B,) of maps (B, 1, H, W): the highest pixel (Eq. 14), or the mean of the ``top_k`` highest."""
    pixels = maps.flatten(1)
    return pixels.amax(1) if top_k == 1 else pixels.topk(min(top_k, pixels.shape[1]), 1).values.mean(1)


def score_features(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    size_hw: tuple[int, int],
    config: ScoreConfig,
    *,
    whitening: Iterable[nn.Module] | None = None,
    memory: FeatureMemory | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (maps (B, 1, H, W), scores (B,)) as a configuration says; ``whitening`` and ``memory`` are the model's own.

    Without a memory the map is the student's. With one it is the sum of the memory's maps and, if there is a student, its map times
    ``memory.student_weight``.

    Raises:
        ValueError: If there is neither student nor memory, or the features of teacher and student do not fit each other.
    """
    maps: list[Tensor] = [] if memory is None else [layer[:, None] for layer in memory_maps(memory, teacher, size_hw, config)]
    if student or not maps:
        of_student = student_map(teacher, student, size_hw, config, whitening=whitening)
        maps.insert(0, of_student if memory is None else of_student * memory.student_weight.to(of_student))
    total = functools.reduce(torch.add, maps)
    return total, anomaly_score(total, top_k=config.top_k)


def student_map(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    size_hw: tuple[int, int],
    config: ScoreConfig,
    *,
    whitening: Iterable[nn.Module] | None = None,
) -> Tensor:
    """Return the student's own map, (B, 1, H, W), as :func:`anomaly_map` with the settings of a configuration."""
    return anomaly_map(
        teacher,
        student,
        size_hw,
        affinity_weight=config.affinity_weight,
        alignment=config.alignment,
        smoothing_sigma=config.smoothing_sigma,
        tile_rows=config.tile_rows,
        whitening=whitening,
    )


def memory_maps(memory: FeatureMemory, teacher: Sequence[Tensor], size_hw: tuple[int, int], config: ScoreConfig) -> list[Tensor]:
    """Return the weighted distances of each remembered layer, (B, H, W), resized and smoothed like the student's."""
    with full_precision(teacher[0].device):
        return [resized_map(cells, size_hw, alignment=config.alignment, smoothing_sigma=config.smoothing_sigma) for cells in memory(teacher)]


def resized_map(cells: Tensor, size_hw: tuple[int, int], *, alignment: Alignment, smoothing_sigma: float) -> Tensor:
    """Return (B, H, W) for cells (B, H_k, W_k), see ``upsampling_weights``."""
    down = _weights(cells.shape[1], size_hw[0], alignment, smoothing_sigma, cells)  # (H, H_k)
    across = _weights(cells.shape[2], size_hw[1], alignment, smoothing_sigma, cells)  # (W, W_k)
    return down @ cells @ across.mT


def cell_scores(
    teacher: Tensor, student: Tensor, *, affinity_weight: float = 1.0, tile_rows: int = DEFAULT_TILE_ROWS, whitening: nn.Module | None = None
) -> Tensor:
    """Return M^k + ``affinity_weight`` * E^k of one scale at feature resolution, (B, H_k, W_k), for float features (B, D_k, H_k, W_k).

    M^k is the cosine distance, or what ``whitening`` makes of the unit vectors (B, D_k, P) of teacher and student.
    """
    t, s = unit_vectors(teacher.flatten(2)), unit_vectors(student.flatten(2))  # (B, D, P)
    distance = _cosine_distance if whitening is None else whitening
    scores: Tensor = distance(t, s)  # (B, P)
    if affinity_weight:
        scores = scores + affinity_weight * mean_affinity_error(s, t, tile_rows)
    return scores.reshape(teacher.shape[0], *teacher.shape[2:])


@functools.lru_cache(maxsize=64)
def upsampling_weights(cells: int, pixels: int, alignment: Alignment = "half-pixel", smoothing_sigma: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the (pixels, cells) matrix that resizes one axis of a map linearly and then smooths it; treat it as read-only.

    Pixel y takes its value at cell coordinate: ``half-pixel``: (y + 0.5) cells / pixels - 0.5 (align_corners=False);
    ``corners``: y (cells - 1) / (pixels - 1) (align_corners=True); ``grid``: y cells / pixels, because cell i of a ResNet is centerd on pixel
    stride * i. Coordinates outside the cells take the nearest cell. Smoothing is a Gaussian cut at 4 sigma, mirrored at the border, as
    scipy.ndimage.gaussian_filter does it; both steps are linear, so one matrix holds them.

    >>> upsampling_weights(2, 4, "grid")
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ],
           [0. , 1. ]])
    """
    y = np.arange(pixels, dtype=np.float64)
    if alignment == "half-pixel":
        coordinate = (y + 0.5) * cells / pixels - 0.5
    elif alignment == "corners":
        coordinate = y * (cells - 1) / max(pixels - 1, 1)
    elif alignment == "grid":
        coordinate = y * cells / pixels
    else:
        raise ValueError(f"alignment must be half-pixel, corners or grid, got '{alignment}'")
    coordinate = coordinate.clip(0, cells - 1)
    weights = (1 - np.abs(coordinate[:, None] - np.arange(cells))).clip(0)
    return _gaussian(pixels, smoothing_sigma) @ weights if smoothing_sigma > 0 else weights


def _gaussian(pixels: int, sigma: float) -> npt.NDArray[np.float64]:
    """Return the (pixels, pixels) matrix of a Gaussian filter with the border mirrored (d c b a | a b c d | d c b a)."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    source = (np.arange(pixels)[:, None] + offsets) % (2 * pixels)
    source = np.minimum(source, 2 * pixels - 1 - source)
    matrix = np.zeros((pixels, pixels))
    np.add.at(matrix, (np.arange(pixels)[:, None], source), kernel)
    return matrix


def _cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Return (B, P), from 0, for unit vectors (B, D, P)."""
    return (1 - (teacher * student).sum(1)).clamp_min(0)  # rounding gives cosines just above 1


def _weights(cells: int, pixels: int, alignment: Alignment, smoothing_sigma: float, like: Tensor) -> Tensor:
    return torch.from_numpy(upsampling_weights(cells, pixels, alignment, smoothing_sigma)).to(like)
