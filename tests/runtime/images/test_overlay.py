"""Overlays use one absolute color scale: what is far below the threshold stays visible, the threshold is yellow, twice the threshold is red."""

import dataclasses
import math

import numpy as np
import pytest

from snl_runtime.images.overlay import banner_height, banner_text, blend_heat, render_overlay
from snl_runtime.types import AnomalyRegion, AnomalyResult, StageTimings, Verdict

GRAY = np.full((24, 32, 3), 128, np.uint8)


def result_of(verdict=Verdict.PASS, anomaly_map=None, threshold=1.0, regions=(), roi=(0, 0, 32, 24), product="bottle", overlay=None):
    return AnomalyResult(
        verdict=verdict,
        reason_code="timeout",
        reason="the backend did not answer",
        score=math.nan if anomaly_map is None else float(anomaly_map.max()),
        threshold=threshold,
        reject_threshold=threshold,
        product=product,
        anomaly_map=anomaly_map,
        roi_xyxy=None if anomaly_map is None and overlay is None else roi,
        regions=regions,
        timings=StageTimings(),
        model_sha256="0" * 64,
        overlay=overlay,
    )


def flat_map(value):
    return np.full((6, 8), value, np.float32)


def test_a_map_of_zero_leaves_the_picture_as_it_is():
    assert np.array_equal(blend_heat(GRAY, flat_map(0), 1.0), GRAY)


@pytest.mark.parametrize("threshold", [0.01, 1.0, 40.0])
def test_colors_depend_on_the_ratio_to_the_threshold_alone(threshold):
    # 128 + (255 - 128) * 0.45 = 185.15, 128 + (220 - 128) * 0.45 = 169.4, 128 - 128 * 0.45 = 70.4
    assert blend_heat(GRAY, flat_map(threshold), threshold)[0, 0].tolist() == [185, 169, 70]
    # 128 + 127 * 0.6 = 204.2, 128 * 0.4 = 51.2
    assert blend_heat(GRAY, flat_map(2 * threshold), threshold)[0, 0].tolist() == [204, 51, 51]


def test_a_value_above_twice_the_threshold_stays_red():
    assert np.array_equal(blend_heat(GRAY, flat_map(50), 1.0), blend_heat(GRAY, flat_map(2), 1.0))


def test_one_hot_spot_does_not_change_the_color_of_the_rest():
    alone, beside_hot_spot = flat_map(0.4), flat_map(0.4)
    beside_hot_spot[0, 0] = 100
    first, second = blend_heat(GRAY, alone, 1.0), blend_heat(GRAY, beside_hot_spot, 1.0)
    assert np.array_equal(first[12:, 16:], second[12:, 16:])


@pytest.mark.parametrize("threshold", [math.nan, 0.0, -1.0, math.inf])
def test_without_a_usable_threshold_there_is_no_heat(threshold):
    assert np.array_equal(blend_heat(GRAY, flat_map(3), threshold), GRAY)


def test_what_is_not_judged_is_dark_and_hatched_and_the_banner_says_its_share():
    ignored = np.zeros((6, 8), bool)
    ignored[:3] = True  # the upper half: cells of 4 x 4 pixels
    result = dataclasses.replace(result_of(Verdict.PASS, flat_map(0.0)), ignored=ignored, ignored_share=0.5)
    picture = render_overlay(GRAY, result)[-24:]
    assert np.array_equal(picture[12:], GRAY[12:])
    values, counts = np.unique(picture[:12, :, 0], return_counts=True)
    assert values.tolist() == [42, 150]  # 128 // 3, and the lines over it
    assert counts[0] > counts[1] > 12
    assert banner_text(result) == "PASS  0 / 1  bottle  50 % not judged"


def test_the_frame_keeps_its_pixels_below_the_banner():
    picture = render_overlay(GRAY, result_of(Verdict.ERROR, threshold=math.nan))
    height = banner_height(GRAY.shape[:2])
    assert picture.shape == (24 + height, 32, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[height:], GRAY)


