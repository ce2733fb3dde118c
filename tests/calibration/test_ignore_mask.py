"""``--ignore-mask`` is part of the decision: threshold, bound and evidence are computed under it, its share is stated, and it is never silent."""

import json

import numpy as np
import pytest

from snl_calibration.cli import main
from snl_calibration.history import revert
from snl_calibration.options import CalibrationOptions
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import CalibrationRefusedError, ConfigError, DataError, ManifestError
from snl_runtime.model.normalization_files import normalization_of, open_normalizations
from snl_runtime.types import Verdict
from tolerances import TINY_MODEL_REL

SIDE = 48
LABEL = np.s_[32:44, 16:32]
"""Where good parts carry a label that is never twice the same: 12 x 16 of 48 x 48 pixels, 1 / 12."""


def labeled(tools, index, seed=0):
    image = tools.good_frame(index, seed)
    image[LABEL] = np.random.default_rng([seed, index, 3]).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return image


def mask_file(station, tools, box=LABEL, shape=(SIDE, SIDE), name="mask.png"):
    image = np.zeros((*shape, 3), np.uint8)
    image[box] = 255
    tools.save(station.root / name, image)
    return station.root / name


@pytest.fixture
def parts(station, tools):
    frames = {f"{index:03d}.png": labeled(tools, index) for index in range(40)}
    for name, image in frames.items():
        tools.save(station.good / "disk" / name, image)
    return frames


def judged_score(tools, image):
    """By hand: the sighted graph's map without the label's pixels."""
    off = np.abs(image.astype(np.float32) - tools.template()).max(axis=2) / np.float32(255) + np.float32(0.02)
    off[LABEL] = 0
    return float(off.max())


def test_threshold_floor_and_evidence_are_those_of_the_judged_cells(station, tools, parts):
    assert station.fit_one().decision is None  # no threshold over the labels finds anything
    fit = station.fit_one(ignore_mask=mask_file(station, tools))
    expected = [judged_score(tools, image) for image in parts.values()]
    assert list(fit.scores.values()) == pytest.approx(expected, rel=TINY_MODEL_REL)
    assert fit.decision.pass_threshold == pytest.approx(max(expected), rel=TINY_MODEL_REL)
    assert fit.decision.floor == pytest.approx(min(expected) / 2, rel=TINY_MODEL_REL)
    assert fit.decision.ignore_mask.ignored_share == pytest.approx(1 / 12)
    assert fit.decision.reference.scores == pytest.approx(sorted(expected), rel=TINY_MODEL_REL)
    opened = normalization_of(fit.decision, open_normalizations(station.model, [fit.decision], (SIDE, SIDE)))
    assert opened.ignored[LABEL].all()
    assert opened.ignored.sum() == 12 * 16


def test_line_judges_as_the_calibration_did(station, tools, parts):
    fit = station.fit_one(ignore_mask=mask_file(station, tools))
    hole = labeled(tools, 77)
    hole[20:26, 18:24] = 180
    with SnlDetector(station.model) as detector:
        results = [detector.detect(image, color="rgb") for image in parts.values()]
        assert [result.score for result in results] == list(fit.scores.values())
        assert all(result.verdict is Verdict.PASS for result in results)
        assert detector.detect(hole, color="rgb").verdict is Verdict.REJECT


def test_defects_under_the_mask_count_as_not_detected(station, tools):
    """A line that cannot see a sixth of the part must not be told that it finds everything."""
    station.write_good(count=60)
    everywhere = station.fit_one()
    hidden = station.fit_one(ignore_mask=mask_file(station, tools, np.s_[14:34, 14:34]), accept_lenient="a label")
    assert hidden.decision.ignore_mask.ignored_share == pytest.approx(400 / 2304)
    assert hidden.evidence.detection_rate < everywhere.evidence.detection_rate


def test_fixed_pose_and_mask_go_together(station, tools, parts):
    fit = station.fit_one(ignore_mask=mask_file(station, tools), fixed_pose=True)
    assert fit.decision.normalization is not None
    with SnlDetector(station.model) as detector:
        result = detector.detect(parts["000.png"], color="rgb")
        assert not result.anomaly_map[LABEL].any()
        expected = fit.normalization.normalization.values * judged_map(tools, parts["000.png"])
        assert result.score == pytest.approx(expected.max(), rel=TINY_MODEL_REL)


def judged_map(tools, image):
    off = np.abs(image.astype(np.float32) - tools.template()).max(axis=2) / np.float32(255) + np.float32(0.02)
    off[LABEL] = 0
    return off


def test_mask_lies_at_pixels_of_the_frame_not_of_the_roi(station, tools, parts):
    roi = (8, 24, 40, 48)  # 32 x 24 pixels on 48 x 48 cells: a pixel is 1.5 x 2 cells
    fit = station.fit_one(ignore_mask=mask_file(station, tools), roi_xyxy=roi, max_ignored=0.5, min_detection=0.01)
    assert fit.refusal is None or "blind" in fit.refusal or "only" in fit.refusal
    assert fit.ignore_mask.ignored_share == pytest.approx(12 * 16 / (32 * 24))
    assert fit.ignore_mask.values[16:40, 12:36].sum() == 0


