"""Regions are the 8-connected areas above the threshold, in frame pixels, and a score above the threshold always has one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snl_runtime.verdict.regions import MAX_REGIONS, find_regions

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)


def flood_fill_components(above: np.ndarray) -> list[set[tuple[int, int]]]:
    """Brute-force reference: grow one cell at a time over its eight neighbors."""
    left = {(int(r), int(c)) for r, c in np.argwhere(above)}
    components = []
    while left:
        todo, component = [min(left)], set()
        while todo:
            row, column = todo.pop()
            if (row, column) not in left:
                continue
            left.remove((row, column))
            component.add((row, column))
            todo += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        components.append(component)
    return components


@given(MAPS, st.sampled_from([-0.1, 0.0, 0.3, 0.5, 0.9]))
@settings(max_examples=150, deadline=None)
def test_regions_equal_a_brute_force_flood_fill(anomaly_map, threshold):
    height, width = anomaly_map.shape
    roi = (5, 7, 5 + 3 * width, 7 + 2 * height)  # 3 x 2 frame pixels per cell
    expected = sorted(
        (
            -max(float(anomaly_map[cell]) for cell in component),
            (
                5 + 3 * min(c for _, c in component),
                7 + 2 * min(r for r, _ in component),
                5 + 3 * (max(c for _, c in component) + 1),
                7 + 2 * (max(r for r, _ in component) + 1),
            ),
            6 * len(component),
        )
        for component in flood_fill_components(anomaly_map > threshold)
    )
    regions = find_regions(anomaly_map, threshold, roi)
    assert sorted((-region.score, region.box_xyxy, region.area_px) for region in regions) == expected
    assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)


@given(MAPS, st.floats(-1, 2, width=32), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_maximum_above_the_threshold_has_a_region_inside_the_roi(anomaly_map, threshold, width, height):
    left, top = 3, 4
    regions = find_regions(anomaly_map, threshold, (left, top, left + width, top + height))
    assert bool(regions) == (float(anomaly_map.max()) > threshold)
    for region in regions:
        x0, y0, x1, y1 = region.box_xyxy
        assert left <= x0 < x1 <= left + width
        assert top <= y0 < y1 <= top + height
        assert region.area_px >= 1


def test_diagonal_neighbors_are_one_region():
    anomaly_map = np.array([[2, 0, 0], [0, 3, 0], [0, 0, 0]], np.float32)
    (region,) = find_regions(anomaly_map, 1.0, (0, 0, 30, 30))
    assert region.box_xyxy == (0, 0, 20, 20)
    assert region.score == 3.0
    assert region.area_px == 200


def test_a_threshold_of_nan_has_no_region():
    assert find_regions(np.ones((3, 3), np.float32), float("nan"), (0, 0, 3, 3)) == ()


def test_noise_gives_at_most_the_stated_number_of_regions_and_keeps_the_highest():
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[::2, ::2] = np.random.default_rng(0).permutation(1024).reshape(32, 32) + 1
    regions = find_regions(anomaly_map, 0.5, (0, 0, 64, 64))
    assert [region.score for region in regions] == [float(value) for value in range(1024, 1024 - MAX_REGIONS, -1)]


@pytest.mark.parametrize("size", [31, 100, 257])
def test_boxes_cover_every_cell_where_the_frame_is_no_multiple_of_the_map(size):
    anomaly_map = np.zeros((32, 32), np.float32)
    anomaly_map[7, 11] = 1
    (region,) = find_regions(anomaly_map, 0.5, (0, 0, size, size))
    x0, y0, x1, y1 = region.box_xyxy
    assert x0 <= 11 * size / 32 < 12 * size / 32 <= x1
    assert y0 <= 7 * size / 32 < 8 * size / 32 <= y1
    assert x1 - x0 <= size / 32 + 2
