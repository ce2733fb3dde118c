"""``--with-whole-frame`` makes the whole frame one more view of the decision: asked for or trained so, and never taken over by other views."""

import dataclasses

import numpy as np
import pytest

from snl_calibration.appending import append_decisions
from snl_calibration.cli import main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError
from snl_runtime.images.preprocess import resize
from snl_runtime.model.manifest import TileGrid, update_manifest
from snl_runtime.types import Verdict
from tolerances import TINY_MODEL_REL

SIDE = 48
"""The model's input; a frame shows 2 x 2 parts, each in a tile. Reduced to a quarter they look like no part: the whole frame scores high, always."""
VIEWS = {"tile_px": SIDE, "overlap_px": 0, "with_whole_frame": True}
GRID = TileGrid(**VIEWS, map_hw=(2 * SIDE, 2 * SIDE), count=5)


def quad(tools, index, hole=None, seed=0):
    """Four good parts in one frame of 96 x 96 pixels, one with a hole of a gray level."""
    rows = [np.concatenate([tools.good_frame(4 * index + 2 * row + column, seed) for column in (0, 1)], axis=1) for row in (0, 1)]
    frame = np.concatenate(rows, axis=0)
    if hole is not None:
        frame[SIDE + 20 : SIDE + 26, 18:24] = hole
    return frame


@pytest.fixture
def frames(station, tools):
    good = {f"{index:03d}.png": quad(tools, index) for index in range(30)}
    for name, image in good.items():
        tools.save(station.good / "disk" / name, image)
    for index in range(4):
        tools.save(station.root / "bad" / "hole" / f"{index}.png", quad(tools, 40 + index, hole=255))
    return good


@pytest.fixture
def fit(station, frames):
    return lambda **changes: station.fit_one(**{**VIEWS, "bad": station.root / "bad", **changes})


def scores_by_hand(tools, image):
    """Of the tiles, and of the whole frame."""
    parts = [image[top : top + SIDE, left : left + SIDE] for top in (0, SIDE) for left in (0, SIDE)]
    return max(tools.expected_score(part) for part in parts), tools.expected_score(resize(image, (SIDE, SIDE)))


def test_threshold_and_verdicts_are_those_of_tiles_and_whole_frame(station, tools, frames, fit):
    fitted = fit()
    by_hand = [scores_by_hand(tools, image) for image in frames.values()]
    assert all(whole > 2 * tiles for tiles, whole in by_hand)
    assert list(fitted.scores.values()) == pytest.approx([max(each) for each in by_hand], rel=TINY_MODEL_REL)
    assert fitted.decision.pass_threshold == pytest.approx(max(max(each) for each in by_hand), rel=TINY_MODEL_REL)
    assert fitted.decision.tiles == GRID
    with SnlDetector(station.model) as detector:
        results = [detector.detect(image, color="rgb") for image in frames.values()]
        assert [result.score for result in results] == list(fitted.scores.values())
        assert all(result.verdict is Verdict.PASS for result in results)
        assert detector.detect(quad(tools, 70, hole=255), color="rgb").verdict is not Verdict.PASS


def test_normalization_map_of_a_fixed_pose_is_fitted_on_merged_maps(station, frames, fit):
    fitted = fit(fixed_pose=True, accept_outliers=tuple(frames))
    assert fitted.decision is not None, fitted.refusal
    assert fitted.normalization.factors.values.shape == (2 * SIDE, 2 * SIDE)
    with SnlDetector(station.model) as detector:
        assert detector.detect(frames["003.png"], color="rgb").verdict is Verdict.PASS


def test_model_that_was_trained_on_both_is_calibrated_on_both_unasked(station, fit):
    data = {"tile_px": SIDE, "tile_overlap_px": 0, "with_whole_frame": True}
    update_manifest(station.root / "line.json", lambda manifest: manifest._changed(training={"config": {"data": data}}))
    assert fit(tile_px=None, overlap_px=None, with_whole_frame=None).decision.tiles == GRID


def test_training_on_both_can_be_calibrated_on_tiles_alone_and_on_whole_frames_alone(station, fit):
    data = {"tile_px": SIDE, "tile_overlap_px": 0, "with_whole_frame": True}
    update_manifest(station.root / "line.json", lambda manifest: manifest._changed(training={"config": {"data": data}}))
    tiles = fit(tile_px=None, overlap_px=None, with_whole_frame=False).decision.tiles
    assert tiles == dataclasses.replace(GRID, with_whole_frame=False, count=4)
    refusal = fit(tile_px=0, overlap_px=None, with_whole_frame=None).refusal
    assert refusal is not None
    assert "judges frames in other views" in refusal


def test_model_from_before_that_was_possible_is_calibrated_on_tiles_alone(station, fit):
    data = {"tile_px": SIDE, "tile_overlap_px": 0}
    update_manifest(station.root / "line.json", lambda manifest: manifest._changed(training={"config": {"data": data}}))
    assert fit(tile_px=None, overlap_px=None, with_whole_frame=None).decision.tiles == dataclasses.replace(GRID, with_whole_frame=False, count=4)


@pytest.mark.parametrize("before", [{"with_whole_frame": False, "count": 4}, None], ids=["tiles alone", "whole frames alone"])
def test_decision_on_other_views_cannot_be_compared_and_needs_a_reason(station, fit, before):
    decision = fit().decision
    other = None if before is None else dataclasses.replace(GRID, **before)
    append_decisions(station.model, [(dataclasses.replace(decision, tiles=other), ())])
    assert "judges frames in other views" in fit().refusal
    assert fit(accept_lenient="the whole frame is seen now").decision.tiles == GRID


def test_mask_lies_on_the_merged_map(station, tools, frames, fit):
    mask = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    mask[SIDE + 16 : SIDE + 30, 14:28] = 255
    tools.save(station.root / "mask.png", mask)
    fitted = fit(ignore_mask=station.root / "mask.png", bad=None, min_detection=0.001)
    assert fitted.ignore_mask.size_hw == (2 * SIDE, 2 * SIDE)


@pytest.mark.parametrize("changes", [{"tile_px": None}, {"tile_px": 0}])
def test_whole_frame_beside_no_tiles_is_refused(fit, changes):
    with pytest.raises(ConfigError, match="there are none; give --tile N"):
        fit(**changes)


def test_command_takes_the_flag_and_its_opposite_and_says_what_a_frame_costs(station, frames, capsys):
    arguments = ["--engine", str(station.model), "--good", str(station.good / "disk"), "--bad", str(station.root / "bad"), "--max-frr", "0.1"]
    arguments += ["--tile", str(SIDE), "--overlap", "0"]
    assert main([*arguments, "--with-whole-frame"]) == 0
    assert "4 tiles of 48 px and as a whole, overlap 0 px or more: 5 runs of the network" in capsys.readouterr().out
    assert main([*arguments, "--no-with-whole-frame", "--accept-lenient", "tiles alone"]) == 0
    assert "4 tiles of 48 px, overlap 0 px or more: 4 runs of the network" in capsys.readouterr().out
