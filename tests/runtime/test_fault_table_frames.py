"""No frame of another size, bit depth or order of channels than the product was calibrated on passes, and each reason says what to do."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.types import Verdict
from snl_runtime.verdict.ruling import REASON_CODES

FAR = {"pass_threshold": 1e6, "reject_threshold": 1e6}
"""Thresholds that any score meets: what stops the part is the row's own fault."""


@dataclass(frozen=True)
class Row:
    """One fault; ``decisions`` holds what differs in each, ``parts`` what the reason must name."""

    name: str
    code: str
    decisions: list[dict]
    frame: Callable
    parts: tuple[str, ...]
    call: dict = field(default_factory=dict)


def sizes(*seen_hw, any_size=False):
    return {**FAR, "frame_sizes": FrameSizes(seen_hw=sorted(seen_hw), any_size=any_size)}


def depth(bits):
    return {**FAR, "bit_depth": bits}


def of_size(height, width):
    return lambda fixtures: cv2.resize(fixtures.good_frame(1), (width, height))


def in_bits(bits, fixtures):
    """The good frame as a camera of that bit depth sends it: 255 becomes the highest value."""
    return np.round(fixtures.good_frame(1).astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)


def with_one_value(value):
    def make(fixtures):
        frame = in_bits(12, fixtures)
        frame[5, 7, 1] = value
        return frame

    return make


def good(fixtures):
    return fixtures.good_frame(1)


BOTH_SIZES = ("64x64", "32x32", "calibrate")
ROWS = [
    Row("larger frame", "frame_size", [sizes((32, 32))], of_size(64, 64), BOTH_SIZES),
    Row("one pixel more", "frame_size", [sizes((32, 32))], of_size(32, 33), ("33x32", "32x32")),
    Row("another aspect", "frame_size", [sizes((32, 32))], of_size(32, 64), ("64x32", "32x32")),
    Row("transposed frame", "frame_size", [sizes((48, 32))], of_size(32, 48), ("48x32", "32x48")),
    Row("size between two that were seen", "frame_size", [sizes((32, 32), (64, 64))], of_size(48, 48), ("48x48", "32x32, 64x64")),
    Row(
        "another frame around an equal region of interest",
        "frame_size",
        [{**sizes((32, 48)), "roi_xyxy": (0, 0, 32, 32)}],
        of_size(48, 32),
        ("32x48", "48x32"),
    ),
    Row(
        "frame smaller than the region of interest",
        "frame_size",
        [{**sizes((64, 64)), "roi_xyxy": (0, 0, 60, 60)}],
        of_size(32, 32),
        ("32x32", "ROI"),
    ),
    Row("any size, larger than was seen", "frame_size", [sizes((32, 32), (64, 64), any_size=True)], of_size(65, 65), ("65x65", "32 to 64")),
    Row("any size, another aspect", "frame_size", [sizes((32, 32), (64, 64), any_size=True)], of_size(32, 64), ("64x32", "1 to 1")),
    Row("none of two products has the size", "frame_size", [sizes((48, 48)), {**sizes((64, 64)), "product": "cap"}], good, ("name the product",)),
    Row("size of one of two products, none named", "frame_size", [sizes((32, 32)), {**sizes((64, 64)), "product": "cap"}], good, ("--product",)),
    Row("8 bits for a product of 12", "frame_bit_depth", [depth(12)], good, ("8 bits", "12")),
    Row("16 bits for a product of 8", "frame_bit_depth", [depth(8)], lambda fixtures: in_bits(16, fixtures), ("16 bits", "8")),
    Row("12 bits for a product of 8", "frame_bit_depth", [depth(8)], lambda fixtures: in_bits(12, fixtures), ("16 bits", "8")),
    Row("16 bits for a product of 12", "frame_bit_depth", [depth(12)], lambda fixtures: in_bits(16, fixtures), ("4095", "--bit-depth")),
    Row("one value above 12 bits", "frame_bit_depth", [depth(12)], with_one_value(4096), ("4096", "4095")),
    Row("bit depth that is not the product's", "frame_bit_depth", [depth(12)], lambda f: in_bits(10, f), ("10", "12"), {"bit_depth": 10}),
    Row("bit depth that no camera has", "frame_bit_depth", [depth(12)], lambda f: in_bits(12, f), ("11",), {"bit_depth": 11}),
    Row("bit depth that is no number", "frame_bit_depth", [depth(12)], lambda f: in_bits(12, f), ("twelve",), {"bit_depth": "twelve"}),
    Row("12 bits declared for a frame of 8", "frame_bit_depth", [depth(12)], good, ("uint16", "uint8"), {"bit_depth": 12}),
    Row("8 bits declared for a frame of 16", "frame_bit_depth", [depth(8)], lambda f: in_bits(16, f), ("uint8",), {"bit_depth": 8}),
    Row("two products of different bit depths, none named", "ambiguous_product", [depth(8), {**depth(12), "product": "cap"}], good, ("--product",)),
    Row("red and blue swapped", "frame_color_order", [FAR], good, ("swapped", "color="), {"color": "rgb"}),
    Row(
        "red and blue swapped, with alpha",
        "frame_color_order",
        [FAR],
        lambda f: np.dstack([good(f), good(f)[:, :, 0]]),
        ("color=",),
        {"color": "rgba"},
    ),
    Row("lamp of another color", "frame_out_of_range", [FAR], lambda f: good(f) + np.array([226, 0, 30], np.uint8), ("red blue", "white balance")),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_frame_that_was_not_qualified_is_an_error_that_says_what_to_do(row, model_folder, fixtures):
    with SnlDetector(model_folder.write(decisions=row.decisions)) as detector:
        result = detector.detect(row.frame(fixtures), **row.call)
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, row.code), result.reason
    assert result.reason_code in REASON_CODES
    for part in row.parts:
        assert part in result.reason


