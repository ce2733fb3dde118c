"""A scorer gives raw scores and maps of the file that ships, checked, and the same for every batch size."""

import numpy as np
import pytest

from snl_runtime.errors import FrameError, GoldenSampleError, InferenceError, ManifestError, SnlError
from snl_runtime.scorer import Scorer
from snl_runtime.types import DetectorState
from tolerances import FLOAT32_REL, TINY_MODEL_ABS


@pytest.fixture
def inputs(fixtures):
    return np.stack([fixtures.good_frame(seed)[:, :, ::-1] for seed in range(5)])


def test_scores_and_maps_equal_the_twin(fixtures, model_folder, inputs):
    with Scorer(model_folder.write()) as scorer:
        scores, maps = scorer.score_inputs(inputs)
    expected = np.stack([fixtures.reference_map(image) for image in inputs])
    assert scores.shape == (5,)
    assert maps.shape == (5, fixtures.SIZE, fixtures.SIZE)
    assert scores.dtype == maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected, atol=TINY_MODEL_ABS)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), atol=TINY_MODEL_ABS)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_a_graph_of_fixed_batch_size_scores_any_number_of_images(fixtures, model_folder, count):
    images = np.stack([fixtures.good_frame(seed)[:, :, ::-1] for seed in range(count)]) if count else np.empty((0, 32, 32, 3), np.uint8)
    with Scorer(model_folder.write(batch=4, input_changes={"batch": 4, "max_batch": 4})) as scorer:
        scores, maps = scorer.score_inputs(images)
    assert scores.shape == (count,)
    for image, anomaly_map in zip(images, maps, strict=True):
        np.testing.assert_allclose(anomaly_map, fixtures.reference_map(image), atol=TINY_MODEL_ABS)


def test_batches_stay_within_the_manifest_and_are_filled_with_nan_before_each_call(fixtures, model_folder, inputs):
    sizes = []

    def record(image, anomaly_map, anomaly_score):
        sizes.append(len(image))
        assert np.isnan(anomaly_map).all()
        assert np.isnan(anomaly_score).all()
        fixtures.answer(image, anomaly_map, anomaly_score)

    with Scorer(model_folder.write(input_changes={"max_batch": 2}), backend=fixtures.FakeBackend(record)) as scorer:
        sizes.clear()
        scorer.score_inputs(inputs)
    assert sizes == [2, 2, 1]


def test_a_frame_is_prepared_cropped_and_timed(fixtures, model_folder):
    frame = np.zeros((50, 60, 3), np.uint8)
    frame[10:42, 20:52] = fixtures.good_frame(7)
    with Scorer(model_folder.write()) as scorer:
        scored = scorer.score(frame, "bgr", roi_xyxy=(20, 10, 52, 42))
    seen = fixtures.good_frame(7)[:, :, ::-1]
    assert scored.statistics.mean == pytest.approx(seen.mean(), rel=FLOAT32_REL)
    assert scored.statistics.deviation == pytest.approx(np.sqrt(seen.var(axis=(0, 1)).mean()), rel=FLOAT32_REL)
    expected = fixtures.reference_map(seen)
    np.testing.assert_allclose(scored.anomaly_map, expected, atol=TINY_MODEL_ABS)
    assert scored.score == pytest.approx(float(expected.max()), abs=TINY_MODEL_ABS)
    assert scored.timings.infer_ms > 0
    assert scored.timings.total_ms >= scored.timings.preprocess_ms + scored.timings.infer_ms - 1e-6


