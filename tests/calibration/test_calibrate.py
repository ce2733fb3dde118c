"""A decision is written only for independent good parts, enough of them, on a model that is shown to see defects."""

import dataclasses
import hashlib
import math
import threading
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_calibration.calibrate import CalibrationOptions, append_decision, calibrate
from snl_calibration.sample import ProductSample
from snl_calibration.synthetic_defects import DEFECT_KINDS
from snl_runtime import scorer as scorer_module
from snl_runtime.backends import open_backend
from snl_runtime.detector import SnlDetector
from snl_runtime.errors import ConfigError, DataError, ManifestError
from snl_runtime.manifest import EngineEntry, write_manifest
from snl_runtime.signing import sign_manifest
from snl_runtime.types import Verdict

LOOSE = CalibrationOptions(max_frr=0.1)  # 29 good parts carry it


def _options(**changes):
    return dataclasses.replace(LOOSE, **changes)


def _one(station, good=None, **changes):
    fits = calibrate(station.model, good or station.good, _options(**changes))
    assert len(fits) == 1
    return fits[0]


def test_decision_holds_the_thresholds_that_the_scores_give(station, tools):
    frames = station.write_good(count=60)
    decision = _one(station).decision
    scores = sorted(tools.expected_score(image) for image in frames.values())
    allowed = max(r for r in range(6) if sum(math.comb(60, k) * 0.1**k * 0.9 ** (60 - k) for k in range(r + 1)) <= 0.05)
    assert decision.pass_threshold == pytest.approx(scores[60 - allowed - 1], rel=1e-6)
    assert decision.floor == pytest.approx(scores[0] / 2, rel=1e-6)
    assert decision.reject_threshold == decision.pass_threshold
    assert station.manifest().decisions == [decision]


def test_decision_names_file_sample_promise_and_time(station, tools):
    frames = station.write_good(count=40)
    before = datetime.now(timezone.utc).replace(microsecond=0)
    decision = _one(station, confidence=0.9).decision
    hashes = sorted(tools.sha256_of_pixels(image) for image in frames.values())
    assert decision.product == "disk"
    assert decision.model_sha256 == hashlib.sha256(station.model.read_bytes()).hexdigest()
    assert decision.sample_sha256 == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert (decision.sample_count, decision.max_frr, decision.confidence) == (40, 0.1, 0.9)
    assert "90 % confidence at most 10 %" in decision.bound
    assert before <= datetime.fromisoformat(decision.fitted_at) <= datetime.now(timezone.utc)
    assert decision.expires_at is None
    assert decision.backend == "onnxruntime"


def test_commissioned_range_holds_every_good_frame(station):
    frames = station.write_good(count=30)
    low, high = _one(station).decision.frame_range.mean
    means = [float(image.mean()) for image in frames.values()]
    assert low <= min(means) - 2
    assert max(means) + 2 <= high


def test_review_band_and_expiry_are_applied(station):
    station.write_good(count=30)
    decision = _one(station, review_band=0.1, valid_days=30).decision
    assert decision.reject_threshold == pytest.approx(1.1 * decision.pass_threshold)
    assert datetime.fromisoformat(decision.expires_at) - datetime.fromisoformat(decision.fitted_at) == timedelta(days=30)


def test_region_of_interest_is_scored_and_stored(station):
    station.write_good(count=30)
    fit = _one(station, roi_xyxy=(0, 0, 48, 48))
    assert fit.decision.roi_xyxy == (0, 0, 48, 48)


def test_later_fits_are_appended(station):
    station.write_good(count=30)
    first = _one(station).decision
    second = _one(station, review_band=0.2).decision
    assert station.manifest().decisions == [first, second]
    assert station.manifest().decisions_for(first.model_sha256) == {"disk": second}


def test_decisions_appended_while_fitting_are_kept(station, monkeypatch):
    station.write_good(count=30)
    other = _one(station).decision
    station.write_model("sighted")
    real = calibrate.__globals__["fit_frame_range"]

    def fit_while_another_run_writes(statistics):
        write_manifest(station.root / "line.json", station.manifest().with_decision(other))
        return real(statistics)

    monkeypatch.setitem(calibrate.__globals__, "fit_frame_range", fit_while_another_run_writes)
    mine = _one(station).decision
    assert station.manifest().decisions == [other, mine]


# --- evidence of detection -----------------------------------------------------------------------------------------------------------------------


