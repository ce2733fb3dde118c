"""The kernels' map at frame resolution is that of snl_runtime.images.upsampling, its overlay that of snl_runtime.images.overlay."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.gpu.kernels.launches import DeviceFrame, FrameOutputs, frame_blocks, heat_values, launch_map_to_frame, mask_words, unpack_mask
from snl_runtime.images.overlay import blend_heat
from snl_runtime.images.preprocess import to_rgb
from snl_runtime.images.upsampling import upsample_map
from tolerances import UPSAMPLED_REL

CHANNELS = {"gray": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
SIDES = st.integers(1, 70)
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def bumpy_map(seed, size_hw, scale=1.0):
    """Positive, with values over several orders of magnitude, as anomaly maps are."""
    return (scale * np.random.default_rng(seed).gamma(0.6, 1.0, size_hw)).astype(np.float32)


def run(cpu, kernels, anomaly_map, size_hw, threshold=1.0, image=None, color="bgr", wanted=("frame_map", "mask", "overlay")):
    buffers = {
        "frame_map": cpu.Guarded(size_hw, np.float32),
        "mask": cpu.Guarded((mask_words(size_hw),), np.uint32),
        "overlay": cpu.Guarded((*size_hw, 3), np.uint8),
    }
    frame, heat = None, heat_values()
    if image is not None:
        frame = DeviceFrame(address=image.ctypes.data, pitch_bytes=image.strides[0], size_hw=size_hw, color=color, is_16_bit=image.dtype == np.uint16)
    wanted = [name for name in wanted if name != "overlay" or image is not None]
    launch_map_to_frame(
        kernels,
        anomaly_map=anomaly_map.ctypes.data,
        map_hw=anomaly_map.shape,
        size_hw=size_hw,
        threshold=threshold,
        outputs=FrameOutputs(**{name: buffers[name].pointer.value for name in wanted}),
        frame=frame,
        heat=heat.ctypes.data,
        stream=None,
    )
    return {name: buffer.check() for name, buffer in buffers.items()}


@EXAMPLES
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from([1e-3, 1.0, 1e4]))
def test_map_is_within_1e_5_of_upsample_map(cpu, kernels, map_hw, size_hw, scale):
    anomaly_map = bumpy_map(map_hw[0] * 71 + map_hw[1], map_hw, scale)
    given = run(cpu, kernels, anomaly_map, size_hw)["frame_map"]
    np.testing.assert_allclose(given, upsample_map(anomaly_map, size_hw), rtol=UPSAMPLED_REL, atol=0)


@EXAMPLES
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from([0.3, 1.0, 2.5]))
def test_mask_is_the_map_above_the_threshold(cpu, kernels, map_hw, size_hw, threshold):
    anomaly_map = bumpy_map(map_hw[0] * 71 + map_hw[1], map_hw)
    given = run(cpu, kernels, anomaly_map, size_hw, threshold)
    np.testing.assert_array_equal(unpack_mask(given["mask"], size_hw), given["frame_map"] > np.float32(threshold))


@EXAMPLES
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from(sorted(CHANNELS)), st.sampled_from([np.uint8, np.uint16]))
def test_overlay_is_within_one_gray_level_of_blend_heat(cpu, kernels, map_hw, size_hw, color, dtype):
    anomaly_map = bumpy_map(map_hw[0] * 71 + map_hw[1], map_hw)
    image = np.random.default_rng(size_hw).integers(0, np.iinfo(dtype).max + 1, (*size_hw, CHANNELS[color]), dtype=dtype)
    given = run(cpu, kernels, anomaly_map, size_hw, 0.9, image, color)["overlay"]
    expected = blend_heat(to_rgb(image, color), anomaly_map, 0.9)
    assert np.abs(given.astype(int) - expected).max() <= 1
    assert (given != expected).mean() <= 0.02, "values may fall into the next step of the color table, nothing else"


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_overlay_without_a_usable_threshold_is_the_frame(cpu, kernels, threshold):
    image = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    given = run(cpu, kernels, bumpy_map(1, (8, 8)), (20, 33), threshold, image, "rgb")
    np.testing.assert_array_equal(given["overlay"], image)
    assert not unpack_mask(given["mask"], (20, 33)).any() or threshold <= 0


@pytest.mark.parametrize(("size_hw", "blocks"), [((1, 1), 1), ((8, 32), 1), ((9, 33), 4), ((61, 79), 24)])
def test_every_block_is_counted_once(cpu, kernels, size_hw, blocks):
    """A block covers 8 rows of 32 pixels."""
    anomaly_map, target, counter = bumpy_map(1, (8, 8)), cpu.Guarded(size_hw, np.float32), cpu.Guarded((1,), np.uint32, fill=0)
    launch_map_to_frame(
        kernels,
        anomaly_map=anomaly_map.ctypes.data,
        map_hw=anomaly_map.shape,
        size_hw=size_hw,
        threshold=1.0,
        outputs=FrameOutputs(frame_map=target.pointer.value, blocks_run=counter.pointer.value),
        stream=None,
    )
    assert counter.check()[0] == frame_blocks(size_hw) == blocks


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_no_value_of_the_map_reads_outside_the_color_table(cpu, kernels, value):
    image = np.full((16, 40, 3), 90, np.uint8)
    given = run(cpu, kernels, np.full((4, 4), value, np.float32), (16, 40), 1e-3, image, "rgb")["overlay"]
    red = [int(channel) for channel in (90 * 0.4 + np.array([255, 0, 0]) * 0.6 + 0.5)]
    expected = red if value > 0 else [90, 90, 90]
    assert (given == expected).all()


@pytest.mark.parametrize("wanted", [(), ("mask",), ("frame_map",), ("overlay",)])
def test_only_what_is_asked_for_is_written(cpu, kernels, wanted):
    image = np.zeros((20, 33, 3), np.uint8)
    given = run(cpu, kernels, bumpy_map(1, (8, 8)), (20, 33), 1.0, image, "rgb", wanted)
    for name, array in given.items():
        is_untouched = (array.view(np.uint8) == cpu.GUARD).all()
        assert is_untouched == (name not in wanted), name


def test_an_overlay_of_part_of_a_frame_reads_by_its_pitch(cpu, kernels):
    frame = np.random.default_rng(2).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    part = frame[10:40, 20:61]
    given = run(cpu, kernels, bumpy_map(3, (8, 8)), part.shape[:2], 0.5, part, "rgb")["overlay"]
    assert np.abs(given.astype(int) - blend_heat(part, bumpy_map(3, (8, 8)), 0.5)).max() <= 1
