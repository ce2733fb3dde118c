"""The result of an evaluation as text: one table for images, one for pixels."""

from collections.abc import Sequence

from snl_train.evaluation import Evaluation
from snl_train.measures import IMAGE_METRICS, METRIC_TITLES, PIXEL_METRICS, GroupMeasures, Measure


def format_tables(evaluation: Evaluation) -> str:
    """Return the tables of ``snl-eval``: a row per class, their mean, and all images pooled; ``-`` where a metric is not defined."""
    groups = [*evaluation.classes, evaluation.mean, evaluation.pooled]
    parts = [_table(groups, IMAGE_METRICS, "images"), _table(groups, PIXEL_METRICS, "pixels"), _footnote(evaluation)]
    return "\n\n".join(parts)


def format_measure(measure: Measure) -> str:
    """Return ``0.912 [0.880, 0.941]``, without the interval if there is none, or ``-``.

    >>> format_measure(Measure(value=None))
    '-'
    """
    if measure.value is None:
        return "-"
    if measure.interval is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} [{measure.interval.low:.3f}, {measure.interval.high:.3f}]"


def _table(groups: Sequence[GroupMeasures], names: Sequence[str], kind: str) -> str:
    # Where pixels are measured, the good images of classes without masks do not count: only the number of masks says how much was measured.
    counted = {"good": "good", "bad": "anomalous"} if kind == "images" else {"masks": "masked"}
    header = [kind, *counted, *(METRIC_TITLES[name].removeprefix("image ").removeprefix("pixel ") for name in names)]
    rows = [
        [group.name, *(str(getattr(group, field)) for field in counted.values()), *(format_measure(group.measures[name]) for name in names)]
        for group in groups
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [_line(header, widths, len(counted)), "  ".join("-" * width for width in widths)]
    return "\n".join(lines + [_line(row, widths, len(counted)) for row in rows])


def _line(cells: Sequence[str], widths: Sequence[int], counts: int) -> str:
    aligned = [cell.rjust(width) if 1 <= column <= counts else cell.ljust(width) for column, (cell, width) in enumerate(zip(cells, widths))]
    return "  ".join(aligned).rstrip()


def _footnote(evaluation: Evaluation) -> str:
    height, width = evaluation.size_hw
    text = f"Measured at {height}x{width}; image score = maximum of the map; AUPRO up to a false-positive rate of 0.3."
    bootstrap = evaluation.bootstrap
    if bootstrap.resamples:
        text += (
            f"\n[low, high]: {bootstrap.confidence:.0%} bootstrap interval, {bootstrap.resamples} resamples of whole images, seed {bootstrap.seed}."
        )
    for name, share in evaluation.ignored_share.items():
        (group,) = (group for group in evaluation.classes if group.name == name)
        hidden = f"; {group.hidden} of {group.anomalous} bad images have their defect wholly under it and count as bad" if group.hidden else ""
        text += f"\nNot judged: {100 * share:.3g} % of {name} (ignore mask){hidden}."
    return text
