"""From tables to rows of a page: figures per class, means over class sets and seeds, range and interval."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy import tables
from benchmarks.accuracy.results import METRICS

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
_T95 = (
    (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    + (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
    + (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
)


class Summary(NamedTuple):
    """One figure over the seeds.

    Attributes:
        mean: Mean over the seeds.
        seed_range: Highest less lowest seed; None for one seed.
        interval: 95 % interval of the mean by Student's t over the seeds, within 0 to 1; None for one seed.
        seeds: Number of seeds.
    """

    mean: float
    seed_range: float | None
    interval: tuple[float, float] | None
    seeds: int


class RowKey(NamedTuple):
    """What a row is about; no row has figures of two devices, because rounding differs between them."""

    variant: str
    source: str
    setting: str
    image_size: str
    class_set: str
    device: str


@dataclass(slots=True)
class Row:
    """All results of one variant in one setting at one size on one device.

    Attributes:
        key: What it is about.
        classes: All classes of the set.
        figures: Seed to class to metric to (value, bootstrap interval or None).
        diverged: Seeds whose training ended in figures that are not finite.
        counts: Class to (good, anomalous) test images.
        commits: Commits that trained and measured.
        dates: Days on which seeds were measured.
    """

    key: RowKey
    classes: list[str] = field(default_factory=list)
    figures: dict[int, dict[str, dict[str, tuple[float | None, tuple[float, float] | None]]]] = field(default_factory=dict)
    diverged: set[int] = field(default_factory=set)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)

    def of_classes(self, metric: str, classes: Sequence[str]) -> Summary | None:
        """Return a metric's mean over classes, over the seeds that have all of them; classes without masks are left out of pixel metrics."""
        return summarize(list(self.per_seed(metric, classes).values()))

    def per_seed(self, metric: str, classes: Sequence[str]) -> dict[int, float]:
        """Return the mean over classes of each seed that has all of them."""
        found = {seed: self._class_mean(seed, metric, classes) for seed in sorted(self.figures)}
        return {seed: value for seed, value in found.items() if value is not None}

    def image_interval(self, metric: str, class_name: str) -> tuple[float, float] | None:
        """Return the bootstrap interval over test images of one class, each end averaged over the seeds."""
        ends = [figures[class_name][metric][1] for figures in self.figures.values() if class_name in figures]
        known = [end for end in ends if end is not None]
        if not known or len(known) < len(ends):
            return None
        low, high = np.mean(known, axis=0)
        return float(low), float(high)

    def _class_mean(self, seed: int, metric: str, classes: Sequence[str]) -> float | None:
        figures = self.figures[seed]
        if not classes or not all(name in figures for name in classes):
            return None
        values = [value for name in classes if (value := figures[name][metric][0]) is not None]
        return float(np.mean(values)) if values else None


def summarize(values: Sequence[float]) -> Summary | None:
    """Return mean, range and interval of one figure over seeds; None without a seed.

    >>> summarize([0.80, 0.82, 0.84])
    Summary(mean=0.82, seed_range=0.04, interval=(0.7703, 0.8697), seeds=3)
    """
    if not values:
        return None
    mean = round(float(np.mean(values)), 6)
    if len(values) < 2:
        return Summary(mean, None, None, 1)
    degrees = len(values) - 1
    t = _T95[degrees - 1] if degrees <= len(_T95) else 1.96
    half = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Summary(mean, round(max(values) - min(values), 6), (round(max(mean - half, 0.0), 4), round(min(mean + half, 1.0), 4)), len(values))


def rows(found: Iterable[tables.Row]) -> dict[RowKey, Row]:
    """Return the rows that a table of one protocol makes; one-class runs of a set and seed become one row."""
    made: dict[RowKey, Row] = {}
    for one in found:
        key = RowKey(*(one[name] for name in RowKey._fields))
        row = made.setdefault(key, Row(key))
        seed, name = int(one["seed"]), one["class"]
        row.commits |= set(one["commit"].split())
        row.dates.add(one["date"])
        row.classes = sorted({*row.classes, name})
        if not one["good"]:
            row.diverged.add(seed)
            continue
        row.counts[name] = (int(one["good"]), int(one["anomalous"]))
        row.figures.setdefault(seed, {})[name] = {metric: (_number(one[metric]), _interval(one, metric)) for metric in METRICS}
    return made


def _number(text: str) -> float | None:
    return float(text) if text else None


def _interval(row: tables.Row, metric: str) -> tuple[float, float] | None:
    low, high = _number(row[f"{metric}_low"]), _number(row[f"{metric}_high"])
    return None if low is None or high is None else (low, high)
