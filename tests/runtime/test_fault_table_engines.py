"""The fault table of engines: an engine without proof that it scores like its ONNX file, or too far from it, passes nothing."""

import pytest

from snl_runtime.detector.detector import SnlDetector
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
        model_folder.write()
        if changes is not None and changes.get("guard_band") == "half of the room":
            thresholds = model_folder.decision_values
            changes = {**changes, "guard_band": (thresholds["pass_threshold"] - thresholds["floor"]) / 2 * 1.001}
        return SnlDetector(model_folder.give_engine(changes, **entry), backend=fixtures.FakeBackend())

    return open_it


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
