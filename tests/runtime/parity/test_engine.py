"""An engine earns its ONNX file's thresholds only by scoring like it where it runs; proven with a TensorRT in NumPy, not on a device."""

import dataclasses

import numpy as np
import pytest

from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError, GoldenSampleError, ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.images.files import write_image
from snl_runtime.model.golden import TOLERANCES, GoldenSamples, golden_path, write_golden
from snl_runtime.model.guard_band import guard_text
from snl_runtime.model.manifest import manifest_path, read_manifest, write_manifest
from snl_runtime.parity.engine import ENGINE_LIMITS, verify_engine, verify_if_possible
from snl_runtime.parity.meter import LIMITS, figures
from snl_runtime.types import Verdict
from tolerances import DIFFERENCE_REL, TINY_MODEL_ABS, TINY_MODEL_REL

pytest.importorskip("onnxruntime")


def test_engine_that_scores_alike_passes_and_the_manifest_says_where(engine_path, installed, cuda):
    report = verify_engine(engine_path)
    assert report.passed
    assert report.failures == []
    assert report.frame_count == 12  # three golden samples, and a crop, a flip and a noisy copy of each
    assert report.reference == "line.onnx on onnxruntime cpu"
    assert report.verified_on == "tensorrt 10.3.0 on cuda:0 (Fake RTX 4070, SM89, driver for CUDA 12.8)"
    assert report.subject_sha256 == sha256_file(engine_path)
    manifest = read_manifest(manifest_path(engine_path))
    (entry,) = manifest.engines
    assert entry.parity == report
    assert entry.options["verified_on"] == report.verified_on
    assert set(manifest.decisions_for(entry.sha256)) == {"bottle"}
    assert cuda.leaks == {}


@pytest.mark.parametrize(
    ("precision", "normalization", "passes"),
    [("fp32", 1.0005, True), ("fp32", 1.002, False), ("fp16", 1.01, True), ("fp16", 1.03, False), ("int8", 1.09, True), ("int8", 1.11, False)],
)
def test_each_precision_has_its_limit(write_engine, installed, shifted, precision, normalization, passes):
    path = write_engine(parity=False, precision=precision)
    shifted(lambda maps: maps * normalization)
    report = verify_engine(path)
    assert report.passed is passes
    assert report.map_max_abs == pytest.approx((normalization - 1) * report.map_scale, rel=DIFFERENCE_REL)


def test_failed_report_is_recorded_and_lends_no_threshold(engine_path, installed, shifted):
    shifted(lambda maps: maps * 2)
    report = verify_engine(engine_path)
    assert not report.passed
    manifest = read_manifest(manifest_path(engine_path))
    assert manifest.engines[0].parity == report
    assert manifest.decisions_for(sha256_file(engine_path)) == {}


def test_engine_that_differs_inherits_tightened_thresholds_and_the_report_says_what_they_cost(engine_path, installed, shifted, model_fixtures):
    """A golden sample scores s, the highest of three; the engine gives 1.01 s, inside the numeric limit. A threshold between the two flips.

    The model passes all three. Under the band of 0.01 s the engine passes those that score, times 1.01, at most 1.005 s - 0.01 s.
    """
    path = manifest_path(engine_path)
    scores = [float(model_fixtures.reference_map(image).max()) for image in model_fixtures.ModelFolder(engine_path.parent).golden_images]
    shifted(lambda maps: maps * 1.01)
    manifest = read_manifest(path)
    threshold, band = max(scores) * 1.005, max(scores) * 0.01
    refused = sum(score * 1.01 > threshold - band for score in scores)
    for reject_threshold, flips in ((threshold, 1), (threshold * 1.1, 0)):
        decision = dataclasses.replace(manifest.decisions[0], pass_threshold=threshold, reject_threshold=reject_threshold)
        write_manifest(path, dataclasses.replace(manifest, decisions=[decision]))
        report = verify_engine(engine_path, _golden_only())
        assert report.guard_band == pytest.approx(band, rel=DIFFERENCE_REL)
        assert (report.passed, report.flips, report.more_lenient) == (True, flips, 0)
        assert (report.refused_by_guard_band, report.passed_by_reference) == (refused, 3)
        assert f"the guard band is {report.guard_band:.3g}, {refused} of 3 verdicts PASS of the model are not PASS under it" in figures(report)
        inherited = read_manifest(path).decisions_for(sha256_file(engine_path))["bottle"]
        assert inherited.pass_threshold == pytest.approx(threshold - band, rel=TINY_MODEL_REL)
        assert inherited.reject_threshold == pytest.approx(reject_threshold - band, rel=TINY_MODEL_REL)
        assert inherited.floor == pytest.approx(decision.floor + band, rel=TINY_MODEL_REL)
    with SnlDetector(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(1)).threshold == inherited.pass_threshold
        assert detector.notes == (f"line.trt never passes what its ONNX file would not{guard_text(report)}",)


