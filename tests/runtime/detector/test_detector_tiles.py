"""A product that is calibrated on tiles is inspected in them: no seams, no defect lost at a border, one score, one decision, one golden check."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import GoldenSampleError, ManifestError
from snl_runtime.images.views import Tiles, score_views, tile_views
from snl_runtime.model.bundle import open_bundle
from snl_runtime.model.manifest import TileGrid, read_manifest
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict
from snl_runtime.verdict.selection import DecisionBook
from tolerances import TINY_MODEL_ABS

SIZE, SIDE = 32, 96
"""The tiny model's input, and the side of frames of 4 x 4 tiles that overlap by 8 pixels or more."""
OVERLAP = 8
SHIFT_BOUND = 0.1
"""Most that a shift by half a tile may move a score, as a share of it: where a defect lies in its tiles decides what the network sees around it."""


def grid(count=16, side=SIDE, tile_px=SIZE):
    return TileGrid(tile_px=tile_px, overlap_px=OVERLAP, map_hw=(side, side), count=count)


def scratched(top, left, side=SIDE):
    """A gray frame with a dark 2 x 6 scratch, RGB."""
    frame = np.full((side, side, 3), 128, np.uint8)
    frame[top : top + 2, left : left + 6] = 60
    return frame


def reference_score(fixtures, views, frame):
    """By hand: each tile alone through the NumPy model, the largest value of any in the cells that it gives."""
    values = []
    for pixels, (top, left, (first_row, end_row), (first_column, end_column), *_) in zip(views.cut(frame), views.grid):
        values.append(fixtures.reference_map(pixels)[first_row - top : end_row - top, first_column - left : end_column - left].max())
    return float(max(values))


@pytest.fixture
def tiled_model(model_folder):
    """The tiny model with a decision on 16 tiles of a frame of 96 x 96 pixels."""

    def write(**changes):
        return model_folder.write(decisions=[{"tiles": grid(), **changes}])

    return write


@pytest.fixture
def views():
    return tile_views((SIDE, SIDE), (SIZE, SIZE), Tiles(SIZE, OVERLAP, with_whole_frame=False))


def test_score_map_and_verdict_are_those_of_the_tiles_by_hand(tiled_model, fixtures, views):
    good, bad = fixtures.good_frame(1, SIDE), fixtures.good_frame(1, SIDE)
    bad[40:42, 30:36] -= 45
    limits = [reference_score(fixtures, views, frame[:, :, ::-1]) for frame in (good, bad)]
    threshold = (limits[0] + limits[1]) / 2
    model = tiled_model(pass_threshold=threshold, reject_threshold=threshold, floor=0.1, frame_range=fixtures.ANY_FRAME)
    with SnlDetector(model) as detector:
        results = [detector.detect(frame) for frame in (good, bad)]
        assert [result.verdict for result in results] == [Verdict.PASS, Verdict.REJECT]
        assert [result.score for result in results] == pytest.approx(limits, abs=TINY_MODEL_ABS)
        assert results[1].anomaly_map.shape == (SIDE, SIDE)
        assert detector.notes == ("product 'bottle': a frame is seen in 16 tiles of 32 px",)
        (region,) = results[1].regions
        left, top, right, bottom = region.box_xyxy
        assert left <= 30
        assert right >= 36
        assert top <= 40
        assert bottom >= 42
        assert region.area_px == (results[1].anomaly_map > threshold).sum()  # a cell of the merged map is a pixel of the frame


@given(st.integers(2, SIDE - 5), st.integers(2, SIDE - 9))
@settings(max_examples=100, deadline=None)
def test_scratch_scores_alike_wherever_it_lies_in_the_grid(top, left):
    """Also across a border of tiles: an overlap of 8 pixels shows a scratch of 6 whole to one tile at least."""
    views = tile_views((SIDE, SIDE), (SIZE, SIZE), Tiles(SIZE, OVERLAP, with_whole_frame=False))
    middle, _ = score_views(scratched(16, 13), views, infer, batch_size=5)
    shifted, _ = score_views(scratched(top, left), views, infer, batch_size=5)
    assert shifted == pytest.approx(middle, rel=SHIFT_BOUND)


