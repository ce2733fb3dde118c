"""The coreset chosen with bounds on distances is the one that the plain rule chooses, written down here in NumPy."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accuracy.farthest import farthest_points


def chosen_plainly(points: npt.NDArray[np.float32], start: int, count: int) -> list[int]:
    """argmax_i min_j ||x_i - x_j||, in float64, every distance computed."""
    chosen = [start]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.linalg.norm(points.astype(np.float64) - points[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return chosen


def clusters(seed: int, *, points: int, width: int, spread: float) -> npt.NDArray[np.float32]:
    """Points (N, D) around a few places, far from zero, most of them along few axes: what makes bounds worth having."""
    rng = np.random.default_rng(seed)
    places = 10 * rng.standard_normal((1 + seed % 5, width)) + 30
    scale = spread / (1 + np.arange(width))
    return np.asarray(places[rng.integers(len(places), size=points)] + scale * rng.standard_normal((points, width)), np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), points=st.integers(1, 700), width=st.sampled_from([1, 5, 31, 32, 33, 120]), spread=st.sampled_from([0.1, 3.0]))
def test_bounds_change_no_choice(seed: int, points: int, width: int, spread: float):
    rows = clusters(seed, points=points, width=width, spread=spread)
    start, count = seed % points, max(1, points // 3)
    chosen = farthest_points(rows, start, count)
    expected = chosen_plainly(rows, start, count)
    if list(chosen) == expected:
        return
    # Two points may be as far as float32 can tell: then every choice, judged in float64, is as far as the best one but for rounding.
    nearest = np.linalg.norm(rows.astype(np.float64) - rows[start], axis=1)
    for one in chosen[1:]:
        assert nearest[one] >= nearest.max() - 1e-5 * np.linalg.norm(rows - rows.mean(axis=0), axis=1).max()
        nearest = np.minimum(nearest, np.linalg.norm(rows.astype(np.float64) - rows[one], axis=1))


def test_the_choice_of_many_well_separated_points_is_the_plain_one():
    rows = clusters(7, points=3000, width=64, spread=3.0)
    assert list(farthest_points(rows, 11, 600)) == chosen_plainly(rows, 11, 600)


def test_all_points_on_a_line_by_hand():
    rows = np.array([[0.0], [1.0], [2.5], [10.0]], np.float32)
    assert list(farthest_points(rows, 0, 4)) == [0, 3, 2, 1]  # 10 is farthest from 0, then 2.5 (2.5 from 0), then 1


def test_points_that_are_all_the_same_end():
    assert farthest_points(np.ones((200, 8), np.float32), 3, 5)[0] == 3


def test_progress_counts_every_chosen_point_after_the_first():
    steps: list[int] = []
    farthest_points(clusters(1, points=2500, width=4, spread=1.0), 0, 2200, advance=steps.append)
    assert sum(steps) == 2199


@pytest.mark.parametrize(
    ("start", "count", "message"), [(5, 1, "start must be an index of 5"), (0, 6, "count must be in 1..5"), (0, 0, "count must")]
)
def test_nonsense_is_refused(start: int, count: int, message: str):
    with pytest.raises(ValueError, match=message):
        farthest_points(np.zeros((5, 2), np.float32), start, count)
