"""``--tile`` makes the grid part of the decision: scores, threshold and evidence are those of merged tiles, and the line needs no option."""

import dataclasses
import json

import numpy as np
import pytest

from snl_calibration.appending import append_decisions
from snl_calibration.cli import main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError
from snl_runtime.model.manifest import TileGrid, update_manifest
from snl_runtime.types import Verdict
from tolerances import TINY_MODEL_REL

SIDE = 48
"""The model's input: its template is one part. A frame of 2 x 2 parts has four tiles without overlap."""


def quad(tools, index, seed=0):
    """Four good parts in one frame of 96 x 96 pixels."""
    rows = [np.concatenate([tools.good_frame(4 * index + 2 * row + column, seed) for column in (0, 1)], axis=1) for row in (0, 1)]
    return np.concatenate(rows, axis=0)


@pytest.fixture
def frames(station, tools):
    good = {f"{index:03d}.png": quad(tools, index) for index in range(30)}
    for name, image in good.items():
        tools.save(station.good / "disk" / name, image)
    return good


def expected_score(tools, image):
    """By hand: the largest score of any of the four parts."""
    parts = [image[top : top + SIDE, left : left + SIDE] for top in (0, SIDE) for left in (0, SIDE)]
    return max(tools.expected_score(part) for part in parts)


def test_threshold_and_evidence_are_those_of_merged_tiles(station, tools, frames):
    fit = station.fit_one(tile_px=SIDE, overlap_px=0)
    expected = [expected_score(tools, image) for image in frames.values()]
    assert list(fit.scores.values()) == pytest.approx(expected, rel=TINY_MODEL_REL)
    assert fit.decision.pass_threshold == pytest.approx(max(expected), rel=TINY_MODEL_REL)
    assert fit.decision.tiles == TileGrid(tile_px=SIDE, overlap_px=0, map_hw=(2 * SIDE, 2 * SIDE), count=4)
    assert fit.evidence.detection_rate > 0.5


def test_line_inspects_as_the_decision_says(station, tools, frames):
    fit = station.fit_one(tile_px=SIDE, overlap_px=0)
    bad = quad(tools, 70)
    bad[SIDE + 20 : SIDE + 26, 18:24] = 180
    with SnlDetector(station.model) as detector:
        results = [detector.detect(image, color="rgb") for image in frames.values()]
        assert [result.score for result in results] == list(fit.scores.values())
        assert all(result.verdict is Verdict.PASS for result in results)
        result = detector.detect(bad, color="rgb")
        assert result.verdict is Verdict.REJECT
        assert result.anomaly_map.shape == (2 * SIDE, 2 * SIDE)
        assert result.regions[0].box_xyxy == (18, SIDE + 20, 24, SIDE + 26)


def test_grid_lies_over_the_roi_and_frames_of_several_sizes_need_one(station, tools, frames):
    tools.save(station.good / "disk" / "wide.png", np.pad(quad(tools, 50), ((0, 0), (0, 8), (0, 0)), mode="edge"))
    assert "tiles need inspected parts of one size" in station.fit_one(tile_px=SIDE, overlap_px=0).refusal
    fit = station.fit_one(tile_px=SIDE, overlap_px=0, roi_xyxy=(0, 0, 2 * SIDE, SIDE))
    assert fit.decision.tiles.count == 2


def test_model_that_was_trained_on_tiles_is_calibrated_on_them_unasked(station, tools, frames):
    data = {"tile_px": SIDE, "tile_overlap_px": 0}
    update_manifest(station.root / "line.json", lambda manifest: manifest._changed(training={"config": {"data": data}}))
    assert station.fit_one().decision.tiles.count == 4
    tools.save(station.good / "disk" / "wide.png", np.pad(quad(tools, 50), ((0, 0), (0, 8), (0, 0)), mode="edge"))
    assert "tiles need" in station.fit_one().refusal
    assert "tiles need" not in (station.fit_one(tile_px=0).refusal or "")


def test_other_tiles_cannot_be_compared_and_need_a_reason(station, tools, frames):
    decision = station.fit_one(tile_px=SIDE, overlap_px=0).decision
    append_decisions(station.model, [(dataclasses.replace(decision, tiles=None), ())])
    assert "judges frames in other views" in station.fit_one(tile_px=SIDE, overlap_px=0).refusal
    assert station.fit_one(tile_px=SIDE, overlap_px=0, accept_lenient="in tiles now").decision.tiles == decision.tiles


def test_mask_of_a_tiled_product_is_at_native_resolution(station, tools, frames):
    mask = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    mask[:20, :20] = 255
    tools.save(station.root / "mask.png", mask)
    fit = station.fit_one(tile_px=SIDE, overlap_px=0, ignore_mask=station.root / "mask.png")
    assert fit.ignore_mask.size_hw == (2 * SIDE, 2 * SIDE)
    assert fit.decision.ignore_mask.ignored_share == pytest.approx(400 / 9216)
    with SnlDetector(station.model) as detector:
        assert detector.detect(frames["000.png"], color="rgb").verdict is Verdict.PASS


def test_command_says_how_many_tiles_a_frame_costs(station, frames, capsys):
    arguments = ["--engine", str(station.model), "--good", str(station.good / "disk"), "--max-frr", "0.1", "--tile", str(SIDE), "--overlap", "0"]
    assert main(arguments) == 0
    assert "4 tiles of 48 px, overlap 0 px or more: 4 runs of the network" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    (product,) = json.loads(capsys.readouterr().out)["products"]
    assert product["decision"]["tiles"] == {"tile_px": 48, "overlap_px": 0, "map_hw": [96, 96], "count": 4, "with_whole_frame": False}


@pytest.mark.parametrize(("options", "message"), [({"tile_px": 8}, "--tile must be"), ({"tile_px": 48, "overlap_px": 48}, "below --tile")])
def test_impossible_grid_is_refused_in_the_words_of_the_command(station, frames, options, message):
    with pytest.raises(ConfigError, match=message):
        station.fit_one(**options)
