"""A decision keeps what its good parts measured, and one from before that was kept still reads."""

import cv2
import numpy as np
import pytest

from snl_calibration.reference import MOST_KEPT, fit_reference
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ManifestError
from snl_runtime.images.frame_look import FrameLook
from snl_runtime.model.guard_band import tightened
from snl_runtime.model.manifest import ReferenceSample, read_manifest, write_manifest
from snl_runtime.station.drift import DriftConfig
from snl_runtime.station.drift_watch import DriftWatch
from snl_runtime.types import Frame
from tolerances import FLOAT32_REL


def test_reference_holds_scores_brightness_and_sharpness_of_every_good_part(station, tools):
    frames = station.write_good(count=40)
    reference = station.fit_one().decision.reference
    assert reference.scores == pytest.approx(sorted(tools.expected_score(image) for image in frames.values()), rel=FLOAT32_REL)
    # Every row of 48 belongs to one of 47 pairs: the inner ones to two.
    green = [image[..., 1].astype(float) for image in frames.values()]
    assert reference.brightness == pytest.approx(sorted((each[:-1].mean() + each[1:].mean()) / 2 for each in green), rel=1e-6)
    steps = [(np.abs(np.diff(each[:-1], axis=1)).mean() + np.abs(np.diff(each, axis=0)).mean()) / 2 for each in green]
    brightness = [(each[:-1].mean() + each[1:].mean()) / 2 for each in green]
    assert reference.sharpness == pytest.approx(sorted(step / mean for step, mean in zip(steps, brightness)), rel=1e-6)


def test_of_a_large_sample_a_random_part_is_kept(station):
    scores = list(range(1, 5001))
    reference = fit_reference(scores, [FrameLook(brightness=score, sharpness=score) for score in scores])
    assert len(reference.scores) == len(reference.sharpness) == MOST_KEPT
    assert np.median(reference.scores) == pytest.approx(2500, rel=0.1)


def test_a_manifest_without_reference_reads_and_keeps_its_text(station):
    station.write_good(count=40)
    path = station.root / "line.json"
    written = write_manifest(path, station.manifest())
    assert "reference" not in path.read_text()
    assert read_manifest(path) == written


def test_a_reference_must_be_sorted():
    with pytest.raises(ManifestError, match="sorted"):
        ReferenceSample(scores=[2.0, 1.0], brightness=[], sharpness=[])


def test_an_engine_that_scores_differently_inherits_no_scores(station):
    station.write_good(count=40)
    decision = station.fit_one().decision
    inherited = tightened(decision, guard_band=1e-4, map_max_abs=1e-4)
    assert inherited.reference.scores == []
    assert inherited.reference.brightness == decision.reference.brightness
    assert tightened(decision, guard_band=0.0, map_max_abs=0.0).reference == decision.reference


def test_a_line_with_the_parts_of_the_calibration_raises_no_alarm_and_blurred_ones_do(station, tools):
    station.write_good(count=60)
    station.fit_one()

    def alarms(change):
        with SnlDetector(station.model) as detector:
            decisions = detector.manifest.decisions_for(detector.model_sha256)
            with DriftWatch(DriftConfig(), decisions, camera="cam") as watch:
                for index in range(80):
                    image = change(tools.good_frame(index, seed=7))
                    frame = Frame(image=image, color="rgb", index=index, captured_ns=0, captured_at=float(index), source_id="cam")
                    watch.emit(frame, detector.detect(image, color="rgb", product="disk"))
                return {(trend.signal, trend.direction) for trend in watch.states()["disk"].alarms}

    assert alarms(lambda image: image) == set()
    assert ("sharpness", "lower") in alarms(lambda image: cv2.GaussianBlur(image, (0, 0), 1))
