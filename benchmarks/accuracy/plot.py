"""A dot per seed and a bar at the mean, a row per method, as an SVG file that stands by itself on light and dark pages."""

from collections.abc import Mapping, Sequence
from html import escape

from snl_runtime.plots import nice_ticks

_ROW_PX, _LETTER_PX, _PLOT_PX, _MARGIN_PX = 24, 6.6, 460, 30
_STYLE = (
    "text{font:12px sans-serif;fill:#6b7280}.grid{stroke:#9ca3af;stroke-opacity:.35}"
    ".dot{fill:#2563eb;fill-opacity:.65}.mean{stroke:#d97706;stroke-width:2}"
)


def dot_plot(values: Mapping[str, Sequence[float]], title: str) -> str:
    """Return the plot of at least one value per label, labels from the top down."""
    every = [value for row in values.values() for value in row]
    ticks = nice_ticks(min(every), max(every))
    left = round(_LETTER_PX * max(len(label) for label in values)) + 16
    bottom = _MARGIN_PX + _ROW_PX * len(values)

    def x(value: float) -> str:
        return f"{left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * _PLOT_PX:.1f}"

    parts = [f'<text x="{left}" y="16">{escape(title)}</text>']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick)}" y1="{_MARGIN_PX - 6}" x2="{x(tick)}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for number, (label, row) in enumerate(values.items()):
        y = _MARGIN_PX + _ROW_PX * number + 10
        mean = sum(row) / len(row)
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        parts += [f'<circle class="dot" cx="{x(value)}" cy="{y}" r="4"><title>{value:.3f}</title></circle>' for value in row]
        parts.append(f'<line class="mean" x1="{x(mean)}" y1="{y - 8}" x2="{x(mean)}" y2="{y + 8}"><title>mean {mean:.3f}</title></line>')
    size = f'viewBox="0 0 {left + _PLOT_PX + _MARGIN_PX} {bottom + 26}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
