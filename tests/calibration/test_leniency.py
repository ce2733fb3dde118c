"""A calibration that would pass more than the decision before is refused until a person gives the reason."""

import dataclasses

import pytest

from snl_calibration.appending import append_decisions
from snl_runtime.errors import ConfigError, DataError


@pytest.fixture
def stricter(station):
    """A station whose decision in force is stricter than what its good parts give."""

    def make(factor):
        station.write_good(count=40)
        fitted = station.fit_one().decision
        changed = dataclasses.replace(fitted, pass_threshold=fitted.pass_threshold * factor, reject_threshold=fitted.reject_threshold)
        append_decisions(station.model, [(changed, ())])
        return station

    return make


def test_a_threshold_that_rises_by_more_than_a_tenth_is_refused(stricter):
    station = stricter(0.8)
    fit = station.fit_one()
    assert fit.decision is None
    assert "rise by 25 %" in fit.refusal
    assert "--accept-lenient" in fit.refusal
    assert len(station.manifest().decisions) == 2


def test_a_threshold_that_rises_by_less_is_written(stricter):
    assert stricter(0.95).fit_one().decision.change.accepted_lenient is None


def test_a_lower_threshold_needs_no_reason(stricter):
    station = stricter(1.0)
    assert station.fit_one(accept_lenient="not needed").decision.change.accepted_lenient is None


def test_the_allowed_rise_can_be_set(stricter):
    station = stricter(0.95)
    assert station.fit_one(max_loosening=0.01).decision is None
    assert station.fit_one(max_loosening=0.06).decision is not None


def test_a_reason_is_kept_with_the_decision(stricter):
    station = stricter(0.8)
    station.fit_one(accept_lenient="new supplier of the blanks", written_by="Ada")
    change = station.manifest().decisions[-1].change
    assert (change.accepted_lenient, change.written_by) == ("new supplier of the blanks", "Ada")


@pytest.mark.parametrize("changes", [{"roi_xyxy": (0, 0, 48, 48)}, {"fixed_pose": True}])
def test_a_threshold_that_cannot_be_compared_needs_a_reason(stricter, changes):
    station = stricter(1.0)
    assert "cannot be compared" in station.fit_one(**changes).refusal
    assert station.fit_one(**changes, accept_lenient="the fixture is new").decision is not None


def test_the_first_decision_of_a_product_has_nothing_to_compare_with(station):
    station.write_good(count=40)
    assert station.fit_one(max_loosening=0.0).decision is not None


def test_images_that_must_not_pass_and_would_are_listed(station, tools):
    station.write_good(count=40)
    archive = station.root / "archive"
    tools.save(archive / "scratch.png", tools.good_frame(500, seed=3))
    tools.save(archive / "hole.png", tools.bad_frame(1))
    fit = station.fit_one(must_reject=archive)
    assert fit.decision is None
    assert "1 images that must not pass would pass: scratch.png" in fit.refusal
    fit = station.fit_one(must_reject=archive, accept_lenient="the scratch is cosmetic")
    assert fit.decision.change.accepted_passes == ["scratch.png"]
    assert fit.decision.change.accepted_lenient == "the scratch is cosmetic"


def test_images_that_are_refused_or_not_judged_do_not_pass(station, tools):
    station.write_good(count=40)
    archive = station.root / "archive"
    tools.save(archive / "hole.png", tools.bad_frame(1))
    tools.save(archive / "blinding.png", tools.bad_frame(2, level=255))
    tools.save(archive / "small.png", tools.good_frame(500)[:40])
    decision = station.fit_one(must_reject=archive).decision
    assert decision.change.accepted_passes == []


def test_a_reject_among_the_good_parts_is_refused_whatever_the_reason(station, tools):
    frames = station.write_good(count=40)
    tools.save(station.root / "archive" / "reject.png", frames["007.png"])
    fit = station.fit_one(must_reject=station.root / "archive", accept_lenient="whatever")
    assert "it is the good part" in fit.refusal
    assert "007.png" in fit.refusal


def test_images_of_each_product_are_taken_from_its_folder(station, tools):
    station.write_good("disk", count=40)
    station.write_good("ring", count=40, seed=4)
    for product in ("disk", "ring"):
        tools.save(station.root / "archive" / product / "hole.png", tools.bad_frame(1))
    tools.save(station.root / "archive" / "ring" / "fine.png", tools.good_frame(500, seed=3))
    fits = {fit.product: fit for fit in station.fit_all(must_reject=station.root / "archive")}
    assert fits["disk"].decision is not None
    assert "fine.png" in fits["ring"].refusal


def test_a_missing_or_empty_folder_is_named(station):
    station.write_good(count=40)
    with pytest.raises(DataError, match="--must-reject"):
        station.fit_one(must_reject=station.root / "nowhere")
    (station.root / "empty").mkdir()
    with pytest.raises(DataError, match="--must-reject"):
        station.fit_one(must_reject=station.root / "empty")


def test_an_empty_reason_is_no_reason(station):
    station.write_good(count=40)
    with pytest.raises(ConfigError, match="--accept-lenient"):
        station.fit_one(accept_lenient="  ")
