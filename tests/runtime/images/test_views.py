"""Views cover every pixel, overlap as asked, and their merged map hides nothing that any of them shows."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, ManifestError
from snl_runtime.images.views import Tiles, Views, choose_tiles, score_views, tile_views, whole_view
from snl_runtime.model.manifest import TileGrid

SIDES = st.integers(1, 70)
EXAMPLES = settings(max_examples=150, deadline=None)


@st.composite
def grids(draw):
    view = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    whole = tuple(side + draw(st.integers(0, 60)) for side in view)
    return Views(map_hw=whole, view_hw=view, overlap_px=draw(st.integers(0, min(view) - 1)))


@given(grids())
@EXAMPLES
def test_views_cover_every_pixel_and_neighbors_overlap_by_at_least_what_was_asked(views):
    seen = np.zeros(views.map_hw, int)
    for view in views.grid:
        seen[view.top : view.top + views.view_hw[0], view.left : view.left + views.view_hw[1]] += 1
    assert seen.min() >= 1
    assert seen.sum() == views.count * np.prod(views.view_hw)  # none reaches outside
    for axis in (0, 1):
        starts = sorted({view[axis] for view in views.grid})
        assert all(first + views.view_hw[axis] - second >= views.overlap_px for first, second in zip(starts, starts[1:]))


@pytest.mark.parametrize(
    ("part_hw", "options", "message"),
    [
        ((4000, 5000), (16, 0, False), "seen in 78250 views"),
        ((700, 700), (256, 255, False), "seen in 198025 views"),
        ((16000, 64), (64, 63, True), "seen in 15938 views"),
    ],
    ids=["tiles that are enlarged", "no step", "a line camera with hardly a step"],
)
def test_grid_that_would_take_all_memory_or_minutes_is_refused_before_it_is_made(part_hw, options, message):
    with pytest.raises(ConfigError, match=message):
        tile_views(part_hw, (256, 256), Tiles(*options))
    assert tile_views((10000, 10000), (256, 256), Tiles(256, 32, with_whole_frame=True)).count == 45**2 + 1


@given(grids())
@EXAMPLES
def test_grid_has_no_more_views_than_are_needed(views):
    for axis in (0, 1):
        count = len({view[axis] for view in views.grid})
        reached = views.view_hw[axis] + (count - 2) * (views.view_hw[axis] - views.overlap_px)  # by one view less
        assert count == 1 or reached < views.map_hw[axis]


@given(grids(), st.integers(0, 1000))
@EXAMPLES
def test_each_cell_of_the_merged_map_is_that_of_a_view_that_sees_most_around_it(views, seed):
    maps = np.random.default_rng(seed).uniform(0, 1, (views.count, *views.view_hw)).astype(np.float32)
    layers = views.empty_layers()
    half = views.count // 2
    views.put(layers, maps[:half], views.grid[:half])  # in batches
    views.put(layers, maps[half:], views.grid[half:])
    merged = views.merge(layers)
    assert np.isfinite(merged).all()
    for row, column in {(0, 0), (views.map_hw[0] // 2, views.map_hw[1] // 3), (views.map_hw[0] - 1, views.map_hw[1] - 1)}:
        seen = {}  # distance to the borders of the view along each axis -> values
        for anomaly_map, view in zip(maps, views.grid):
            down, across = row - view.top, column - view.left
            if 0 <= down < views.view_hw[0] and 0 <= across < views.view_hw[1]:
                depth = min(down, views.view_hw[0] - 1 - down), min(across, views.view_hw[1] - 1 - across)
                seen.setdefault(depth, []).append(anomaly_map[down, across])
        assert merged[row, column] in seen[max(seen)]


@given(grids(), st.data())
@EXAMPLES
def test_score_is_not_finite_if_any_value_of_any_view_is_not(views, data):
    """Also where another view gives that cell of the merged map."""
    part = np.zeros((*views.map_hw, 3), np.uint8)
    spoiled, row, column = (data.draw(st.integers(0, high - 1)) for high in (views.count, *views.view_hw))
    part[..., 0] = 1

    def infer(images, seen=[]):  # noqa: B006  # counts the views over the batches
        maps = np.ones((len(images), *views.view_hw), np.float32)
        seen += range(len(images))
        if len(seen) > spoiled >= len(seen) - len(images):
            maps[spoiled - (len(seen) - len(images)), row, column] = np.nan
        return maps.max(axis=(1, 2)), maps

    score, _ = score_views(part, views, infer, batch_size=3)
    assert not np.isfinite(score)


@given(grids(), st.integers(0, 1000), st.data())
@EXAMPLES
def test_score_is_off_the_merged_map_by_as_much_as_a_view_is_off_its_own(views, seed, data):
    maps = np.random.default_rng(seed).uniform(0, 1, (views.count, *views.view_hw)).astype(np.float32)
    part = np.zeros((*views.map_hw, 3), np.uint8)
    off = data.draw(st.sampled_from([0.0, 0.25, -0.25]))
    scores = maps.max(axis=(1, 2))
    scores[data.draw(st.integers(0, views.count - 1))] += np.float32(off)
    score, merged = score_views(part, views, lambda images: (scores, maps), batch_size=views.count)
    assert score - merged.max() == pytest.approx(off, abs=1e-6)


def test_score_and_map_of_one_view_are_what_the_network_gave():
    maps = np.random.default_rng(0).uniform(0, 3, (1, 6, 5)).astype(np.float32)
    for score in (np.float32(0.1), np.float32(3e7), maps.max()):
        answer = np.array([score]), maps
        given_score, merged = score_views(np.zeros((6, 5, 3), np.uint8), whole_view((6, 5)), lambda _, answer=answer: answer, batch_size=1)
        assert given_score == score
        assert np.array_equal(merged, maps[0])


def test_map_that_a_view_is_missing_of_is_not_finite():
    views = Views(map_hw=(4, 8), view_hw=(4, 4))
    layers = views.empty_layers()
    views.put(layers, np.ones((1, 4, 4), np.float32), views.grid[:1])
    assert not np.isfinite(views.merge(layers)[:, 4:]).any()


def test_views_of_a_part_put_together_are_the_part():
    part = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    views = Views(map_hw=(9, 12), view_hw=(5, 4), overlap_px=1)
    again = np.zeros_like(part)
    for pixels, view in zip(views.cut(part), views.grid):
        again[view.top : view.top + 5, view.left : view.left + 4] = pixels
    assert np.array_equal(again, part)
    assert np.array_equal(whole_view((9, 12)).cut(part), part[None])


@pytest.mark.parametrize(
    ("part_hw", "tile_px", "overlap_px", "map_hw", "count"),
    [
        ((700, 700), 256, 32, (700, 700), 9),  # 1 + ceil(444 / 224)
        ((256, 256), 256, 0, (256, 256), 1),
        ((256, 512), 256, 0, (256, 512), 2),
        ((1000, 1000), 512, 64, (500, 500), 9),  # reduced to half: 1 + ceil(244 / 224)
        ((100, 600), 256, 0, (256, 600), 3),  # the short side is enlarged to one tile
    ],
)
def test_tiles_are_at_the_scale_of_the_network(part_hw, tile_px, overlap_px, map_hw, count):
    views = tile_views(part_hw, (256, 256), Tiles(tile_px, overlap_px, with_whole_frame=False))
    assert views.map_hw == map_hw
    steps = [1 + -(-(side - 256) // (256 - views.overlap_px)) for side in map_hw]
    assert views.count == steps[0] * steps[1]
    assert views.count == count


@pytest.mark.parametrize(("network_hw", "tile_px", "overlap_px"), [((256, 320), 256, 0), ((256, 256), 256, 256), ((256, 256), 0, 0)])
def test_grid_that_cannot_be_is_refused(network_hw, tile_px, overlap_px):
    with pytest.raises(ConfigError):
        tile_views((700, 700), network_hw, Tiles(tile_px, overlap_px, with_whole_frame=False))


@given(st.integers(32, 900), st.integers(32, 900), st.integers(16, 512), st.integers(0, 200), st.booleans())
@EXAMPLES
def test_stored_grid_gives_the_same_views_again_and_no_other(height, width, tile_px, overlap_px, whole):
    tiles = Tiles(tile_px, min(overlap_px, tile_px // 2), with_whole_frame=whole)
    views = tile_views((height, width), (64, 64), tiles)
    grid = TileGrid(**tiles._asdict(), map_hw=views.map_hw, count=views.count)
    assert grid.views((64, 64)) == views
    for other in ({"count": views.count + 1}, {"with_whole_frame": not whole}):
        with pytest.raises(ManifestError, match=f"expected {views.count if 'count' in other else views.count + 1 - 2 * whole} views"):
            dataclasses.replace(grid, **other).views((64, 64))


@pytest.mark.parametrize(
    ("trained", "tile_px", "overlap_px", "whole", "chosen"),
    [
        (None, None, None, None, None),
        (None, 256, None, None, (256, 32, False)),
        (None, 256, None, True, (256, 32, True)),
        (None, None, None, False, None),
        ((256, 48, False), None, None, None, (256, 48, False)),
        ((256, 48, False), 512, None, True, (512, 48, True)),
        ((256, 48, True), None, 0, None, (256, 0, True)),
        ((256, 48, True), 512, None, False, (512, 48, False)),
        ((256, 48, True), 0, 16, None, None),
    ],
)
def test_tiles_are_those_of_the_training_where_no_others_are_asked_for(trained, tile_px, overlap_px, whole, chosen):
    before = None if trained is None else Tiles(*trained)
    assert choose_tiles(before, tile_px=tile_px, overlap_px=overlap_px, with_whole_frame=whole) == chosen


@pytest.mark.parametrize(("trained", "tile_px"), [(None, None), (None, 0), (Tiles(256, 32, with_whole_frame=True), 0)])
def test_whole_frame_beside_no_tiles_is_refused(trained, tile_px):
    with pytest.raises(ConfigError, match="--with-whole-frame adds the whole frame to tiles, and there are none"):
        choose_tiles(trained, tile_px=tile_px, overlap_px=None, with_whole_frame=True)
