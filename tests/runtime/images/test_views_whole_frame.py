"""The whole frame beside its tiles is one more view: what either shows is in the merged map and in the score, and neither can be left out unseen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError
from snl_runtime.images.preprocess import resize
from snl_runtime.images.views import Views, score_frames, score_views, whole_view

EXAMPLES = settings(max_examples=25, deadline=None)
GOOD, BAD = np.float32(1), np.float32(9)


@st.composite
def grids(draw):
    view = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    part = tuple(side + draw(st.integers(0, 12)) for side in view)
    return Views(map_hw=part, view_hw=view, overlap_px=draw(st.integers(0, min(view) - 1)), with_whole_frame=True)


def drawn_part(views, seed=0):
    """Noise: no two views look alike."""
    return np.random.default_rng(seed).integers(0, 256, (*views.map_hw, 3), dtype=np.uint8)


def tiles_of(views):
    return Views(map_hw=views.map_hw, view_hw=views.view_hw, overlap_px=views.overlap_px)


def merged_by_hand(views, maps):
    """Cell by cell: the tile that gives it and the cell of the whole frame's map that its middle lies on; the larger one."""
    merged = np.zeros(views.map_hw, np.float32)
    for anomaly_map, (top, left, own_rows, own_columns, *_) in zip(maps, tiles_of(views).grid, strict=False):
        for row in range(*own_rows):
            for column in range(*own_columns):
                merged[row, column] = anomaly_map[row - top, column - left]
    for row in range(views.map_hw[0]):
        for column in range(views.map_hw[1]):
            down, across = ((place + 0.5) * small / large for place, small, large in zip((row, column), views.view_hw, views.map_hw))
            merged[row, column] = max(merged[row, column], maps[-1][int(down), int(across)])
    return merged


def shown(images):
    """A network that answers how bright each pixel is."""
    maps = images.mean(axis=3, dtype=np.float32)
    return maps.max(axis=(1, 2)), maps


@given(grids(), st.integers(0, 99))
@EXAMPLES
def test_views_are_the_tiles_and_then_the_whole_part_reduced_to_the_networks_input(views, seed):
    part = drawn_part(views, seed)
    assert views.count == len(views.grid) == tiles_of(views).count + 1
    seen = views.cut(part)
    assert np.array_equal(seen[:-1], tiles_of(views).cut(part))
    assert np.array_equal(seen[-1], resize(part, views.view_hw))
    assert np.array_equal(whole_view(views.view_hw).cut(seen[-1]), seen[-1:])


@given(grids(), st.integers(0, 999), st.integers(1, 40))
@EXAMPLES
def test_merged_map_is_the_larger_of_both_in_each_cell_and_the_score_its_maximum(views, seed, batch_size):
    maps = np.random.default_rng(seed).uniform(0, 1, (views.count, *views.view_hw)).astype(np.float32)
    answers = iter(maps)

    def infer(images):
        some = np.stack([next(answers) for _ in images])
        return some.max(axis=(1, 2)), some

    score, merged = score_views(drawn_part(views), views, infer, batch_size=batch_size)
    expected = merged_by_hand(views, maps)
    assert np.array_equal(merged, expected)
    assert score == expected.max()


@given(grids(), st.data())
@EXAMPLES
def test_defect_that_one_view_alone_shows_is_in_the_merged_map_and_the_score(views, data):
    """Of the whole frame wherever it lies in it; of a tile wherever it lies in the cells that the tile gives."""
    maps = np.full((views.count, *views.view_hw), GOOD)
    number = data.draw(st.integers(0, views.count - 1))
    view = views.grid[number]
    if number == views.count - 1:
        place = row, column = tuple(data.draw(st.integers(0, side - 1)) for side in views.view_hw)
        sides = zip(place, views.view_hw, views.map_hw)
        rows, columns = ([at for at in range(large) if int((at + 0.5) * small / large) == of] for of, small, large in sides)
    else:
        rows, columns = ([data.draw(st.integers(first, end - 1))] for first, end in (view.own_rows, view.own_columns))
        row, column = rows[0] - view.top, columns[0] - view.left
    maps[number, row, column] = BAD
    score, merged = score_views(drawn_part(views), views, lambda _: (maps.max(axis=(1, 2)), maps), batch_size=views.count)
    assert score == BAD
    assert {(int(r), int(c)) for r, c in np.argwhere(merged == BAD)} == {(r, c) for r in rows for c in columns}
    assert (merged != BAD).sum() == (merged == GOOD).sum()


