"""``--fixed-pose`` fits a normalization map on the good parts, judges each without itself, and writes it beside the manifest that names it."""

import json
import re

import numpy as np
import pytest

from snl_calibration.appending import append_decisions
from snl_calibration.calibrate import calibrate
from snl_calibration.cli import main
from snl_calibration.normalization import MIN_NORMALIZATION_SAMPLE, NormalizationFit, note_on_normalization
from snl_calibration.options import CalibrationOptions
from snl_calibration.thresholds import fit_threshold
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import SinkError
from snl_runtime.files import sha256_file
from snl_runtime.model.normalization import NormalizationMap, fit_normalization
from snl_runtime.model.normalization_files import normalization_of, open_normalizations
from snl_runtime.types import Verdict
from tolerances import NORMALIZATION_REL, TINY_MODEL_REL

SIDE, BASE = 48, 0.02
PRINT = np.s_[14:20, 20:32]
COUNT = 32


def printed(tools, index, seed=0):
    """A good part whose print, always in the same place, differs by 20 to 40 levels from the template."""
    rng = np.random.default_rng([seed, index, 5])
    image = tools.good_frame(index, seed)
    image[PRINT] += rng.integers(20, 41, (6, 12, 3), dtype=np.uint8)
    return image


def scratched(tools, index):
    """A printed part with a scratch of 25 levels elsewhere: fainter than the print."""
    image = printed(tools, index, seed=7)
    image[30:33, 16:30] += np.uint8(25)
    return image


def map_of(tools, image):
    """What the sighted graph answers."""
    return np.abs(image.astype(np.float32) - tools.template()).max(axis=2) / np.float32(255) + np.float32(BASE)


@pytest.fixture
def parts(station, tools):
    """Good and scratched parts on disk, their frames by name."""
    good = {f"{index:03d}.png": printed(tools, index) for index in range(COUNT)}
    bad = {f"{index:03d}.png": scratched(tools, index) for index in range(20)}
    for name, image in good.items():
        tools.save(station.good / "disk" / name, image)
    for name, image in bad.items():
        tools.save(station.root / "bad" / "scratch" / name, image)
    return good, bad


def test_scratch_below_the_print_is_found_with_the_normalization_map_only(station, tools, parts):
    good, bad = parts
    plain = station.fit_one(bad=station.root / "bad")
    assert plain.decision is None
    assert "0/20" in plain.refusal
    fit = station.fit_one(bad=station.root / "bad", fixed_pose=True)
    assert fit.refusal is None
    assert fit.evidence.counts == {"scratch": (20, 20)}
    assert fit.normalization.raw_detected == 0
    assert fit.warnings == []
    with SnlDetector(station.model) as detector:
        results = [detector.detect(image, color="rgb") for image in good.values()]
        assert all(result.verdict is Verdict.PASS for result in results if result.score <= fit.decision.pass_threshold)
        assert sum(result.verdict is Verdict.PASS for result in results) >= COUNT - 1
        assert all(detector.detect(image, color="rgb").verdict is Verdict.REJECT for image in bad.values())


def test_threshold_and_floor_come_from_scores_under_the_normalization_of_all_other_parts(station, tools, parts):
    good, _ = parts
    maps = np.stack([map_of(tools, image) for image in good.values()])
    expected = []
    for index in range(COUNT):
        others = np.delete(maps, index, axis=0)
        expected.append(float((maps[index] * fit_normalization(others).values).max()))
    fit = station.fit_one(fixed_pose=True)
    assert list(fit.scores.values()) == pytest.approx(expected, rel=TINY_MODEL_REL)
    assert fit.decision.pass_threshold == pytest.approx(max(expected), rel=TINY_MODEL_REL)
    assert fit.decision.floor == pytest.approx(min(expected) / 2, rel=TINY_MODEL_REL)
    assert fit.decision.bound.endswith("each part was scored under the normalization map of all others")
    common = [float((anomaly_map * fit_normalization(maps).values).max()) for anomaly_map in maps]
    assert np.mean(common) < np.mean(expected)  # what leaving one out is for


