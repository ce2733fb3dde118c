"""Several frames judged in one call get the verdicts of each alone, in their order; what is wrong with one of them is the ERROR of that one."""

import collections
import threading

import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError, DetectorClosedError
from snl_runtime.types import OutputRequest, Verdict
from tolerances import TINY_MODEL_ABS

GOLDEN = 3
"""Golden samples of the tiny model, each scored in a call of its own at opening, and repeated in one call before the first batch."""


@pytest.fixture
def frames(fixtures):
    """Good and bad parts of two sizes in turn, no two alike, with unusable frames between them."""
    return [
        fixtures.good_frame(1),
        None,
        fixtures.bad_frame(2, 64),
        fixtures.good_frame(3, 64),
        fixtures.bad_frame(4),
        "part.png",
        np.zeros((0, 32, 3), np.uint8),
        fixtures.good_frame(5),
        np.zeros((40, 40, 3), np.uint8),
        fixtures.good_frame(6, 48),
    ]


class Recorder:
    """Writes the reference's answer and notes how many images each call had."""

    def __init__(self, fixtures):
        self._answer = fixtures.answer
        self.counts = []

    def __call__(self, image, anomaly_map, anomaly_score):
        self.counts.append(len(image))
        self._answer(image, anomaly_map, anomaly_score)


@pytest.fixture
def recorder(fixtures):
    return Recorder(fixtures)


def evidence(result):
    """Everything that a result says except its times and arrays."""
    return (result.verdict, result.reason_code, result.threshold, result.reject_threshold, result.product, result.roi_xyxy, result.bit_depth)


def assert_same(results, expected, *, atol=0.0):
    assert [evidence(result) for result in results] == [evidence(each) for each in expected]
    for result, each in zip(results, expected, strict=True):
        assert result.score == pytest.approx(each.score, abs=atol, nan_ok=True)
        assert [region.box_xyxy for region in result.regions] == [region.box_xyxy for region in each.regions]
        assert (result.anomaly_map is None) == (each.anomaly_map is None)
        if each.anomaly_map is not None:
            np.testing.assert_allclose(result.anomaly_map, each.anomaly_map, rtol=0, atol=atol)


def test_a_batch_gets_the_results_of_its_frames_one_by_one(fixtures, model_folder, frames, recorder):
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(recorder)) as detector:
        expected = [detector.detect(frame) for frame in frames]
        recorder.counts.clear()
        results = detector.detect_batch(frames)
    assert_same(results, expected)
    assert {result.verdict for result in results} == {Verdict.PASS, Verdict.REJECT, Verdict.ERROR}
    assert recorder.counts == [8, 5, 2], "golden samples as one batch before the first; of the first 8 frames 3 cannot be used"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_libraries_score_a_batch_as_they_score_its_frames(model_folder, frames, backend):
    pytest.importorskip(backend)
    with SnlDetector(model_folder.write(), backend=backend) as detector:
        expected = [detector.detect(frame) for frame in frames]
        results = detector.detect_batch(frames)
    assert_same(results, expected, atol=TINY_MODEL_ABS)


def test_results_follow_the_order_of_the_frames(fixtures, model_folder):
    frames = [fixtures.good_frame(seed) for seed in range(12)]
    order = np.random.default_rng(3).permutation(12)
    with SnlDetector(model_folder.write()) as detector:
        results = detector.detect_batch([frames[index] for index in order])
    for index, result in zip(order, results, strict=True):
        np.testing.assert_allclose(result.anomaly_map, fixtures.reference_map(frames[index][:, :, ::-1]), atol=TINY_MODEL_ABS)


