"""The HTML report of an evaluation: numbers with intervals, ROC curves, score histograms and heat maps, in one file that loads nothing.

Heat maps use one absolute scale per class: no color up to the value that 95 % of the pixels of its good images stay below, yellow at its reference
score, red from as far above. The reference is the image score of the best F1, or the highest score of a good image where a class has no anomalous
ones. It sorts images into right and misjudged and is no decision.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snl_train import metrics
from snl_train import report_html as html
from snl_train.evaluation import Evaluation
from snl_train.measures import METRIC_TITLES, METRICS, GroupMeasures, Measure, ScoredImage
from snl_train.plots_svg import IntervalRow, RocSeries, histogram_plot, interval_plot, roc_plot

MISJUDGED_SHOWN = 4
"""Most missed defects, and most false alarms, shown per class."""
FLOOR_QUANTILE = 0.95
"""Share of the pixels of good images without color."""
OTHERS_SHOWN = 2
"""Closest and clearest images shown per class, of each kind."""


def evaluation_report(evaluation: Evaluation, provenance: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        evaluation: What was measured; the image files must still be where they were.
        provenance: Plain values to print at the end; ``model``, ``runs_on`` and ``date`` also go into the heading.

    Raises:
        DataError: If an image that is shown cannot be read any more.
    """
    good, anomalous = evaluation.mean.good, evaluation.mean.anomalous
    classes = len(evaluation.classes)
    lead = f"{good + anomalous} images ({good} good, {anomalous} anomalous) of {classes} class{'es' if classes > 1 else ''}"
    lead += "".join(f", {provenance[key]}" for key in ("runs_on", "date") if key in provenance)
    parts = [_key_figures(evaluation), _summary(evaluation)]
    parts += [_class_section(group, evaluation, index) for index, group in enumerate(evaluation.classes)]
    parts += [_left_out(evaluation.left_out), html.section("Provenance", html.card(html.facts(provenance)), anchor="provenance")]
    links = {"Summary": "summary", **{group.name: _anchor(index) for index, group in enumerate(evaluation.classes)}, "Provenance": "provenance"}
    return html.page(f"Evaluation of {provenance.get('model', 'a model')}", lead, "".join(parts), links=links)


def _key_figures(evaluation: Evaluation) -> str:
    label = "" if len(evaluation.classes) == 1 else ", mean over classes"
    figures = []
    for name in ("image_auroc", "image_f1_max", "pixel_auroc", "aupro"):
        measure = evaluation.mean.measures[name]
        cell = _metric_cell(measure)
        figures.append((METRIC_TITLES[name] + label, cell.text, cell.small or ("no masks" if measure.value is None else "")))
    return html.key_figures(figures)


def _summary(evaluation: Evaluation) -> str:
    groups = [*evaluation.classes, evaluation.mean, evaluation.pooled]
    header = ["class", "good", "anomalous", "with mask", *(METRIC_TITLES[name] for name in METRICS)]
    rows = [_summary_row(group) for group in groups]
    plots = [
        interval_plot([_interval_row(group, name) for group in (groups if len(groups) > 3 else groups[:1])], title=METRIC_TITLES[name])
        for name in ("image_auroc", "pixel_auroc", "aupro")
        if evaluation.mean.measures[name].value is not None
    ]
    height, width = evaluation.size_hw
    how = (
        f"Measured at {height} x {width} on raw scores, exactly: no bins, ties count one half. The image score is the maximum of the map; a mask "
        "cell is anomalous when any part of it is; AUPRO integrates up to a false-positive rate of 0.3. Pooled: one threshold for all classes. "
    )
    bootstrap = evaluation.bootstrap
    if bootstrap.resamples:
        how += (
            f"Small figures: {bootstrap.confidence:.0%} intervals from {bootstrap.resamples} bootstrap resamples of images, good and anomalous "
            "apart; where every image is judged right they collapse to a point, so read them with the counts."
        )
    return html.section(
        "Summary", html.card(html.table(header, rows, total_rows=2)), html.columns(*map(html.card, plots)), html.note(how), anchor="summary"
    )


def _class_section(group: GroupMeasures, evaluation: Evaluation, index: int) -> str:
    images = [image for image in evaluation.images if image.sample.class_name == group.name]
    scale = _heat_scale(group, images)
    plots = [html.card(plot) for plot in (_roc(group, images), _histogram(group, images)) if plot]
    counts = f"{group.good} good and {group.anomalous} anomalous images, {group.masked} with a mask. "
    if group.reference_score is not None:
        counts += (
            f"Reference score {scale.reference:.4g}: the image score of the best F1 on these images. It sorts the images below and is no decision."
        )
    else:
        counts += (
            f"Only one kind of image, so there is nothing to tell apart; heat maps turn yellow at the highest good score, {scale.reference:.4g}."
        )
    if group.name in evaluation.ignored_share:
        counts += f" Not judged: {100 * evaluation.ignored_share[group.name]:.3g} % (ignore mask, hatched in the heat maps)"
        counts += f"; {group.hidden} bad images have their defect wholly under it and count as bad." if group.hidden else "."
    galleries = [
        f"<h3>{title}</h3>{html.tiles(*(_tile(image, scale, group) for image in chosen))}"
        for title, chosen in _chosen(images, group.reference_score)
        if chosen
    ]
    visualizations = html.card(html.heat_legend(scale), *galleries)
    return html.section(group.name, html.note(counts), html.columns(*plots), visualizations, anchor=_anchor(index))