def test_normalization_map_is_written_beside_the_manifest_and_named_by_the_decision(station, tools, parts):
    good, _ = parts
    decision = station.fit_one(fixed_pose=True).decision
    path = station.root / decision.normalization.file
    assert re.fullmatch(r"line\.normalization\.disk\.[0-9a-f]{12}\.npz", path.name)
    assert sha256_file(path) == decision.normalization.sha256
    assert station.manifest().decisions == [decision]
    opened = normalization_of(decision, open_normalizations(station.model, [decision], (SIDE, SIDE)))
    maps = np.stack([map_of(tools, image) for image in good.values()])
    assert np.allclose(opened.values, fit_normalization(maps).values, rtol=NORMALIZATION_REL)


def test_later_fit_leaves_the_normalization_map_of_an_earlier_one(station, tools, parts):
    first = station.fit_one(fixed_pose=True).decision
    tools.save(station.good / "disk" / "zzz.png", printed(tools, 999))
    second = station.fit_one(fixed_pose=True).decision
    assert first.normalization != second.normalization
    assert {path.name for path in station.root.glob("*.normalization.*")} == {first.normalization.file, second.normalization.file}
    assert station.fit_one(accept_lenient="parts no longer lie in a fixture").decision.normalization is None  # judged by raw maps again
    with SnlDetector(station.model) as detector:
        assert detector.detect(printed(tools, 0), color="rgb").score == pytest.approx(map_of(tools, printed(tools, 0)).max())


def test_no_manifest_names_a_normalization_map_that_could_not_be_written(station, parts, monkeypatch):
    def fail(*_):
        raise SinkError("disk full")

    monkeypatch.setattr("snl_calibration.appending.write_map_file", fail)
    with pytest.raises(SinkError):
        station.fit_one(fixed_pose=True)
    assert station.manifest().decisions == []


def test_normalization_map_is_on_disk_before_the_manifest_names_it(station, parts, monkeypatch):
    seen = []

    def write(path, change):
        seen.append([(station.root / each.normalization.file).is_file() for each in change(station.manifest()).decisions])

    monkeypatch.setattr("snl_calibration.appending.update_manifest", write)
    station.fit_one(fixed_pose=True)
    assert seen == [[True]]


@pytest.mark.parametrize("count", [5, MIN_NORMALIZATION_SAMPLE - 1])
def test_sample_too_small_for_a_normalization_map_is_refused(station, tools, count):
    for index in range(count):
        tools.save(station.good / "disk" / f"{index}.png", printed(tools, index))
    fit = station.fit_one(fixed_pose=True, max_frr=0.5)
    assert fit.decision is None
    assert fit.refusal.startswith(f"{count} good parts are too few for the normalization map of --fixed-pose: 20 are needed")
    assert list(station.root.glob("*.normalization.*")) == []


def test_refused_fit_writes_no_normalization_map(station, parts):
    assert station.fit_one(fixed_pose=True, bad=station.root / "bad", min_detection=1.0, max_frr=0.1, confidence=0.999).decision is None
    assert list(station.root.glob("*.normalization.*")) == []


def test_bad_part_among_the_good_is_found_by_its_normalized_score(station, tools, parts):
    """Its raw score is no outlier: the print of every part scores higher."""
    image = printed(tools, 500)
    image[30:36, 16:30] += np.uint8(38)
    tools.save(station.good / "disk" / "bad_one.png", image)
    assert map_of(tools, image)[30:36].max() < map_of(tools, image).max()
    refused = station.fit_one(fixed_pose=True)
    assert "bad_one.png" in refused.refusal
    assert set(refused.outliers) == {"disk/bad_one.png"}
    accepted = station.fit_one(fixed_pose=True, accept_outliers=("bad_one.png",))
    assert accepted.decision.accepted_outliers == ["disk/bad_one.png"]


