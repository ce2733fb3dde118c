"""The map lies on the frame exactly as the frame was sampled: bilinear with half-pixel centers."""

import math

import numpy as np
import pytest

from snl_runtime.images.upsampling import upsample_map
from tolerances import FLOAT32_ABS


def bilinear_by_hand(values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = values.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = math.floor(v), math.floor(u)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = values[y0, x0] * (1 - (u - x0)) + values[y0, x1] * (u - x0)
            bottom = values[y1, x0] * (1 - (u - x0)) + values[y1, x1] * (u - x0)
            result[y, x] = top * (1 - (v - y0)) + bottom * (v - y0)
    return result


@pytest.mark.parametrize("size_hw", [(4, 6), (8, 12), (9, 7), (31, 17)])
def test_growing_equals_the_bilinear_formula(size_hw):
    values = np.random.default_rng(1).random((4, 6), np.float32)
    resized = upsample_map(values, size_hw)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, bilinear_by_hand(values, *size_hw), atol=FLOAT32_ABS)


def test_shrinking_averages_the_covered_area():
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(upsample_map(values, (2, 2)), [[2.5, 4.5], [10.5, 12.5]], atol=FLOAT32_ABS)


def test_values_never_leave_the_range_of_the_map():
    values = np.random.default_rng(2).random((5, 5), np.float32)
    resized = upsample_map(values, (40, 33))
    assert values.min() - FLOAT32_ABS <= resized.min()
    assert resized.max() <= values.max() + FLOAT32_ABS