def test_missing_part_is_seen_by_the_whole_frame_only():
    """A network that misses what it cannot see: it wants two marks, or none, as every tile of a good part shows."""
    views = Views(map_hw=(8, 16), view_hw=(8, 8), with_whole_frame=True)

    def wants_an_even_number_of_marks(images):
        marks = (images[..., 0] > 100).sum(axis=(1, 2))
        is_whole = images[:, 0, 0, 1] == 100  # halves of the left border's 200: only the reduced frame has it
        maps = np.where(is_whole & (marks < 2), BAD, GOOD)[:, None, None] * np.ones((1, *views.view_hw), np.float32)
        return maps.max(axis=(1, 2)), maps

    good = np.zeros((8, 16, 3), np.uint8)
    good[0, 0, 1] = 200
    good[4, 2:4, 0] = good[4, 12:14, 0] = 240
    bad = good.copy()
    bad[4, 12:14, 0] = 0
    scores = {name: score_views(part, views, wants_an_even_number_of_marks, batch_size=2)[0] for name, part in (("good", good), ("bad", bad))}
    assert scores == {"good": GOOD, "bad": BAD}
    assert score_views(bad, tiles_of(views), wants_an_even_number_of_marks, batch_size=2)[0] == GOOD


@given(grids(), st.data())
@EXAMPLES
def test_score_is_not_finite_if_any_value_of_the_whole_frames_map_is_not(views, data):
    row, column = (data.draw(st.integers(0, side - 1)) for side in views.view_hw)
    maps = np.ones((views.count, *views.view_hw), np.float32)
    maps[-1, row, column] = data.draw(st.sampled_from([np.nan, np.inf]))
    score, merged = score_views(drawn_part(views), views, lambda _: (maps.max(axis=(1, 2)), maps), batch_size=views.count)
    assert not np.isfinite(score)
    assert not np.isfinite(merged).all()


@given(grids())
@EXAMPLES
def test_cell_of_a_view_that_was_not_computed_is_nan_whatever_the_others_show(views):
    maps = np.ones((views.count, *views.view_hw), np.float32)
    for number, view in enumerate(views.grid):
        layers = views.empty_layers()
        others = [index for index in range(views.count) if index != number]
        views.put(layers, maps[others], [views.grid[index] for index in others])
        merged = views.merge(layers)
        (top, bottom), (left, right) = view.own_rows, view.own_columns
        assert np.isnan(merged[top:bottom, left:right]).all()
        assert np.isnan(merged).sum() == (bottom - top) * (right - left)


@given(grids(), st.integers(0, 99), st.randoms())
@EXAMPLES
def test_order_in_which_views_are_put_does_not_matter(views, seed, random):
    maps = np.random.default_rng(seed).uniform(0, 1, (views.count, *views.view_hw)).astype(np.float32)
    order = list(range(views.count))
    random.shuffle(order)
    layers = views.empty_layers()
    views.put(layers, maps[order], [views.grid[number] for number in order])
    assert np.array_equal(views.merge(layers), merged_by_hand(views, maps))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_frames_that_are_seen_differently_share_batches_and_none_gets_the_views_of_another(batch_size):
    size, side = (6, 6), (10, 14)
    both = Views(map_hw=side, view_hw=size, overlap_px=1, with_whole_frame=True)
    seen = [(drawn_part(views, number), views) for number, views in enumerate([both, whole_view(size), tiles_of(both), both])]
    alone = [score_views(part, views, shown, batch_size=1) for part, views in seen]
    for (score, merged), (own_score, own_merged) in zip(score_frames(seen, shown, batch_size=batch_size), alone, strict=True):
        assert score == own_score
        assert np.array_equal(merged, own_merged)


@pytest.mark.parametrize("left", [0, 1, -1])
def test_network_that_answers_for_other_than_the_views_it_was_given_is_an_error(left):
    views = Views(map_hw=(8, 16), view_hw=(8, 8), with_whole_frame=True)

    def infer(images):
        scores, maps = shown(images)
        return (scores, maps[:left]) if left >= 0 else (scores[:left], maps[:left])

    with pytest.raises(ValueError, match="shorter"):
        score_views(drawn_part(views), views, infer, batch_size=8)


def test_whole_frame_counts_among_the_views_that_are_allowed():
    most = {"map_hw": (16384, 16384), "view_hw": (64, 64)}  # 256 x 256 tiles of 4096 pixels
    assert Views(**most).count == 65536
    with pytest.raises(ConfigError, match="seen in 65537 views"):
        Views(**most, with_whole_frame=True)
