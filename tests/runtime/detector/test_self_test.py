"""A self-test scores every golden sample again on the backend's thread; after a failure nothing passes until they agree."""

import threading

import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendTimeoutError, DetectorClosedError
from snl_runtime.types import DetectorState
from tolerances import TINY_MODEL_ABS

BOUND_S = 20.0


class _Drifting:
    """Computes the reference, plus ``error`` on every value: a device that goes wrong without failing."""

    def __init__(self, fixtures):
        self.fixtures = fixtures
        self.error = 0.0

    def __call__(self, image, anomaly_map, anomaly_score):
        self.fixtures.answer(image, anomaly_map, anomaly_score)
        anomaly_map += self.error
        anomaly_score += self.error


def test_an_unchanged_backend_passes_and_goes_on(fixtures, model_folder):
    with SnlDetector(model_folder.write()) as detector:
        result = detector.self_test()
        assert (result.passed, result.samples, result.reason, result.tolerance) == (True, 3, "", 1e-3)
        assert 0 <= result.largest_difference < TINY_MODEL_ABS
        assert detector.state is DetectorState.READY
        assert detector.detect(fixtures.good_frame(1)).reason_code == "below_threshold"


def test_a_backend_that_computes_something_else_fails_and_nothing_passes_until_it_agrees(fixtures, model_folder):
    fault = _Drifting(fixtures)
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        frame = fixtures.good_frame(1)
        assert detector.detect(frame).reason_code == "below_threshold"
        fault.error = 0.5
        result = detector.self_test()
        scale = float(fixtures.reference_maps(model_folder.golden_images[:1].tobytes()).max())
        assert not result.passed
        assert result.largest_difference == pytest.approx(0.5 / scale, rel=1e-4)
        assert "golden sample 0" in result.reason
        assert detector.state is DetectorState.FAILED
        assert [detector.detect(frame).reason_code for _ in range(2)] == ["golden_mismatch"] * 2
        fault.error = 0.0
        assert detector.detect(frame).reason_code == "below_threshold"


def test_a_further_self_test_can_restore_trust(fixtures, model_folder):
    fault = _Drifting(fixtures)
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        fault.error = 0.5
        assert not detector.self_test().passed
        assert not detector.self_test().passed
        fault.error = 0.0
        assert detector.self_test().passed
        assert detector.state is DetectorState.READY


def test_a_backend_that_fails_in_the_self_test_is_distrusted(fixtures, model_folder):
    def fault(image, anomaly_map, anomaly_score):
        raise OSError("device lost")

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        result = detector.self_test()
        assert not result.passed
        assert "device lost" in result.reason
        assert result.largest_difference is None
        assert detector.state is DetectorState.FAILED


def test_a_model_without_golden_samples_does_not_pass(model_folder):
    with SnlDetector(model_folder.write(golden=False)) as detector:
        result = detector.self_test()
        assert (result.passed, result.samples, result.largest_difference) == (False, 0, None)
        assert "no golden samples" in result.reason


def test_a_self_test_behind_a_hung_call_did_not_run(fixtures, model_folder):
    release, started = threading.Event(), threading.Event()

    def fault(image, anomaly_map, anomaly_score):
        started.set()
        release.wait(BOUND_S)
        fixtures.answer(image, anomaly_map, anomaly_score)

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3), timeout_ms=200) as detector:
        assert detector.detect(fixtures.good_frame(1)).reason_code == "timeout"
        with pytest.raises(BackendTimeoutError, match="did not run"):
            detector.self_test()
        release.set()


def test_a_self_test_that_hangs_is_a_failure_in_bounded_time(fixtures, model_folder):
    release = threading.Event()

    def fault(image, anomaly_map, anomaly_score):
        release.wait(BOUND_S)
        fixtures.answer(image, anomaly_map, anomaly_score)

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3), timeout_ms=50) as detector:
        result = detector.self_test()
        assert not result.passed
        assert "did not answer" in result.reason
        assert detector.detect(fixtures.good_frame(1)).reason_code == "backend_busy"
        release.set()


def test_samples_are_scored_on_the_thread_of_the_backend(fixtures, model_folder):
    backend = fixtures.FakeBackend()
    with SnlDetector(model_folder.write(), backend=backend) as detector:
        detector.detect(fixtures.good_frame(1))
        detector.self_test()
        assert backend.calls == 3 + 1 + 3
        assert len(backend.threads) == 1
        assert threading.get_ident() not in backend.threads


def test_a_closed_detector_has_no_self_test(model_folder):
    detector = SnlDetector(model_folder.write())
    detector.close()
    with pytest.raises(DetectorClosedError):
        detector.self_test()
