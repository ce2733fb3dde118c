"""A product that is calibrated on tiles and the whole frame is judged by both: what either shows is no PASS, and no view may be missing."""

import dataclasses
import json

import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ManifestError
from snl_runtime.images.preprocess import resize
from snl_runtime.images.views import Tiles, score_views, tile_views
from snl_runtime.model.manifest import TileGrid, read_manifest
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict
from tolerances import TINY_MODEL_ABS

SIZE, SIDE, OVERLAP = 32, 96, 8
"""The tiny model's input, and frames of 4 x 4 tiles; the whole frame is reduced to a third."""
TILES = Tiles(SIZE, OVERLAP, with_whole_frame=True)


def grid(**changes):
    return TileGrid(**{**TILES._asdict(), "map_hw": (SIDE, SIDE), "count": 17, **changes})


TILES_ALONE = grid(with_whole_frame=False, count=16)


def stained(frame, depth=40, spread=7.0):
    """A soft stain: hardly a step from pixel to pixel, a spot where the frame is reduced to a third."""
    down, across = np.mgrid[:SIDE, :SIDE] - 48
    stain = depth * np.exp(-(down**2 + across**2) / (2 * spread**2))
    return (frame - stain[:, :, None]).clip(0, 255).astype(np.uint8)


def pricked(frame):
    """Dots of one pixel: steps that are averaged away where the frame is reduced."""
    marked = frame.copy()
    marked[20, 70] -= 30
    return marked


def map_by_hand(fixtures, frame_bgr):
    """Each tile and the reduced frame alone through the NumPy model; a cell of the latter covers 3 x 3 cells of the merged map."""
    frame = np.ascontiguousarray(frame_bgr[:, :, ::-1])
    merged = np.repeat(np.repeat(fixtures.reference_map(resize(frame, (SIZE, SIZE))), 3, axis=0), 3, axis=1)
    return np.maximum(merged, tiles_by_hand(fixtures, frame))


def tiles_by_hand(fixtures, frame):
    merged = np.zeros((SIDE, SIDE), np.float32)
    for top, left, (first_row, end_row), (first_column, end_column), *_ in tile_views((SIDE, SIDE), (SIZE, SIZE), Tiles(SIZE, OVERLAP, False)).grid:
        tile = fixtures.reference_map(frame[top : top + SIZE, left : left + SIZE])
        merged[first_row:end_row, first_column:end_column] = tile[first_row - top : end_row - top, first_column - left : end_column - left]
    return merged


@pytest.fixture
def good(fixtures):
    return fixtures.good_frame(1, SIDE)


@pytest.fixture
def write(model_folder, fixtures):
    """The tiny model with a decision on 17 views, or others."""

    def write(tiles=None, limit=99.0, **changes):
        thresholds = {"pass_threshold": limit, "reject_threshold": limit, "floor": 0.1, "frame_range": fixtures.ANY_FRAME}
        return model_folder.write(decisions=[{"tiles": grid() if tiles is None else tiles, **thresholds, **changes}])

    return write


def verdicts(model, frames):
    with SnlDetector(model) as detector:
        return [detector.detect(frame).verdict for frame in frames]


def test_score_map_and_notes_are_those_of_all_views_by_hand(write, fixtures, good):
    frames = [good, stained(good), pricked(good)]
    with SnlDetector(write()) as detector:
        assert detector.notes == ("product 'bottle': a frame is seen in 16 tiles of 32 px and as a whole",)
        for frame in frames:
            result, expected = detector.detect(frame), map_by_hand(fixtures, frame)
            assert np.allclose(result.anomaly_map, expected, atol=TINY_MODEL_ABS)
            assert result.score == pytest.approx(expected.max(), abs=TINY_MODEL_ABS)
            assert result.score == result.anomaly_map.max()


def test_what_the_whole_frame_alone_shows_and_what_a_tile_alone_shows_are_both_rejected(write, fixtures, good):
    frames = [good, stained(good), pricked(good)]
    by_tiles = [float(tiles_by_hand(fixtures, frame[:, :, ::-1]).max()) for frame in frames]
    by_frame = [float(fixtures.reference_map(resize(np.ascontiguousarray(frame[:, :, ::-1]), (SIZE, SIZE))).max()) for frame in frames]
    assert by_frame[1] > 1.2 * max(by_tiles[1], by_frame[0])  # the stain is one to the whole frame
    assert by_tiles[2] > 1.2 * max(by_frame[2], by_tiles[0])  # the dot is one to a tile
    limit = 1.05 * max(by_tiles[0], by_frame[0], by_tiles[1], by_frame[2])
    assert verdicts(write(limit=limit), frames) == [Verdict.PASS, Verdict.REJECT, Verdict.REJECT]
    assert verdicts(write(TILES_ALONE, limit=limit), frames) == [Verdict.PASS, Verdict.PASS, Verdict.REJECT]


def test_region_lies_where_the_whole_frame_shows_the_defect_and_its_area_is_in_pixels_and_mm2(write, fixtures, good):
    expected = map_by_hand(fixtures, stained(good))
    limit = 0.9 * float(expected.max())
    with SnlDetector(write(limit=limit, mm_per_px=0.5)) as detector:
        regions = detector.detect(stained(good)).regions
    assert sum(region.area_px for region in regions) == (expected > limit).sum()
    assert all(region.area_mm2 == pytest.approx(region.area_px / 4) for region in regions)
    left, top, right, bottom = regions[0].box_xyxy
    assert left <= 48 < right
    assert top <= 48 < bottom