@pytest.mark.parametrize(
    ("fixed", "largest", "counts"),
    [("N", 8, [8, 8, 3]), ("N", 1, [1] * 11), (1, 1, [1] * 11), (4, 4, [4, 4, 4, 4])],
    ids=["up to 8", "up to 1", "always 1", "always 4, the last one filled up"],
)
def test_a_batch_is_cut_into_calls_that_the_model_takes(fixtures, model_folder, recorder, fixed, largest, counts):
    model = model_folder.write(batch=fixed, input_changes={"batch": "dynamic" if fixed == "N" else fixed, "max_batch": largest})
    backend = fixtures.FakeBackend(recorder)
    backend.input_shape = (None if fixed == "N" else fixed, fixtures.SIZE, fixtures.SIZE, 3)
    frames = [fixtures.good_frame(seed) for seed in range(11)]
    with SnlDetector(model, backend=backend) as detector:
        assert detector.batch_size == largest
        recorder.counts.clear()
        results = detector.detect_batch(frames)
    assert recorder.counts == counts
    for frame, result in zip(frames, results, strict=True):
        np.testing.assert_allclose(result.anomaly_map, fixtures.reference_map(frame[:, :, ::-1]), atol=TINY_MODEL_ABS)


def test_each_frame_is_judged_as_its_own_product(fixtures, model_folder):
    decisions = [{}, {"product": "cap", "pass_threshold": 0.5, "reject_threshold": 0.5, "floor": 0.1}]
    frames = [fixtures.good_frame(seed) for seed in range(4)]
    with SnlDetector(model_folder.write(decisions=decisions), product="cap") as detector:
        results = detector.detect_batch(frames, products=["bottle", None, "bolt", "bottle"])
        of_one_product = detector.detect_batch(frames, products="bottle")
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.REJECT, Verdict.ERROR, Verdict.PASS]
    assert [result.product for result in results] == ["bottle", "cap", "bolt", "bottle"]
    assert {result.verdict for result in of_one_product} == {Verdict.PASS}


def test_a_frame_that_makes_the_call_fail_is_an_error_alone(fixtures, model_folder, caplog):
    poison = fixtures.good_frame(9)

    def fault(image, anomaly_map, anomaly_score):
        if any(np.array_equal(each, poison[:, :, ::-1]) for each in image):
            raise OSError("out of memory")
        fixtures.answer(image, anomaly_map, anomaly_score)

    frames = [fixtures.good_frame(1), poison, fixtures.bad_frame(2), fixtures.good_frame(3)]
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault)) as detector:
        results = detector.detect_batch(frames)
    assert [result.reason_code for result in results] == ["below_threshold", "backend_error", "above_reject_threshold", "below_threshold"]
    assert caplog.text.count("a call with 4 frames failed") == 1


def test_a_missing_value_of_one_frame_is_the_error_of_that_frame(fixtures, model_folder):
    def fault(image, anomaly_map, anomaly_score):
        fixtures.answer(image, anomaly_map, anomaly_score)
        if len(image) > 1:
            anomaly_map[1, 0, 7, 7] = np.nan

    frames = [fixtures.good_frame(seed) for seed in range(3)]
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=GOLDEN + 1)) as detector:
        results = detector.detect_batch(frames)
    assert [result.reason_code for result in results] == ["below_threshold", "output_not_finite", "below_threshold"]


@pytest.mark.parametrize(
    "order",
    [lambda own: own[::-1], np.zeros_like, lambda own: np.roll(own, 1), lambda own: own // 2 * 2],
    ids=["backwards", "the first for all", "off by one", "every other one twice"],
)
def test_backend_that_mixes_up_a_batch_scores_its_frames_one_at_a_time(fixtures, model_folder, caplog, order):
    """It answers right for one image, and every value is one that the network gave: only the golden samples can tell."""

    def fault(image, anomaly_map, anomaly_score):
        fixtures.answer(image[order(np.arange(len(image)))], anomaly_map, anomaly_score)

    frames = [fixtures.good_frame(1), *(fixtures.bad_frame(seed) for seed in range(8)), fixtures.good_frame(2)]
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault)) as detector:
        results = [*detector.detect_batch(frames), *detector.detect_batch(frames)]
        alone = [detector.detect(frame) for frame in frames]
    assert_same(results, alone * 2)
    assert [result.verdict for result in alone] == [Verdict.PASS, *[Verdict.REJECT] * 8, Verdict.PASS]
    assert caplog.text.count("images are scored one at a time from now on") == 1


