"""Contract: the anomaly map is Eq. 1 and 10 to 13, the score its maximum; other readings are keywords."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from snl_train.config import ScoreConfig
from snl_train.scoring import anomaly_map, anomaly_score, cell_scores, score_features, upsampling_weights

COMPUTED_IN = [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)]
"""Dtype given and dtype of the result."""


def features(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, *shape), dtype=torch.float64, generator=generator) for shape in ((3, 4, 6), (5, 2, 3))]


def cells_by_loops(teacher: Tensor, student: Tensor, affinity_weight: float) -> Tensor:
    """M^k(h, w) + E^k(h, w) position by position."""
    result = torch.zeros(teacher.shape[0], *teacher.shape[2:], dtype=torch.float64)
    for n in range(len(teacher)):
        t, s = ([x[n, :, h, w].tolist() for h, w in np.ndindex(x.shape[2], x.shape[3])] for x in (teacher, student))
        t, s = ([[value / math.sqrt(sum(v * v for v in vector)) for value in vector] for vector in x] for x in (t, s))
        for j, (h, w) in enumerate(np.ndindex(teacher.shape[2], teacher.shape[3])):
            cosine = sum(a * b for a, b in zip(t[j], s[j], strict=True))
            errors = [abs(sum(a * b for a, b in zip(s[i], s[j])) - sum(a * b for a, b in zip(t[i], t[j]))) for i in range(len(t))]
            result[n, h, w] = 1 - cosine + affinity_weight * sum(errors) / len(errors)
    return result


def test_map_is_the_sum_of_resized_distances_and_affinity_errors() -> None:
    teacher, student = features(0), features(1)
    expected = torch.zeros(2, 1, 16, 24, dtype=torch.float64)
    for t, s in zip(teacher, student, strict=True):
        cells = cells_by_loops(t, s, affinity_weight=1.0)[:, None]
        expected += F.interpolate(cells, size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(anomaly_map(teacher, student, (16, 24)), expected, rtol=1e-12, atol=1e-12)


def test_affinity_weight_scales_the_affinity_error_alone() -> None:
    teacher, student = features(0)[0], features(1)[0]
    for weight in (0.0, 0.3):
        torch.testing.assert_close(cell_scores(teacher, student, affinity_weight=weight), cells_by_loops(teacher, student, weight))


@pytest.mark.parametrize("tile_rows", [1, 5, 24, 256])
def test_tiles_do_not_change_the_map(tile_rows: int) -> None:
    teacher, student = features(0), features(1)
    torch.testing.assert_close(anomaly_map(teacher, student, (8, 8), tile_rows=tile_rows), anomaly_map(teacher, student, (8, 8)))


@pytest.mark.parametrize("alignment", ["half-pixel", "corners"])
@pytest.mark.parametrize("sizes", [(4, 16), (3, 7), (1, 5), (6, 6), (8, 5)])
def test_resizing_equals_torchs(alignment: Any, sizes: tuple[int, int]) -> None:
    cells, pixels = sizes
    values = torch.randn(1, 1, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(values, size=pixels, mode="linear", align_corners=alignment == "corners")[0, 0]
    torch.testing.assert_close(torch.from_numpy(upsampling_weights(cells, pixels, alignment)) @ values[0, 0], expected)


def test_grid_alignment_puts_cell_i_on_pixel_stride_times_i() -> None:
    """Values i at cells, stride 4: pixel y has y / 4 up to the last cell's center and the last value after it."""
    weights = upsampling_weights(4, 16, "grid")
    np.testing.assert_allclose(weights @ np.arange(4), np.minimum(np.arange(16) / 4, 3))


def test_grid_alignment_puts_the_peak_where_a_resnet_sees_it() -> None:
    """One bright pixel moves through stride 4 of convolutions that are odd and centerd: cell i responds most for pixel 4 i."""
    convolution = torch.ones(1, 1, 3)
    for pixel in (0, 8, 16, 28):
        image = torch.zeros(1, 1, 32)
        image[..., pixel] = 1
        cells = F.conv1d(F.conv1d(image, convolution, stride=2, padding=1), convolution, stride=2, padding=1)[0, 0]
        upsampled = torch.from_numpy(upsampling_weights(8, 32, "grid")).float() @ cells
        assert upsampled.argmax().item() == pixel