@pytest.mark.parametrize("axis", [0, 1])
def test_shift_by_half_a_tile_moves_the_score_by_less_than_the_bound(views, fixtures, axis):
    part = fixtures.bad_frame(3, SIDE)
    scores = [score_views(np.roll(part, shift, axis)[:, :, ::-1], views, infer, batch_size=5)[0] for shift in (0, SIZE // 2)]
    assert scores[1] == pytest.approx(scores[0], rel=SHIFT_BOUND)


def test_merged_map_has_no_seams(views, fixtures):
    """Where a tile's border changes what the network says, another tile gives the cell: the map is that of a network as large as the frame."""
    part = fixtures.bad_frame(5, SIDE)[:, :, ::-1]
    _, merged = score_views(np.ascontiguousarray(part), views, infer, batch_size=3)
    assert np.allclose(merged, infer(part[None])[1][0], atol=TINY_MODEL_ABS)


def infer(images):
    """The tiny model in NumPy: |gray - mean over a 5 x 5 window| + 0.25, edges replicated."""
    gray = images.astype(np.float64).mean(axis=3)
    padded = np.pad(gray, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    maps = (np.abs(gray - windows.mean(axis=(3, 4))) + 0.25).astype(np.float32)
    return maps.max(axis=(1, 2)), maps


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_batches_of_every_kind_give_the_same_merged_map(model_folder, fixtures, views, batch):
    inputs = {"batch": "dynamic" if batch == "N" else batch, "max_batch": 8 if batch == "N" else batch}
    model = model_folder.write(input_changes=inputs, batch=batch)
    frame = fixtures.bad_frame(4, SIDE)
    with Scorer(model) as scorer:
        scored = scorer.score(frame, "bgr", tiles=views)
    expected_score, expected_map = score_views(np.ascontiguousarray(frame[:, :, ::-1]), views, infer, batch_size=16)
    assert np.allclose(scored.anomaly_map, expected_map, atol=TINY_MODEL_ABS)
    assert scored.score == pytest.approx(expected_score, abs=TINY_MODEL_ABS)


def test_backend_gets_batches_of_at_most_what_the_manifest_says(tiled_model, fixtures):
    seen = []

    def count(image, anomaly_map, anomaly_score):
        seen.append(len(image))
        fixtures.answer(image, anomaly_map, anomaly_score)

    with SnlDetector(tiled_model(), backend=fixtures.FakeBackend(count)) as detector:
        seen.clear()
        detector.detect(fixtures.good_frame(1, SIDE))
        assert seen == [8, 8]


def test_tile_that_one_call_does_not_write_is_an_error(tiled_model, fixtures):
    def forget_last(image, anomaly_map, anomaly_score):
        fixtures.answer(image[:-1], anomaly_map[:-1], anomaly_score[:-1])

    with SnlDetector(tiled_model(), backend=fixtures.FakeBackend(forget_last, healthy_calls=4)) as detector:
        assert detector.detect(fixtures.good_frame(1, SIDE)).reason_code == "output_not_finite"


def test_golden_check_runs_over_a_merged_frame_too(tiled_model, fixtures):
    """A backend that answers right for one image and mixes up batches would otherwise open."""

    def mixes_up(image, anomaly_map, anomaly_score):
        fixtures.answer(image[::-1], anomaly_map, anomaly_score)

    with pytest.raises(GoldenSampleError):
        SnlDetector(tiled_model(), backend=fixtures.FakeBackend(mixes_up))


def test_frame_of_another_size_is_an_error_and_costs_no_more_tiles(tiled_model, fixtures):
    calls = []

    def count(image, anomaly_map, anomaly_score):
        calls.append(len(image))
        fixtures.answer(image, anomaly_map, anomaly_score)

    sizes = dataclasses.replace(fixtures.ANY_SIZE, seen_hw=[(SIDE, SIDE)], any_size=False)
    with SnlDetector(tiled_model(frame_sizes=sizes), backend=fixtures.FakeBackend(count)) as detector:
        calls.clear()
        assert detector.detect(fixtures.good_frame(1, 4 * SIDE)).reason_code == "frame_size"
        assert sum(calls) == 16


def test_grid_of_another_network_is_refused_at_opening(tiled_model):
    with pytest.raises(ManifestError, match="15 views, expected 16"):
        SnlDetector(tiled_model(tiles=grid(count=15)))


def test_unnamed_product_among_whole_and_tiled_ones_is_an_error(model_folder, fixtures):
    model = model_folder.write(decisions=[{}, {"product": "cap", "tiles": grid()}])
    with SnlDetector(model) as detector:
        assert detector.detect(fixtures.good_frame(1)).reason_code == "ambiguous_product"
        assert detector.detect(fixtures.good_frame(1), product="bottle").verdict is Verdict.PASS


def test_engine_inherits_no_decision_on_tiles_and_none_from_before(model_folder):
    """No parity report looks at tiles, and the product is no longer judged as a whole."""
    model_folder.write(decisions=[{}, {"tiles": grid()}])
    engine = model_folder.give_engine({})
    manifest = read_manifest(model_folder.manifest)
    sha256 = next(entry.sha256 for entry in manifest.engines if entry.file == engine.name)
    assert manifest.decisions_for(sha256) == {}
    assert (manifest.products_without_room(sha256), manifest.products_on_tiles(sha256)) == ([], ["bottle"])
    assert manifest.decisions_for(manifest.model_sha256)["bottle"].tiles == grid()


def test_engine_judges_no_unnamed_part_by_the_products_that_are_left(model_folder):
    """The file itself says ambiguous_product there; what the engine does not inherit must not make it more lenient."""
    model_folder.write(decisions=[{}, {"product": "cap", "tiles": grid()}])
    engine = model_folder.give_engine({})
    manifest, bundle = read_manifest(model_folder.manifest), open_bundle(engine)
    book = DecisionBook(manifest, bundle.sha256)
    assert {product: fault and fault.reason_code for product in (None, "cap", "bottle") for fault in [book.select(product).fault]} == {
        None: "no_threshold_for_engine",
        "cap": "no_threshold_for_engine",
        "bottle": None,
    }
    assert any(note.startswith("cap: inspected in tiles") for note in bundle.notes)


def test_masks_of_a_whole_and_a_tiled_product_open_together_and_each_judges_its_own(model_folder, fixtures):
    """Their maps differ in size, so no frame can be judged by both; each is, by name."""
    model = model_folder.write(decisions=[{}, {"product": "cap", "tiles": grid()}])
    for product, side in (("bottle", SIZE), ("cap", SIDE)):
        ignored = np.zeros((side, side), bool)
        ignored[:4] = True
        model_folder.give_ignore_mask(ignored, product)
    with SnlDetector(model) as detector:
        reasons = {product: detector.detect(fixtures.good_frame(1), product=product).reason_code for product in (None, "bottle", "cap")}
        assert detector.detect(fixtures.good_frame(1), product="cap").ignored.shape == (SIDE, SIDE)
    assert (reasons[None], reasons["bottle"]) == ("ambiguous_product", "below_threshold")


def test_mask_of_a_tiled_product_lies_on_the_merged_map(model_folder, tiled_model, fixtures):
    model = tiled_model(pass_threshold=20.0, reject_threshold=20.0, floor=0.1, frame_range=fixtures.ANY_FRAME)
    bad = fixtures.good_frame(1, SIDE)
    bad[40:42, 30:36] -= 90
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[36:46, 24:42] = True
    with SnlDetector(model) as detector:
        assert detector.detect(bad).verdict is Verdict.REJECT
    model_folder.give_ignore_mask(ignored)
    with SnlDetector(model) as detector:
        result = detector.detect(bad)
        assert result.verdict is Verdict.PASS
        assert not result.anomaly_map[ignored].any()