def test_nothing_passes_after_a_failed_call_before_the_golden_samples_agree_again(fixtures, model_folder):
    def fault(image, anomaly_map, anomaly_score):
        if len(image) == 2:
            raise OSError("device lost")
        fixtures.answer(image, anomaly_map, anomaly_score)
        anomaly_map += 1  # the device came back and computes something else
        anomaly_score += 1

    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=GOLDEN)) as detector:
        results = detector.detect_batch([fixtures.good_frame(1), fixtures.good_frame(2)])
    assert [result.reason_code for result in results] == ["golden_mismatch"] * 2


def test_a_call_that_hangs_is_a_timeout_of_its_frames_and_the_next_ones_do_not_wait(fixtures, model_folder):
    release = threading.Event()

    def fault(image, anomaly_map, anomaly_score):
        release.wait(20)

    model = model_folder.write(input_changes={"max_batch": 2})
    with SnlDetector(model, backend=fixtures.FakeBackend(fault, healthy_calls=GOLDEN), timeout_ms=50) as detector:
        results = detector.detect_batch([fixtures.good_frame(seed) for seed in range(4)])
        release.set()
    assert [result.reason_code for result in results] == ["timeout"] * 2 + ["backend_busy"] * 2


def test_a_kept_result_does_not_keep_the_maps_of_its_batch(fixtures, model_folder):
    with SnlDetector(model_folder.write()) as detector:
        result = detector.detect_batch([fixtures.good_frame(seed) for seed in range(4)])[2]
    memory = result.anomaly_map
    while memory.base is not None:
        memory = memory.base
    assert memory.size == fixtures.SIZE**2


def test_every_result_carries_the_outputs_that_were_asked_for(fixtures, model_folder):
    frames = [fixtures.bad_frame(1, 64), fixtures.good_frame(2)]
    with SnlDetector(model_folder.write()) as detector:
        results = detector.detect_batch(frames, outputs=OutputRequest(overlay=True, verdicts={Verdict.REJECT}))
    assert results[0].overlay.shape == (64, 64, 3)
    assert results[1].overlay is None


@pytest.mark.parametrize("kind", [tuple, collections.deque, collections.UserList], ids=lambda kind: kind.__name__)
def test_frames_come_in_any_sequence(fixtures, model_folder, kind):
    frames = [fixtures.good_frame(seed) for seed in range(9)]
    with SnlDetector(model_folder.write()) as detector:
        assert_same(detector.detect_batch(kind(frames)), [detector.detect(frame) for frame in frames], atol=TINY_MODEL_ABS)


def test_no_frames_give_no_results(model_folder):
    with SnlDetector(model_folder.write()) as detector:
        assert detector.detect_batch([]) == []


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((4, 32, 32, 3), np.uint8), {}, r"images must be a list of frames, got one ndarray of shape \(4, 32, 32, 3\)"),
        (None, {}, "images must be a list of frames, got NoneType"),
        ("ab", {}, "images must be a list of frames, got str"),
        ([None, None], {"products": ["bottle"]}, "one per frame: 2 frames, got 1"),
        ([None, None], {"products": 7}, "one per frame: 2 frames, got int"),
        ([None, None], {"products": ["bottle", 7]}, r"products\[1\] must be a name or None, got int"),
        ([None], {"outputs": ("overlay",)}, "outputs must be an OutputRequest, got tuple"),
    ],
)
def test_an_argument_that_no_batch_can_have_is_refused(model_folder, images, options, message):
    with SnlDetector(model_folder.write()) as detector, pytest.raises(ConfigError, match=message):
        detector.detect_batch(images, **options)


def test_a_closed_detector_judges_no_batch(fixtures, model_folder):
    detector = SnlDetector(model_folder.write())
    detector.close()
    with pytest.raises(DetectorClosedError, match="open a new"):
        detector.detect_batch([fixtures.good_frame(1)])
