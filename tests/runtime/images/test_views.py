"""Views cover every pixel, overlap as asked, and their merged map hides nothing that any of them shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, ManifestError
from snl_runtime.images.views import Views, tile_views, whole_view
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
    for top, left in views.corners:
        seen[top : top + views.view_hw[0], left : left + views.view_hw[1]] += 1
    assert seen.min() >= 1
    assert seen.sum() == views.count * np.prod(views.view_hw)  # none reaches outside
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in views.corners})
        assert all(first + views.view_hw[axis] - second >= views.overlap_px for first, second in zip(starts, starts[1:]))


@given(grids())
@EXAMPLES
def test_grid_has_no_more_views_than_are_needed(views):
    for axis in (0, 1):
        count = len({corner[axis] for corner in views.corners})
        reached = views.view_hw[axis] + (count - 2) * (views.view_hw[axis] - views.overlap_px)  # by one view less
        assert count == 1 or reached < views.map_hw[axis]


@given(grids(), st.integers(0, 1000))
@EXAMPLES
def test_merged_map_is_the_largest_value_of_any_view_in_each_cell(views, seed):
    maps = np.random.default_rng(seed).uniform(0, 1, (views.count, *views.view_hw)).astype(np.float32)
    merged = views.empty_map()
    half = views.count // 2
    views.merge(merged, maps[:half], views.corners[:half])  # in batches
    views.merge(merged, maps[half:], views.corners[half:])
    for row, column in {(0, 0), (views.map_hw[0] // 2, views.map_hw[1] // 3), (views.map_hw[0] - 1, views.map_hw[1] - 1)}:
        values = [
            anomaly_map[row - top, column - left]
            for anomaly_map, (top, left) in zip(maps, views.corners)
            if 0 <= row - top < views.view_hw[0] and 0 <= column - left < views.view_hw[1]
        ]
        assert merged[row, column] == max(values)
    assert merged.max() == maps.max()


@given(grids(), st.data())
@EXAMPLES
def test_what_one_view_did_not_write_is_not_finite_in_the_merged_map(views, data):
    maps = np.ones((views.count, *views.view_hw), np.float32)
    spoiled = data.draw(st.integers(0, views.count - 1))
    maps[spoiled] = np.nan
    merged = views.empty_map()
    views.merge(merged, maps, views.corners)
    top, left = views.corners[spoiled]
    assert np.isnan(merged[top : top + views.view_hw[0], left : left + views.view_hw[1]]).all()


def test_map_that_a_view_is_missing_of_is_not_finite():
    views = Views(map_hw=(4, 8), view_hw=(4, 4))
    merged = views.empty_map()
    views.merge(merged, np.ones((1, 4, 4), np.float32), views.corners[:1])
    assert not np.isfinite(merged[:, 4:]).any()


def test_views_of_a_part_put_together_are_the_part():
    part = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    views = Views(map_hw=(9, 12), view_hw=(5, 4), overlap_px=1)
    again = np.zeros_like(part)
    for view, (top, left) in zip(views.cut(part), views.corners):
        again[top : top + 5, left : left + 4] = view
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
    views = tile_views(part_hw, (256, 256), tile_px=tile_px, overlap_px=overlap_px)
    assert views.map_hw == map_hw
    steps = [1 + -(-(side - 256) // (256 - views.overlap_px)) for side in map_hw]
    assert views.count == steps[0] * steps[1]
    assert views.count == count


@pytest.mark.parametrize(("network_hw", "tile_px", "overlap_px"), [((256, 320), 256, 0), ((256, 256), 256, 256), ((256, 256), 0, 0)])
def test_grid_that_cannot_be_is_refused(network_hw, tile_px, overlap_px):
    with pytest.raises(ConfigError):
        tile_views((700, 700), network_hw, tile_px=tile_px, overlap_px=overlap_px)


@given(st.integers(32, 900), st.integers(32, 900), st.integers(16, 512), st.integers(0, 200))
@EXAMPLES
def test_stored_grid_gives_the_same_views_again_and_no_other(height, width, tile_px, overlap_px):
    views = tile_views((height, width), (64, 64), tile_px=tile_px, overlap_px=min(overlap_px, tile_px - 1))
    grid = TileGrid(tile_px=tile_px, overlap_px=min(overlap_px, tile_px - 1), map_hw=views.map_hw, count=views.count)
    assert grid.views((64, 64)) == views
    other = TileGrid(tile_px=tile_px, overlap_px=min(overlap_px, tile_px - 1), map_hw=views.map_hw, count=views.count + 1)
    with pytest.raises(ManifestError, match="tiles"):
        other.views((64, 64))
