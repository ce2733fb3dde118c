"""The detector answers every frame, from any thread, in bounded time."""

import gc
import math
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import DetectorClosedError, GoldenSampleError
from snl_runtime.types import DetectorState, Verdict
from tolerances import TINY_MODEL_ABS

BOUND_S = 20.0


@pytest.fixture
def release():
    event = threading.Event()
    yield event
    event.set()


def hang_once(fixtures, release, started=None):
    """A backend whose first frame after the golden check hangs until released."""
    hung = []

    def fault(image, anomaly_map, anomaly_score):
        if not hung:
            hung.append(True)
            if started is not None:
                started.set()
            release.wait(BOUND_S)
        fixtures.answer(image, anomaly_map, anomaly_score)

    return fixtures.FakeBackend(fault, healthy_calls=3)


def test_a_result_carries_score_map_thresholds_regions_and_times(fixtures, model_folder):
    frame = fixtures.bad_frame(3)
    with SnlDetector(model_folder.write()) as detector:
        result = detector.detect(frame, color="bgr", product="bottle")
        assert detector.products == ("bottle",)
        assert detector.manifest.classes == ["bottle"]
        assert result.model_sha256 == detector.model_sha256
    expected = fixtures.reference_map(frame[:, :, ::-1])
    np.testing.assert_allclose(result.anomaly_map, expected, atol=TINY_MODEL_ABS)
    assert result.score == pytest.approx(float(expected.max()), abs=TINY_MODEL_ABS)
    assert result.threshold == model_folder.decision_values["pass_threshold"]
    assert result.reject_threshold == model_folder.decision_values["reject_threshold"]
    assert result.product == "bottle"
    assert result.roi_xyxy == (0, 0, 32, 32)
    assert result.regions[0].score == pytest.approx(result.score)
    assert not result.anomaly_map.flags.writeable
    times = result.timings
    assert min(times.preprocess_ms, times.infer_ms, times.decide_ms) > 0
    assert times.total_ms >= times.preprocess_ms + times.infer_ms + times.decide_ms - 1e-6


@pytest.mark.parametrize("value", ["good", "review", "bad"])
def test_the_three_verdicts_follow_the_thresholds(fixtures, model_folder, value):
    frame = fixtures.good_frame(1)
    peak = float(fixtures.reference_map(frame[:, :, ::-1]).max())
    low, high = {"good": (peak * 1.001, peak * 2), "review": (peak * 0.999, peak * 1.001), "bad": (peak * 0.99, peak * 0.999)}[value]
    with SnlDetector(model_folder.write(decisions=[{"pass_threshold": low, "reject_threshold": high, "floor": peak / 2}])) as detector:
        result = detector.detect(frame)
    assert result.verdict is {"good": Verdict.PASS, "review": Verdict.REVIEW, "bad": Verdict.REJECT}[value]
    assert bool(result.regions) == (value != "good")


