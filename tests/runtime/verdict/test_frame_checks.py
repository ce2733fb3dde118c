"""A frame is judged only where its size, its bit depth and its look are those of the good parts that the product was calibrated on."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import CalibrationRefusedError, ManifestError
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.verdict.frame_checks import FrameFormat, check_format, check_frame, fit_frame_range, frame_statistics


def test_statistics_equal_sums_by_hand():
    image = np.random.default_rng(3).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image[0, :5] = 255
    image[1, :3] = 2
    image[2, 0] = (250, 250, 249)
    image[2, 1] = (5, 5, 6)
    pixels = [[int(value) for value in pixel] for row in image for pixel in row]
    count = len(pixels)
    mean = sum(sum(pixel) for pixel in pixels) / (3 * count)
    channel_means = [sum(pixel[c] for pixel in pixels) / count for c in range(3)]
    variance = sum((pixel[c] - channel_means[c]) ** 2 for pixel in pixels for c in range(3)) / (3 * count)
    statistics = frame_statistics(image)
    assert statistics.mean == pytest.approx(mean, rel=1e-9)
    assert statistics.deviation == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert statistics.white_share == sum(min(pixel) >= 250 for pixel in pixels) / count
    assert statistics.black_share == sum(max(pixel) <= 5 for pixel in pixels) / count
    assert statistics.red_blue == pytest.approx(sum(red - blue for red, _, blue in pixels) / count, rel=1e-9)
    assert statistics.green == pytest.approx(sum(green - (red + blue) / 2 for red, green, blue in pixels) / count, rel=1e-9)
    assert statistics.reddish_share == sum(red - blue >= 4 for red, _, blue in pixels) / count
    assert statistics.bluish_share == sum(blue - red >= 4 for red, _, blue in pixels) / count
    assert statistics.red_share == sum(red - blue >= 16 for red, _, blue in pixels) / count
    assert statistics.blue_share == sum(blue - red >= 16 for red, _, blue in pixels) / count


def test_a_frame_of_one_strong_color_has_no_deviation():
    assert frame_statistics(np.full((8, 8, 3), (255, 0, 0), np.uint8)).deviation == 0


def test_the_range_grows_by_half_of_its_width_on_each_side_and_is_clipped(fixtures):
    sample = [
        dataclasses.replace(fixtures.GRAY, mean=100, deviation=10, white_share=0.9, black_share=0.0, red_blue=-100),
        dataclasses.replace(fixtures.GRAY, mean=140, deviation=30, white_share=0.96, black_share=0.2, red_blue=20),
        dataclasses.replace(fixtures.GRAY, mean=120, deviation=20, white_share=0.95, black_share=0.1, red_blue=0),
    ]
    fitted = fit_frame_range(sample)
    assert fitted.mean == (80.0, 160.0)
    assert fitted.deviation == (0.0, 40.0)
    assert fitted.white_share == pytest.approx((0.85, 1.0))  # half of the width is 0.03, less than the least margin
    assert fitted.black_share == pytest.approx((0.0, 0.3))
    assert fitted.red_blue == (-160.0, 80.0)
    assert fitted.green == pytest.approx((-25.5, 25.5))  # a defect on 5 % of the frame changes no mean of a color by more


def test_one_frame_or_steady_light_still_leaves_a_margin(fixtures):
    fitted = fit_frame_range([fixtures.GRAY])
    assert fitted.mean == (90.0, 110.0)
    assert fitted.deviation == (10.0, 30.0)
    assert fitted.white_share == pytest.approx((0.05, 0.15))


def test_a_local_defect_of_any_gray_on_three_percent_of_the_frame_stays_inside():
    rng = np.random.default_rng(5)
    good = [(90 + 40 * rng.standard_normal((64, 64, 1)) + np.zeros(3)).clip(0, 255).astype(np.uint8) for _ in range(30)]
    fitted = fit_frame_range([frame_statistics(image) for image in good])
    for value in (0, 255):
        bad = good[0].copy()
        bad[20:31, 20:31] = value  # 121 of 4096 pixels
        assert check_frame(frame_statistics(bad), fitted) is None


def test_every_frame_of_the_sample_is_inside_its_own_range():
    rng = np.random.default_rng(4)
    sample = [frame_statistics(rng.integers(60, 200, (16, 16, 3)).astype(np.uint8)) for _ in range(20)]
    fitted = fit_frame_range(sample)
    assert [check_frame(statistics, fitted) for statistics in sample] == [None] * 20


def test_an_empty_sample_is_refused():
    with pytest.raises(CalibrationRefusedError, match="at least one good frame"):
        fit_frame_range([])


SIDES = st.integers(1, 2000)
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5, unique=True).map(sorted)


@given(seen=SIZES, frame=st.tuples(SIDES, SIDES))
@settings(max_examples=200, deadline=None)
def test_without_any_size_only_the_sizes_that_were_seen_fit(seen, frame):
    sizes = FrameSizes(seen_hw=seen, any_size=False)
    assert all(sizes.fits(size) for size in seen)
    assert sizes.fits(frame) == (frame in seen)


@given(seen=SIZES, frame=st.tuples(SIDES, SIDES))
@settings(max_examples=200, deadline=None)
def test_with_any_size_height_width_and_aspect_must_each_lie_within_what_was_seen(seen, frame):
    sizes = FrameSizes(seen_hw=seen, any_size=True)
    assert all(sizes.fits(size) for size in seen)
    height, width = frame
    is_inside = (
        any(other <= height for other, _ in seen)
        and any(other >= height for other, _ in seen)
        and any(other <= width for _, other in seen)
        and any(other >= width for _, other in seen)
        and any(other_width * height <= width * other_height for other_height, other_width in seen)  # whole numbers: no rounding
        and any(other_width * height >= width * other_height for other_height, other_width in seen)
    )
    assert sizes.fits(frame) == is_inside


@pytest.mark.parametrize("seen", [[], [(0, 5)], [(5, -1)], [(6, 5), (5, 6)], [(5, 6), (5, 6)]])
def test_frame_sizes_that_are_no_sorted_sizes_are_refused(seen):
    with pytest.raises(ManifestError, match="frame sizes"):
        FrameSizes(seen_hw=seen, any_size=False)


@pytest.mark.parametrize("frame_hw", [(480, 641), (640, 480), (1, 1), (960, 1280)])
def test_another_size_is_an_error_that_names_both_and_what_to_do(frame_hw):
    ruling = check_format(FrameFormat(size_hw=frame_hw, bit_depth=8), FrameSizes(seen_hw=[(480, 640)], any_size=False), 8)
    assert ruling.reason_code == "frame_size"
    assert f"{frame_hw[1]}x{frame_hw[0]}" in ruling.reason
    assert "640x480" in ruling.reason
    assert "calibrate" in ruling.reason


def colored_part(rng, tint, size=48):
    """A noisy part on a plain background, both of the color ``tint`` (red, green, blue levels beside gray)."""
    image = np.full((size, size, 3), 150.0)
    image[8:-8, 10:-10] = 90 + rng.uniform(-5, 5)
    return (image + tint + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


TINTS = {"reddish": (5, 0, -5), "orange": (60, 10, -50), "bluish": (-6, 0, 3), "cyan": (-60, 30, 30)}


@pytest.mark.parametrize("name", TINTS)
def test_frame_with_red_and_blue_exchanged_is_an_error_and_the_frame_itself_is_not(name):
    rng = np.random.default_rng(1)
    fitted = fit_frame_range([frame_statistics(colored_part(rng, TINTS[name])) for _ in range(20)])
    for _ in range(20):
        image = colored_part(rng, TINTS[name])
        assert check_frame(frame_statistics(image), fitted) is None
        ruling = check_frame(frame_statistics(np.ascontiguousarray(image[:, :, ::-1])), fitted)
        assert ruling.reason_code == "frame_color_order", ruling.reason
        assert "color=" in ruling.reason


@pytest.mark.parametrize("name", [*TINTS, "gray"])
def test_vivid_defect_of_any_color_on_five_percent_of_the_frame_stays_inside(name):
    rng = np.random.default_rng(2)
    parts = [colored_part(rng, TINTS.get(name, (0, 0, 0))) for _ in range(20)]
    fitted = fit_frame_range([frame_statistics(image) for image in parts])
    fitted = dataclasses.replace(fitted, deviation=(0.0, 255.0))  # the margins of mean and deviation are of gray levels, not of vivid colors
    for index, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (180, 90, 40)]):
        bad = parts[index].copy()
        bad[20:30, 20:31] = color  # 110 of 2304 pixels
        assert check_frame(frame_statistics(bad), fitted) is None


def test_gray_parts_have_no_order_of_channels():
    rng = np.random.default_rng(3)
    parts = [np.repeat(colored_part(rng, (0, 0, 0))[:, :, :1], 3, axis=2) for _ in range(5)]
    fitted = fit_frame_range([frame_statistics(image) for image in parts])
    assert all(check_frame(frame_statistics(np.ascontiguousarray(image[:, :, ::-1])), fitted) is None for image in parts)


def test_lamp_of_another_color_is_out_of_range():
    rng = np.random.default_rng(4)
    fitted = fit_frame_range([frame_statistics(colored_part(rng, (5, 0, -5))) for _ in range(20)])
    for lamp in ((40, 0, -40), (-20, 40, -20)):
        ruling = check_frame(frame_statistics(colored_part(rng, lamp)), fitted)
        assert ruling.reason_code == "frame_out_of_range"
        assert "white balance" in ruling.reason