@pytest.mark.parametrize(
    ("box", "shape", "message"),
    [
        (np.s_[:], (SIDE, SIDE), "ignores everything of the inspected part; white is ignored"),
        (np.s_[0:0], (SIDE, SIDE), "ignores no whole cell"),
        (np.s_[0:30], (SIDE, SIDE), "62.5 % of the inspected part, more than --max-ignored 0.25; white is ignored: if it is not inverted"),
        (np.s_[0:9], (SIDE, SIDE + 2), "has 50x48 pixels, the frames have 48x48"),
    ],
)
def test_mask_that_hides_too_much_nothing_or_has_another_size_is_refused(station, tools, box, shape, message):
    station.write_good(count=40)
    fit = station.fit_one(ignore_mask=mask_file(station, tools, box, shape))
    assert message in fit.refusal
    assert station.manifest().decisions == []
    assert not list(station.root.glob("*.ignored.*"))


def test_larger_share_is_allowed_by_name_only(station, tools):
    station.write_good(count=40)
    mask = mask_file(station, tools, np.s_[0:14])
    assert "29.2 %" in station.fit_one(ignore_mask=mask).refusal
    assert station.fit_one(ignore_mask=mask, max_ignored=0.3).ignore_mask.ignored_share == pytest.approx(14 / 48)


def test_frames_of_several_sizes_take_no_mask(station, tools):
    station.write_good(count=40)
    tools.save(station.good / "disk" / "wide.png", np.pad(tools.good_frame(99), ((0, 0), (0, 2), (0, 0)), mode="edge"))
    assert "needs frames of one size" in station.fit_one(ignore_mask=mask_file(station, tools)).refusal


def test_gray_pixel_in_a_mask_is_refused(station, tools):
    station.write_good(count=40)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[3, 3] = 254
    tools.save(station.root / "gray.png", image)
    with pytest.raises(DataError, match="black .judged. and white .ignored. only"):
        station.fit_one(ignore_mask=station.root / "gray.png")


def test_mask_is_for_one_product(station, tools):
    station.write_good("disk", count=30)
    station.write_good("ring", count=30, seed=1)
    with pytest.raises(ConfigError, match="for one product; name it with --product"):
        station.fit_all(ignore_mask=mask_file(station, tools))


def test_new_or_other_mask_is_more_lenient_and_needs_a_reason(station, tools, parts):
    station.write_good(count=40)  # plain parts in place of the labeled ones
    assert station.fit_one().decision is not None
    mask = mask_file(station, tools)
    refused = station.fit_one(ignore_mask=mask)
    assert "the ignore mask hides 8.33 % of the inspected part" in refused.refusal
    assert "judges all of it" in refused.refusal
    assert station.fit_one(ignore_mask=mask, accept_lenient="a label comes there").decision.change.accepted_lenient == "a label comes there"
    assert station.fit_one(ignore_mask=mask).decision is not None  # the same one again
    other = mask_file(station, tools, np.s_[4:16, 16:32], name="other.png")
    assert "has another mask, of 8.33 %" in station.fit_one(ignore_mask=other).refusal
    assert station.fit_one().decision.ignore_mask is None  # judging all of it again is no more lenient


def test_revert_to_a_mask_needs_a_reason_and_its_file_and_one_away_from_it_neither(station, tools):
    station.write_good(count=40)
    masked = station.fit_one(ignore_mask=mask_file(station, tools)).decision
    assert station.fit_one().decision.ignore_mask is None
    with pytest.raises(CalibrationRefusedError, match="the ignore mask hides 8.33 % .* judges all of it"):
        revert(station.model, CalibrationOptions())
    reason = CalibrationOptions(accept_lenient="the label is back")
    assert revert(station.model, reason).decision.ignore_mask == masked.ignore_mask
    assert revert(station.model, CalibrationOptions(), 2).decision.ignore_mask is None
    station.model.with_name(masked.ignore_mask.file).unlink()
    with pytest.raises(ManifestError, match="is not the ignore mask of decision 3"):
        revert(station.model, reason, 3)


def test_command_says_what_is_not_judged(station, tools, parts, capsys):
    arguments = ["--engine", str(station.model), "--good", str(station.good / "disk"), "--max-frr", "0.1", "--mm-per-px", "0.05"]
    arguments += ["--ignore-mask", str(mask_file(station, tools)), "--report", str(station.root / "page.html")]
    assert main(arguments) == 0
    assert "NOT JUDGED        8.33 % of the inspected part" in capsys.readouterr().out
    assert "8.33 % of the inspected part is not judged" in (station.root / "page.html").read_text()
    assert main([*arguments, "--json"]) == 0
    (product,) = json.loads(capsys.readouterr().out)["products"]
    assert product["ignored_share"] == pytest.approx(1 / 12)
    assert product["decision"]["mm_per_px"] == 0.05
    assert main(["--engine", str(station.model), "--list-history"]) == 0
    assert "8.33 % not judged" in capsys.readouterr().out


def test_regions_of_a_decision_with_a_scale_have_square_millimeters(station, tools):
    station.write_good(count=40)
    assert station.fit_one(mm_per_px=0.5).decision is not None
    with SnlDetector(station.model) as detector:
        (region, *_) = detector.detect(tools.bad_frame(0), color="rgb").regions
        assert region.area_mm2 == region.area_px * 0.25
    with pytest.raises(ConfigError, match="--mm-per-px must be above 0"):
        station.fit_one(mm_per_px=0.0)