@pytest.mark.parametrize("alignment", ["half-pixel", "corners", "grid"])
@pytest.mark.parametrize("sigma", [0.0, 3.0])
def test_resizing_keeps_a_constant_map(alignment: Any, sigma: float) -> None:
    np.testing.assert_allclose(upsampling_weights(5, 37, alignment, sigma).sum(1), 1)


def test_an_unknown_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="half-pixel, corners or grid, got 'center'"):
        upsampling_weights(2, 4, "center")


@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_smoothing_equals_scipys_gaussian(sigma: float) -> None:
    teacher, student = features(0), features(1)
    rough = anomaly_map(teacher, student, (16, 24)).numpy()
    expected = gaussian_filter(rough, sigma=(0, 0, sigma, sigma))
    np.testing.assert_allclose(anomaly_map(teacher, student, (16, 24), smoothing_sigma=sigma).numpy(), expected, rtol=1e-10)


def test_map_is_zero_where_student_equals_teacher() -> None:
    teacher = [x.float() for x in features(0)]
    maps = anomaly_map(teacher, [3 * t for t in teacher], (16, 24))
    assert 0 <= maps.min().item() <= maps.max().item() < 1e-6


def test_map_of_opposite_features_is_two_per_scale() -> None:
    """Affinities of s = -t equal the teacher's, the cosine is -1."""
    teacher = features(0)
    torch.testing.assert_close(anomaly_map(teacher, [-t for t in teacher], (16, 24)), torch.full((2, 1, 16, 24), 4.0, dtype=torch.float64))


def test_one_rotation_of_both_networks_does_not_change_the_map() -> None:
    teacher, student = features(0), features(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    turned = [torch.einsum("cd,bdhw->bchw", rotation, x[0]) for x in (teacher, student)]
    torch.testing.assert_close(anomaly_map(turned[:1], turned[1:], (16, 24)), anomaly_map(teacher[:1], student[:1], (16, 24)))


def test_each_image_is_scored_alone() -> None:
    teacher, student = features(0), features(1)
    both = anomaly_map(teacher, student, (16, 24))
    alone = anomaly_map([t[1:] for t in teacher], [s[1:] for s in student], (16, 24))
    torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize(
    ("given", "computed"),
    COMPUTED_IN,
)
def test_maps_are_computed_in_float32_or_wider(given: torch.dtype, computed: torch.dtype) -> None:
    teacher, student = ([x.to(given) for x in features(seed)] for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = anomaly_map(teacher, student, (8, 12))
    assert result.dtype == computed
    exact = anomaly_map([t.double() for t in teacher], [s.double() for s in student], (8, 12))
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


def test_score_is_the_maximum_or_the_mean_of_the_highest() -> None:
    maps = torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 0.0, 0.0, 3.0]]).reshape(2, 1, 2, 2)
    assert anomaly_score(maps).tolist() == [5.0, 9.0]
    assert anomaly_score(maps, top_k=2).tolist() == [4.5, 6.0]
    assert anomaly_score(maps, top_k=100).tolist() == [3.25, 3.0]


def test_nan_features_give_a_nan_score_not_a_normal_one() -> None:
    teacher, student = features(0), features(1)
    student[0][0, 0, 1, 1] = float("nan")
    assert anomaly_score(anomaly_map(teacher, student, (8, 12)))[0].isnan()


def test_a_configuration_selects_the_reading() -> None:
    teacher, student = features(0), features(1)
    config = ScoreConfig(affinity_weight=0.5, alignment="grid", smoothing_sigma=1.0, top_k=3, tile_rows=7)
    maps, scores = score_features(teacher, student, (8, 12), config)
    torch.testing.assert_close(maps, anomaly_map(teacher, student, (8, 12), affinity_weight=0.5, alignment="grid", smoothing_sigma=1.0))
    torch.testing.assert_close(scores, maps.flatten(1).sort(1, descending=True).values[:, :3].mean(1))