def test_the_input_picture_is_not_written_to():
    before = GRAY.copy()
    region = AnomalyRegion(box_xyxy=(0, 0, 32, 24), score=2.0, area_px=768)
    render_overlay(GRAY, result_of(Verdict.REJECT, flat_map(2), regions=(region,)))
    assert np.array_equal(GRAY, before)


def test_heat_and_boxes_stay_inside_the_region_of_interest():
    region = AnomalyRegion(box_xyxy=(10, 5, 20, 15), score=2.0, area_px=100)
    picture = render_overlay(GRAY, result_of(Verdict.REJECT, flat_map(2), regions=(region,), roi=(10, 5, 20, 15)))
    frame = picture[banner_height(GRAY.shape[:2]) :]
    outside = np.ones((24, 32), bool)
    outside[5:15, 10:20] = False
    assert np.array_equal(frame[outside], GRAY[outside])
    assert frame[5, 10].tolist() == [255, 0, 0]
    assert frame[14, 19].tolist() == [255, 0, 0]
    assert frame[10, 15].tolist() == [204, 51, 51]


def test_the_banner_says_score_threshold_and_product_and_for_an_error_its_cause():
    assert banner_text(result_of(Verdict.REJECT, flat_map(2))) == "REJECT  2 / 1  bottle"
    assert banner_text(result_of(Verdict.ERROR, product=None)) == "ERROR  timeout"


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (700, 2, 3)])
def test_any_frame_size_gets_a_banner(shape):
    picture = render_overlay(np.zeros(shape, np.uint8), result_of(Verdict.PASS, product="Flasche ä"))
    assert picture.shape == (shape[0] + banner_height(shape[:2]), shape[1], 3)


def test_verdicts_differ_in_color():
    corners = {tuple(render_overlay(GRAY, result_of(verdict, threshold=math.nan))[0, 0].tolist()) for verdict in Verdict}
    assert len(corners) == 4


def test_the_blend_equals_the_formula_pixel_by_pixel():
    """Piecewise linear by hand; the color table rounds the heat to 1/512, which may move a value by one gray level."""
    stops = [(0.0, (0, 60, 200), 0.0), (0.5, (0, 200, 180), 0.25), (1.0, (255, 220, 0), 0.45), (2.0, (255, 0, 0), 0.6)]
    rng = np.random.default_rng(5)
    picture, anomaly_map = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (rng.random((12, 16)) * 6).astype(np.float32)
    blended = blend_heat(picture, anomaly_map, 2.5)
    for row, column in np.ndindex(12, 16):
        heat = min(float(anomaly_map[row, column]) / 2.5, 2.0)
        (low, low_color, low_share), (high, high_color, high_share) = next(pair for pair in zip(stops, stops[1:]) if heat <= pair[1][0])
        t = (heat - low) / (high - low)
        share = low_share + t * (high_share - low_share)
        for channel in range(3):
            color = low_color[channel] + t * (high_color[channel] - low_color[channel])
            expected = picture[row, column, channel] * (1 - share) + color * share
            assert abs(blended[row, column, channel] - expected) <= 1.5


@pytest.mark.parametrize("anomaly_map", [None, flat_map(9)], ids=["without the map", "with the map"])
def test_overlay_that_a_result_carries_is_outlined_and_titled_as_it_is(anomaly_map):
    overlay = np.full((10, 10, 3), (1, 2, 3), np.uint8)
    region = AnomalyRegion(box_xyxy=(12, 7, 18, 13), score=2.0, area_px=36)
    picture = render_overlay(GRAY, result_of(Verdict.REJECT, anomaly_map, roi=(10, 5, 20, 15), regions=(region,), overlay=overlay))
    body = picture[banner_height(GRAY.shape[:2]) :]
    assert body[6, 11].tolist() == body[10, 15].tolist() == [1, 2, 3]
    assert body[7, 12].tolist() == [255, 0, 0]
    assert body[4, 9].tolist() == [128, 128, 128]
    assert (overlay == (1, 2, 3)).all()
