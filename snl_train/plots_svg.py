"""Small plots as inline SVG: ROC curves, score histograms, values with intervals. Plain arrays in, text out; no script, no font, no library.

Colors and type come from the classes of `snl_train.report_html.STYLE_SHEET`, so the plots need the page around them.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from snl_runtime.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, PlotArea, nice_ticks, svg_element, upright_text

_ROW_PX = 26


class RocSeries(NamedTuple):
    """One line of a ROC plot: what the legend calls it, its style class (``image``, ``pixel``) and its points, (K,) each, in [0, 1]."""

    label: str
    style: str
    false_positive_rate: npt.ArrayLike
    true_positive_rate: npt.ArrayLike


class IntervalRow(NamedTuple):
    """One row of an interval plot; ``interval`` None draws the dot alone, ``value`` None a dash."""

    label: str
    value: float | None
    interval: tuple[float, float] | None = None


def roc_plot(series: Sequence[RocSeries]) -> str:
    """Return ROC curves on the unit square with a legend in the empty corner below the diagonal."""
    area = PlotArea(0.0, 1.0, 0.0, 1.0)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [area.grid(ticks, ticks), area.axis_titles("false-positive rate", "detection rate")]
    parts.append(f'<line class="chance" x1="{area.x(0)}" y1="{area.y(0)}" x2="{area.x(1)}" y2="{area.y(1)}"/>')
    for one in series:
        points = _thinned(area, np.asarray(one.false_positive_rate, dtype=np.float64), np.asarray(one.true_positive_rate, dtype=np.float64))
        parts.append(f'<polyline class="curve {one.style}" points="{points}"/>')
    for row, one in enumerate(series):
        y = area.y(0) - 12 - 16 * (len(series) - 1 - row)
        parts.append(f'<line class="curve {one.style}" x1="{WIDTH - 148}" y1="{y - 4}" x2="{WIDTH - 128}" y2="{y - 4}"/>')
        parts.append(f'<text x="{WIDTH - 122}" y="{y}">{escape(one.label)}</text>')
    return svg_element(WIDTH, HEIGHT, "ROC curve", parts)


def histogram_plot(good: npt.ArrayLike, anomalous: npt.ArrayLike, *, reference: float | None = None, reference_label: str = "reference") -> str:
    """Return score histograms, good images upwards and anomalous ones downwards, so that neither hides the other.

    Args:
        good: (N,) scores of good images; may be empty.
        anomalous: (M,) scores of anomalous images; may be empty.
        reference: Score to mark with a dashed line; None for no line.
        reference_label: What to write at that line.
    """
    up, down = np.asarray(good, dtype=np.float64).ravel(), np.asarray(anomalous, dtype=np.float64).ravel()
    marks = np.concatenate([up, down, [] if reference is None else [reference]])
    if not marks.size:
        return ""
    ticks = nice_ticks(float(marks.min()), float(marks.max()))
    edges = np.linspace(ticks[0], ticks[-1], 29)
    up_counts, down_counts = np.histogram(up, edges)[0], np.histogram(down, edges)[0]
    tallest = max(int(up_counts.max()), int(down_counts.max()), 1)
    area = PlotArea(ticks[0], ticks[-1], -1.08 * tallest if down.size else 0.0, 1.08 * tallest if up.size else 0.0)
    parts = [area.grid(ticks, [])]
    for counts, sign, style, kind in ((up_counts, 1, "good", "good"), (down_counts, -1, "anomalous", "anomalous")):
        parts += [
            _bar(
                area, edges[index], edges[index + 1], sign * int(count), style, f"{count} {kind}, score {edges[index]:.4g} to {edges[index + 1]:.4g}"
            )
            for index, count in enumerate(counts)
            if count
        ]
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{area.y(0)}" x2="{WIDTH - RIGHT}" y2="{area.y(0)}"/>')
    for size, sign, kind in ((up.size, 1, "good"), (down.size, -1, "anomalous")):
        if size:
            parts.append(f'<text class="{kind}" x="{LEFT - 4}" y="{area.y(sign * tallest) + 4}" text-anchor="end">{tallest}</text>')
            parts.append(upright_text(f"{kind} ({size})", 14, area.y(sign * tallest / 2), kind))
    if reference is not None:
        parts.append(_marker(area, reference, reference_label))
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">anomaly score</text>')
    return svg_element(WIDTH, HEIGHT, "histogram of anomaly scores", parts)


def interval_plot(rows: Sequence[IntervalRow], *, title: str) -> str:
    """Return one dot with its interval per row, on a common axis from a round number below the lowest end to 1."""
    ends = [end for row in rows if row.value is not None for end in (row.value, *(row.interval or ()))]
    low = min(0.9, math.floor(10 * min(ends, default=0.9)) / 10)
    low = 0.2 * math.floor(low / 0.2 + 1e-9) if low < 0.35 else low
    label_px = 14 + 7 * min(24, max((len(row.label) for row in rows), default=0))
    width, height = 400, _ROW_PX * len(rows) + 44
    right = width - 46

    def x(value: float) -> float:
        return round(label_px + (value - low) / (1 - low) * (right - label_px), 1)

    parts = [f'<text class="strong" x="{label_px}" y="14">{escape(title)}</text>']
    step = 0.2 if 1 - low > 0.65 else 0.1 if 1 - low > 0.25 else 0.05
    for tick in np.arange(low, 1 + step / 2, step):
        parts.append(f'<line class="grid" x1="{x(tick)}" y1="24" x2="{x(tick)}" y2="{height - 18}"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 4}" text-anchor="middle">{tick:.2g}</text>')
    for index, row in enumerate(rows):
        y = 24 + _ROW_PX * (index + 0.5)
        parts.append(f'<text x="{label_px - 10}" y="{y + 4}" text-anchor="end">{escape(_shortened(row.label, 24))}</text>')
        parts.append(f'<text class="number" x="{width - 4}" y="{y + 4}" text-anchor="end">{"–" if row.value is None else f"{row.value:.3f}"}</text>')
        if row.interval is not None:
            parts.append(f'<line class="whisker" x1="{x(row.interval[0])}" y1="{y}" x2="{x(row.interval[1])}" y2="{y}"/>')
        if row.value is not None:
            parts.append(f'<circle class="dot" cx="{x(row.value)}" cy="{y}" r="4.5"/>')
    return svg_element(width, height, title, parts)


def _bar(area: PlotArea, left: float, right: float, height: float, style: str, tooltip: str) -> str:
    x_0, x_1 = area.x(left) + 0.5, area.x(right) - 0.5
    y_0, y_1 = sorted((area.y(0), area.y(height)))
    return (
        f'<rect class="bar {style}" x="{x_0:.1f}" y="{y_0}" width="{max(x_1 - x_0, 1):.1f}" height="{y_1 - y_0:.1f}">'
        f"<title>{escape(tooltip)}</title></rect>"
    )


def _thinned(area: PlotArea, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    """Return the points of a polyline, without those that do not move it by half a pixel: millions of pixels become a few hundred points."""
    placed = np.stack([LEFT + x * (WIDTH - LEFT - RIGHT), area.y(0) - y * (HEIGHT - TOP - BOTTOM)], axis=1)
    halves = np.round(2 * placed) / 2
    kept = np.append(True, (halves[1:] != halves[:-1]).any(axis=1))
    return " ".join(f"{a:g},{b:g}" for a, b in halves[kept])


def _marker(area: PlotArea, value: float, label: str) -> str:
    x = area.x(value)
    anchor, shift = ("end", -4) if x > WIDTH * 0.6 else ("start", 4)
    return (
        f'<line class="marker" x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="strong" x="{x + shift}" y="{TOP + 9}" text-anchor="{anchor}">{escape(label)} {value:.4g}</text>'
    )


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