@pytest.mark.parametrize(
    ("decision", "frame", "call"),
    [
        (sizes((32, 32)), good, {}),
        (sizes((32, 32), (64, 64)), good, {}),
        (sizes((16, 16), (64, 64), any_size=True), good, {}),
        (depth(12), lambda fixtures: in_bits(12, fixtures), {}),
        (depth(12), lambda fixtures: in_bits(12, fixtures), {"bit_depth": 12}),
        (depth(16), lambda fixtures: in_bits(16, fixtures), {"bit_depth": 16}),
        (depth(8), good, {"bit_depth": 8}),
        (FAR, lambda fixtures: np.ascontiguousarray(good(fixtures)[:, :, ::-1]), {"color": "rgb"}),
    ],
)
def test_control_the_same_frame_as_it_was_qualified_passes_with_the_same_score(model_folder, fixtures, decision, frame, call):
    with SnlDetector(model_folder.write(decisions=[{}])) as detector:
        expected = detector.detect(good(fixtures))
    with SnlDetector(model_folder.write(decisions=[decision])) as detector:
        result = detector.detect(frame(fixtures), **call)
    assert (result.verdict, result.score) == (Verdict.PASS, expected.score), result.reason


@pytest.mark.parametrize(
    ("changes", "code"), [({"expires_at": "2024-05-02T12:00:00+00:00"}, "decision_expired"), ({"floor": 0.0}, "decision_invalid")]
)
def test_fault_of_the_decision_comes_before_that_of_the_frame(model_folder, fixtures, changes, code):
    with SnlDetector(model_folder.write(decisions=[{**sizes((64, 64)), "bit_depth": 12, **changes}])) as detector:
        assert detector.detect(good(fixtures)).reason_code == code


def test_size_comes_before_bit_depth_and_both_before_the_look(model_folder, fixtures):
    for changes, code in (({**sizes((64, 64)), "bit_depth": 12}, "frame_size"), (depth(12), "frame_bit_depth"), (FAR, "frame_flat")):
        with SnlDetector(model_folder.write(decisions=[changes])) as detector:
            assert detector.detect(np.zeros((32, 32, 3), np.uint8)).reason_code == code


def test_frame_without_a_decision_is_read_by_the_bit_depth_that_is_declared(model_folder, fixtures):
    with SnlDetector(model_folder.write(decisions=[])) as detector:
        expected = detector.detect(good(fixtures))
        result = detector.detect(in_bits(12, fixtures), bit_depth=12)
        assert (result.score, result.reason_code, result.bit_depth) == (expected.score, "no_decision", 12)
        assert detector.detect(with_one_value(4097)(fixtures), bit_depth=12).reason_code == "frame_bit_depth"