def test_synthetic_defects_of_every_kind_are_counted(station):
    station.write_good(count=30)
    evidence = _one(station, defects_per_kind=20).decision.evidence
    assert evidence.source == "synthetic defects"
    assert set(evidence.counts) == set(DEFECT_KINDS)
    assert all(total == 20 for _, total in evidence.counts.values())
    assert evidence.detection_rate == sum(detected for detected, _ in evidence.counts.values()) / (20 * len(DEFECT_KINDS))
    assert evidence.detection_rate > 0.9


def test_bad_images_are_counted_per_sub_folder(station, tools):
    station.write_good(count=30)
    for index in range(4):
        tools.save(station.root / "bad" / "hole" / f"{index}.png", tools.bad_frame(index))
        tools.save(station.root / "bad" / "missed" / f"{index}.png", tools.good_frame(index, seed=5))
        tools.save(station.root / "bad" / "good" / f"{index}.png", tools.good_frame(index, seed=6))
    evidence = _one(station, bad=station.root / "bad", min_detection=0.3).decision.evidence
    assert evidence.source == "bad images"
    assert evidence.counts["hole"] == (4, 4)
    assert evidence.counts["missed"][1] == 4
    assert set(evidence.counts) == {"hole", "missed"}


def test_bad_folder_of_the_product_is_preferred(station, tools):
    station.write_good(count=30)
    for index in range(3):
        tools.save(station.root / "bad" / "disk" / "hole" / f"{index}.png", tools.bad_frame(index))
    assert _one(station, bad=station.root / "bad").decision.evidence.counts == {"hole": (3, 3)}


@pytest.mark.parametrize("kind", ["constant", "random"])
@pytest.mark.parametrize("max_frr", [0.1, 0.05])
def test_blind_model_is_refused(station, kind, max_frr):
    station.write_model(kind)
    station.write_good(count=70)
    before = (station.root / "line.json").read_bytes()
    fit = _one(station, max_frr=max_frr)
    assert fit.decision is None
    assert "of the synthetic defects score above the pass threshold" in fit.refusal
    assert (station.root / "line.json").read_bytes() == before


def test_random_model_is_refused_also_when_little_detection_is_asked_for(station):
    station.write_model("random")
    station.write_good(count=60)
    fit = _one(station, max_frr=0.2, min_detection=0.001)
    assert fit.decision is None


def test_one_bad_image_cannot_show_that_the_model_sees(station, tools):
    station.write_good(count=30)
    tools.save(station.root / "bad" / "hole" / "0.png", tools.bad_frame(0))
    fit = _one(station, bad=station.root / "bad")
    assert "what a blind model may reach" in fit.refusal


def test_defects_that_leave_the_commissioned_range_are_told(station, tools):
    station.write_good(count=30)
    for index in range(4):
        picture = tools.bad_frame(index, level=180)
        picture[: 16 if index else 0] = 255  # a third of the frame
        tools.save(station.root / "bad" / "hole" / f"{index}.png", picture)
    fit = _one(station, bad=station.root / "bad")
    assert fit.decision.evidence.counts == {"hole": (4, 4)}
    assert "3 of 4 bad images change the frame so much" in fit.warnings[0]
    assert "(1.png, 2.png, 3.png)" in fit.warnings[0]


def test_bad_image_with_the_pixels_of_a_good_one_is_refused(station, tools):
    frames = station.write_good(count=30)
    tools.save(station.root / "bad" / "hole" / "x.png", frames["003.png"])
    assert "x.png has the pixels of disk/003.png" in _one(station, bad=station.root / "bad").refusal


# --- the sample ----------------------------------------------------------------------------------------------------------------------------------


def _too_few(station, tools):
    station.write_good(count=28)
    return "28 good parts cannot carry a false-reject rate of 10 % at 95 % confidence: 29 are needed"


def _trained_on(station, tools):
    frames = station.write_good(count=40)
    station.write_model("sighted", training=[tools.sha256_of_pixels(frames[name]) for name in ("002.png", "007.png")])
    return "2 of 40 good images were trained on: disk/002.png, disk/007.png"


def _copies(station, tools):
    frames = station.write_good(count=40)
    tools.save(station.good / "disk" / "copy.bmp", frames["005.png"])
    return "1 good images appear more than once: disk/copy.bmp = disk/005.png"


def _bad_among_good(station, tools):
    station.write_good(count=40)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    return "1 good images score beyond median + 6 MAD"


def _flat(station, tools):
    station.write_good(count=40)
    tools.save(station.good / "disk" / "500.png", np.full((48, 48, 3), 90, dtype=np.uint8))
    return "1 good images show nothing (deviation below 2 grey levels): disk/500.png"