def test_engine_that_is_kinder_than_its_model_passes_nothing_that_the_model_reviews(engine_path, installed, shifted, model_fixtures):
    """The engine gives 0.99 s, the model s above its pass threshold: REVIEW, which was PASS on the engine and counted as no flip."""
    path = manifest_path(engine_path)
    score = float(model_fixtures.reference_map(model_fixtures.good_frame(1)[:, :, ::-1]).max())
    manifest = read_manifest(path)
    decision = dataclasses.replace(manifest.decisions[0], pass_threshold=score * 0.995, reject_threshold=score * 1.5)
    write_manifest(path, dataclasses.replace(manifest, decisions=[decision]))
    shifted(lambda maps: maps * np.float32(0.99))
    assert verify_engine(engine_path).passed
    for model in (engine_path.with_name("line.onnx"), engine_path):
        with SnlDetector(model) as detector:
            assert detector.detect(model_fixtures.good_frame(1)).verdict is Verdict.REVIEW


def test_broken_guard_band_fails_the_gate(engine_path, installed, shifted, model_fixtures, monkeypatch):
    """The same engine, and thresholds that nobody tightened."""
    monkeypatch.setattr("snl_runtime.parity.verdicts.tightened", lambda decision, **_: decision)
    path = manifest_path(engine_path)
    scores = [float(model_fixtures.reference_map(image).max()) for image in model_fixtures.ModelFolder(engine_path.parent).golden_images]
    manifest = read_manifest(path)
    decision = dataclasses.replace(manifest.decisions[0], pass_threshold=max(scores) * 0.995, reject_threshold=max(scores) * 1.5)
    write_manifest(path, dataclasses.replace(manifest, decisions=[decision]))
    shifted(lambda maps: maps * np.float32(0.99))
    report = verify_engine(engine_path, _golden_only())
    assert (report.more_lenient, report.passed) == (1, False)
    assert report.failures == ["1 verdicts are more lenient than the reference's in spite of the guard band, allowed are none"]
    assert read_manifest(path).decisions_for(sha256_file(engine_path)) == {}


def test_flip_under_the_normalization_map_of_a_decision_is_counted_and_its_map_needed(engine_path, installed, shifted, model_fixtures):
    """As above with a normalization of 0.5: the raw score is above the threshold on both sides, the normalized one crosses it."""
    folder = model_fixtures.ModelFolder(engine_path.parent)
    scores = [float(model_fixtures.reference_map(image).max()) for image in folder.golden_images]
    normalization = folder.give_normalization(np.full((model_fixtures.SIZE, model_fixtures.SIZE), 0.5, np.float32))
    shifted(lambda maps: maps * 1.01)
    manifest = read_manifest(manifest_path(engine_path))
    for threshold, flips in ((max(scores) * 1.005 / 2, 1), (max(scores) * 1.02 / 2, 0)):
        decision = dataclasses.replace(manifest.decisions[0], pass_threshold=threshold, reject_threshold=threshold, floor=0.1)
        write_manifest(manifest_path(engine_path), dataclasses.replace(manifest, decisions=[decision]))
        assert verify_engine(engine_path, _golden_only()).flips == flips
    normalization.unlink()
    with pytest.raises(ManifestError, match="the normalization map of product 'bottle'"):
        verify_engine(engine_path, _golden_only())


def test_masked_decision_is_inherited_by_what_is_judged_and_tightened_by_what_differs_anywhere(engine_path, installed, shifted, model_fixtures):
    """The engine gives 1.01 times the map below the mask's edge only, so what is judged agrees: no verdict flips, and the band is still kept."""
    folder = model_fixtures.ModelFolder(engine_path.parent)
    golden = [model_fixtures.reference_map(image) for image in folder.golden_images]
    ignored = np.zeros((model_fixtures.SIZE, model_fixtures.SIZE), bool)
    ignored[20:] = True
    folder.give_ignore_mask(ignored)
    judged = [float(each[:20].max()) for each in golden]
    manifest = read_manifest(manifest_path(engine_path))
    decision = dataclasses.replace(manifest.decisions[0], pass_threshold=max(judged) * 1.001, reject_threshold=max(judged) * 1.001)
    write_manifest(manifest_path(engine_path), dataclasses.replace(manifest, decisions=[decision]))
    shifted(lambda maps: np.where(ignored, maps * np.float32(1.01), maps))
    report = verify_engine(engine_path, _golden_only())
    band = 0.01 * max(float(each[20:].max()) for each in golden)
    assert report.map_max_abs == pytest.approx(band, rel=DIFFERENCE_REL)
    assert (report.passed, report.flips, report.passed_by_reference) == (True, 0, 3)
    inherited = read_manifest(manifest_path(engine_path)).decisions_for(sha256_file(engine_path))["bottle"]
    assert inherited.ignore_mask == decision.ignore_mask
    assert inherited.pass_threshold == pytest.approx(decision.pass_threshold - band, rel=TINY_MODEL_REL)


