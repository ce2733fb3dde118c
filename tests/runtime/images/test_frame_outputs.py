"""A detector on the host adds map, mask and overlay at frame resolution where they are asked for, and nothing else of a result depends on it."""

import itertools

import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError
from snl_runtime.images.preprocess import resize
from snl_runtime.types import OutputRequest, Verdict
from tolerances import UPSAMPLED_REL

NAMES = ("frame_map", "mask", "overlay")
EVERYTHING = OutputRequest(frame_map=True, mask=True, overlay=True)
ROI = (5, 9, 84, 70)
FRAME_HW = (77, 91)


@pytest.fixture
def parts(fixtures):
    """verdict -> BGR frame of odd size."""
    return {Verdict.PASS: resize(fixtures.good_frame(120), FRAME_HW), Verdict.REJECT: resize(fixtures.bad_frame(120), FRAME_HW)}


def carried(result):
    return {name for name in NAMES if getattr(result, name) is not None}


def bilinear(anomaly_map, size_hw):
    """Half-pixel bilinear interpolation of a map that grows, pixel by pixel."""
    rows, columns = (np.clip((np.arange(big) + 0.5) * small / big - 0.5, 0, small - 1) for small, big in zip(anomaly_map.shape, size_hw))
    result = np.empty(size_hw)
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, anomaly_map.shape[0] - 1), min(x0 + 1, anomaly_map.shape[1] - 1)
            upper = (1 - (x - x0)) * anomaly_map[y0, x0] + (x - x0) * anomaly_map[y0, x1]
            lower = (1 - (x - x0)) * anomaly_map[y1, x0] + (x - x0) * anomaly_map[y1, x1]
            result[i, j] = (1 - (y - y0)) * upper + (y - y0) * lower
    return result


def heat(image_rgb, frame_map, threshold):
    """The stops of the color scale in units of the threshold, linear in between."""
    value, stops = frame_map / threshold, [0, 0.5, 1, 2]
    opacity = np.interp(value, stops, [0, 0.25, 0.45, 0.6])[:, :, None]
    color = np.stack([np.interp(value, stops, channel) for channel in ((0, 0, 255, 255), (60, 200, 220, 0), (200, 180, 0, 0))], axis=-1)
    return image_rgb * (1 - opacity) + color * opacity


@pytest.mark.parametrize("roi", [None, ROI])
def test_pictures_are_those_of_the_inspected_part(model_folder, parts, roi):
    with SnlDetector(
        model_folder.write(decisions=[{"roi_xyxy": roi, "pass_threshold": 3.0, "reject_threshold": 3.5, "floor": 1.0}]), outputs=EVERYTHING
    ) as detector:
        frame = parts[Verdict.REJECT]
        result = detector.detect(frame)
    left, top, right, bottom = result.roi_xyxy
    assert result.roi_xyxy == (roi or (0, 0, 91, 77))
    shape = (bottom - top, right - left)
    expected = bilinear(result.anomaly_map.astype(float), shape)
    assert (result.frame_map.dtype, result.mask.dtype, result.overlay.dtype) == (np.float32, np.bool_, np.uint8)
    np.testing.assert_allclose(result.frame_map, expected, rtol=UPSAMPLED_REL)
    np.testing.assert_array_equal(result.mask, result.frame_map > np.float32(result.threshold))
    assert 0 < result.mask.sum() < result.mask.size
    assert result.overlay.shape == (*shape, 3)
    blended = heat(frame[top:bottom, left:right, ::-1].astype(float), expected, result.threshold)
    assert np.abs(result.overlay - blended).max() <= 1


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_result_carries_exactly_what_is_asked_for(model_folder, parts, flags):
    asked = dict(zip(NAMES, flags))
    with SnlDetector(model_folder.write()) as detector:
        plain = detector.detect(parts[Verdict.REJECT])
        result = detector.detect(parts[Verdict.REJECT], outputs=OutputRequest(**asked))
    assert carried(plain) == set()
    assert carried(result) == {name for name, wanted in asked.items() if wanted}
    assert (result.verdict, result.score, result.regions, result.reason) == (plain.verdict, plain.score, plain.regions, plain.reason)
    np.testing.assert_array_equal(result.anomaly_map, plain.anomaly_map)


def test_request_of_a_frame_replaces_that_of_the_detector(model_folder, parts):
    with SnlDetector(model_folder.write(), outputs=OutputRequest(mask=True)) as detector:
        assert carried(detector.detect(parts[Verdict.PASS])) == {"mask"}
        assert carried(detector.detect(parts[Verdict.PASS], outputs=OutputRequest(overlay=True))) == {"overlay"}
        assert carried(detector.detect(parts[Verdict.PASS], outputs=OutputRequest())) == set()


