"""A decision is what the scores give, belongs to the file that gave them, and joins the manifest without losing another."""

import dataclasses
import hashlib
import math
import threading
from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_calibration.appending import append_decisions
from snl_calibration.calibrate import calibrate
from snl_calibration.options import CalibrationOptions
from snl_runtime import scorer as scorer_module
from snl_runtime.backends import open_backend
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.model.manifest import EngineEntry, update_manifest
from snl_runtime.model.signing import sign_manifest
from snl_runtime.types import Verdict
from tolerances import FLOAT32_REL


def test_decision_holds_the_thresholds_that_the_scores_give(station, tools):
    frames = station.write_good(count=60)
    decision = station.fit_one().decision
    scores = sorted(tools.expected_score(image) for image in frames.values())
    allowed = max(r for r in range(6) if sum(math.comb(60, k) * 0.1**k * 0.9 ** (60 - k) for k in range(r + 1)) <= 0.05)
    assert decision.pass_threshold == pytest.approx(scores[60 - allowed - 1], rel=FLOAT32_REL)
    assert decision.floor == pytest.approx(scores[0] / 2, rel=FLOAT32_REL)
    assert decision.reject_threshold == decision.pass_threshold
    assert station.manifest().decisions == [decision]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_decision_names_file_sample_promise_backend_and_time(backend, station, tools):
    pytest.importorskip(backend)
    frames = station.write_good(count=40)
    before = datetime.now(timezone.utc).replace(microsecond=0)
    decision = station.fit_one(confidence=0.9, backend=backend).decision
    hashes = sorted(tools.sha256_of_pixels(image) for image in frames.values())
    assert decision.product == "disk"
    assert decision.model_sha256 == hashlib.sha256(station.model.read_bytes()).hexdigest()
    assert decision.sample_sha256 == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert (decision.sample_count, decision.max_frr, decision.confidence) == (40, 0.1, 0.9)
    assert "90 % confidence at most 10 %" in decision.bound
    assert before <= datetime.fromisoformat(decision.fitted_at) <= datetime.now(timezone.utc)
    assert decision.expires_at is None
    assert decision.backend == backend


def test_qualified_input_range_holds_every_good_frame(station):
    frames = station.write_good(count=30)
    low, high = station.fit_one().decision.frame_range.mean
    means = [float(image.mean()) for image in frames.values()]
    assert low <= min(means) - 2
    assert max(means) + 2 <= high


def test_review_band_and_expiry_are_applied(station):
    station.write_good(count=30)
    decision = station.fit_one(review_band=0.1, valid_days=30).decision
    assert decision.reject_threshold == pytest.approx(1.1 * decision.pass_threshold)
    assert datetime.fromisoformat(decision.expires_at) - datetime.fromisoformat(decision.fitted_at) == timedelta(days=30)


def test_region_of_interest_is_scored_and_stored(station):
    station.write_good(count=30)
    fit = station.fit_one(roi_xyxy=(0, 0, 48, 48))
    assert fit.decision.roi_xyxy == (0, 0, 48, 48)


def test_later_fits_are_appended(station):
    station.write_good(count=30)
    first = station.fit_one().decision
    second = station.fit_one(review_band=0.2).decision
    assert station.manifest().decisions == [first, second]
    assert station.manifest().decisions_for(first.model_sha256) == {"disk": second}


def test_decisions_appended_while_fitting_are_kept(station, monkeypatch):
    station.write_good(count=30)
    other = station.fit_one().decision
    station.write_model("sighted")
    real = calibrate.__globals__["fit_frame_range"]

    def fit_while_another_run_writes(statistics):
        update_manifest(station.root / "line.json", lambda manifest: manifest.with_decision(other))
        return real(statistics)

    monkeypatch.setitem(calibrate.__globals__, "fit_frame_range", fit_while_another_run_writes)
    mine = station.fit_one().decision
    assert station.manifest().decisions == [other, mine]


def test_decisions_of_runs_at_the_same_time_are_all_kept(station):
    station.write_good(count=30)
    decision = station.fit_one().decision
    threads = [
        threading.Thread(target=append_decisions, args=(station.model, [(dataclasses.replace(decision, product=f"p{i}"), ())])) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert {written.product for written in station.manifest().decisions} == {"disk", *(f"p{i}" for i in range(8))}


def test_signed_manifest_is_fitted_with_the_warning_to_sign_again(station, caplog):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    sign_manifest(station.root / "line.json", pem)
    station.write_good(count=30)
    station.fit_one()
    (warning,) = [record.getMessage() for record in caplog.records if "signature" in record.getMessage()]
    assert warning.startswith("line.json loses its signature")
    assert warning.endswith("sign it again: snl-sign --engine line.onnx --key key.pem")
    assert station.manifest().signature is None


def test_decision_lets_good_parts_pass_and_no_bad_part(station, tools):
    station.write_good(count=60)
    decision = station.fit_one().decision
    with SnlDetector(station.model) as detector:
        good = [detector.detect(tools.good_frame(i, seed=77), color="rgb", product="disk") for i in range(40)]
        bad = [detector.detect(tools.bad_frame(i), color="rgb", product="disk") for i in range(10)]
    assert all(result.verdict is Verdict.PASS for result in good if result.score <= decision.pass_threshold)
    assert sum(result.verdict is Verdict.PASS for result in good) >= 30
    assert {result.verdict for result in bad} == {Verdict.REJECT}


def test_decision_fitted_on_an_engine_belongs_to_the_engine_and_not_to_its_onnx(station, monkeypatch):
    engine = station.root / "line.trt"
    engine.write_bytes(b"an engine that only the fake below can open")
    sha256 = hashlib.sha256(engine.read_bytes()).hexdigest()
    entry = EngineEntry(
        file="line.trt",
        sha256=sha256,
        library="tensorrt",
        library_version="10.7",
        compute_capability=["8.9"],
        precision="fp16",
        built_at="2026-01-02T03:04:05+00:00",
        parity=None,
    )
    update_manifest(station.root / "line.json", lambda manifest: manifest.with_engine(entry))
    monkeypatch.setattr(
        scorer_module, "open_backend", lambda bundle, name, **options: open_backend(bundle.path.with_suffix(".onnx"), name, **options)
    )
    station.write_good(count=30)
    (fit,) = calibrate(engine, station.good, CalibrationOptions(max_frr=0.1))
    assert fit.decision.model_sha256 == sha256
    assert set(station.manifest().decisions_for(sha256)) == {"disk"}
    assert station.manifest().decisions_for(station.manifest().model_sha256) == {}
