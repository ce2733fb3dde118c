"""A decision applies to the file it was fitted on, and, tightened by the guard band, to an engine of it that passed parity; nothing else."""

import dataclasses
import math

import pytest

from snl_runtime.model.manifest import EngineEntry, ParityReport, read_manifest
from snl_runtime.verdict.selection import DecisionBook

ENGINE_SHA256 = "e" * 64


def parity_report(**changes):
    values = {
        "subject_file": "line.trt",
        "subject_sha256": ENGINE_SHA256,
        "reference": "line.onnx",
        "frames_source": "golden crops, flips and noise",
        "frame_count": 64,
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
        "passed_by_reference": 0,
        "refused_by_guard_band": 0,
        "passed": True,
        "failures": [],
        "verified_on": "a device",
        "created_at": "2024-05-01T12:00:00+00:00",
    }
    return ParityReport(**{**values, **changes})


@pytest.fixture
def manifest(model_folder):
    model_folder.write(decisions=[{}, {"product": "cap", "pass_threshold": 9.0, "reject_threshold": 9.5, "floor": 1.0}])
    return read_manifest(model_folder.manifest)


def with_engine(manifest, parity):
    entry = EngineEntry(
        file="line.trt",
        sha256=ENGINE_SHA256,
        library="tensorrt",
        library_version="10.7.0",
        compute_capability=["8.9"],
        precision="fp16",
        built_at="2024-05-01T12:00:00+00:00",
        parity=parity,
    )
    return manifest.with_engine(entry)


def test_the_onnx_uses_its_own_decisions(manifest):
    selection = DecisionBook(manifest, manifest.model_sha256).select("cap")
    assert selection.fault is None
    assert (selection.product, selection.threshold, selection.reject_threshold) == ("cap", 9.0, 9.5)


def test_an_engine_with_passed_parity_uses_the_decisions_of_its_onnx_tightened_by_the_guard_band(manifest):
    book = DecisionBook(with_engine(manifest, parity_report(guard_band=0.25, flips=3)), ENGINE_SHA256)
    selection = book.select("cap")
    assert selection.fault is None
    assert selection.accepted_sha256 == {ENGINE_SHA256}
    assert (selection.threshold, selection.reject_threshold) == pytest.approx((8.75, 9.25), rel=1e-12)
    assert selection.decisions["cap"].floor == pytest.approx(1.25, rel=1e-12)
    assert selection.decisions["cap"].model_sha256 == ENGINE_SHA256


def test_an_engine_that_answers_like_its_onnx_to_the_bit_uses_the_thresholds_as_they_are(manifest):
    selection = DecisionBook(with_engine(manifest, parity_report()), ENGINE_SHA256).select("cap")
    assert (selection.threshold, selection.reject_threshold) == (9.0, 9.5)


def test_product_whose_thresholds_leave_no_room_for_the_guard_band_is_a_fault_also_where_none_is_named(manifest):
    """cap has 1 to 9 and a band of 4.5 needs 9; bottle, with 10 times that room, is judged."""
    wide = manifest.with_decision(dataclasses.replace(manifest.decisions[0], pass_threshold=90.0, reject_threshold=90.0))
    book = DecisionBook(with_engine(wide, parity_report(guard_band=4.5)), ENGINE_SHA256)
    assert set(book.decisions) == {"bottle"}
    assert book.select("bottle").fault is None
    for product in ("cap", None):
        fault = book.select(product).fault
        assert fault.reason_code == "guard_band_too_wide"
        assert "'cap'" in fault.reason


@pytest.mark.parametrize("of_other_file", [["cap"], ["bottle"], ["bottle", "cap"]])
def test_a_part_without_a_name_is_judged_only_where_every_product_has_a_decision_for_the_file(manifest, of_other_file):
    """What was calibrated on the file before says nothing on this one, and the strictest of the others is no rule for such a part."""
    moved = [dataclasses.replace(one, model_sha256="c" * 64) if one.product in of_other_file else one for one in manifest.decisions]
    book = DecisionBook(dataclasses.replace(manifest, decisions=moved), manifest.model_sha256)
    for product in ("bottle", "cap", None):
        fault = book.select(product).fault
        assert (fault and fault.reason_code) == ("no_threshold_for_engine" if product is None or product in of_other_file else None)
    again = dataclasses.replace(manifest, decisions=[*moved, *manifest.decisions])
    assert DecisionBook(again, manifest.model_sha256).select().fault is None


def test_a_decision_fitted_on_the_engine_itself_is_not_tightened(manifest):
    own = dataclasses.replace(manifest.decisions[1], model_sha256=ENGINE_SHA256)
    listed = with_engine(manifest, parity_report(guard_band=4.5)).with_decision(own)
    assert listed.decisions_for(ENGINE_SHA256)["cap"] == own


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_onnx_file_of_another_precision_inherits_nothing(manifest, precision):
    """It has a hash of its own, and its parity report with the checkpoint lends no threshold."""
    report = parity_report(subject_file="line.onnx", subject_sha256="d" * 64, guard_band=None)
    exported = dataclasses.replace(manifest, model_sha256="d" * 64, graph={"precision": precision}, parity=[report])
    assert exported.decisions_for("d" * 64) == {}
    assert exported.products_without_room("d" * 64) == []


@pytest.mark.parametrize(
    "parity",
    [None, parity_report(passed=False), parity_report(more_lenient=1), parity_report(guard_band=None), parity_report(subject_sha256="f" * 64)],
    ids=["none", "failed", "more lenient", "no guard band", "other"],
)
def test_an_engine_without_passed_parity_has_no_threshold(manifest, parity):
    book = DecisionBook(with_engine(manifest, parity), ENGINE_SHA256)
    assert book.decisions == {}
    for product in (None, "cap"):
        selection = book.select(product)
        assert selection.fault.reason_code == "no_threshold_for_engine"
        assert "no threshold for this engine" in selection.fault.reason
        assert math.isnan(selection.threshold)


def test_an_engine_that_was_calibrated_itself_needs_no_parity(manifest):
    own = dataclasses.replace(manifest.decisions[0], model_sha256=ENGINE_SHA256)
    book = DecisionBook(with_engine(manifest, None).with_decision(own), ENGINE_SHA256)
    assert book.select("bottle").fault is None
    assert book.select("cap").fault.reason_code == "no_threshold_for_engine"


def test_the_one_calibrated_product_is_used_and_named_when_none_is_given(model_folder):
    model_folder.write()
    manifest = read_manifest(model_folder.manifest)
    selection = DecisionBook(manifest, manifest.model_sha256).select()
    assert selection.fault is None
    assert selection.product == "bottle"


def test_several_products_and_none_given_is_the_lowest_threshold_and_no_name(manifest):
    selection = DecisionBook(manifest, manifest.model_sha256).select()
    thresholds = [decision.pass_threshold for decision in manifest.decisions]
    assert selection.product is None
    assert selection.threshold == min(thresholds)
    assert set(selection.decisions) == {"bottle", "cap"}


def test_an_unknown_product_names_the_known_ones(manifest):
    fault = DecisionBook(manifest, manifest.model_sha256).select("cable").fault
    assert fault.reason_code == "unknown_product"
    assert "bottle, cap" in fault.reason


def test_without_a_manifest_every_product_is_the_same_fault():
    book = DecisionBook(None, ENGINE_SHA256)
    assert {book.select(product).fault.reason_code for product in (None, "bottle", 7)} == {"no_manifest"}
