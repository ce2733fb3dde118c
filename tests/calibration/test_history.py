"""Every decision stays in the history, and an earlier one comes back as a new entry, atomically and under its author's name."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_calibration.appending import append_decisions
from snl_calibration.cli import main
from snl_calibration.history import describe_history, read_history, revert
from snl_calibration.leniency import decision_before
from snl_calibration.options import CalibrationOptions
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import CalibrationRefusedError, ConfigError, ManifestError, SinkError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import DecisionChange, EngineEntry, ParityReport, TileGrid, read_manifest, update_manifest
from snl_runtime.model.signing import sign_manifest
from snl_runtime.types import Verdict


@pytest.fixture
def fitted(station):
    """Two decisions for the disk: the second is stricter, because its good parts differ less."""
    station.write_good(count=40)
    first = station.fit_one(written_by="Ada").decision
    second = dataclasses.replace(first, pass_threshold=first.pass_threshold * 0.9, reject_threshold=first.reject_threshold * 0.9)
    append_decisions(station.model, [(second, ())])
    return station


def test_a_decision_names_its_author_and_time(station):
    station.write_good(count=40)
    decision = station.fit_one(written_by="Ada").decision
    assert decision.change.written_by == "Ada"
    assert decision.change.written_at >= decision.fitted_at
    assert (decision.change.reverted_to, decision.change.accepted_lenient) == (None, None)


def test_history_lists_every_decision_and_marks_the_current_one(fitted):
    entries = read_history(fitted.model)
    assert [(entry.number, entry.is_current) for entry in entries] == [(1, False), (2, True)]
    lines = describe_history(entries).splitlines()
    assert len(lines) == 3
    assert "Ada" in lines[1]
    assert lines[2].startswith("*")


def test_revert_repeats_the_decision_before_as_a_new_entry(fitted):
    before = fitted.manifest().decisions
    entry = revert(fitted.model, CalibrationOptions(written_by="Bob", max_loosening=0.2))
    after = fitted.manifest().decisions
    assert after[:2] == before, "nothing in a history is removed"
    assert after[2] == entry.decision
    assert dataclasses.replace(after[2], change=None) == dataclasses.replace(before[0], change=None)
    assert (after[2].change.written_by, after[2].change.reverted_to) == ("Bob", 1)


def test_the_line_judges_by_the_decision_that_was_reverted_to(fitted, tools):
    frame = next(
        image
        for image in (tools.good_frame(index) for index in range(40))
        if tools.expected_score(image) > fitted.manifest().decisions[1].pass_threshold
    )
    with SnlDetector(fitted.model) as detector:
        assert detector.detect(frame, color="rgb").verdict is Verdict.REJECT
    revert(fitted.model, CalibrationOptions(max_loosening=0.2))
    with SnlDetector(fitted.model) as detector:
        assert detector.detect(frame, color="rgb").verdict is Verdict.PASS


def test_reverting_to_a_more_lenient_decision_needs_a_reason(fitted):
    with pytest.raises(CalibrationRefusedError, match="pass threshold would rise by 11.1 %.*--accept-lenient"):
        revert(fitted.model, CalibrationOptions())
    assert len(fitted.manifest().decisions) == 2
    entry = revert(fitted.model, CalibrationOptions(accept_lenient="the lamp is the old one again"))
    assert entry.decision.change.accepted_lenient == "the lamp is the old one again"


def test_a_second_revert_goes_back_to_what_was_before_the_first(fitted):
    for _ in range(2):
        revert(fitted.model, CalibrationOptions(max_loosening=0.2))
    assert [decision.change and decision.change.reverted_to for decision in fitted.manifest().decisions] == [None, None, 1, 2]


def test_a_revert_to_a_decision_that_was_kept_still_says_what_it_was_fitted_on(fitted):
    kept = DecisionChange(written_at="2026-01-01T00:00:00+00:00", written_by="Ada", kept_from="1" * 64)
    newest = fitted.manifest().decisions[1]
    append_decisions(fitted.model, [(dataclasses.replace(newest, change=kept), ()), (newest, ())])
    assert revert(fitted.model, CalibrationOptions()).decision.change.kept_from == "1" * 64
    assert "kept from file 111111111111" in describe_history(read_history(fitted.model)).splitlines()[-1]


def test_a_number_that_does_not_exist_is_refused(fitted):
    with pytest.raises(ConfigError, match="numbers 1 to 2"):
        revert(fitted.model, CalibrationOptions(), 7)


def test_the_current_decision_cannot_be_reverted_to(fitted):
    with pytest.raises(ConfigError, match="holds already"):
        revert(fitted.model, CalibrationOptions(), 2)


def test_a_decision_of_another_file_is_refused(fitted):
    other = dataclasses.replace(fitted.manifest().decisions[0], model_sha256="c" * 64)
    append_decisions(fitted.model, [(other, ())])
    with pytest.raises(ConfigError, match="another file than line.onnx"):
        revert(fitted.model, CalibrationOptions(), 3)


@pytest.fixture
def engine(fitted):
    """An engine that inherits, with a decision of its own, after which its model was calibrated on tiles."""
    path = fitted.model.with_suffix(".trt")
    path.write_bytes(b"a plan")
    zeros = dict.fromkeys(("score_max_abs", "score_p99_abs", "map_max_abs", "map_p99_abs", "guard_band", "map_scale", "tolerance"), 0.0)
    counts = dict.fromkeys(("frame_count", "flips", "more_lenient", "passed_by_reference", "refused_by_guard_band"), 0)
    names = dict.fromkeys(("reference", "frames_source", "verified_on", "created_at"), "by hand")
    of = {"subject_file": path.name, "subject_sha256": sha256_file(path), "auroc_drift": None, "passed": True, "failures": []}
    report = ParityReport(**zeros, **counts, **names, **of)
    what = {"library": "tensorrt", "library_version": "10.3.0", "compute_capability": ["8.9"], "precision": "fp16", "built_at": "today"}
    entry = EngineEntry(file=path.name, sha256=sha256_file(path), parity=report, **what)
    update_manifest(fitted.model.with_suffix(".json"), lambda manifest: manifest.with_engine(entry))
    first, second = fitted.manifest().decisions
    own = dataclasses.replace(second, model_sha256=sha256_file(path))
    tiles = TileGrid(tile_px=64, overlap_px=0, map_hw=(64, 64), count=1)
    append_decisions(fitted.model, [(own, ()), (dataclasses.replace(first, tiles=tiles), ())])
    return path


def test_what_an_engine_was_judged_by_is_not_forgotten_where_it_inherits_nothing(engine):
    """Nothing holds for it and the list marks nothing; a new decision is compared with its own all the same, and a revert finds that."""
    entries = read_history(engine)
    assert [(entry.belongs, entry.is_current) for entry in entries] == [(False, False)] * 2 + [(True, False), (False, False)]
    manifest, own = read_manifest(engine.with_suffix(".json")), entries[2].decision
    assert manifest.decisions_for(own.model_sha256) == {}
    assert decision_before(manifest, own.model_sha256, "disk") == own
    assert decision_before(manifest, own.model_sha256, "ring") is None
    assert revert(engine, CalibrationOptions(written_by="Ada")).decision.change.reverted_to == 3
    assert read_history(engine)[-1].is_current


def test_an_expired_decision_is_refused(fitted):
    expired = dataclasses.replace(fitted.manifest().decisions[1], expires_at="2025-01-01T00:00:00+00:00")
    append_decisions(fitted.model, [(expired, ()), (fitted.manifest().decisions[1], ())])
    with pytest.raises(CalibrationRefusedError, match="expired"):
        revert(fitted.model, CalibrationOptions(), 3)


def test_several_products_need_a_name(fitted):
    append_decisions(fitted.model, [(dataclasses.replace(fitted.manifest().decisions[1], product="ring"), ())] * 2)
    with pytest.raises(ConfigError, match="disk, ring.*--product"):
        revert(fitted.model, CalibrationOptions())
    assert revert(fitted.model, CalibrationOptions(product="ring")).decision.product == "ring"


def test_a_decision_whose_normalization_map_is_gone_is_refused(station):
    station.write_good(count=40)
    decision = station.fit_one(fixed_pose=True).decision
    append_decisions(station.model, [(decision, ())])
    station.model.with_name(decision.normalization.file).unlink()
    with pytest.raises(ManifestError, match="normalization map"):
        revert(station.model, CalibrationOptions())


def test_a_signed_manifest_loses_its_signature_with_a_line_that_says_so(fitted, caplog):
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    sign_manifest(fitted.root / "line.json", key)
    revert(fitted.model, CalibrationOptions(max_loosening=0.2))
    assert fitted.manifest().signature is None
    assert "sign it again" in caplog.text


def test_command_lists_and_reverts(fitted, capsys):
    arguments = ["--engine", str(fitted.model)]
    assert main([*arguments, "--list-history"]) == 0
    assert capsys.readouterr().out.count("disk") == 2
    assert main([*arguments, "--revert"]) == 3
    assert "--accept-lenient" in capsys.readouterr().err
    assert main([*arguments, "--revert", "1", "--by", "Bob", "--accept-lenient", "old lamp", "--json"]) == 0
    history = json.loads(capsys.readouterr().out)["history"]
    assert [entry["current"] for entry in history] == [False, False, True]
    assert history[2]["change"]["written_by"] == "Bob"


@pytest.mark.parametrize("arguments", [["--list-history", "--revert"], ["--list-history", "--good", "x"], []])
def test_command_refuses_what_makes_no_sense(fitted, arguments, capsys):
    assert main(["--engine", str(fitted.model), *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_command_refuses_what_is_no_number(fitted, number, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--engine", str(fitted.model), f"--revert={number}"])
    assert exit_info.value.code == 2
    assert "--list-history" in capsys.readouterr().err


def test_a_revert_that_cannot_be_written_changes_nothing(fitted, read_only):
    before = (fitted.root / "line.json").read_bytes()
    read_only(fitted.root)
    with pytest.raises(SinkError):
        revert(fitted.model, CalibrationOptions(max_loosening=0.2))
    assert (fitted.root / "line.json").read_bytes() == before
