"""An engine earns its ONNX file's thresholds only by scoring like it where it runs; proven with a TensorRT in NumPy, not on a device."""

import dataclasses
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_calibration.calibrate import append_decisions
from snl_runtime.backends.tensorrt import builder as engine_builder
from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.backends.tensorrt.builder import rebuild_engine
from snl_runtime.backends.tensorrt.library import load_library
from snl_runtime.cli import rebuild
from snl_runtime.cli.rebuild import open_or_rebuild
from snl_runtime.cli.run import main as run_main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendUnavailableError, ConfigError, EngineMismatchError, GoldenSampleError, ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.images.files import write_image
from snl_runtime.model.golden import TOLERANCES, GoldenSamples, golden_path, write_golden
from snl_runtime.model.guard_band import guard_text
from snl_runtime.model.manifest import manifest_path, read_manifest, update_manifest, write_manifest
from snl_runtime.model.signing import sign_manifest
from snl_runtime.parity import engine as engine_parity
from snl_runtime.parity.engine import ENGINE_LIMITS, verify_engine, verify_if_possible
from snl_runtime.parity.meter import LIMITS, figures
from snl_runtime.types import Verdict

pytest.importorskip("onnxruntime")


@pytest.fixture
def engine_path(write_engine):
    return write_engine(parity=False)


@pytest.fixture
def installed(monkeypatch, cuda, library):
    """The fakes in place of CUDA and TensorRT for everything that opens a backend by suffix."""
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    return library


@pytest.fixture
def shifted(library):
    """Let the engine give other maps than its ONNX file."""
    honest = library.answer

    def shift(change):
        library.answer = lambda images: change(honest(images))

    return shift


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
    assert report.map_max_abs == pytest.approx((normalization - 1) * report.map_scale, rel=1e-3)


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
        assert report.guard_band == pytest.approx(band, rel=1e-3)
        assert (report.passed, report.flips, report.more_lenient) == (True, flips, 0)
        assert (report.refused_by_guard_band, report.passed_by_reference) == (refused, 3)
        assert f"the guard band is {report.guard_band:.3g}, {refused} of 3 verdicts PASS of the model are not PASS under it" in figures(report)
        inherited = read_manifest(path).decisions_for(sha256_file(engine_path))["bottle"]
        assert inherited.pass_threshold == pytest.approx(threshold - band, rel=1e-5)
        assert inherited.reject_threshold == pytest.approx(reject_threshold - band, rel=1e-5)
        assert inherited.floor == pytest.approx(decision.floor + band, rel=1e-5)
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
    assert report.map_max_abs == pytest.approx(0, abs=1e-4)
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


# ---- in the detector and in snl-run ----------------------------------------------------------------------------------------------------------


