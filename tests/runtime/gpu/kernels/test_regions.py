"""The kernels' checks and regions are those of snl_runtime.verdict.decision and snl_runtime.verdict.regions, in whatever order their threads run."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from snl_runtime.gpu.kernels.launches import (
    MAX_COMPONENTS,
    REPORT_WORDS,
    RegionScratch,
    launch_regions,
    ordered_values,
    read_map_report,
    rounded_down,
)
from snl_runtime.verdict.regions import find_regions

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=True)


def run(cpu, kernels, anomaly_map, threshold, *, score=None, roi=None):
    map_hw = anomaly_map.shape
    report = cpu.Guarded((REPORT_WORDS,), np.uint32, fill=0)
    labels, numbers = cpu.Guarded(map_hw, np.int32), cpu.Guarded(map_hw, np.int32)
    scores = np.array([anomaly_map.max() if score is None else score], np.float32)
    scratch = RegionScratch(report=report.pointer.value, labels=labels.pointer.value, numbers=numbers.pointer.value)
    launch_regions(
        kernels, anomaly_map=anomaly_map.ctypes.data, map_hw=map_hw, score=scores.ctypes.data, threshold=threshold, scratch=scratch, stream=0
    )
    labels.check(), numbers.check()
    return read_map_report(report.check(), map_hw, roi or (0, 0, map_hw[1], map_hw[0]))


def blobs(seed, size_hw, smoothing):
    """Distinct values, so that no two regions tie."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size_hw), smoothing)
    ranks = values.ravel().argsort().argsort().reshape(size_hw)
    return (0.1 + ranks / ranks.size).astype(np.float32)


@EXAMPLES
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.0, 1.0, 3.0]), st.floats(0.2, 1.2), st.integers(0, 1000))
def test_regions_are_those_of_find_regions(cpu, kernels, height, width, smoothing, threshold, seed):
    anomaly_map = blobs(seed, (height, width), smoothing)
    roi = (13, 7, 13 + 5 * width + 3, 7 + 3 * height + 1)
    report = run(cpu, kernels, anomaly_map, threshold, roi=roi)
    assert report.regions == find_regions(anomaly_map, threshold, roi)
    assert (report.cells, report.non_finite) == (anomaly_map.size, 0)
    assert report.above == np.count_nonzero(anomaly_map > np.float32(threshold))
    assert report.peak == anomaly_map.max()


SHAPES = {
    "spiral": lambda n: _spiral(n),
    "comb": lambda n: np.where((np.arange(n)[None, :] % 2 == 0) | (np.arange(n)[:, None] == n - 1), 1, 0),
    "diagonals": lambda n: (np.add.outer(np.arange(n), np.arange(n)) % 3 == 0).astype(int),
    "full": lambda n: np.ones((n, n), int),
    "checkerboard": lambda n: np.add.outer(np.arange(n), np.arange(n)) % 2,
    "rings": lambda n: (np.maximum(*np.abs(np.mgrid[0:n, 0:n] - n // 2)) % 2 == 0).astype(int),
}


def _spiral(n):
    cells, (y, x), (dy, dx), steps = np.zeros((n, n), int), (0, 0), (0, 1), n
    while steps > 0:
        for _ in range(2 if steps < n else 3):
            for _ in range(steps - 1):
                cells[y, x] = 1
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        steps -= 2
    cells[y, x] = 1
    return cells


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_interrupted_threads_join_the_same_regions(cpu, kernels, shape, seed):
    """All cells in one block, threads interrupted at random atomics: the union must not depend on who comes first."""
    size = 23
    above = SHAPES[shape](size).astype(bool)
    anomaly_map = (above + 0.1 * blobs(seed, above.shape, 0)).astype(np.float32)
    report = run(cpu, cpu.Shuffled(kernels, seed, as_one_block=True), anomaly_map, 0.6)
    _, count = ndimage.label(above, np.ones((3, 3)))  # a second implementation of 8-connected components
    assert len(report.regions) == count
    assert report.regions == find_regions(anomaly_map, 0.6, (0, 0, size, size))


def test_a_score_above_the_threshold_has_a_region_though_the_peak_is_not(cpu, kernels):
    """The graph's score may exceed the maximum of its map by a rounding."""
    anomaly_map = np.full((9, 9), 0.5, np.float32)
    anomaly_map[4, 6] = 1.0
    score = np.nextafter(np.float32(1), np.float32(2))
    report = run(cpu, kernels, anomaly_map, 1.0, score=score)
    assert [region.box_xyxy for region in report.regions] == [(6, 4, 7, 5)]
    assert report.above == 0
    assert run(cpu, kernels, anomaly_map, 1.0, score=1.0).regions == ()


def test_a_peak_above_a_threshold_that_float32_cannot_hold_has_a_region(cpu, kernels):
    threshold = 1 - 1e-9  # float32 rounds it to 1, so no cell of 1 would be above it
    anomaly_map = np.full((9, 9), 0.5, np.float32)
    anomaly_map[4, 6] = 1.0
    assert [region.box_xyxy for region in run(cpu, kernels, anomaly_map, threshold).regions] == [(6, 4, 7, 5)]


@pytest.mark.parametrize(("value", "count"), [(math.nan, 1), (math.inf, 1), (-math.inf, 1), (math.nan, 64)])
def test_values_that_are_not_finite_are_counted(cpu, kernels, value, count):
    anomaly_map = np.linspace(-3, -1, 64, dtype=np.float32).reshape(8, 8)
    anomaly_map.ravel()[:count] = value
    report = run(cpu, kernels, anomaly_map, 0.5, score=-1.0)
    assert (report.cells, report.non_finite) == (64, count)
    assert report.peak == -1.0 if count < 64 else math.isnan(report.peak)


def test_no_threshold_gives_no_region(cpu, kernels):
    report = run(cpu, kernels, np.ones((8, 8), np.float32), math.nan)
    assert (report.regions, report.above) == ((), 0)


def test_more_components_than_the_table_holds_are_left_to_the_host(cpu, kernels):
    anomaly_map = np.zeros((80, 80), np.float32)
    anomaly_map[::2, ::2] = 1
    assert anomaly_map.sum() > MAX_COMPONENTS
    report = run(cpu, kernels, anomaly_map, 0.5)
    assert report.regions is None
    assert report.above == 1600


def test_an_untouched_report_says_that_no_cell_was_looked_at():
    report = read_map_report(np.zeros(REPORT_WORDS, np.uint32), (8, 8), (0, 0, 8, 8))
    assert (report.cells, report.regions) == (0, ())
    assert math.isnan(report.peak)


def test_ordered_keys_keep_the_order_and_the_value():
    keys = np.array([0x00800000, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xBF800000, 0xFF7FFFFF], np.uint32)
    values = ordered_values(keys)
    assert (np.diff(values) >= 0).all()
    assert (values[2], values[4]) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.1, 1.0, 1 - 1e-9, 1 + 1e-9, 3e38, 1e39])
def test_rounded_down_is_exceeded_by_the_same_float32_values(value):
    limit = np.float32(rounded_down(value))
    assert float(limit) <= value
    with np.errstate(over="ignore"):
        assert float(np.nextafter(limit, np.float32(np.inf))) > value
