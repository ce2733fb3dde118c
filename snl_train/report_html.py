"""Building blocks of a self-contained HTML page: skeleton, tables, facts, image tiles. Plain values in, HTML text out.

Every function escapes the text it is given; parameters named ``*_html`` are taken as they are. The page loads nothing: style is inline, plots are
SVG, images are data URIs, there is no script.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.overlay import HEAT_STOPS, blend_heat, hatch_ignored, heat_colors
from snl_runtime.images.preprocess import resize, resize_mask
from snl_runtime.types import AnomalyMap, Image
from snl_train.metrics import Flags

Tone: TypeAlias = Literal["plain", "good", "bad"]

IMAGE_PX = 220
"""Longest side of an image in a report."""
_TRUTH_COLOR = (255, 0, 210)

STYLE_SHEET = """
:root { --ink: #1b1f24; --soft: #5b6470; --line: #e2e5e9; --back: #f6f7f8; --card: #ffffff; --good: #2f7fb0; --bad: #cf4f22; --accent: #24476b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; }
h2 { font-size: 20px; margin: 44px 0 12px; letter-spacing: -0.01em; }
h3 { font-size: 13px; margin: 22px 0 10px; color: var(--soft); font-weight: 600; text-transform: uppercase; letter-spacing: 0.05em; }
p { margin: 6px 0 12px; max-width: 78ch; }
.lead { color: var(--soft); font-size: 16px; max-width: none; }
.note { color: var(--soft); font-size: 13.5px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 18px 0 0; }
nav a { color: var(--accent); text-decoration: none; background: #e9eef4; border-radius: 14px; padding: 2px 12px; font-size: 13.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 0 0 16px; overflow-x: auto; }
.columns { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); align-items: start; margin: 0 0 16px; }
.columns > .card { margin: 0; }
.figures { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin: 24px 0 8px; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.figures b { display: block; font-size: 30px; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: 13.5px; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); font-size: 13px; }
th { border-bottom: 2px solid var(--line); padding: 4px 10px 6px; vertical-align: bottom; }
td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.3; }
tr.total td { font-weight: 600; background: #f3f5f7; }
tr.total td small { font-weight: 400; }
.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
figure .visualizations { display: flex; gap: 2px; background: #e9ecef; }
figure .visualizations img { flex: 1 1 0; min-width: 0; width: 50%; height: 150px; object-fit: contain; display: block; }
figcaption { padding: 8px 12px 10px; font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
figcaption span { color: var(--soft); display: block; font-variant-numeric: tabular-nums; }
.badge { float: right; border-radius: 9px; padding: 0 9px; margin-left: 8px; font-size: 12px; font-weight: 600; }
.badge { background: #e9ecef; color: var(--soft); }
.badge.good { background: #e2eff6; color: #1d5f88; }
.badge.bad { background: #fbe6de; color: #a33a14; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: #f3f5f7; border-radius: 8px; padding: 12px 14px; overflow-x: auto; margin: 8px 0 0; }
details { margin: 10px 0 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
svg.plot { width: 100%; height: auto; display: block; max-width: 560px; margin: 0 auto; }
svg.plot text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.plot text.strong, svg.plot text.number { fill: var(--ink); font-weight: 600; }
svg.plot text.good { fill: var(--good); }
svg.plot text.anomalous { fill: var(--bad); }
svg.plot .grid { stroke: #eceef1; stroke-width: 1; }
svg.plot .axis { stroke: #8a939e; stroke-width: 1; }
svg.plot .chance { stroke: #b9c0c8; stroke-width: 1; stroke-dasharray: 3 4; }
svg.plot .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg.plot .curve.image { stroke: var(--accent); }
svg.plot .curve.pixel { stroke: #d39a1f; stroke-dasharray: 6 3; }
svg.plot .bar.good { fill: var(--good); }
svg.plot .bar.anomalous { fill: var(--bad); }
svg.plot .marker { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 5 4; }
svg.plot .whisker { stroke: #9db2c8; stroke-width: 5; stroke-linecap: round; }
svg.plot .dot { fill: var(--accent); stroke: #fff; stroke-width: 1.5; }
.legend { display: flex; align-items: center; gap: 10px; flex-wrap: wrap; color: var(--soft); font-size: 13px; margin: 4px 0 12px; }
.legend svg { width: 230px; height: 30px; }
@media print { body { background: #fff; } .card, figure { break-inside: avoid; } nav { display: none; } }
"""


class Cell(NamedTuple):
    """A table cell: a value and, below it in small type, what qualifies it."""

    text: str
    small: str = ""


def page(title: str, lead: str, body_html: str, *, links: Mapping[str, str] | None = None) -> str:
    """Return the whole page.

    Args:
        title: Heading and window title.
        lead: One sentence below the heading.
        body_html: Everything else.
        links: Text to anchor (the ``anchor`` of a section), shown as a row of links.
    """
    row = "".join(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for text, anchor in (links or {}).items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE_SHEET}</style></head>\n<body><main><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>{f"<nav>{row}</nav>" if row else ""}\n{body_html}\n</main></body></html>\n'
    )


def section(title: str, *parts_html: str, anchor: str = "") -> str:
    """Return a heading and what belongs to it."""
    mark = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{mark}><h2>{escape(title)}</h2>{''.join(parts_html)}</section>\n"


def card(*parts_html: str) -> str:
    """Return a white box with a border."""
    return f'<div class="card">{"".join(parts_html)}</div>'


def columns(*parts_html: str) -> str:
    """Return boxes side by side where there is room, else one below the other."""
    return f'<div class="columns">{"".join(parts_html)}</div>'


def note(text: str) -> str:
    """Return a paragraph in small gray type."""
    return f'<p class="note">{escape(text)}</p>'


def key_figures(figures: Sequence[tuple[str, str, str]]) -> str:
    """Return large numbers in a row: (label, value, what qualifies it) each."""
    boxes = "".join(f"<div><span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(below)}</span></div>" for label, value, below in figures)
    return f'<div class="figures">{boxes}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, total_rows: int = 0) -> str:
    """Return a table; the last ``total_rows`` rows are set off. The first column is text, the others are numbers."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    first_total = len(rows) - total_rows
    lines = [f"<tr{' class=total' if index >= first_total else ''}>{''.join(_cell(cell) for cell in row)}</tr>" for index, row in enumerate(rows)]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def facts(values: Mapping[str, Any]) -> str:
    """Return names and values below each other; mappings and lists fold into a block of JSON."""
    rows, folded = [], []
    for name, value in values.items():
        if isinstance(value, Mapping | list | tuple):
            text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
            folded.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
        else:
            rows.append(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>")
    return f"<dl>{''.join(rows)}</dl>{''.join(folded)}"


def tiles(*tiles_html: str) -> str:
    """Return image tiles in a grid."""
    return f'<div class="tiles">{"".join(tiles_html)}</div>'


def tile(visualizations: Sequence[Image], title: str, detail: str, *, badge: str = "", tone: Tone = "plain") -> str:
    """Return images (H, W, 3) uint8 RGB side by side with a caption and, if not empty, a badge in it."""
    images = "".join(f'<img alt="{escape(title)}" src="{png_data_uri(image)}">' for image in visualizations)
    mark = f'<b class="badge {tone}">{escape(badge)}</b>' if badge else ""
    return f'<figure><div class="saved_images">{images}</div><figcaption>{mark}{escape(title)}<span>{escape(detail)}</span></figcaption></figure>'


class HeatScale(NamedTuple):
    """What the colors of heat maps mean; one scale for all images of a product, so that they can be compared.

    Attributes:
        floor: Map value up to which the image stays as it is.
        reference: Map value that becomes yellow.
    """

    floor: float
    reference: float

    @property
    def ceiling(self) -> float:
        """Map value from which everything is red: as far above the reference as the floor is below."""
        return 2 * self.reference - self.floor


def heat_images(
    image_rgb: Image, anomaly_map: AnomalyMap, scale: HeatScale, mask: Flags | None = None, *, ignored: Flags | None = None
) -> list[Image]:
    """Return the image and its heat map at report size, in the colors of the line (`snl_runtime.images.overlay`).

    The line itself colors from 0 (``HeatScale(0, threshold)``); a floor above 0 shows more where good parts already score well above 0.

    Args:
        image_rgb: (H, W, 3) uint8, the whole frame.
        anomaly_map: (h, w) float32 over the same field of view.
        scale: Meaning of the colors.
        mask: (H, W) bool, outlined in the first image; None or all False for no outline.
        ignored: (h, w) bool, what is not judged, darkened and hatched in the heat map; None for nothing.
    """
    shrink = min(1.0, IMAGE_PX / max(image_rgb.shape[:2]))
    size_hw = (max(1, round(image_rgb.shape[0] * shrink)), max(1, round(image_rgb.shape[1] * shrink)))
    small = resize(image_rgb, size_hw)
    heat = blend_heat(small, anomaly_map - np.float32(scale.floor), scale.reference - scale.floor)
    heat = heat if ignored is None else hatch_ignored(heat, ignored)
    return [small if mask is None else _outlined(small, resize_mask(mask, size_hw)), heat]


def heat_legend(scale: HeatScale) -> str:
    """Return the color bar of `heat_images` with its values."""
    steps = 46
    colors, opacity = heat_colors(np.linspace(0, HEAT_STOPS[-1][0], steps)[None])
    shown = 255 + (colors[0] - 255) * opacity[0][:, None]
    bars = "".join(
        f'<rect x="{5 * index}" y="0" width="5.5" height="14" fill="rgb({r:.0f},{g:.0f},{b:.0f})"/>' for index, (r, g, b) in enumerate(shown)
    )
    labels = "".join(
        f'<text x="{x}" y="27" text-anchor="{anchor}" font-size="11" fill="#5b6470">{value:.4g}</text>'
        for x, anchor, value in ((0, "start", scale.floor), (115, "middle", scale.reference), (230, "end", scale.ceiling))
    )
    bar = f'<svg viewBox="0 0 230 30" role="img" aria-label="color scale">{bars}{labels}</svg>'
    text = f"one scale for all maps below: no color up to {scale.floor:.4g}, yellow at {scale.reference:.4g}, red from {scale.ceiling:.4g}; "
    return f'<div class="legend">{bar}<span>{text}magenta line: labeled defect; x: score over the yellow value</span></div>'


def png_data_uri(image_rgb: Image) -> str:
    """Return an image (H, W, 3) uint8 RGB as a data URI."""
    cv2 = load_opencv()
    # Level 3: level 9 takes 13 times as long for 12 % less.
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image_rgb[:, :, ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _outlined(image_rgb: Image, mask: Flags) -> Image:
    cv2 = load_opencv()
    image = np.ascontiguousarray(image_rgb).copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, _TRUTH_COLOR, 1)
    return image


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    return f"<td>{escape(cell.text)}{small}</td>"