def test_unverified_engine_is_verified_at_first_load_when_asked_and_then_passes_parts(engine_path, installed, cuda, model_fixtures):
    with SnlDetector(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.ERROR
        assert "not verified on a device" in detector.notes[0]
    with open_or_rebuild(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        assert detector.notes == ()
    assert cuda.leaks == {}


def test_engine_that_fails_its_verification_opens_and_passes_nothing(engine_path, installed, shifted, model_fixtures, caplog):
    """Honest on the golden samples, which the self-test at load asks for, and off by 3 % where a frame was cropped, flipped or noisy."""
    golden = model_fixtures.ModelFolder(engine_path.parent).golden_images
    known = [model_fixtures.reference_map(image) for image in golden]
    shifted(lambda maps: np.stack([each if any(np.array_equal(each, one) for one in known) else each * np.float32(1.03) for each in maps]))
    with caplog.at_level("WARNING"), open_or_rebuild(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.ERROR
        assert "does not score like its ONNX file" in detector.notes[0]
    assert "does not score like its ONNX file" in caplog.text


def test_an_engine_is_not_rebuilt_because_another_file_is_missing(write_engine, installed, model_fixtures, monkeypatch):
    path = write_engine()
    folder = model_fixtures.ModelFolder(path.parent)
    folder.give_normalization(np.full((model_fixtures.SIZE, model_fixtures.SIZE), 0.5, np.float32)).unlink()
    monkeypatch.setattr(rebuild, "rebuild_engine", lambda engine: pytest.fail(f"{engine} was rebuilt"))
    with pytest.raises(ManifestError, match="normalization map"):
        open_or_rebuild(path)


def test_snl_run_repeats_that_the_engine_is_not_verified(engine_path, installed, model_fixtures, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(model_fixtures.good_frame(1)[:, :, ::-1]))
    arguments = ["--engine", str(engine_path), "--images", str(tmp_path / "parts"), "--jsonl", str(tmp_path / "x.jsonl"), "--json"]
    assert run_main(arguments) == 0
    printed = capsys.readouterr()
    assert "line.trt is not verified on a device" in printed.err
    assert "not verified on a device" in json.loads(printed.out)["notes"][0]


# ---- rebuilding with the real builder of TensorRT-RTX, running on the fake -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def rtx(installed, monkeypatch, cache_folder):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")
    monkeypatch.setenv("SNL_EDGE_CACHE", str(cache_folder))
    installed.name, installed.version = "tensorrt-rtx", load_library("tensorrt-rtx").version
    return installed


MISFITS = {
    "another GPU": {"compute_capability": ["12.0"]},
    "another version": {"library_version": "1.0.0.1"},
    "altered": {"sha256": "0" * 64},
}


@pytest.mark.parametrize("entry", MISFITS.values(), ids=MISFITS)
def test_engine_that_does_not_fit_is_rebuilt_verified_and_used(write_engine, rtx, cuda, model_fixtures, entry):
    path = write_engine(parity=False, precision="fp32", **{"library": "tensorrt-rtx", "library_version": rtx.version, **entry})
    with pytest.raises((EngineMismatchError, ManifestError), match="--rebuild"):
        SnlDetector(path)
    with open_or_rebuild(path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        assert detector.detect(model_fixtures.bad_frame(120)).verdict is Verdict.REJECT
    (rebuilt,) = read_manifest(manifest_path(path)).engines
    assert rebuilt.sha256 == sha256_file(path)
    assert rebuilt.compute_capability == ["8.9"]  # the GPU here
    assert rebuilt.parity.passed
    assert cuda.leaks == {}


def test_snl_run_refuses_a_truncated_engine_in_one_line_and_rebuilds_it_when_asked(write_engine, rtx, model_fixtures, tmp_path, capsys):
    path = write_engine(parity=False, precision="fp32", library="tensorrt-rtx", library_version=rtx.version)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(model_fixtures.good_frame(1)[:, :, ::-1]))
    arguments = ["--engine", str(path), "--images", str(tmp_path / "parts"), "--jsonl", str(tmp_path / "x.jsonl"), "--json"]
    assert run_main(arguments) == 2
    assert "snl-run --engine line.trt --rebuild" in capsys.readouterr().err.strip().splitlines()[-1]
    assert run_main([*arguments, "--rebuild", "--fail-on-reject"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert read_manifest(manifest_path(path)).engines[0].sha256 == sha256_file(path)


def test_missing_engine_is_built_from_its_onnx(write_engine, rtx, model_fixtures):
    path = write_engine(parity=False, library="tensorrt-rtx", library_version=rtx.version)
    path.unlink()
    with open_or_rebuild(path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
    assert path.is_file()


def test_decision_appended_while_an_engine_is_built_or_compared_survives(write_engine, rtx, monkeypatch, caplog):
    """The manifest is signed too: that it loses the signature is said."""
    path = write_engine(parity=False, precision="fp32", library="tensorrt-rtx", library_version=rtx.version)
    manifest = manifest_path(path)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def appending(product, real):
        def run(*arguments, **options):
            result = real(*arguments, **options)
            append_decisions(path.with_name("line.onnx"), [(dataclasses.replace(read_manifest(manifest).decisions[0], product=product), None)])
            sign_manifest(manifest, pem)
            return result

        return run

    monkeypatch.setattr("snl_runtime.backends.tensorrt.builder.build_engine", appending("built", engine_builder.build_engine))
    monkeypatch.setattr("snl_runtime.parity.engine.compare", appending("compared", engine_parity.compare))
    rebuilt = rebuild_engine(path)
    verify_engine(path)
    written = read_manifest(manifest)
    assert [decision.product for decision in written.decisions] == ["bottle", "built", "compared"]
    assert [(entry.sha256, entry.parity.passed) for entry in written.engines] == [(rebuilt.entry.sha256, True)]
    assert written.signature is None
    assert [record.getMessage() for record in caplog.records if "loses its signature" in record.getMessage()] == [
        "line.json loses its signature, which does not cover the change; sign it again: snl-sign --engine line.onnx --key key.pem"
    ] * 2  # by the new engine and by the report


def test_report_about_an_engine_that_was_replaced_meanwhile_is_refused(engine_path, installed, monkeypatch):
    def replace_engine(*arguments, **options):
        real(*arguments, **options)
        update_manifest(manifest_path(engine_path), lambda listed: listed.with_engine(dataclasses.replace(listed.engines[0], sha256="f" * 64)))

    real = engine_parity.compare
    monkeypatch.setattr("snl_runtime.parity.engine.compare", replace_engine)
    with pytest.raises(ManifestError, match="replaced while they were compared"):
        verify_engine(engine_path)
    (entry,) = read_manifest(manifest_path(engine_path)).engines
    assert (entry.sha256, entry.parity) == ("f" * 64, None)


def test_rebuild_where_there_is_no_gpu_builds_and_says_that_it_cannot_run(write_engine, rtx, cuda):
    path = write_engine(parity=False, library="tensorrt-rtx", library_version="1.0.0.1")
    cuda.devices = []
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        open_or_rebuild(path)
    (entry,) = read_manifest(manifest_path(path)).engines
    assert entry.library_version == rtx.version
    assert entry.parity is None
    assert entry.options["verified_on"] == "not verified on a device"


def _golden_only():
    from snl_runtime.parity.frames import FrameSet

    return FrameSet(source="none but the golden samples", count=0, make=lambda: iter(()))
