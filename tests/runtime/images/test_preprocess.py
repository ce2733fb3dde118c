"""There is one way from a frame to the network's input: crop, color by declared rule, one separable resize with one rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, FrameError, SnlError
from snl_runtime.images.preprocess import InputSpec, axis_weights, prepare, resize, resize_mask, to_rgb
from tolerances import FLOAT32_ABS

ROUNDING = 0.5 + 2e-3  # half a gray level for the one rounding, the guard of 1/1024 for ties, and float32 sums
SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**16)


def picture(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def reference_weights(n_in, n_out):
    """The definition written as loops over real intervals, float64."""
    weights = np.zeros((n_out, n_in))
    scale = n_in / n_out
    for out in range(n_out):
        if n_out < n_in:
            for pixel in range(n_in):
                covered = min((out + 1) * scale, pixel + 1) - max(out * scale, pixel)
                weights[out, pixel] = max(covered, 0.0) / scale
            continue
        center = min(max((out + 0.5) * scale - 0.5, 0.0), n_in - 1.0)
        left = min(int(center), n_in - 1)
        right = min(left + 1, n_in - 1)
        weights[out, left] += 1 - (center - left)
        weights[out, right] += center - left
    return weights


def reference_resize(image, size_hw):
    """Unrounded float64 values."""
    rows = np.tensordot(reference_weights(image.shape[0], size_hw[0]), image.astype(np.float64), axes=(1, 0))
    return np.tensordot(rows, reference_weights(image.shape[1], size_hw[1]), axes=(1, 1)).transpose(0, 2, 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]))
def test_resize_equals_the_float64_twin_up_to_its_one_rounding(seed, height, width, out_height, out_width, channels):
    image = picture(seed, height, width, channels)
    result = resize(image, (out_height, out_width))
    assert result.dtype == np.uint8
    assert result.shape == (out_height, out_width, channels)
    assert np.abs(result - reference_resize(image, (out_height, out_width))).max() <= ROUNDING


@pytest.mark.parametrize(("size_in", "size_out"), [((487, 611), (64, 96)), ((256, 256), (128, 128)), ((30, 700), (64, 64)), ((1, 1), (8, 8))])
def test_resize_equals_the_twin_at_the_ratios_of_real_cameras(size_in, size_out):
    image = picture(1, *size_in)
    assert np.abs(resize(image, size_out) - reference_resize(image, size_out)).max() <= ROUNDING


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 255), SIDES, SIDES, SIDES, SIDES)
def test_resize_keeps_a_constant_image_constant(value, height, width, out_height, out_width):
    image = np.full((height, width, 3), value, np.uint8)
    assert (resize(image, (out_height, out_width)) == value).all()


@given(SEEDS, SIDES, SIDES)
def test_resize_to_the_same_size_is_the_identity(seed, height, width):
    image = picture(seed, height, width)
    assert np.array_equal(resize(image, (height, width)), image)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIDES, SIDES, st.data())
def test_resize_preserves_the_mean_when_it_shrinks(seed, height, width, data):
    size_hw = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    image = picture(seed, height, width)
    assert np.abs(resize(image, size_hw).mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() <= ROUNDING


def test_resize_rounds_ties_up_on_both_sides_of_an_even_number():
    image = np.array([[[0], [1]], [[1], [2]], [[2], [3]]], np.uint8)
    assert resize(image, (3, 1)).ravel().tolist() == [1, 2, 3]  # 0.5, 1.5, 2.5


def test_resize_of_two_channel_orders_gives_the_same_pixels_to_the_bit():
    image = picture(3, 301, 517)
    size_hw = (48, 80)
    assert np.array_equal(resize(image[:, :, ::-1], size_hw), resize(image, size_hw)[:, :, ::-1])
    assert np.array_equal(resize(image[:, :, :1], size_hw), resize(image, size_hw)[:, :, :1])


@given(st.integers(1, 60), st.integers(1, 60))
def test_axis_weights_sum_to_one_and_are_never_negative(n_in, n_out):
    weights = axis_weights(n_in, n_out)
    assert weights.shape == (n_out, n_in)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    assert np.abs(weights.sum(axis=1, dtype=np.float64) - 1).max() < FLOAT32_ABS
    assert np.abs(weights - reference_weights(n_in, n_out)).max() < FLOAT32_ABS


def test_axis_weights_are_shared_and_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        axis_weights(8, 4)[0, 0] = 1


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIDES, SIDES, SIDES, SIDES)
def test_mask_cell_is_anomalous_exactly_when_its_area_meets_an_anomalous_pixel(seed, height, width, out_height, out_width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.05
    result = resize_mask(mask, (out_height, out_width))
    assert result.dtype == np.bool_
    for row in range(out_height):
        for column in range(out_width):
            met = False
            for y, x in zip(*np.nonzero(mask), strict=True):
                # open intervals overlap, in whole numbers
                met_y = row * height < (y + 1) * out_height and y * out_height < (row + 1) * height
                met |= met_y and column * width < (x + 1) * out_width and x * out_width < (column + 1) * width
            assert result[row, column] == met


def test_to_rgb_follows_the_declared_order():
    pixel = np.array([[[10, 20, 30, 40]]], np.uint8)
    assert to_rgb(pixel[:, :, :3], "rgb").ravel().tolist() == [10, 20, 30]
    assert to_rgb(pixel[:, :, :3], "bgr").ravel().tolist() == [30, 20, 10]
    assert to_rgb(pixel, "rgba").ravel().tolist() == [10, 20, 30]
    assert to_rgb(pixel, "bgra").ravel().tolist() == [30, 20, 10]
    assert to_rgb(pixel[:, :, 0], "gray").ravel().tolist() == [10, 10, 10]
    assert to_rgb(pixel[:, :, :1], "gray").ravel().tolist() == [10, 10, 10]


def test_sixteen_bits_become_the_nearest_of_257_steps_whatever_the_picture_holds():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257.0)
    assert np.array_equal(to_rgb(values, "gray")[:, :, 0], expected)
    dark = np.full((2, 2), 300, np.uint16)  # a 12-bit camera in 16 bits stays dark; nothing is stretched
    assert (to_rgb(dark, "gray") == 1).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["rgb", "bgr", "rgba", "bgra", "gray"]), st.sampled_from([np.uint8, np.uint16]), st.booleans())
def test_prepare_equals_crop_then_to_rgb_then_resize(seed, color, dtype, has_roi):
    channels = {"gray": 1, "rgba": 4, "bgra": 4}.get(color, 3)
    frame = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (37, 53, channels)).astype(dtype)
    spec = InputSpec(size_hw=(16, 24), roi_xyxy=(5, 3, 50, 30) if has_roi else None)
    crop = frame[3:30, 5:50] if has_roi else frame
    assert np.array_equal(prepare(frame, color, spec), resize(to_rgb(crop, color), (16, 24)))


@pytest.mark.parametrize("size_hw", [(8, 8), (20, 20), (20, 8), (8, 20)])
def test_prepare_returns_memory_of_its_own_so_that_a_camera_may_reuse_its_buffer(size_hw):
    for color in ("rgb", "bgr"):
        frame = picture(5, 20, 20)
        before = frame.copy()
        result = prepare(frame, color, InputSpec(size_hw=size_hw))
        assert not np.shares_memory(result, frame)
        assert result.flags.c_contiguous
        assert np.array_equal(frame, before)


@pytest.mark.parametrize(
    ("image", "color", "message"),
    [
        (None, "bgr", "must be a NumPy array, got NoneType"),
        ([[1, 2], [3, 4]], "gray", "must be a NumPy array, got list"),
        (np.zeros((4, 4, 3), np.float32), "bgr", "must be uint8 or uint16, got float32"),
        (np.zeros((4, 4, 3), np.int8), "bgr", "must be uint8 or uint16, got int8"),
        (np.zeros((4, 4), bool), "gray", "must be uint8 or uint16, got bool"),
        (np.zeros((4, 4), object), "gray", "must be uint8 or uint16, got object"),
        (np.zeros((4, 4), np.uint8), "bgr", r"must have shape \(H, W, 3\), got \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), "bgr", r"must have shape \(H, W, 3\), got \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), "gray", r"must have shape \(H, W\) or \(H, W, 1\), got \(4, 4, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "rgb", r"got \(1, 4, 4, 3\)"),
        (np.zeros((), np.uint8), "gray", r"got \(\)"),
        (np.zeros((0, 4, 3), np.uint8), "rgb", r"must not be empty, got shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "yuv", "color must be one of rgb, bgr, rgba, bgra, gray, got 'yuv'"),
        (np.zeros((4, 4, 3), np.uint8), ["bgr"], "color must be one of"),
    ],
)
def test_unusable_frame_is_a_typed_error_that_says_what_came(image, color, message):
    for call in (lambda: to_rgb(image, color), lambda: prepare(image, color, InputSpec(size_hw=(4, 4)))):
        with pytest.raises(FrameError, match=message) as caught:
            call()
        assert isinstance(caught.value, SnlError)


def test_roi_outside_the_frame_is_a_typed_error():
    with pytest.raises(FrameError, match=r"frame has 10x10 pixels, the ROI \(0, 0, 11, 10\) reaches outside it"):
        prepare(np.zeros((10, 10), np.uint8), "gray", InputSpec(size_hw=(4, 4), roi_xyxy=(0, 0, 11, 10)))


@pytest.mark.parametrize("roi", [(0, 0, 0, 5), (5, 0, 4, 5), (-1, 0, 4, 5), (0, 5, 4, 5), (0, 0, 4)])
def test_impossible_roi_is_refused_when_it_is_stated(roi):
    with pytest.raises(ConfigError, match="roi_xyxy must"):
        InputSpec(size_hw=(4, 4), roi_xyxy=roi)


@pytest.mark.parametrize("size_hw", [(0, 4), (4, -1), (4,)])
def test_impossible_size_is_refused_when_it_is_stated(size_hw):
    with pytest.raises(ConfigError, match="size_hw must be two positive numbers"):
        InputSpec(size_hw=size_hw)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_values_of_fewer_bits_become_8_by_the_declared_rule(bits):
    highest = 2**bits - 1
    values = np.random.default_rng(bits).integers(0, highest + 1, (50, 7)).astype(np.uint16)
    values[0, :3] = (0, 1, highest)
    expected = [[math.floor(Fraction(int(value) * 255, highest) + Fraction(1, 2)) for value in row] for row in values]
    assert to_rgb(values, "gray", bits)[:, :, 0].tolist() == expected
    spec = InputSpec(size_hw=(50, 7))
    assert np.array_equal(prepare(values, "gray", spec, bits), to_rgb(values, "gray", bits))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_value_above_the_bit_depth_is_an_error_that_names_it(bits):
    frame = np.zeros((4, 4), np.uint16)
    frame[2, 3] = 2**bits
    with pytest.raises(FrameError, match=rf"the value {2**bits}, {bits} bits hold at most {2**bits - 1}") as caught:
        to_rgb(frame, "gray", bits)
    assert caught.value.reason_code == "frame_bit_depth"


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 12), (np.uint8, 16), (np.uint16, 8), (np.uint16, 11), (np.uint8, 0), (np.uint16, "12"), (np.uint8, True)]
)
def test_bit_depth_that_does_not_fit_the_array_is_an_error(dtype, bits):
    with pytest.raises(FrameError) as caught:
        to_rgb(np.zeros((4, 4), dtype), "gray", bits)
    assert caught.value.reason_code == "frame_bit_depth"
