"""A decision is written only on a model that is shown to see defects."""

import pytest

from snl_calibration.synthetic_defects import DEFECT_KINDS


def test_synthetic_defects_of_every_kind_are_counted(station):
    station.write_good(count=30)
    evidence = station.fit_one(defects_per_kind=20).decision.evidence
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
    evidence = station.fit_one(bad=station.root / "bad", min_detection=0.3).decision.evidence
    assert evidence.source == "bad images"
    assert evidence.counts["hole"] == (4, 4)
    assert evidence.counts["missed"][1] == 4
    assert set(evidence.counts) == {"hole", "missed"}


def test_bad_folder_of_the_product_is_preferred(station, tools):
    station.write_good(count=30)
    for index in range(3):
        tools.save(station.root / "bad" / "disk" / "hole" / f"{index}.png", tools.bad_frame(index))
    assert station.fit_one(bad=station.root / "bad").decision.evidence.counts == {"hole": (3, 3)}


@pytest.mark.parametrize("kind", ["constant", "random"])
@pytest.mark.parametrize("max_frr", [0.1, 0.05])
def test_blind_model_is_refused(station, kind, max_frr):
    station.write_model(kind)
    station.write_good(count=70)
    before = (station.root / "line.json").read_bytes()
    fit = station.fit_one(max_frr=max_frr)
    assert fit.decision is None
    assert "of the synthetic defects score above the pass threshold" in fit.refusal
    assert (station.root / "line.json").read_bytes() == before


def test_random_model_is_refused_also_when_little_detection_is_asked_for(station):
    station.write_model("random")
    station.write_good(count=60)
    fit = station.fit_one(max_frr=0.2, min_detection=0.001)
    assert fit.decision is None


def test_one_bad_image_cannot_show_that_the_model_sees(station, tools):
    station.write_good(count=30)
    tools.save(station.root / "bad" / "hole" / "0.png", tools.bad_frame(0))
    fit = station.fit_one(bad=station.root / "bad")
    assert "what a blind model may reach" in fit.refusal


def test_defects_that_leave_the_qualified_input_range_are_told(station, tools):
    station.write_good(count=30)
    for index in range(4):
        image = tools.bad_frame(index, level=180)
        image[: 16 if index else 0] = 255  # a third of the frame
        tools.save(station.root / "bad" / "hole" / f"{index}.png", image)
    fit = station.fit_one(bad=station.root / "bad")
    assert fit.decision.evidence.counts == {"hole": (4, 4)}
    assert "3 of 4 bad images leave the qualified input range" in fit.warnings[0]
    assert "(1.png, 2.png, 3.png)" in fit.warnings[0]


def test_bad_image_with_the_pixels_of_a_good_one_is_refused(station, tools):
    frames = station.write_good(count=30)
    tools.save(station.root / "bad" / "hole" / "x.png", frames["003.png"])
    assert "x.png has the pixels of disk/003.png" in station.fit_one(bad=station.root / "bad").refusal
