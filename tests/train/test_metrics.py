"""Every metric equals scikit-learn or a brute-force loop on the same numbers, ties included, and None where it is not defined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference

from snl_train import metrics

EXACT = 1e-12  # sums of a few hundred float64 terms


@st.composite
def labeled_scores(draw):
    """Both classes present, few distinct values so that ties within and across classes are common."""
    count = draw(st.integers(2, 60))
    flags = draw(hnp.arrays(bool, count))
    flags[0], flags[1] = False, True
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = draw(hnp.arrays(np.int64, count, elements=st.integers(0, levels)))
    return flags, (scores / 7).astype(draw(st.sampled_from([np.float32, np.float64])))


@given(labeled_scores())
@settings(max_examples=200, deadline=None)
def test_image_metrics_equal_scikit_learn_with_ties(data):
    flags, scores = data
    precision, recall, _ = reference.precision_recall_curve(flags, scores)
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    assert metrics.roc_auc(flags, scores) == pytest.approx(reference.roc_auc_score(flags, scores), abs=EXACT)
    assert metrics.average_precision(flags, scores) == pytest.approx(reference.average_precision_score(flags, scores), abs=EXACT)
    assert metrics.f1_max(flags, scores).value == pytest.approx(f1, abs=EXACT)


@given(labeled_scores())
@settings(max_examples=100, deadline=None)
def test_f1_threshold_gives_the_f1_it_names(data):
    flags, scores = data
    best = metrics.f1_max(flags, scores)
    assert reference.f1_score(flags, scores >= best.threshold) == pytest.approx(best.value, abs=EXACT)


@given(labeled_scores())
@settings(max_examples=100, deadline=None)
def test_roc_curve_passes_through_every_point_of_scikit_learn(data):
    flags, scores = data
    fpr, tpr, _ = reference.roc_curve(flags, scores, drop_intermediate=False)
    curve = metrics.roc_curve(flags, scores)
    drawn = np.stack([curve.false_positive_rate, curve.true_positive_rate], axis=1)
    for point in np.stack([fpr, tpr], axis=1):
        assert distance_to_polyline(point, drawn) < EXACT
    assert np.all(np.diff(curve.thresholds) < 0)


def distance_to_polyline(point, line):
    start, step = line[:-1], np.diff(line, axis=0)
    length = (step**2).sum(1)
    along = np.clip(((point - start) * step).sum(1) / np.where(length > 0, length, 1), 0, 1)
    return np.sqrt(((start + along[:, None] * step - point) ** 2).sum(1)).min()


def regions_by_flood_fill(mask):
    """Connected components over the 8 neighbors, by a plain stack."""
    left, found = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask))}, []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(region)
    return found


def brute_force_aupro(maps, masks, limit):
    """The definition read aloud: one threshold at a time, overlap per region, trapezoids up to the limit."""
    regions = [[one[y, x] for y, x in region] for one, mask in zip(maps, masks) for region in regions_by_flood_fill(mask)]
    normal = maps[~masks]
    if not regions or not normal.size:
        return None
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        overlap = np.mean([np.mean([value >= threshold for value in region]) for region in regions])
        points.append((float(np.mean(normal >= threshold)), float(overlap)))
    area = 0.0
    for (x_0, y_0), (x_1, y_1) in zip(points, points[1:]):
        if x_0 >= limit or x_0 == x_1:
            continue
        end = min(x_1, limit)
        area += (end - x_0) * (y_0 + y_0 + (y_1 - y_0) * (end - x_0) / (x_1 - x_0)) / 2
    return area / limit


@st.composite
def maps_and_masks(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)))
    levels = draw(st.sampled_from([1, 4, 10_000]))
    maps = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, levels)))
    masks = draw(hnp.arrays(bool, shape, elements=st.sampled_from([False, False, True])))
    return (maps / 3).astype(np.float32), masks


@given(maps_and_masks(), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=300, deadline=None)
def test_aupro_equals_brute_force_with_ties(data, limit):
    maps, masks = data
    expected = brute_force_aupro(maps, masks, limit)
    got = metrics.aupro(maps, masks, fpr_limit=limit)
    assert got is None if expected is None else got == pytest.approx(expected, abs=1e-10)


@given(maps_and_masks())
@settings(max_examples=100, deadline=None)
def test_pixel_curve_equals_scikit_learn_over_all_pixels(data):
    maps, masks = data
    curves = metrics.pixel_curves(maps, masks)
    if masks.all() or not masks.any():
        assert curves is None
        return
    flags, scores = masks.ravel(), maps.ravel()
    assert float(metrics.area_under_curve(curves.by_pixel)) == pytest.approx(reference.roc_auc_score(flags, scores), abs=EXACT)
    assert float(metrics.precision_sum(curves.by_pixel)) == pytest.approx(reference.average_precision_score(flags, scores), abs=EXACT)


def test_aupro_by_hand_counts_a_small_region_as_much_as_a_large_one():
    # Ten normal pixels 0..9 and two regions: one pixel at 20 (above all), four pixels at -1 (below all).
    maps = np.array([[20, 0, 1, 2, 3], [0, 4, 5, 6, 7], [8, 9, -1, -1, 9], [9, 9, -1, -1, 9]], np.float32)[None]
    masks = np.zeros((1, 4, 5), bool)
    masks[0, 0, 0] = masks[0, 2:, 2:4] = True
    assert metrics.aupro(maps, masks) == pytest.approx(0.5, abs=EXACT)
    assert metrics.aupro(maps, masks, fpr_limit=1.0) == pytest.approx(0.5, abs=EXACT)


def test_aupro_by_hand_interpolates_inside_a_tie_at_the_limit():
    # One defect pixel ties with all normal ones: overlap rises straight from 0 to 1, so it is 0.3 at the limit, mean 0.15.
    assert metrics.aupro(np.ones((1, 1, 11)), np.eye(1, 11, dtype=bool)[None]) == pytest.approx(0.15, abs=EXACT)


def test_diagonal_neighbors_are_one_region():
    # With regions {9, -1} (diagonal) and {10}, 3/4 is found before any false alarm; as three regions of one pixel it would be 2/3.
    maps = np.array([[[9, 0], [0, -1]], [[10, 0], [0, 0]]], np.float32)
    masks = np.array([[[1, 0], [0, 1]], [[1, 0], [0, 0]]], bool)
    curve = metrics.pixel_curves(maps, masks).by_region
    rate = curve.detected / curve.anomalous
    assert rate[curve.false_alarms == 0].max() == pytest.approx(3 / 4, abs=EXACT)


@pytest.mark.parametrize("transform", [np.exp, lambda v: 40 + v / 10, np.cbrt, lambda v: v**3 * 1e6])
def test_metrics_do_not_change_under_a_monotone_transform(transform):
    generator = np.random.default_rng(3)
    masks = generator.random((6, 16, 16)) < 0.1
    maps = generator.normal(size=masks.shape) + masks
    flags, scores = generator.random(50) < 0.4, generator.normal(size=50)
    assert metrics.aupro(transform(maps), masks) == pytest.approx(metrics.aupro(maps, masks), abs=EXACT)
    assert metrics.roc_auc(flags, transform(scores)) == metrics.roc_auc(flags, scores)
    assert metrics.average_precision(flags, transform(scores)) == metrics.average_precision(flags, scores)
    assert metrics.f1_max(flags, transform(scores)).value == metrics.f1_max(flags, scores).value


def test_known_hand_values():
    assert metrics.roc_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1.0
    assert metrics.roc_auc([0, 0, 1, 1], [4, 3, 2, 1]) == 0.0
    assert metrics.roc_auc([0, 1, 0, 1], [5, 5, 5, 5]) == 0.5
    # Descending 4+ 3- 2+ 1-: precision 1 at recall 1/2, 2/3 at recall 1: AP = 1/2 + 1/3; F1 at >= 2: 2*2/(3+2) = 0.8.
    assert metrics.average_precision([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx(5 / 6, abs=EXACT)
    assert metrics.f1_max([1, 0, 1, 0], [4, 3, 2, 1]) == (pytest.approx(0.8, abs=EXACT), 2.0)


@pytest.mark.parametrize("flags", [[False, False], [True, True], []])
def test_a_metric_without_both_classes_is_none_and_not_zero(flags):
    scores = np.arange(len(flags), dtype=float)
    assert metrics.roc_auc(flags, scores) is None
    assert metrics.average_precision(flags, scores) is None
    assert metrics.f1_max(flags, scores) is None
    assert metrics.roc_curve(flags, scores) is None


def test_aupro_without_a_region_is_none_and_not_zero():
    assert metrics.aupro(np.ones((2, 4, 4)), np.zeros((2, 4, 4), bool)) is None
    assert metrics.aupro(np.ones((2, 4, 4)), np.ones((2, 4, 4), bool)) is None
    assert metrics.aupro(np.ones((0, 4, 4)), np.ones((0, 4, 4), bool)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="must be finite"):
        metrics.roc_auc([True, False], [bad, 0.0])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.aupro(np.full((1, 2, 2), bad), np.eye(2, dtype=bool)[None])


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="same length"):
        metrics.roc_auc([True], [0.0, 1.0])
    with pytest.raises(ValueError, match="same shapes"):
        metrics.aupro(np.zeros((1, 2, 2)), np.zeros((1, 2, 3), bool))
    with pytest.raises(ValueError, match="fpr_limit"):
        metrics.aupro(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), fpr_limit=0.0)


def test_large_integers_are_not_merged_by_rounding():
    assert metrics.roc_auc([False, True], [2**24, 2**24 + 1]) == 1.0


def test_bootstrap_interval_is_the_percentile_interval():
    assert metrics.bootstrap_interval(np.arange(101.0), confidence=0.9) == (pytest.approx(5.0), pytest.approx(95.0))
    with pytest.raises(ValueError, match="needs replicates"):
        metrics.bootstrap_interval([])