@pytest.mark.parametrize("prepare", [_too_few, _trained_on, _copies, _bad_among_good, _flat], ids=lambda prepare: prepare.__name__[1:])
def test_sample_is_refused_and_nothing_is_written(station, tools, prepare):
    message = prepare(station, tools)
    before = {path.name: path.read_bytes() for path in station.root.iterdir() if path.is_file()}
    fit = _one(station)
    assert fit.decision is None
    assert message in fit.refusal
    assert {path.name: path.read_bytes() for path in station.root.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["disk/500.png", "500.png"])
def test_outlier_accepted_by_name_is_fitted_and_recorded(station, tools, name):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    refusal = _one(station).refusal
    assert "disk/500.png (" in refusal
    assert "--accept-outlier disk/500.png" in refusal
    decision = _one(station, accept_outliers=(name,)).decision
    assert decision.accepted_outliers == ["disk/500.png"]


def test_accepting_one_outlier_does_not_accept_another(station, tools):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    tools.save(station.good / "disk" / "501.png", tools.bad_frame(1))
    refusal = _one(station, accept_outliers=("500.png",)).refusal
    assert "1 good images score beyond" in refusal
    assert "501.png" in refusal


def test_every_product_folder_is_fitted_by_itself_and_a_refused_one_blocks_no_other(station):
    station.write_good("disk", count=30)
    station.write_good("ring", count=10, seed=3)
    fits = {fit.product: fit for fit in calibrate(station.model, station.good, LOOSE)}
    assert fits["disk"].decision is not None
    assert "10 good parts cannot carry" in fits["ring"].refusal
    assert [decision.product for decision in station.manifest().decisions] == ["disk"]


def test_product_picks_one_folder(station):
    station.write_good("disk", count=30)
    station.write_good("ring", count=10, seed=3)
    assert _one(station, product="disk").product == "disk"


def test_folder_of_images_takes_its_name_as_the_product(station):
    station.write_good("disk", count=30)
    assert _one(station, station.good / "disk").decision.product == "disk"


def test_folder_with_another_name_asks_for_the_product(station):
    station.write_good(folder=station.root / "monday", count=30)
    with pytest.raises(ConfigError, match="say --product NAME"):
        calibrate(station.model, station.root / "monday", LOOSE)
    assert _one(station, station.root / "monday", product="ring").decision.product == "ring"


def test_product_that_was_not_trained_on_is_fitted_with_a_warning(station):
    station.write_good(folder=station.root / "monday", count=30)
    fit = _one(station, station.root / "monday", product="cube")
    assert fit.decision.product == "cube"
    assert "product 'cube' was not trained on" in fit.warnings[0]


def test_folder_that_is_no_product_is_left_out_with_a_warning(station):
    station.write_good("disk", count=30)
    station.write_good("scrap", count=5, seed=2)
    fit = _one(station)
    assert fit.product == "disk"
    assert "not fitted: scrap" in fit.warnings[0]


# --- held-out images -----------------------------------------------------------------------------------------------------------------------------


def _hold_out(station, tools, count=30, **changes):
    frames = station.write_good(folder=station.root / "data" / "disk" / "train" / "good", count=count)
    entries = [
        {"path": f"disk/train/good/{name}", "sha256": tools.sha256_of_pixels(image), "class_name": "disk"} | changes for name, image in frames.items()
    ]
    station.write_model("sighted", held_out=entries)
    return entries


def test_held_out_images_of_the_manifest_are_the_sample(station, tools):
    _hold_out(station, tools)
    tools.save(station.root / "data" / "disk" / "train" / "good" / "trained.png", tools.bad_frame(0))
    fit = _one(station, station.root / "data", held_out=True)
    assert fit.decision.sample_count == 30
    assert set(fit.scores) == {f"disk/train/good/{index:03d}.png" for index in range(30)}


def test_held_out_copy_of_a_training_image_is_left_out_with_a_warning(station, tools):
    entries = _hold_out(station, tools, count=31)
    station.write_model("sighted", held_out=entries, training=[entries[4]["sha256"]])
    fit = _one(station, station.root / "data", held_out=True)
    assert fit.decision.sample_count == 30
    assert "disk/train/good/004.png" in fit.warnings[0]


def test_held_out_image_with_other_pixels_is_named(station, tools):
    _hold_out(station, tools)
    tools.save(station.root / "data" / "disk" / "train" / "good" / "003.png", tools.bad_frame(0))
    with pytest.raises(DataError, match=r"1 held-out images have other pixels than at training: disk/train/good/003\.png"):
        calibrate(station.model, station.root / "data", _options(held_out=True))


