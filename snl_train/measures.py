"""Every metric of a set of scored images: per class, mean over classes and pooled, each with its bootstrap interval."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from snl_runtime.text import printable
from snl_runtime.types import AnomalyMap
from snl_train import metrics, resampling
from snl_train.data.samples import Sample
from snl_train.metrics import Floats, Interval

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")
METRICS = IMAGE_METRICS + PIXEL_METRICS
METRIC_TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO",
}
POOLED = "pooled"
MEAN = "mean"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredImage:
    """One image with what the model said about it.

    Attributes:
        sample: Where it came from and whether it is anomalous.
        score: Image-level anomaly score, the maximum of the map; of an image seen in tiles, of the map before it was reduced.
        anomaly_map: (H, W) float32 at network resolution, 0 where it is not judged.
        mask: (H, W) bool at network resolution, all False for a good image and where nothing is judged; None for an anomalous image without a mask:
            its pixels are unknown.
        judged: (H, W) bool at network resolution, the pixels that an ignore mask leaves to be judged; None for all of them.
        is_hidden: Whether all of its labeled defect lies where nothing is judged.
    """

    sample: Sample
    score: float
    anomaly_map: AnomalyMap
    mask: npt.NDArray[np.bool_] | None
    judged: npt.NDArray[np.bool_] | None = None
    is_hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric of one group.

    Attributes:
        value: None where the metric is not defined: no masks, or only one of good and anomalous present.
        interval: Bootstrap interval; None without a value, without resamples, or with fewer than two images of a kind.
    """

    value: float | None
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMeasures:
    """All metrics of one class, of the mean over classes, or of all images pooled.

    Attributes:
        name: Class name, ``mean`` or ``pooled``.
        good: Number of good images.
        anomalous: Number of anomalous images.
        masked: Number of anomalous images with a mask; the others count for the image metrics only.
        measures: Metric name (`METRICS`) to value and interval.
        reference_score: Image score of the best F1, None with one kind of image only. It sorts images in a report and is no decision: it was
            chosen on the very images it judges.
        hidden: Number of anomalous images whose labeled defect lies wholly under an ignore mask. They count as anomalous in the image metrics: a bad
            part that the mask lets pass is a bad part that passes.
    """

    name: str
    good: int
    anomalous: int
    masked: int
    measures: Mapping[str, Measure]
    reference_score: float | None = None
    hidden: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: Number of replicates; 0 for no intervals.
        confidence: Share of replicates inside the interval.
        seed: Start of the random draws; a class gets the same draws whatever other classes are measured beside it.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def measure_groups(
    images: Sequence[ScoredImage], bootstrap: Bootstrap, *, on_group: Callable[[], None] = lambda: None
) -> tuple[list[GroupMeasures], GroupMeasures, GroupMeasures]:
    """Return the metrics per class (sorted by name), their mean over classes, and those of all images pooled.

    The mean takes the classes for which a metric is defined; its interval comes from the mean of the classes' replicates. Pooled pixel metrics take
    the classes that have masks, so that both speak of the same classes.

    Args:
        images: Scored images of any number of classes, maps of one size.
        bootstrap: How intervals are made.
        on_group: Called after each class and after the pooled group, for a progress bar.
    """
    groups: list[GroupMeasures] = []
    replicates: list[dict[str, Floats]] = []
    for name in sorted({image.sample.class_name for image in images}):
        members = [image for image in images if image.sample.class_name == name]
        group, drawn = _measure(name, members, bootstrap)
        groups.append(group)
        replicates.append(drawn)
        on_group()
    # With one class the pooled group is that class; measuring it again would only double the time.
    pooled = replace(groups[0], name=POOLED) if len(groups) == 1 else _measure(POOLED, images, bootstrap)[0]
    on_group()
    return groups, _mean(groups, replicates, bootstrap), pooled


def _measure(name: str, images: Sequence[ScoredImage], bootstrap: Bootstrap) -> tuple[GroupMeasures, dict[str, Floats]]:
    generator = np.random.default_rng([bootstrap.seed, zlib.crc32(printable(name).encode())])
    flags = np.array([image.sample.is_anomalous for image in images])
    scores = np.array([image.score for image in images])
    values, drawn = _image_measures(flags, scores, _drawn(images, bootstrap, generator))
    masked_classes = {image.sample.class_name for image in images if image.sample.is_anomalous and image.mask is not None}
    known = [image for image in images if image.mask is not None and image.sample.class_name in masked_classes]
    pixel_values, pixel_drawn = _pixel_measures(known, _drawn(known, bootstrap, generator))
    values |= pixel_values
    drawn |= pixel_drawn
    best = metrics.f1_max(flags, scores)
    group = GroupMeasures(
        name=name,
        good=int((~flags).sum()),
        anomalous=int(flags.sum()),
        masked=sum(image.sample.is_anomalous for image in known),
        measures={metric: _with_interval(values.get(metric), drawn.get(metric), bootstrap) for metric in METRICS},
        reference_score=best.threshold if best is not None else None,
        hidden=sum(image.is_hidden for image in images),
    )
    return group, drawn