def test_recalibration_mends_a_model_whose_normalization_map_is_lost(station, tools, parts):
    decision = station.fit_one(fixed_pose=True).decision
    (station.root / decision.normalization.file).unlink()
    assert station.fit_one(fixed_pose=True).decision.normalization == decision.normalization
    with SnlDetector(station.model) as detector:
        assert detector.products == ("disk",)


def normalization_fit(raw_scores, raw_peaks):
    scores = {f"{index:02d}": score for index, score in enumerate(raw_scores)}
    normalization = NormalizationMap(np.ones((2, 2), np.float32))
    return NormalizationFit(
        normalization=normalization,
        factors=normalization,
        scores=scores,
        raw_fit=fit_threshold(raw_scores, 0.1, 0.95),
        raw_scores=scores,
        raw_peaks=raw_peaks,
    )


@pytest.mark.parametrize(
    ("detected", "step", "helps"),
    [(4, 1 / 50, True), (3, 1 / 200, True), (3, 1 / 100, True), (3, 1 / 50, False), (2, 1 / 200, False)],
)
def test_note_says_when_the_normalization_map_does_not_help(detected, step, helps):
    """Without it 3 of 4 are detected, and the threshold of 1.29 is 1.13 times the median of 1.145."""
    found = normalization_fit([1 + index / 100 for index in range(30)], [1.0, 1.5, 1.6, 1.7])
    found.scores = {str(index): 1 + index * step for index in range(30)}
    note = note_on_normalization(found, fit_threshold(list(found.scores.values()), 0.1, 0.95), detected, "bad images")
    assert (note is None) is helps
    if note is not None:
        assert f"{detected} of 4 bad images score above the pass threshold, 3 without the normalization map" in note
        assert "1.13 times without; the parts may not lie in the same pose" in note


def test_parts_in_any_pose_get_the_note(station, tools):
    """The print lies elsewhere on every part, so its place says nothing."""
    rng = np.random.default_rng(3)
    for index in range(COUNT):
        image = tools.good_frame(index)
        row, column = rng.integers(10, 32, 2)
        image[row : row + 6, column : column + 6] += np.uint8(30) + rng.integers(0, 10, dtype=np.uint8)
        tools.save(station.good / "disk" / f"{index}.png", image)
    fit = station.fit_one(fixed_pose=True, min_detection=0.01)
    assert any("the normalization map does not help" in warning for warning in fit.warnings)


def test_appended_decision_without_a_normalization_map_writes_none(station, parts):
    decision = station.fit_one().decision
    append_decisions(station.model, [(decision, ())])
    assert list(station.root.glob("*.normalization.*")) == []


def test_command_prints_reports_and_names_the_normalization_map(station, parts, capsys):
    page = station.root / "page.html"
    arguments = ["--engine", station.model, "--good", station.good / "disk", "--max-frr", "0.1", "--bad", station.root / "bad", "--fixed-pose"]
    assert main([str(argument) for argument in [*arguments, "--report", page]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"normalization map +0\.\d+ to 1\.\d+ +\(pass threshold without it 0\.\d+\)", out)
    assert "without normalization map  0.0 % detected" in out
    text = page.read_text()
    assert "<h3>Normalization map" in text
    assert "dark: good parts score high there" in text
    assert "<td>20 of 20</td><td>0 of 20</td>" in text
    assert main([str(argument) for argument in [*arguments, "--json"]]) == 0
    (product,) = json.loads(capsys.readouterr().out)["products"]
    assert product["decision"]["normalization"]["file"].startswith("line.normalization.disk.")
    assert product["normalization"]["detected_without"] == 0


def test_product_that_is_not_fixed_pose_is_calibrated_as_before(station, parts):
    (fit,) = calibrate(station.model, station.good / "disk", CalibrationOptions(max_frr=0.1))
    assert (fit.normalization, fit.decision.normalization) == (None, None)
