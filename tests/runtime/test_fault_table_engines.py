"""The fault table of engines: an engine without proof that it scores like its ONNX file, or too far from it, passes nothing."""

import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import EngineEntry, ParityReport, update_manifest
from snl_runtime.types import Verdict
from snl_runtime.verdict.ruling import REASON_CODES

NEVER = "no_threshold_for_engine"
ROWS = {
    "never compared": (NEVER, None),
    "comparison failed": (NEVER, {"passed": False, "failures": ["map differs"]}),
    "comparison of another file": (NEVER, {"subject_sha256": "f" * 64}),
    "report without a guard band": (NEVER, {"guard_band": None}),
    "more lenient in spite of the guard band": (NEVER, {"more_lenient": 1}),
    "guard band wider than the thresholds leave room for": ("guard_band_too_wide", {"guard_band": 1e6}),
    "guard band that leaves no room below the highest threshold": ("guard_band_too_wide", {"guard_band": "half of the room"}),
}


@pytest.fixture
def open_engine(model_folder, fixtures):
    """Return a detector on an engine in NumPy with this parity report, and with this hash of its ONNX file."""

    def open_it(changes, **entry):
        folder = model_folder
        folder.write()
        engine = folder.model.with_suffix(".trt")
        engine.write_bytes(b"a plan")
        report = None if changes is None else parity_report(sha256_file(engine), folder.decision_values, changes)
        values = {
            "file": engine.name,
            "sha256": sha256_file(engine),
            "library": "tensorrt",
            "library_version": "10.3.0",
            "compute_capability": ["8.9"],
            "precision": "fp16",
            "built_at": "2024-05-01T12:00:00+00:00",
            "parity": report,
        }
        update_manifest(folder.manifest, lambda manifest: manifest.with_engine(EngineEntry(**{**values, **entry})))
        return SnlDetector(engine, backend=fixtures.FakeBackend())

    return open_it


def parity_report(sha256, thresholds, changes):
    if changes.get("guard_band") == "half of the room":
        changes = {**changes, "guard_band": (thresholds["pass_threshold"] - thresholds["floor"]) / 2 * 1.001}
    values = {
        "subject_file": "line.trt",
        "subject_sha256": sha256,
        "reference": "line.onnx",
        "frames_source": "by hand",
        "frame_count": 3,
        "score_max_abs": 0.0,
        "score_p99_abs": 0.0,
        "map_max_abs": 0.0,
        "map_p99_abs": 0.0,
        "map_scale": 1.0,
        "tolerance": 0.02,
        "auroc_drift": None,
        "flips": 0,
        "guard_band": 0.0,
        "more_lenient": 0,
        "passed_by_reference": 3,
        "refused_by_guard_band": 0,
        "passed": True,
        "failures": [],
        "verified_on": "a fake",
        "created_at": "2024-05-01T12:00:00+00:00",
    }
    return ParityReport(**{**values, **changes})


@pytest.mark.parametrize(("expected", "changes"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("product", [None, "bottle"])
def test_engine_passes_nothing(open_engine, fixtures, expected, changes, product):
    with open_engine(changes) as detector:
        result = detector.detect(fixtures.good_frame(1), product=product)
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, expected), result.reason
    assert result.reason_code in REASON_CODES


def test_product_without_room_is_known_and_the_operator_is_told(open_engine):
    with open_engine({"guard_band": 1e6}) as detector:
        assert detector.products == ("bottle",)
        (note,) = detector.notes
    assert note == "the thresholds of bottle leave no room for the guard band of line.trt; calibrate the engine: snl-calibrate --engine line.trt"


def test_engine_of_another_onnx_file_passes_nothing(open_engine, fixtures):
    with open_engine({}, onnx_sha256="f" * 64) as detector:
        assert detector.detect(fixtures.good_frame(1)).reason_code == NEVER


def test_control_an_engine_that_scores_alike_passes(open_engine, fixtures):
    with open_engine({}) as detector:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.PASS


def test_control_a_guard_band_below_the_room_of_a_good_frame_lets_it_pass_and_shows_the_tightened_threshold(open_engine, fixtures, model_folder):
    with open_engine({"guard_band": 0.01}) as detector:
        result = detector.detect(fixtures.good_frame(1))
    assert result.verdict is Verdict.PASS
    assert result.threshold == pytest.approx(model_folder.decision_values["pass_threshold"] - 0.01, rel=1e-9)