def _roc(group: GroupMeasures, images: Sequence[ScoredImage]) -> str:
    series = []
    curve = metrics.roc_curve([image.sample.is_anomalous for image in images], [image.score for image in images])
    if curve is not None:
        series.append(RocSeries(f"images  {_value(group.measures['image_auroc'])}", "image", curve.false_positive_rate, curve.true_positive_rate))
    known = [image for image in images if image.mask is not None] if group.masked else []
    masks = [image.mask for image in known if image.mask is not None]
    curves = metrics.pixel_curves([image.anomaly_map for image in known], masks, [image.judged for image in known])
    if curves is not None:
        by_pixel = curves.by_pixel
        label = f"pixels  {_value(group.measures['pixel_auroc'])}"
        series.append(RocSeries(label, "pixel", by_pixel.false_alarms / by_pixel.normal, by_pixel.detected / by_pixel.anomalous))
    return roc_plot(series) if series else ""


def _histogram(group: GroupMeasures, images: Sequence[ScoredImage]) -> str:
    good = [image.score for image in images if not image.sample.is_anomalous]
    anomalous = [image.score for image in images if image.sample.is_anomalous]
    return histogram_plot(good, anomalous, reference=group.reference_score)


def _chosen(images: Sequence[ScoredImage], reference: float | None) -> list[tuple[str, list[ScoredImage]]]:
    """Return the images to show: misjudged at the reference, closest to it, farthest from it; none twice."""
    good = sorted((image for image in images if not image.sample.is_anomalous), key=lambda image: -image.score)
    anomalous = sorted((image for image in images if image.sample.is_anomalous), key=lambda image: image.score)
    missed = [image for image in anomalous if reference is not None and image.score < reference]
    alarms = [image for image in good if reference is not None and image.score >= reference]
    good, anomalous = good[len(alarms) :], anomalous[len(missed) :]
    close = anomalous[:OTHERS_SHOWN] + good[:OTHERS_SHOWN]
    clear = anomalous[OTHERS_SHOWN:][::-1][:OTHERS_SHOWN] + good[OTHERS_SHOWN:][::-1][:OTHERS_SHOWN]
    misjudged = missed[:MISJUDGED_SHOWN] + alarms[:MISJUDGED_SHOWN]
    title = f"Misjudged at the reference score: {len(missed)} missed, {len(alarms)} false alarms"
    title += ", the worst shown" if len(misjudged) < len(missed) + len(alarms) else ""
    return [
        (title, misjudged),
        ("Worst of those judged right: closest to the reference score", close),
        ("Best: farthest from it", clear),
    ]


def _tile(image: ScoredImage, scale: html.HeatScale, group: GroupMeasures) -> str:
    sample = image.sample
    visualizations = html.heat_images(
        sample.read_image(), image.anomaly_map, scale, sample.read_mask(), ignored=None if image.judged is None else ~image.judged
    )
    kind = (sample.defect or "anomalous") if sample.is_anomalous else "good"
    detail = f"{kind}, score {image.score:#.4g}" + (f" ({image.score / scale.reference:.2f} x)" if scale.reference > 0 else "")
    if group.reference_score is None:
        return html.tile(visualizations, sample.path.name, detail)
    if sample.is_anomalous == (image.score >= group.reference_score):
        return html.tile(visualizations, sample.path.name, detail, badge="right", tone="good")
    return html.tile(visualizations, sample.path.name, detail, badge="missed" if sample.is_anomalous else "false alarm", tone="bad")


def _heat_scale(group: GroupMeasures, images: Sequence[ScoredImage]) -> html.HeatScale:
    good = [image for image in images if not image.sample.is_anomalous]
    reference = group.reference_score
    if reference is None:
        reference = max(image.score for image in good or images)
    floor = float(np.quantile(np.stack([image.anomaly_map for image in good]), FLOOR_QUANTILE)) if good else 0.0
    # A model that hardly tells good from bad can put the reference among the good pixels: then the scale starts at 0.
    return html.HeatScale(floor if floor < reference else 0.0, reference)


def _left_out(left_out: Sequence[tuple[Path, str]]) -> str:
    if not left_out:
        return ""
    rows = [[str(path), reason] for path, reason in left_out]
    return html.section(f"Left out: {len(left_out)} unreadable files", html.card(html.table(["file", "reason"], rows)))


def _interval_row(group: GroupMeasures, name: str) -> IntervalRow:
    measure = group.measures[name]
    return IntervalRow(group.name, measure.value, measure.interval)


def _summary_row(group: GroupMeasures) -> list[html.Cell]:
    counts = [group.name, str(group.good), str(group.anomalous), str(group.masked)]
    return [*map(html.Cell, counts), *(_metric_cell(group.measures[name]) for name in METRICS)]


def _metric_cell(measure: Measure) -> html.Cell:
    small = "" if measure.interval is None else f"{measure.interval.low:.3f} – {measure.interval.high:.3f}"
    return html.Cell(_value(measure), small)


def _value(measure: Measure) -> str:
    return "–" if measure.value is None else f"{measure.value:.3f}"


def _anchor(index: int) -> str:
    return f"class-{index}"
