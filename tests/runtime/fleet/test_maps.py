"""A stored map is small, keeps the score as its largest cell, and keeps it in its place."""

import math

import numpy as np
import pytest

from snl_runtime.fleet.maps import MAP_CELLS, pack_map, unpack_ignored, unpack_map
from snl_runtime.types import AnomalyResult, StageTimings, Verdict


def result_with(anomaly_map, ignored=None):
    return AnomalyResult(
        verdict=Verdict.PASS,
        reason_code="below_threshold",
        reason="by hand",
        score=math.nan if anomaly_map is None else float(anomaly_map.max()),
        threshold=1.0,
        reject_threshold=1.0,
        product=None,
        anomaly_map=anomaly_map,
        roi_xyxy=None if anomaly_map is None else (10, 20, 110, 220),
        regions=(),
        timings=StageTimings(preprocess_ms=0.0, infer_ms=0.0, total_ms=0.0),
        model_sha256="a" * 64,
        ignored=ignored,
    )


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (64, 64), (65, 64), (256, 256), (100, 300), (37, 5)])
def test_cells_are_the_largest_values_of_equal_blocks(shape):
    anomaly_map = np.random.default_rng(3).random(shape).astype(np.float32)
    stored = pack_map(result_with(anomaly_map))
    block = math.ceil(max(shape) / MAP_CELLS)
    expected = np.array(
        [[anomaly_map[y : y + block, x : x + block].max() for x in range(0, shape[1], block)] for y in range(0, shape[0], block)], np.float16
    )
    assert np.array_equal(unpack_map(stored), expected.astype(np.float32))
    assert unpack_map(stored).max() == np.float16(anomaly_map.max())
    assert len(stored["cells"]) <= 8192
    assert stored["roi_xyxy"] == [10, 20, 110, 220]


def test_block_is_ignored_only_if_all_of_its_cells_are():
    ignored = np.zeros((130, 100), bool)
    ignored[3:13, 0:8] = True  # of blocks of 3 cells: rows 1 to 3 and columns 0 and 1 wholly
    stored = pack_map(result_with(np.zeros(ignored.shape, np.float32), ignored))
    expected = np.zeros((44, 34), bool)
    expected[1:4, 0:2] = True
    assert np.array_equal(unpack_ignored(stored), expected)


def test_row_without_a_mask_ignores_nothing():
    stored = pack_map(result_with(np.zeros((4, 4), np.float32)))
    assert unpack_ignored(stored) is None
    del stored["ignored"]  # as rows were written before masks were kept
    assert unpack_ignored(stored) is None


def test_values_beyond_float16_are_cut_to_its_range():
    assert unpack_map(pack_map(result_with(np.full((2, 2), 1e9, np.float32)))).max() == 65504


def test_result_without_a_map_has_none():
    assert pack_map(result_with(None)) is None