@pytest.mark.parametrize(
    ("path", "message"), [("disk/train/good/gone.png", "is missing; with --held-out"), ("../line.onnx", "leaves"), ("/etc/hostname", "leaves")]
)
def test_held_out_path_that_cannot_be_used_is_named(station, tools, path, message):
    _hold_out(station, tools, path=path)
    with pytest.raises(DataError, match=message):
        calibrate(station.model, station.root / "data", _options(held_out=True))


def test_model_without_held_out_images_says_how_to_get_some(station):
    station.write_good(count=30)
    with pytest.raises(ConfigError, match="train with --hold-out"):
        calibrate(station.model, station.good, _options(held_out=True))


# --- user errors ---------------------------------------------------------------------------------------------------------------------------------


def test_unreadable_image_is_named(station):
    station.write_good(count=30)
    broken = station.good / "disk" / "004.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"004\.png"):
        calibrate(station.model, station.good, LOOSE)


def test_region_outside_the_frame_names_the_file(station):
    station.write_good(count=30)
    with pytest.raises(DataError, match=r"000\.png"):
        calibrate(station.model, station.good, _options(roi_xyxy=(0, 0, 64, 48)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"product": "cube"}, ConfigError, "no folder 'cube'"),
        ({"accept_outliers": ("nobody.png",)}, ConfigError, "nobody.png: no such good image"),
        ({"bad": "nowhere"}, DataError, "is not a folder"),
    ],
)
def test_wrong_option_is_a_user_error(station, change, error, message):
    station.write_good(count=30)
    if "bad" in change:
        change = {"bad": station.root / change["bad"]}
    with pytest.raises(error, match=message):
        calibrate(station.model, station.good, _options(**change))


def test_missing_and_empty_folders_are_user_errors(station):
    with pytest.raises(DataError, match="is not a folder"):
        calibrate(station.model, station.good, LOOSE)
    (station.good / "disk").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image"):
        calibrate(station.model, station.good, LOOSE)


def test_model_without_manifest_is_refused(station):
    station.write_good(count=30)
    (station.root / "line.json").unlink()
    (station.root / "line.golden.npz").unlink()
    with pytest.raises(ManifestError, match="export it"):
        calibrate(station.model, station.good, LOOSE)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"max_frr": 0.0}, "--max-frr"),
        ({"max_frr": math.nan}, "--max-frr"),
        ({"confidence": 1.0}, "--confidence"),
        ({"min_detection": 0.0}, "--min-detection"),
        ({"min_detection": 1.1}, "--min-detection"),
        ({"review_band": -0.1}, "--review-band"),
        ({"review_band": math.inf}, "--review-band"),
        ({"valid_days": 0}, "--valid-days"),
        ({"defects_per_kind": 0}, "--defects-per-kind"),
        ({"roi_xyxy": (5, 5, 5, 9)}, "--roi"),
        ({"roi_xyxy": (-1, 0, 5, 9)}, "--roi"),
    ],
)
def test_option_out_of_range_is_a_user_error(change, flag):
    with pytest.raises(ConfigError, match=f"^{flag} must be "):
        _options(**change)


# --- the manifest --------------------------------------------------------------------------------------------------------------------------------


def test_decisions_of_runs_at_the_same_time_are_all_kept(station):
    station.write_good(count=30)
    decision = _one(station).decision
    sample = ProductSample(product="disk", parts=())
    threads = [
        threading.Thread(target=append_decision, args=(station.model, dataclasses.replace(decision, product=f"p{i}"), sample)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert {written.product for written in station.manifest().decisions} == {"disk", *(f"p{i}" for i in range(8))}


def test_signed_manifest_is_fitted_with_the_warning_to_sign_again(station):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    sign_manifest(station.root / "line.json", pem)
    station.write_good(count=30)
    fit = _one(station)
    assert any("sign it again" in warning for warning in fit.warnings)
    assert station.manifest().signature is None


def test_decision_lets_good_parts_pass_and_no_bad_part(station, tools):
    station.write_good(count=60)
    decision = _one(station).decision
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
    write_manifest(station.root / "line.json", station.manifest().with_engine(entry))
    monkeypatch.setattr(
        scorer_module, "open_backend", lambda bundle, name, **options: open_backend(bundle.path.with_suffix(".onnx"), name, **options)
    )
    station.write_good(count=30)
    (fit,) = calibrate(engine, station.good, LOOSE)
    assert fit.decision.model_sha256 == sha256
    assert set(station.manifest().decisions_for(sha256)) == {"disk"}
    assert station.manifest().decisions_for(station.manifest().model_sha256) == {}
