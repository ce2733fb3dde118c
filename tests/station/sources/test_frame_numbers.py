"""Gaps in a camera's frame numbers are counted, also across the end of GigE Vision's 16-bit counter, which no emulator reaches."""

import pytest

from snl_runtime.errors import ConfigError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.genicam import NO_BLOCK_ID, GenicamConfig, GenicamSource
from snl_runtime.line.sources.genicam_device import OpenedCamera
from snl_runtime.line.sources.pixel_formats import find_pixel_format


def lost_between(*ids, counts_16_bits=False, skipped=0):
    source = GenicamSource(GenicamConfig())
    opened = OpenedCamera(camera=None, serial="1", declared=find_pixel_format("Mono8"), pixel_type=0, counts_16_bits=counts_16_bits)
    lost = [source._count_lost(block_id, skipped if number else 0, opened) for number, block_id in enumerate(ids)]
    assert source.counters.frames_missing == sum(lost)
    return lost


def test_the_first_number_and_those_in_a_row_are_no_gap():
    assert lost_between(17, 18, 19) == [0, 0, 0]


def test_each_number_left_out_is_a_lost_frame():
    assert lost_between(0, 1, 5, 6) == [0, 0, 3, 0]


def test_what_the_driver_replaced_is_not_lost():
    assert lost_between(0, 5, skipped=4) == [0, 0]
    assert lost_between(0, 8, skipped=4) == [0, 3]


def test_16_bit_counter_goes_from_65535_to_1():
    assert lost_between(65534, 65535, 1, 2, counts_16_bits=True) == [0, 0, 0, 0]
    assert lost_between(65534, 3, counts_16_bits=True) == [0, 3], "65535, 1 and 2 are lost"


def test_counter_that_begins_again_counts_nothing_it_cannot_know():
    assert lost_between(100, 1, 2, counts_16_bits=True) == [0, 0, 0]
    assert lost_between(65535, 0, 1) == [0, 0, 0]


def test_camera_without_numbers_has_no_gaps():
    assert lost_between(NO_BLOCK_ID, NO_BLOCK_ID, 5, NO_BLOCK_ID) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("trigger", "policy"), [("free", OverflowPolicy.LATEST), ("software", OverflowPolicy.EVERY), ("hardware", OverflowPolicy.EVERY)]
)
def test_triggered_frames_are_never_skipped(trigger, policy):
    assert GenicamSource(GenicamConfig(trigger=trigger)).policy is policy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"serial": "1", "index": 0}, r"genicam\.serial and genicam\.index both name the camera"),
        ({"index": -1}, r"genicam\.index must be 0 or more, got -1"),
        ({"exposure_us": 0}, r"genicam\.exposure_us must be positive, got 0"),
        ({"frame_timeout_s": float("inf")}, r"genicam\.frame_timeout_s must be positive, got inf"),
        ({"buffers": 1}, r"genicam\.buffers must be at least 2, got 1"),
        ({"frozen_after": -1}, r"genicam\.frozen_after must be 0 \(off\)"),
        ({"trigger": "hardware", "policy": "latest"}, r"genicam\.policy must be every with genicam\.trigger hardware"),
        ({"pixel_format": "Bayer"}, r"genicam\.pixel_format 'Bayer' cannot be decoded"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        GenicamConfig(**values)