def test_a_score_above_the_threshold_by_a_rounding_still_points_somewhere(fixtures, model_folder):
    def fault(image, anomaly_map, anomaly_score):
        anomaly_map[:] = 5.0
        anomaly_score[:] = np.float32(5.0) * np.float32(1 + 5e-6)

    changes = {"pass_threshold": 5.00001, "reject_threshold": 5.00001, "floor": 1.0}
    with SnlDetector(model_folder.write(decisions=[changes]), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        result = detector.detect(fixtures.good_frame(1))
    assert result.verdict is Verdict.REJECT
    assert len(result.regions) == 1


def test_the_region_of_interest_of_the_decision_is_cropped_and_regions_are_in_frame_pixels(fixtures, model_folder):
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[4:36, 20:52] = fixtures.bad_frame(2)
    with SnlDetector(model_folder.write(decisions=[{"roi_xyxy": (20, 4, 52, 36)}])) as detector:
        result = detector.detect(frame)
    assert result.verdict is Verdict.REJECT
    assert result.roi_xyxy == (20, 4, 52, 36)
    left, top, right, bottom = result.regions[0].box_xyxy
    assert 20 <= left < right <= 52
    assert 4 + 10 - 3 <= top < bottom <= 4 + 12 + 3, "the scratch is in rows 10 and 11 of the crop; the window reaches 2 rows further"


def test_an_error_without_an_output_has_nan_and_no_map(model_folder):
    with SnlDetector(model_folder.write()) as detector:
        result = detector.detect(None)
    assert math.isnan(result.score)
    assert result.anomaly_map is None
    assert result.roi_xyxy is None
    assert result.regions == ()
    assert result.threshold == model_folder.decision_values["pass_threshold"]


def test_a_lone_onnx_scores_and_says_why_it_does_not_pass(fixtures, model_folder):
    model = model_folder.write()
    model_folder.manifest.unlink()
    model_folder.golden.unlink()
    with SnlDetector(model) as detector:
        result = detector.detect(fixtures.good_frame(1))
        assert detector.manifest is None
        assert detector.products == ()
    assert result.verdict is Verdict.ERROR
    assert "no manifest" in result.reason
    assert result.score == pytest.approx(float(fixtures.reference_map(fixtures.good_frame(1)[:, :, ::-1]).max()), abs=TINY_MODEL_ABS)
    assert math.isnan(result.threshold)
    assert math.isnan(result.reject_threshold)


def test_a_frame_of_unnamed_product_is_judged_by_the_lowest_threshold_of_several(fixtures, model_folder):
    peak = float(fixtures.reference_map(fixtures.good_frame(1)[:, :, ::-1]).max())
    decisions = [{"product": "cap", "pass_threshold": peak * 0.99, "reject_threshold": peak * 3}, {"product": "bottle"}]
    with SnlDetector(model_folder.write(decisions=decisions)) as detector:
        result = detector.detect(fixtures.good_frame(1))
        assert detector.products == ("bottle", "cap")
        assert detector.detect(fixtures.good_frame(1), product="bottle").verdict is Verdict.PASS
    assert result.verdict is Verdict.REVIEW
    assert result.product is None
    assert result.threshold == peak * 0.99
    assert result.reject_threshold == min(peak * 3, model_folder.decision_values["reject_threshold"])


def test_a_frame_of_unnamed_product_passes_where_every_product_would(fixtures, model_folder):
    with SnlDetector(model_folder.write(decisions=[{}, {"product": "cap"}])) as detector:
        result = detector.detect(fixtures.good_frame(1))
    assert result.verdict is Verdict.PASS
    assert result.product is None


def test_the_newest_decision_of_a_product_counts(fixtures, model_folder):
    strict = {"pass_threshold": 0.5, "reject_threshold": 0.5, "floor": 0.1}
    with SnlDetector(model_folder.write(decisions=[{}, strict])) as detector:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.REJECT
    with SnlDetector(model_folder.write(decisions=[strict, {}])) as detector:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.PASS


def views_of(frame):
    yield "as it is", frame, "bgr"
    yield "not contiguous", np.repeat(np.repeat(frame, 2, axis=0), 3, axis=1)[::2, ::3], "bgr"
    yield "negative strides", np.ascontiguousarray(frame[::-1, ::-1])[::-1, ::-1], "bgr"
    yield "reversed channels", np.ascontiguousarray(frame[:, :, ::-1]), "rgb"
    yield "column order", np.asfortranarray(frame), "bgr"
    yield "alpha", np.dstack([frame, np.full(frame.shape[:2], 9, np.uint8)]), "bgra"
    yield "16 bits", frame.astype(np.uint16) * 257, "bgr"
    read_only = frame.copy()
    read_only.flags.writeable = False
    yield "read only", read_only, "bgr"


def test_every_memory_layout_of_a_frame_gives_the_same_score(fixtures, model_folder):
    frame = fixtures.good_frame(5)
    with SnlDetector(model_folder.write()) as detector:
        scores = {name: detector.detect(view, color=color).score for name, view, color in views_of(frame)}
    assert len(scores) == 8
    assert set(scores.values()) == {scores["as it is"]}
    assert np.array_equal(frame, fixtures.good_frame(5)), "the frame was written to"


def test_no_state_is_kept_between_frames(fixtures, model_folder):
    with SnlDetector(model_folder.write()) as detector:
        first = detector.detect(fixtures.good_frame(1))
        kept = first.anomaly_map.copy()
        for frame in (None, fixtures.bad_frame(1), np.zeros((32, 32, 3), np.uint8)):
            detector.detect(frame)
        again = detector.detect(fixtures.good_frame(1))
    assert (first.score, first.verdict) == (again.score, again.verdict)
    assert np.array_equal(first.anomaly_map, kept), "a later frame wrote into an earlier result"


def test_results_belong_to_the_frames_of_their_threads(fixtures, model_folder):
    frames = [fixtures.good_frame(seed) for seed in range(24)]
    expected = [fixtures.reference_map(frame[:, :, ::-1]) for frame in frames]
    with SnlDetector(model_folder.write()) as detector, ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            for result, anomaly_map in zip(pool.map(detector.detect, frames), expected, strict=True):
                np.testing.assert_allclose(result.anomaly_map, anomaly_map, atol=TINY_MODEL_ABS)


def test_the_backend_is_used_from_one_thread_and_closed_once_at_the_end(fixtures, model_folder):
    backend = fixtures.FakeBackend()
    with SnlDetector(model_folder.write(), backend=backend) as detector, ThreadPoolExecutor(4) as pool:
        list(pool.map(detector.detect, [fixtures.good_frame(1)] * 8))
        assert not backend.closed.is_set()
    assert len(backend.threads) == 1
    assert threading.get_ident() not in backend.threads
    assert backend.closed.is_set()


def test_a_hung_call_is_a_timeout_then_busy_then_works_again(fixtures, model_folder, release):
    backend = hang_once(fixtures, release)
    frame = fixtures.good_frame(1)
    with SnlDetector(model_folder.write(), backend=backend, timeout_ms=300) as detector:
        assert detector.detect(frame).reason_code == "timeout"
        assert [detector.detect(frame).reason_code for _ in range(2)] == ["backend_busy"] * 2
        release.set()
        detector._worker.call(lambda: None, BOUND_S)  # the late call has come back when this has
        result = detector.detect(frame)
    assert result.verdict is Verdict.PASS, result.reason
    assert backend.calls == 3 + 1 + 3 + 1, "the golden samples are scored again after a timeout"


def test_frames_that_wait_behind_a_hung_call_are_errors_in_bounded_time(fixtures, model_folder, release):
    started = threading.Event()
    with SnlDetector(model_folder.write(), backend=hang_once(fixtures, release, started), timeout_ms=300) as detector, ThreadPoolExecutor(4) as pool:
        first = pool.submit(detector.detect, fixtures.good_frame(1))
        assert started.wait(BOUND_S)
        others = [pool.submit(detector.detect, fixtures.good_frame(2)) for _ in range(3)]
        assert first.result(BOUND_S).reason_code == "timeout"
        assert {other.result(BOUND_S).reason_code for other in others} == {"backend_busy"}


def test_close_returns_while_a_call_hangs_and_the_backend_closes_when_it_comes_back(fixtures, model_folder, release):
    backend = hang_once(fixtures, release)
    detector = SnlDetector(model_folder.write(), backend=backend, timeout_ms=100)
    assert detector.detect(fixtures.good_frame(1)).reason_code == "timeout"
    detector.close()
    assert not backend.closed.is_set()
    release.set()
    assert backend.closed.wait(BOUND_S)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs the signals of a POSIX system")
def test_handler_of_a_signal_closes_the_detector_in_the_middle_of_a_call(fixtures, model_folder):
    """A host's main thread detects, and its handler of SIGTERM closes: on the same thread, which holds what close() waits for."""

    def fault(image, anomaly_map, anomaly_score):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        fixtures.answer(image, anomaly_map, anomaly_score)

    backend = fixtures.FakeBackend(fault, healthy_calls=3)
    detector = SnlDetector(model_folder.write(), backend=backend)
    before = signal.signal(signal.SIGTERM, lambda *_: detector.close())
    try:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.PASS, "it was scored before it was closed"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert backend.closed.is_set()
    with pytest.raises(DetectorClosedError):
        detector.detect(fixtures.good_frame(1))


@pytest.mark.parametrize("is_same_thread", [True, False])
def test_close_returns_where_an_exception_of_a_handler_left_a_call_unfinished(fixtures, model_folder, is_same_thread):
    """KeyboardInterrupt may come between the lock of a call and what releases it."""
    backend = fixtures.FakeBackend(fixtures.answer)
    detector = SnlDetector(model_folder.write(), backend=backend, timeout_ms=100)
    detector._lock.acquire()
    closer = threading.Thread(target=detector.close, daemon=True)
    if is_same_thread:
        detector.close()
    else:
        closer.start()
        closer.join(BOUND_S)
    assert backend.closed.is_set()
    assert detector.state is DetectorState.CLOSED


def test_after_a_backend_failure_nothing_passes_before_the_golden_samples_agree_again(fixtures, model_folder):
    calls = []

    def fault(image, anomaly_map, anomaly_score):
        calls.append(len(calls))
        if len(calls) == 1:
            raise OSError("device lost")
        fixtures.answer(image, anomaly_map, anomaly_score)
        if len(calls) == 2:  # the device came back and computes something else
            anomaly_map += 1
            anomaly_score += 1

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        frame = fixtures.good_frame(1)
        assert [detector.detect(frame).reason_code for _ in range(3)] == ["backend_error", "golden_mismatch", "below_threshold"]


def test_a_closed_detector_raises_and_closing_twice_does_nothing(fixtures, model_folder):
    detector = SnlDetector(model_folder.write())
    assert detector.state is DetectorState.READY
    detector.close()
    detector.close()
    assert detector.state is DetectorState.CLOSED
    with pytest.raises(DetectorClosedError, match="open a new"):
        detector.detect(fixtures.good_frame(1))


def test_an_opening_that_fails_closes_the_backend_and_ends_its_thread(fixtures, model_folder):
    backend = fixtures.FakeBackend()
    before = threading.active_count()
    with pytest.raises(GoldenSampleError):
        SnlDetector(model_folder.write(golden_shift=0.5), backend=backend)
    assert backend.closed.is_set()
    assert threading.active_count() == before


def test_a_detector_that_was_never_closed_warns(fixtures, model_folder):
    detector = SnlDetector(model_folder.write(), backend=fixtures.FakeBackend())
    worker, scorer = detector._worker, detector._scorer
    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031  # the collector finds it where it is in a cycle
        del detector
        gc.collect()
    worker.stop(scorer.close, BOUND_S)


def test_a_constructor_that_failed_does_not_warn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception, match="missing"):
            SnlDetector(tmp_path / "missing.onnx")
        gc.collect()


def test_the_product_of_the_call_wins_over_that_of_the_detector(fixtures, model_folder):
    decisions = [{}, {"product": "cap", "pass_threshold": 0.5, "reject_threshold": 0.5, "floor": 0.1}]
    with SnlDetector(model_folder.write(decisions=decisions), product="cap") as detector:
        assert detector.detect(fixtures.good_frame(1)).product == "cap"
        assert detector.detect(fixtures.good_frame(1), product="bottle").verdict is Verdict.PASS