def test_ignore_mask_hides_what_lies_under_it_in_both_and_nothing_beside_it(write, model_folder, fixtures, good):
    frame = pricked(stained(good))
    expected = map_by_hand(fixtures, frame)
    limit = 1.05 * float(map_by_hand(fixtures, good).max())
    for rows, columns, verdict in ((slice(30, 66), slice(30, 66), Verdict.REJECT), (slice(14, 66), slice(30, 78), Verdict.PASS)):
        model = write(limit=limit)
        ignored = np.zeros((SIDE, SIDE), bool)
        ignored[rows, columns] = True
        model_folder.give_ignore_mask(ignored)
        with SnlDetector(model) as detector:
            result = detector.detect(frame)
        assert result.verdict is verdict
        assert np.allclose(result.anomaly_map, np.where(ignored, 0, expected), atol=TINY_MODEL_ABS)
        assert result.score == pytest.approx(float(expected[~ignored].max()), abs=TINY_MODEL_ABS)


def test_whole_frame_is_one_more_of_the_views_that_share_batches(write, fixtures, good):
    seen = []

    def count(image, anomaly_map, anomaly_score):
        seen.append(len(image))
        fixtures.answer(image, anomaly_map, anomaly_score)

    with SnlDetector(write(), backend=fixtures.FakeBackend(count)) as detector:
        seen.clear()
        detector.detect(good)
        assert seen == [8, 8, 1]


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_batches_of_every_kind_give_the_same_merged_map(model_folder, fixtures, good, batch):
    model = model_folder.write(input_changes={"batch": "dynamic" if batch == "N" else batch, "max_batch": 8 if batch == "N" else batch}, batch=batch)
    with Scorer(model) as scorer:
        scored = scorer.score(stained(good), "bgr", tiles=grid().views((SIZE, SIZE)))
    assert np.allclose(scored.anomaly_map, map_by_hand(fixtures, stained(good)), atol=TINY_MODEL_ABS)


@pytest.mark.parametrize("fault", ["nothing written", "one cell NaN", "score of another image"])
def test_whole_frame_that_was_not_answered_whole_is_an_error(write, fixtures, good, fault):
    """Its view is the 17th: alone in the third call. Tiles that show nothing do not make up for it."""
    calls = []

    def answer(image, anomaly_map, anomaly_score):
        calls.append(len(image))
        is_whole_frame = calls == [8, 8, 1]  # not before: samples are scored one by one first
        if not (is_whole_frame and fault == "nothing written"):
            fixtures.answer(image, anomaly_map, anomaly_score)
        if is_whole_frame and fault == "one cell NaN":
            anomaly_map[0, 0, 31, 31] = np.nan
        if is_whole_frame and fault == "score of another image":
            anomaly_score[0] -= 0.5

    with SnlDetector(write(), backend=fixtures.FakeBackend(answer)) as detector:
        calls.clear()
        result = detector.detect(good)
        assert calls == [8, 8, 1]
        assert result.verdict is Verdict.ERROR
        assert result.reason_code == ("output_inconsistent" if fault == "score of another image" else "output_not_finite")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"with_whole_frame": False}, "16 tiles of 32 px|17 tiles of 32 px, which are 17 views, expected 16"),
        ({"count": 16}, "15 tiles of 32 px and as a whole, which are 16 views, expected 17"),
    ],
)
def test_grid_that_lost_the_whole_frame_or_gained_it_is_refused_at_opening(write, changes, message):
    with pytest.raises(ManifestError, match=message):
        SnlDetector(write(grid(**changes)))


def test_unnamed_product_among_some_with_and_some_without_the_whole_frame_is_an_error(model_folder, good):
    model = model_folder.write(decisions=[{"tiles": grid()}, {"product": "cap", "tiles": TILES_ALONE}])
    with SnlDetector(model) as detector:
        result = detector.detect(good)
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, "ambiguous_product")
    assert "seen in different views" in result.reason


def test_decision_says_so_only_where_the_whole_frame_is_seen_and_one_from_before_reads_as_without(write, model_folder):
    """So the text of a decision on tiles alone, and the signature over it, is what it was."""
    for tiles, expected in ((grid(), {"with_whole_frame": True}), (TILES_ALONE, {})):
        write(tiles)
        stored = json.loads(model_folder.manifest.read_text())["decisions"][0]["tiles"]
        assert {key: value for key, value in stored.items() if key not in ("tile_px", "overlap_px", "map_hw", "count")} == expected
        assert read_manifest(model_folder.manifest).decisions[0].tiles == tiles


@pytest.mark.parametrize("value", [1, None, "true"])
def test_flag_that_is_neither_true_nor_false_is_refused(write, value):
    with pytest.raises(ManifestError, match=r"with_whole_frame must be true or false"):
        write(dataclasses.replace(grid(), with_whole_frame=value))


def test_frame_that_is_scored_by_hand_in_views_is_what_the_detector_scores(write, fixtures, good):
    def infer(images):
        maps = np.stack([fixtures.reference_map(image) for image in images])
        return maps.max(axis=(1, 2)), maps

    expected, _ = score_views(np.ascontiguousarray(good[:, :, ::-1]), grid().views((SIZE, SIZE)), infer, batch_size=5)
    with SnlDetector(write()) as detector:
        assert detector.detect(good).score == pytest.approx(expected, abs=TINY_MODEL_ABS)
