"""A bootstrap replicate equals the exact metric of the images drawn."""

import numpy as np
import pytest

from snl_train import metrics, resampling


def repeated(counts, *arrays):
    """The resample spelled out: each image as often as it was drawn."""
    return tuple(np.repeat(array, counts.astype(int), axis=0) for array in arrays)


def test_draws_keep_the_size_of_every_stratum():
    strata = np.array([0, 0, 0, 1, 1, 2])
    counts = resampling.draw_counts(strata, 50, np.random.default_rng(0))
    assert counts.shape == (50, 6)
    for stratum, size in ((0, 3), (1, 2), (2, 1)):
        assert (counts[:, strata == stratum].sum(axis=1) == size).all()
    assert len({tuple(row) for row in counts}) > 10


def test_image_replicates_are_exact():
    generator = np.random.default_rng(1)
    flags = np.arange(30) < 12
    scores = generator.integers(0, 8, 30) + 2.0 * flags
    counts = resampling.draw_counts(flags.astype(np.int64), 20, generator)
    curves = resampling.image_curves(flags, scores, counts)
    areas, precisions, best = metrics.area_under_curve(curves), metrics.precision_sum(curves), metrics.f1_scores(curves).max(axis=-1)
    for row, drawn in enumerate(counts):
        drawn_flags, drawn_scores = repeated(drawn, flags, scores)
        assert areas[row] == pytest.approx(metrics.roc_auc(drawn_flags, drawn_scores), abs=1e-12)
        assert precisions[row] == pytest.approx(metrics.average_precision(drawn_flags, drawn_scores), abs=1e-12)
        assert best[row] == pytest.approx(metrics.f1_max(drawn_flags, drawn_scores).value, abs=1e-12)


def scored_maps(levels):
    generator = np.random.default_rng(2)
    masks = np.zeros((10, 48, 48), bool)
    for index in range(5):
        masks[index, 4 : 10 + 4 * index, 5:20] = True
        masks[index, 40:42, 30 : 32 + index] = True
    maps = generator.gamma(2.0, size=masks.shape) * generator.uniform(0.5, 1.5, (10, 1, 1)) + 1.5 * masks
    return (np.round(maps * levels) / levels).astype(np.float32), masks


# float32 products limit the first row; the second has far more distinct values than thresholds.
@pytest.mark.parametrize(("levels", "tolerance"), [(20, 1e-5), (10**6, 2e-3)])
def test_pixel_replicates_equal_the_metrics_of_the_images_drawn(levels, tolerance):
    maps, masks = scored_maps(levels)
    table = resampling.count_pixels(maps, masks, metrics.pixel_curves(maps, masks))
    counts = resampling.draw_counts(masks.any(axis=(1, 2)).astype(np.int64), 8, np.random.default_rng(3))
    by_pixel, by_region = resampling.pixel_replicates(table, counts)
    areas, overlaps = metrics.area_under_curve(by_pixel), metrics.area_under_curve(by_region, limit=0.3)
    precisions, best = metrics.precision_sum(by_pixel), metrics.f1_scores(by_pixel).max(axis=-1)
    for row, drawn in enumerate(counts):
        drawn_maps, drawn_masks = repeated(drawn, maps, masks)
        exact = metrics.pixel_curves(drawn_maps, drawn_masks)
        assert areas[row] == pytest.approx(float(metrics.area_under_curve(exact.by_pixel)), abs=tolerance)
        assert overlaps[row] == pytest.approx(metrics.aupro(drawn_maps, drawn_masks), abs=tolerance)
        assert precisions[row] == pytest.approx(float(metrics.precision_sum(exact.by_pixel)), abs=tolerance)
        assert best[row] == pytest.approx(metrics.best_f1(exact.by_pixel).value, abs=tolerance)


def test_pixel_replicates_do_not_change_under_a_monotone_transform():
    maps, masks = scored_maps(10**6)
    counts = resampling.draw_counts(masks.any(axis=(1, 2)).astype(np.int64), 8, np.random.default_rng(3))

    def areas(values):
        table = resampling.count_pixels(values, masks, metrics.pixel_curves(values, masks))
        return metrics.area_under_curve(resampling.pixel_replicates(table, counts)[1], limit=0.3)

    # float64 keeps exp one to one; the maps themselves are float32.
    np.testing.assert_allclose(areas(np.exp(maps.astype(np.float64))), areas(maps), atol=1e-6)


def test_many_resamples_are_cut_into_chunks():
    counts = np.ones((300, 4))
    assert sum(len(part) for part in resampling.chunks(counts)) == 300
    assert max(len(part) for part in resampling.chunks(counts)) < 300
