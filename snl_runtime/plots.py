"""Plots as SVG: a plot area with its grid, curves, and a file of several plots. Plain numbers in, text out; no script, no font, no library."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 440, 264
"""Size of one plot in its own pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
"""Margins around the plot area."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by color-blind readers, on light and dark pages (M. Okabe and K. Ito, 2008)."""
_MOST_DOTS = 40
_LINE_PX = 16
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#6b7280}.strong{font-weight:600}.grid{stroke:#9ca3af;stroke-opacity:.35}"
    + ".curve{fill:none;stroke-width:2;stroke-linejoin:round}"
    + "".join(f".color{index}{{stroke:{color}}}circle.color{index}{{fill:{color}}}" for index, color in enumerate(_COLORS))
)


class Curve(NamedTuple):
    """One line of a plot: what the legend calls it, and its points in the order in which they are joined."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


class PlotArea:
    """Maps data to the plot's pixels, one decimal each.

    Args:
        x_low: Value at the left edge.
        x_high: Value at the right edge.
        y_low: Value at the lower edge.
        y_high: Value at the upper edge.
    """

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self._x_low, self._x_high, self._y_low, self._y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> float:
        """Return how far right a value is drawn."""
        return round(LEFT + (value - self._x_low) / (self._x_high - self._x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return how far down a value is drawn."""
        return round(HEIGHT - BOTTOM - (value - self._y_low) / (self._y_high - self._y_low) * (HEIGHT - TOP - BOTTOM), 1)

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
        """Return a line and a number at every tick."""
        top, bottom = TOP, HEIGHT - BOTTOM
        parts = []
        for tick in x_ticks:
            parts.append(f'<line class="grid" x1="{self.x(tick)}" y1="{top}" x2="{self.x(tick)}" y2="{bottom}"/>')
            parts.append(f'<text x="{self.x(tick)}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
        for tick in y_ticks:
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{self.y(tick)}" x2="{WIDTH - RIGHT}" y2="{self.y(tick)}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{self.y(tick) + 4}" text-anchor="end">{tick:g}</text>')
        return "".join(parts)

    def axis_titles(self, x_title: str, y_title: str) -> str:
        """Return what the axes show, below and at the left."""
        across = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>'
        return across + upright_text(y_title, 12, (TOP + HEIGHT - BOTTOM) / 2)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers at equal steps that enclose [low, high].

    >>> nice_ticks(0.13, 0.94)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = magnitude * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def upright_text(text: str, x: float, y: float, style: str = "") -> str:
    """Return text that reads upwards, with its middle at a point."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{escape(text)}</text>'


def svg_element(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """Return the SVG element of a page; ``label`` is for readers who do not see it."""
    return f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


class CurvePlot(NamedTuple):
    """Curves over common axes; the vertical one begins at 0.

    Attributes:
        title: Stands above.
        x_title: What the horizontal axis shows, with its unit.
        y_title: What the vertical axis shows, with its unit.
        curves: At least one, each of at least one point, values finite and not negative.
    """

    title: str
    x_title: str
    y_title: str
    curves: Sequence[Curve]


def svg_file(plots: Sequence[CurvePlot]) -> str:
    """Return the content of an SVG file that shows the plots one below the other, each under its title and a legend; it stands by itself."""
    parts, top = [], 0
    for plot in plots:
        header_px = _LINE_PX * (len(plot.curves) + 1) + 6
        parts.append(f'<g class="plot" transform="translate(0 {top})">{_legend(plot)}<g transform="translate(0 {header_px})">{_curves(plot)}</g></g>')
        top += header_px + HEIGHT + 8
    label = escape("; ".join(plot.title for plot in plots))
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'


def _legend(plot: CurvePlot) -> str:
    rows = [f'<text class="strong" x="{LEFT}" y="{_LINE_PX}">{escape(plot.title)}</text>']
    for index, curve in enumerate(plot.curves):
        y = _LINE_PX * (index + 2)
        rows.append(f'<line class="curve {_color(index)}" x1="{LEFT}" y1="{y - 4}" x2="{LEFT + 20}" y2="{y - 4}"/>')
        rows.append(f'<text x="{LEFT + 26}" y="{y}">{escape(curve.label)}</text>')
    return "".join(rows)


def _curves(plot: CurvePlot) -> str:
    x_ticks = nice_ticks(min(min(curve.x) for curve in plot.curves), max(max(curve.x) for curve in plot.curves))
    y_ticks = nice_ticks(0.0, max(max(curve.y) for curve in plot.curves))
    area = PlotArea(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    if all(float(x).is_integer() for curve in plot.curves for x in curve.x):  # counts: no tick at 1.5 frames
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    parts = [area.grid(x_ticks, y_ticks), area.axis_titles(plot.x_title, plot.y_title)]
    for index, curve in enumerate(plot.curves):
        points = list(zip(curve.x, curve.y, strict=True))
        joined = " ".join(f"{area.x(x):g},{area.y(y):g}" for x, y in points)
        parts.append(f'<polyline class="curve {_color(index)}" points="{joined}"/>')
        if len(points) <= _MOST_DOTS:
            parts += [
                f'<circle class="{_color(index)}" cx="{area.x(x)}" cy="{area.y(y)}" r="3"><title>{x:g}: {y:.4g}</title></circle>' for x, y in points
            ]
    return "".join(parts)


def _color(index: int) -> str:
    return f"color{index % len(_COLORS)}"
