"""The kernels' frame -> network input is that of snl_runtime.images.preprocess, within one gray level; their statistics are those of the decision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.gpu.kernels.launches import (
    SUMS_COUNT,
    DeviceFrame,
    launch_cut_views,
    launch_frame_to_input,
    launch_input_sums,
    read_frame_statistics,
    rows_bytes,
    view_blocks,
)
from snl_runtime.images.preprocess import InputSpec, axis_weights, prepare
from snl_runtime.images.views import Views
from snl_runtime.verdict.frame_checks import frame_statistics

CHANNELS = {"gray": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
SIDES = st.integers(1, 70)
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def device_frame(crop, color):
    return DeviceFrame(
        address=crop.__array_interface__["data"][0],
        pitch_bytes=crop.strides[0],
        size_hw=crop.shape[:2],
        color=color,
        is_16_bit=crop.dtype == np.uint16,
    )


def run(cpu, kernels, crop, color, size_hw):
    frame = device_frame(crop, color)
    rows = cpu.Guarded((rows_bytes(frame.size_hw, frame.planes, size_hw),), np.uint8)
    target = cpu.Guarded((*size_hw, 3), np.uint8)
    launch_frame_to_input(kernels, frame, rows=rows.pointer.value, target=target.pointer.value, size_hw=size_hw, stream=None)
    rows.check()
    return target.check()


def noise(seed, shape, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@EXAMPLES
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from(sorted(CHANNELS)), st.sampled_from([np.uint8, np.uint16]), st.data())
def test_input_is_within_one_gray_level_of_prepare(cpu, kernels, frame_hw, size_hw, color, dtype, data):
    height, width = frame_hw
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    roi = (left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    image = noise(height * 71 + width, (height, width, CHANNELS[color]), dtype)
    expected = prepare(image, color, InputSpec(size_hw=size_hw, roi_xyxy=roi)).astype(int)
    given = run(cpu, kernels, image[roi[1] : roi[3], roi[0] : roi[2]], color, size_hw)
    assert np.abs(given - expected).max() <= 1
    assert (given != expected).mean() <= 0.01, "ties may fall differently, nothing else"


@pytest.mark.parametrize(("frame_hw", "size_hw"), [((612, 816), (64, 64)), ((33, 47), (200, 151)), ((300, 20), (32, 64)), ((48, 48), (48, 48))])
def test_camera_like_sizes(cpu, kernels, frame_hw, size_hw):
    image = noise(5, (*frame_hw, 3))
    expected = prepare(image, "bgr", InputSpec(size_hw=size_hw))
    given = run(cpu, kernels, image, "bgr", size_hw)
    assert np.abs(given.astype(int) - expected).max() <= 1
    assert (given != expected).mean() <= 0.001


def test_equal_size_only_reorders_the_channels(cpu, kernels):
    image = noise(1, (40, 56, 4))
    np.testing.assert_array_equal(run(cpu, kernels, image, "bgra", (40, 56)), image[:, :, 2::-1])


def test_white_stays_white_and_black_stays_black(cpu, kernels):
    for level in (0, 255):
        image = np.full((97, 61, 3), level, np.uint8)
        assert (run(cpu, kernels, image, "rgb", (31, 90)) == level).all()


def test_16_bit_values_become_8_bits_by_the_declared_rule(cpu, kernels):
    values = np.array([0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535], np.uint16)  # round(v / 257) by hand
    given = run(cpu, kernels, values.reshape(1, 6, 1), "gray", (1, 6))
    assert given[0, :, 0].tolist() == [0, 0, 1, 100, 101, 255]


@pytest.mark.parametrize(("n_in", "n_out"), [(2448, 256), (2048, 256), (65536, 3), (5, 65536 // 64), (7, 7), (1, 9), (256, 255), (255, 256)])
def test_shares_are_those_of_preprocess(cpu, kernels, n_in, n_out):
    """An axis of ones and single impulses shows the shares one by one."""
    weights = axis_weights(n_in, n_out)
    columns = sorted({0, n_in // 3, n_in // 2, n_in - 1})
    image = np.zeros((len(columns), n_in, 1), np.uint16)
    image[np.arange(len(columns)), columns] = 65535
    given = run(cpu, kernels, image, "gray", (len(columns), n_out))[:, :, 0]
    np.testing.assert_array_equal(given, np.floor(255 * weights[:, columns].T.astype(np.float64) + 0.5 + 2.0**-10))


@EXAMPLES
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(0, 90), st.integers(0, 90)), st.data())
def test_views_are_those_of_the_host_byte_by_byte(cpu, kernels, view_hw, more_hw, data):
    map_hw = (view_hw[0] + more_hw[0], view_hw[1] + more_hw[1])
    overlap = data.draw(st.integers(max(0, min(view_hw) - 12), min(view_hw) - 1))
    views = Views(map_hw=map_hw, view_hw=view_hw, overlap_px=overlap)
    first = data.draw(st.integers(0, views.count - 1))
    count = min(views.count - first, data.draw(st.integers(1, 5)))
    part = noise(11, (*map_hw, 3))
    target, blocks_run = cpu.Guarded((count, *view_hw, 3), np.uint8), cpu.Guarded((1,), np.uint32, fill=0)
    addresses = {"part": part.ctypes.data, "target": target.pointer.value, "blocks_run": blocks_run.pointer.value}
    launch_cut_views(kernels, views, first=first, count=count, stream=None, **addresses)
    np.testing.assert_array_equal(target.check(), views.cut(part, views.grid[first : first + count]))
    assert blocks_run.check()[0] == view_blocks(view_hw, count)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("size_hw", [(1, 1), (17, 31), (64, 64), (200, 130)])
def test_statistics_are_those_of_the_decision(cpu, kernels, size_hw, seed):
    image = noise(7, (*size_hw, 3))
    image[: size_hw[0] // 2, : size_hw[1] // 3] = 253
    image[size_hw[0] // 2 :, : size_hw[1] // 4] = 4
    sums = cpu.Guarded((SUMS_COUNT,), np.uint64, fill=0)
    kernels = kernels if seed == 0 else cpu.Shuffled(kernels, seed)
    launch_input_sums(kernels, source=image.ctypes.data, size_hw=size_hw, sums=sums.pointer.value, stream=None)
    statistics, pixels = read_frame_statistics(sums.check())
    expected = frame_statistics(image)
    assert pixels == size_hw[0] * size_hw[1]
    assert statistics.mean == pytest.approx(expected.mean, rel=1e-12)
    assert statistics.deviation == pytest.approx(expected.deviation, rel=1e-9, abs=1e-6)
    for name in ("white_share", "black_share", "reddish_share", "bluish_share", "red_share", "blue_share"):
        assert getattr(statistics, name) == getattr(expected, name)
    assert (statistics.red_blue, statistics.green) == pytest.approx((expected.red_blue, expected.green), rel=1e-9, abs=1e-9)