def test_an_unusable_frame_raises(model_folder):
    with Scorer(model_folder.write()) as scorer, pytest.raises(FrameError):
        scorer.score(None)


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32), (1, 64, 64, 3)])
def test_inputs_of_another_shape_are_refused(model_folder, shape):
    with Scorer(model_folder.write()) as scorer, pytest.raises(InferenceError, match="must be uint8 of shape"):
        scorer.score_inputs(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("factor", [1 + 2e-5, 1 - 2e-5, 0.0, -1.0, float("nan"), float("inf")])
def test_a_score_that_is_not_the_maximum_of_the_map_raises(fixtures, model_folder, inputs, factor):
    def fault(image, anomaly_map, anomaly_score):
        fixtures.answer(image, anomaly_map, anomaly_score)
        anomaly_score *= np.float32(factor)

    backend = fixtures.FakeBackend(fault)
    with Scorer(model_folder.write(), backend=backend, golden_check=False) as scorer, pytest.raises(InferenceError, match="image 0 on fake"):
        scorer.score_inputs(inputs)


def test_a_lone_onnx_scores_without_a_golden_check(fixtures, model_folder, inputs):
    model = model_folder.write()
    model_folder.manifest.unlink()
    model_folder.golden.unlink()
    with Scorer(model) as scorer:
        scores, _ = scorer.score_inputs(inputs)
        assert scorer.size_hw == (fixtures.SIZE, fixtures.SIZE)
        assert scorer.bundle.manifest is None
        assert not scorer.golden_checked
    assert scores[0] == pytest.approx(float(fixtures.reference_map(inputs[0]).max()), abs=TINY_MODEL_ABS)


def test_the_golden_check_can_be_left_out_and_made_later(model_folder):
    with Scorer(model_folder.write(golden_shift=0.5), golden_check=False) as scorer:
        assert not scorer.golden_checked
        with pytest.raises(GoldenSampleError):
            scorer.check_golden_samples()
        assert not scorer.golden_checked


def test_a_failed_call_takes_the_golden_check_back(fixtures, model_folder, inputs):
    def fault(image, anomaly_map, anomaly_score):
        raise OSError("device lost")

    with Scorer(model_folder.write(), backend=fixtures.FakeBackend(fault, healthy_calls=3)) as scorer:
        assert scorer.golden_checked
        with pytest.raises(InferenceError, match="OSError: device lost"):
            scorer.score_inputs(inputs)
        assert not scorer.golden_checked
        assert scorer.state is DetectorState.FAILED


def test_a_backend_that_answers_again_is_ready_once_its_samples_agreed(fixtures, model_folder):
    with Scorer(model_folder.write(), backend=fixtures.FakeBackend()) as scorer:
        scorer.distrust_backend()
        scorer.recover()
        assert scorer.state is DetectorState.READY


def test_a_backend_that_answers_again_without_samples_is_unchecked(fixtures, model_folder):
    model = model_folder.write()
    model_folder.manifest.unlink()
    model_folder.golden.unlink()
    with Scorer(model, backend=fixtures.FakeBackend()) as scorer:
        assert scorer.state is DetectorState.UNCHECKED
        scorer.distrust_backend()
        assert scorer.state is DetectorState.FAILED
        scorer.recover()
        assert scorer.state is DetectorState.UNCHECKED


def test_a_backend_whose_samples_differ_after_a_failure_stays_failed(fixtures, model_folder):
    with Scorer(model_folder.write(golden_shift=0.5), backend=fixtures.FakeBackend(), golden_check=False) as scorer:
        scorer.distrust_backend()
        for _ in range(2):
            with pytest.raises(GoldenSampleError):
                scorer.recover()
            assert scorer.state is DetectorState.FAILED


@pytest.mark.parametrize("damage", ["golden_shift", "model"])
def test_a_backend_that_was_handed_over_is_closed_when_opening_fails(fixtures, model_folder, damage):
    backend = fixtures.FakeBackend()
    model = model_folder.write(golden_shift=0.5 if damage == "golden_shift" else 0.0)
    if damage == "model":
        model.write_bytes(b"no network")
    with pytest.raises(SnlError):
        Scorer(model, backend=backend)
    assert backend.closed.is_set()


def test_closing_twice_does_nothing_new(fixtures, model_folder):
    backend = fixtures.FakeBackend()
    scorer = Scorer(model_folder.write(), backend=backend)
    scorer.close()
    assert backend.closed.is_set()
    scorer.close()


def test_a_graph_of_another_size_than_the_manifest_says_is_refused(fixtures, model_folder):
    backend = fixtures.FakeBackend()
    backend.input_shape = (None, 64, 64, 3)
    with pytest.raises(ManifestError, match="64x64"):
        Scorer(model_folder.write(), backend=backend)
