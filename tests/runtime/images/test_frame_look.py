"""Brightness and sharpness of the inspected part: what lamp and focus change, at the camera's resolution and bit depth."""

import cv2
import numpy as np
import pytest

from snl_runtime.errors import FrameError
from snl_runtime.images.frame_look import ROW_PAIRS, measure_look


def textured(height=480, width=640, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def by_loops(green):
    """The definition, pair by pair."""
    rows = sorted({int(row) for row in np.linspace(0, len(green) - 2, min(ROW_PAIRS, len(green) - 1))})
    upper, lower = green[rows].astype(float), green[[row + 1 for row in rows]].astype(float)
    brightness = (upper.mean() + lower.mean()) / 2
    return brightness, (np.abs(np.diff(upper, axis=1)).mean() + np.abs(lower - upper).mean()) / 2 / brightness


@pytest.mark.parametrize("height", [2, 40, 480])
def test_figures_are_those_of_the_definition(height):
    image = textured(height)
    look = measure_look(image, "bgr")
    assert (look.brightness, look.sharpness) == pytest.approx(by_loops(image[..., 1]), rel=1e-9)


def test_a_dimmer_lamp_lowers_the_brightness_and_leaves_the_sharpness():
    image = textured()
    bright, dim = measure_look(image, "bgr"), measure_look(np.rint(image * 0.9).astype(np.uint8), "bgr")
    assert dim.brightness == pytest.approx(0.9 * bright.brightness, rel=1e-2)
    assert dim.sharpness == pytest.approx(bright.sharpness, rel=2e-2)


def test_blur_lowers_the_sharpness_and_leaves_the_brightness():
    image = textured()
    sharp, soft = measure_look(image, "bgr"), measure_look(cv2.GaussianBlur(image, (0, 0), 1), "bgr")
    assert soft.sharpness < 0.9 * sharp.sharpness
    assert soft.brightness == pytest.approx(sharp.brightness, rel=1e-2)


def test_only_the_region_of_interest_counts():
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:40, 30:60] = 200
    assert measure_look(image, "bgr", (30, 20, 60, 40)).brightness == 200
    assert measure_look(image, "bgr", (30, 20, 60, 40)).sharpness == 0


def test_rgb_bgr_and_gray_of_one_picture_look_alike():
    gray = textured()[..., 0]
    looks = [measure_look(gray, "gray"), *(measure_look(np.dstack([gray] * 3), color) for color in ("rgb", "bgr"))]
    assert looks[0] == looks[1] == looks[2]


def test_12_bits_look_as_their_8():
    frame = np.random.default_rng(0).integers(0, 4096, (60, 80), dtype=np.uint16)
    as_8_bit = np.rint(frame * (255 / 4095)).astype(np.uint8)
    assert measure_look(frame, "gray", None, 12) == measure_look(as_8_bit, "gray")


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_frames_are_measured(shape):
    assert measure_look(np.full(shape, 7, np.uint8), "gray").brightness == 7


@pytest.mark.parametrize("image", [None, "frame", np.zeros((0, 5), np.uint8), np.zeros((4, 4), np.float32)])
def test_what_is_no_frame_is_refused(image):
    with pytest.raises(FrameError):
        measure_look(image, "gray")
