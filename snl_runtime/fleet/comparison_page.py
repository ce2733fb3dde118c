"""A comparison as one HTML page that needs nothing but itself: tables, histograms, and the most changed parts with their regions."""

import base64
import contextlib
import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snl_runtime.errors import DataError
from snl_runtime.fleet.archive import ArchiveRow
from snl_runtime.fleet.comparison import Allowance, Changed, Comparison, ProductComparison
from snl_runtime.fleet.inspector import part_frames
from snl_runtime.fleet.maps import unpack_ignored, unpack_map
from snl_runtime.fleet.results import Part, read_plan, read_results, read_run
from snl_runtime.images.files import to_image
from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.overlay import HEAT_STOPS, blend_heat, hatch_ignored
from snl_runtime.text import printable
from snl_runtime.types import Image

THUMBNAIL_PX = 320
OLD_COLOR, NEW_COLOR = (40, 110, 255), (255, 40, 40)
"""Outlines of the regions of the earlier and the later inspection, RGB."""
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}th{background:#f3f3f3}
.bad{color:#a00;font-weight:600}.good{color:#070}figure{display:inline-block;margin:.5em;width:330px;vertical-align:top}
.heat{display:inline-block;width:12em;height:.8em}figure.two{width:500px}.two img{max-width:49%;margin-right:1%}
figcaption{font-size:13px;overflow-wrap:anywhere}img{max-width:100%}.old{color:#286eff}.new{color:#ff2828}
"""


def render_page(comparison: Comparison, old: Path, new: Path) -> str:
    """Return the page; it reads the images of the most changed parts, and says so where one is not there any more.

    Args:
        comparison: What it shows.
        old: Results that it compares from.
        new: Results that it compares to.
    """
    answer = _answer(comparison.is_within, "within", "beyond")
    sides = _sides(comparison.most_changed, old, new)
    sections = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Comparison of two inspections</title>",
        f"<style>{_STYLE}</style><h1>Comparison of two inspections</h1>",
        f"<p>From <code>{_text(old)}</code> to <code>{_text(new)}</code>: the changes are {answer} what calibration allows.</p>",
        "<p>Within means: as many changes do not contradict the promised false-reject rates. It does not mean that a part which passes now is good; "
        "no calibration says how many bad parts a model passes. Look at each of them below.</p>",
        f"<p>Parts in one inspection only: {comparison.only_old} in the first, {comparison.only_new} in the second.</p>",
        *map(_product_section, comparison.products),
        "<h2>Most changed</h2><p>Regions above the threshold: <span class=old>before</span>, <span class=new>now</span>. "
        "Scores in units of the threshold.</p>",
        _legend(old, new, has_mask=any(side.heat is not None and unpack_ignored(side.heat) is not None for side in itertools.chain(*sides))),
        *_figures(comparison.most_changed, sides, new),
    ]
    return "\n".join(sections) + "</html>\n"


def _product_section(product: ProductComparison) -> str:
    names = sorted({name for pair in product.verdicts for name in pair}, key=("PASS", "REVIEW", "REJECT", "ERROR", "MOMENT").index)
    head = "".join(f"<th>{name}" for name in names)
    rows = "".join(f"<tr><th>{before}" + "".join(f"<td>{product.verdicts.get((before, now), 0)}" for now in names) for before in names)
    moment = " MOMENT: an ERROR of the moment such as a timeout." if "MOMENT" in names else ""
    percentiles = "".join(f"<tr><th>{percent} %<td>{value:+.4f}" for percent, value in product.score_changes.items())
    return (
        f"<h2>{_text(product.product or 'no product named')}</h2><p>{product.rows} parts, {_answer(product.is_within, 'within', 'beyond')}.</p>"
        f"<table><tr><th>before \\ now{head}{rows}</table><p>{moment}</p><ul>"
        f"<li>{_sentence('passed before and are refused now', product.refused)}"
        f"<li>{_sentence('were refused before and pass now', product.passed)}"
        f"<li>{product.new_errors} have become an ERROR, {product.lost_errors} were an ERROR and pass now: no promise covers either."
        f"<li>{product.not_compared} not compared: their earlier ERROR came from the moment.{_ignored(product)}</ul>"
        f"<h3>Change of the score in units of the threshold</h3>{_histogram(product)}<table>{percentiles}</table>"
    )


def _ignored(product: ProductComparison) -> str:
    before, now = product.ignored
    if not (before or now):
        return ""
    shares = f"{100 * before:.3g} % of the inspected part was not judged before, {100 * now:.3g} % is not now: a defect there passes"
    return f"<li>{shares}; {_answer(now <= before, 'within', 'beyond, no promise covers it')}."


def _sentence(what: str, allowance: Allowance) -> str:
    answer = _answer(allowance.is_within, "within", "beyond")
    if allowance.share is None or allowance.probability is None:
        return f"{allowance.changed} of {allowance.of} {what}: {answer}, no decision promises a rate."
    return (
        f"{allowance.changed} of {allowance.of} {what}: {answer}. At most a share of {allowance.share:.4g} is promised; "
        f"as many or more would then happen with a probability of {allowance.probability:.3g}."
    )


def _histogram(product: ProductComparison) -> str:
    counts, edges = product.histogram
    if not counts:
        return "<p>No part was scored twice.</p>"
    highest = max(counts)
    bars = "".join(
        f'<rect x="{12 * at}" y="{100 - height:.1f}" width="11" height="{height:.1f}" fill="#57a"><title>{count}</title></rect>'
        for at, count in enumerate(counts)
        if (height := 100 * math.log1p(count) / math.log1p(highest)) > 0
    )
    return f'<svg width="{12 * len(counts)}" height="102">{bars}</svg><p>From {edges[0]:+.4f} to {edges[-1]:+.4f}; heights are logarithmic.</p>'


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Side:
    """What one inspection says of an image, and how it is drawn.

    Attributes:
        row: ``regions``, ``threshold`` and, where maps were kept, ``map``.
        name: For the caption.
        color: Of the outlines, RGB.
    """

    row: Mapping[str, Any]
    name: str
    color: tuple[int, int, int]

    @property
    def heat(self) -> Mapping[str, Any] | None:
        """The stored map; None without one, or without a threshold that colors stand for."""
        return self.row.get("map") if self.row.get("threshold") else None


def _sides(most_changed: Sequence[Changed], old: Path, new: Path) -> list[tuple[_Side, _Side]]:
    before, now = _rows_of(old, [one.old_id for one in most_changed]), _rows_of(new, [one.new_id for one in most_changed])
    return [
        (
            _Side(row=before.get(one.old_id, {}), name="before", color=OLD_COLOR),
            _Side(row=now.get(one.new_id, {}), name="now", color=NEW_COLOR),
        )
        for one in most_changed
    ]


def _figures(most_changed: Sequence[Changed], sides: Sequence[tuple[_Side, _Side]], new: Path) -> list[str]:
    wanted = {one.new_id for one in most_changed}
    rows = {row_id: (part, row) for part in read_plan(new) for row_id, row in zip(part.ids, part.rows) if row_id in wanted}
    figures = []
    for one, both in zip(most_changed, sides, strict=True):
        picture = _picture(*rows[one.new_id], both)
        name = one.file if one.row is None else f"{one.file}#row={one.row}"
        text = f"{one.old_verdict} {_score(one.old_relative)} ({one.old_reason}) to {one.new_verdict} {_score(one.new_relative)} ({one.new_reason})"
        shape = " class=two" if picture.count("<img") == len(both) else ""
        figures.append(f"<figure{shape}>{picture}<figcaption>{_text(name)}<br>{_text(text)}</figcaption></figure>")
    return figures


def _rows_of(folder: Path, ids: Sequence[int]) -> dict[int, Any]:
    kept = ["map"] if (read_run(folder) or {}).get("maps") else []
    found = read_results(folder, ["row_id", "regions", "threshold", *kept], row_ids=ids).to_pylist()
    return {row["row_id"]: row for row in found}


def _picture(part: Part, row: ArchiveRow, sides: Sequence[_Side]) -> str:
    """Return the image once with the outlines of both sides, or once for each side if one of them kept its map."""
    (frame,) = part_frames(Part(number=part.number, product=part.product, day=part.day, ids=(0,), rows=(row,)))
    fault = frame.fault
    with contextlib.suppress(DataError):
        if frame.image is not None:
            image = to_image(frame.image, row.name)
            is_hot = any(side.heat is not None for side in sides)
            return "".join(_img(image, [side]) for side in sides) if is_hot else _img(image, sides)
    return f"<p class=bad>{_text(fault or 'cannot be shown')}</p>"


def _img(image_rgb: Image, sides: Sequence[_Side]) -> str:
    data = base64.b64encode(_thumbnail(image_rgb, sides)).decode()
    return f'<img alt="{" and ".join(side.name for side in sides)}" title="{sides[0].name}" src="data:image/jpeg;base64,{data}">'


def _thumbnail(image_rgb: Image, sides: Sequence[_Side]) -> bytes:
    cv2 = load_opencv()
    height, width = image_rgb.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    small = cv2.resize(image_rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    for side in sides:
        if side.heat is not None:
            left, top, right, bottom = (round(edge * scale) for edge in side.heat["roi_xyxy"])
            covered = small[top:bottom, left:right]
            if covered.size:  # a strip of some pixels may vanish in the small picture
                covered[...] = blend_heat(covered, unpack_map(side.heat), side.row["threshold"])
                if (ignored := unpack_ignored(side.heat)) is not None:
                    covered[...] = hatch_ignored(covered, ignored)
        for region in side.row.get("regions", []):
            left, top, right, bottom = (round(edge * scale) for edge in region["box_xyxy"])
            cv2.rectangle(small, (left, top), (max(left, right - 1), max(top, bottom - 1)), side.color, 1)
    _, encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return bytes(encoded.tobytes())


def _legend(old: Path, new: Path, *, has_mask: bool) -> str:
    kept = [name for name, folder in (("before", old), ("now", new)) if (read_run(folder) or {}).get("maps")]
    if not kept:
        return "<p>Heat maps: inspect with <code>snl-inspect --maps</code> to see them here.</p>"
    stops = ", ".join(f"rgb{color} {50 * heat:.0f}%" for heat, color, _ in HEAT_STOPS)
    order = "before on the left, now on the right" + ("" if len(kept) == 2 else f"; only {kept[0]}, the other inspection kept no maps")
    masked = " Dark and hatched: not judged (ignore mask)." if has_mask else ""
    return (
        f'<p>Heat maps, {order}: <span class=heat style="background:linear-gradient(90deg,{stops})"></span> '
        f"0, half the threshold, the threshold (yellow), twice the threshold and more (red).{masked}</p>"
    )


def _answer(is_within: bool, yes: str, no: str) -> str:
    return f"<span class={'good' if is_within else 'bad'}>{yes if is_within else no}</span>"


def _score(relative: float) -> str:
    return f"{relative:.3f}" if math.isfinite(relative) else "without a score"


def _text(value: object) -> str:
    return html.escape(printable(str(value)))