def test_only_the_named_verdicts_carry_anything(model_folder, parts):
    with SnlDetector(model_folder.write(), outputs=OutputRequest(overlay=True, verdicts=[Verdict.REVIEW, Verdict.REJECT])) as detector:
        good, bad = (detector.detect(parts[verdict]) for verdict in (Verdict.PASS, Verdict.REJECT))
    assert (good.verdict, carried(good)) == (Verdict.PASS, set())
    assert (bad.verdict, carried(bad)) == (Verdict.REJECT, {"overlay"})


def test_host_draws_nothing_that_only_a_device_should_draw(model_folder, parts):
    with SnlDetector(model_folder.write(), outputs=OutputRequest(frame_map=True, mask=True, overlay=True, device_only=True)) as detector:
        assert carried(detector.detect(parts[Verdict.REJECT])) == set()


def test_pictures_come_without_the_map_and_say_where_they_lie(model_folder, parts):
    with SnlDetector(model_folder.write(decisions=[{"roi_xyxy": ROI}]), keep_maps=False, outputs=OutputRequest(mask=True)) as detector:
        result = detector.detect(parts[Verdict.PASS])
        assert (result.anomaly_map, result.roi_xyxy) == (None, ROI)
        assert result.mask.shape == (ROI[3] - ROI[1], ROI[2] - ROI[0])
        without = detector.detect(parts[Verdict.PASS], outputs=OutputRequest())
        assert (without.mask, without.roi_xyxy) == (None, None)


ERRORS = {
    "no frame": (None, {}),
    "frame out of range": ("black", {}),
    "expired": ("bad", {"expires_at": "2024-06-01T12:00:00+00:00"}),
    "roi outside": ("bad", {"roi_xyxy": (0, 0, 500, 500)}),
    "another file": ("bad", {"model_sha256": "d" * 64}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_carries_no_picture_not_even_after_one_that_did(model_folder, parts, case):
    kind, changes = ERRORS[case]
    frame = {None: None, "black": np.zeros_like(parts[Verdict.PASS]), "bad": parts[Verdict.REJECT]}[kind]
    with SnlDetector(model_folder.write(decisions=[changes]), outputs=EVERYTHING) as detector:
        detector.detect(parts[Verdict.PASS])
        result = detector.detect(frame)
    assert (result.verdict, carried(result)) == (Verdict.ERROR, set())


def test_output_that_is_no_number_gives_no_picture(fixtures, model_folder, parts):
    def nan(image, anomaly_map, anomaly_score):
        fixtures.answer(image, anomaly_map, anomaly_score)
        anomaly_map[0, 0, 3, 3] = np.nan

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(nan, healthy_calls=3), outputs=EVERYTHING) as detector:
        result = detector.detect(parts[Verdict.PASS])
    assert (result.reason_code, carried(result)) == ("output_not_finite", set())


def test_drawing_that_fails_is_an_error_without_pictures(model_folder, parts, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("snl_runtime.detector.inspection.draw_visualizations", no_memory)
    with SnlDetector(model_folder.write(), outputs=EVERYTHING) as detector:
        result = detector.detect(parts[Verdict.PASS])
    assert (result.verdict, result.reason_code, carried(result)) == (Verdict.ERROR, "internal_error", set())


@pytest.mark.parametrize("threshold", [3.0, 1e9])
def test_pictures_are_the_callers_own_and_read_only(model_folder, parts, threshold):
    """Also where there is no heat to see and the frame is RGB already."""
    frame = np.ascontiguousarray(parts[Verdict.PASS][:, :, ::-1])
    changes = {"pass_threshold": threshold, "reject_threshold": 1e9, "floor": 1.0}
    with SnlDetector(model_folder.write(decisions=[changes]), outputs=EVERYTHING) as detector:
        result = detector.detect(frame, color="rgb")
        kept = {name: getattr(result, name).copy() for name in NAMES}
        frame[...] = 0
        detector.detect(parts[Verdict.REJECT])
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(result, name), array)
        assert not getattr(result, name).flags.writeable
        assert not np.shares_memory(getattr(result, name), frame)


@pytest.mark.parametrize("verdict", [Verdict.ERROR, "REJECT", None])
def test_request_names_verdicts_that_can_have_pictures(verdict):
    with pytest.raises(ConfigError, match="outputs can be had for PASS, REVIEW and REJECT"):
        OutputRequest(overlay=True, verdicts=[verdict])


def test_detector_refuses_what_is_no_request(model_folder, parts):
    model = model_folder.write()
    with pytest.raises(ConfigError, match="outputs must be an OutputRequest, got tuple"):
        SnlDetector(model, outputs=("overlay",))
    with SnlDetector(model) as detector:
        result = detector.detect(parts[Verdict.PASS], outputs=("overlay",))
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "internal_error")