def test_auroc_drift_is_measured_on_a_labeled_folder(engine_path, installed, shifted, model_fixtures, tmp_path):
    for seed in range(6):
        for kind, frame in (("good", model_fixtures.good_frame(seed)), ("scratch", model_fixtures.bad_frame(seed))):
            (tmp_path / "test" / kind).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "test" / kind / f"{seed}.png", np.ascontiguousarray(frame[:, :, ::-1]))
    report = verify_engine(engine_path, tmp_path / "test")
    assert (report.frame_count, report.auroc_drift, report.passed) == (3 + 12, 0.0, True)
    shifted(lambda maps: 30.0 - maps)
    report = verify_engine(engine_path, tmp_path / "test")
    assert report.auroc_drift > 0.002
    assert any("AUROC" in failure for failure in report.failures)


def test_engine_that_writes_nothing_fails(engine_path, installed, library):
    library.stale = True
    report = verify_engine(engine_path)
    assert not report.passed
    assert "NaN or infinity" in report.failures[0]
    assert "not finite" in report.failures[1]


def test_lone_engine_without_golden_samples_needs_frames(engine_path, installed):
    golden_path(engine_path).unlink()
    with pytest.raises(ConfigError, match=r"line\.golden\.npz"):
        verify_engine(engine_path)


def test_engine_of_another_onnx_is_refused(write_engine, installed):
    with pytest.raises(ManifestError, match="built from another line.onnx"):
        verify_engine(write_engine(parity=False, onnx_sha256="f" * 64))


def test_precision_without_limits_is_refused(write_engine, installed):
    with pytest.raises(ConfigError, match="limits are known for fp32, fp16, int8"):
        verify_engine(write_engine(parity=False, precision="fp4"))


def test_every_precision_has_a_guard_band_in_place_of_flips_and_allows_at_most_two_tenths_of_a_point():
    assert {(limits.flips, limits.auroc_drift) for limits in ENGINE_LIMITS.values()} == {(None, 0.002)}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_engine_gate_export_gate_and_self_test_share_one_tolerance(precision):
    assert ENGINE_LIMITS[precision].relative == TOLERANCES[precision]
    assert LIMITS[precision].relative == (1e-4 if precision == "fp32" else TOLERANCES[precision])


@pytest.mark.parametrize(("precision", "normalization"), [("fp32", 1.0009), ("fp16", 1.019), ("int8", 1.09)])
def test_engine_that_passes_the_gate_opens_and_one_that_moves_by_more_is_refused_at_load(write_engine, installed, shifted, precision, normalization):
    path = write_engine(parity=False, precision=precision)
    shifted(lambda maps: maps * normalization)
    assert verify_engine(path).passed
    SnlDetector(path).close()
    shifted(lambda maps: maps * (1 + 1.3 * (normalization - 1)))
    assert not verify_engine(path).passed
    with pytest.raises(GoldenSampleError, match="golden sample 0"):
        SnlDetector(path)


def test_gate_refuses_what_the_self_test_would_refuse_though_the_onnx_file_is_matched(write_engine, installed, model_fixtures):
    """The checkpoint's golden answers lie 3 % from both the ONNX file and the engine, more than fp16 may lose in all."""
    path = write_engine(parity=False)
    model = model_fixtures.ModelFolder(path.parent)
    maps = np.stack([model_fixtures.reference_map(image) for image in model.golden_images]) * np.float32(1.03)
    write_golden(model.golden, GoldenSamples(images=model.golden_images, scores=maps.max(axis=(1, 2)), maps=maps))
    manifest = read_manifest(model.manifest)
    write_manifest(model.manifest, dataclasses.replace(manifest, files={model.golden.name: sha256_file(model.golden)}))
    report = verify_engine(path)
    assert report.map_max_abs == pytest.approx(0, abs=TINY_MODEL_ABS)
    (failure,) = report.failures
    assert failure.startswith("the self-test at load would refuse it: golden sample 0")
    with pytest.raises(GoldenSampleError):
        SnlDetector(path)


def test_machine_that_cannot_run_the_engine_says_why_and_claims_nothing(engine_path, installed, cuda):
    cuda.devices = []
    report, why_not = verify_if_possible(engine_path)
    assert report is None
    assert "no CUDA device" in why_not
    entry = read_manifest(manifest_path(engine_path)).engines[0]
    assert entry.parity is None
    assert entry.options["verified_on"] == "not verified on a device"


def test_handed_over_backend_is_closed_also_when_the_comparison_fails(engine_path, cuda, library):
    backend = TensorRtBackend(engine_path, cuda=cuda, find_library=lambda name: library)
    engine_path.with_name("line.onnx").unlink()
    with pytest.raises(ManifestError):
        verify_engine(engine_path, backend=backend)
    assert cuda.leaks == {}


def _golden_only():
    from snl_runtime.parity.frames import FrameSet

    return FrameSet(source="none but the golden samples", count=0, make=lambda: iter(()))