def _drawn(images: Sequence[ScoredImage], bootstrap: Bootstrap, generator: np.random.Generator) -> list[Floats]:
    """Return draw counts in chunks; none if no interval is asked for or a kind has fewer than two images."""
    anomalous = sum(image.sample.is_anomalous for image in images)
    if not bootstrap.resamples or min(anomalous, len(images) - anomalous) < 2:
        return []
    names = sorted({image.sample.class_name for image in images})
    strata = np.array([2 * names.index(image.sample.class_name) + image.sample.is_anomalous for image in images])
    return resampling.chunks(resampling.draw_counts(strata, bootstrap.resamples, generator))


def _image_measures(flags: metrics.Flags, scores: Floats, drawn: Sequence[Floats]) -> tuple[dict[str, float], dict[str, Floats]]:
    value = metrics.roc_auc(flags, scores)
    precision = metrics.average_precision(flags, scores)
    best = metrics.f1_max(flags, scores)
    if value is None or precision is None or best is None:
        return {}, {}
    parts: dict[str, list[Floats]] = {name: [] for name in IMAGE_METRICS}
    for counts in drawn:
        curves = resampling.image_curves(flags, scores, counts)
        parts["image_auroc"].append(metrics.area_under_curve(curves))
        parts["image_ap"].append(metrics.precision_sum(curves))
        parts["image_f1_max"].append(metrics.f1_scores(curves).max(axis=-1))
    return {"image_auroc": value, "image_ap": precision, "image_f1_max": best.value}, _joined(parts)


def _pixel_measures(images: Sequence[ScoredImage], drawn: Sequence[Floats]) -> tuple[dict[str, float], dict[str, Floats]]:
    maps = [image.anomaly_map for image in images]
    masks = [image.mask for image in images if image.mask is not None]
    judged = [image.judged for image in images]
    curves = metrics.pixel_curves(maps, masks, judged)
    if curves is None:
        return {}, {}
    values = {
        "pixel_auroc": float(metrics.area_under_curve(curves.by_pixel)),
        "pixel_ap": float(metrics.precision_sum(curves.by_pixel)),
        "pixel_f1_max": metrics.best_f1(curves.by_pixel).value,
        "aupro": float(metrics.area_under_curve(curves.by_region, limit=metrics.FPR_LIMIT)),
    }
    if not drawn:
        return values, {}
    table = resampling.count_pixels(maps, masks, curves, judged)
    parts: dict[str, list[Floats]] = {name: [] for name in PIXEL_METRICS}
    for counts in drawn:
        by_pixel, by_region = resampling.pixel_replicates(table, counts)
        parts["pixel_auroc"].append(metrics.area_under_curve(by_pixel))
        parts["pixel_ap"].append(metrics.precision_sum(by_pixel))
        parts["pixel_f1_max"].append(metrics.f1_scores(by_pixel).max(axis=-1))
        parts["aupro"].append(metrics.area_under_curve(by_region, limit=metrics.FPR_LIMIT))
    return values, _joined(parts)


def _mean(groups: Sequence[GroupMeasures], replicates: Sequence[Mapping[str, Floats]], bootstrap: Bootstrap) -> GroupMeasures:
    measures = {}
    for metric in METRICS:
        defined = [index for index, group in enumerate(groups) if group.measures[metric].value is not None]
        values = [value for group in groups if (value := group.measures[metric].value) is not None]
        drawn = [replicates[index][metric] for index in defined if metric in replicates[index]]
        # A class without replicates would enter as a constant and make the interval too narrow.
        mean_drawn = np.mean(drawn, axis=0) if drawn and len(drawn) == len(defined) else None
        measures[metric] = _with_interval(float(np.mean(values)) if values else None, mean_drawn, bootstrap)
    return GroupMeasures(
        name=MEAN,
        good=sum(group.good for group in groups),
        anomalous=sum(group.anomalous for group in groups),
        masked=sum(group.masked for group in groups),
        measures=measures,
        hidden=sum(group.hidden for group in groups),
    )


def _with_interval(value: float | None, replicates: Floats | None, bootstrap: Bootstrap) -> Measure:
    if value is None or replicates is None:
        return Measure(value=value)
    return Measure(value=value, interval=metrics.bootstrap_interval(replicates, confidence=bootstrap.confidence))


def _joined(parts: Mapping[str, Sequence[Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate(chunks) for name, chunks in parts.items() if chunks}
