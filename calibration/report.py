"""One page for people: where the threshold lies, which good parts come near it, and which defects the model sees worst."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np

from snl_runtime.images.files import read_image
from snl_runtime.types import Image

from .calibrate import ProductFit
from .evidence import thumbnail
from .ignore_mask import render_mask
from .normalization import NormalizationFit, render_normalization

BINS = 40
PLOT_WIDTH, PLOT_HEIGHT = 640, 140
GOOD_PARTS_SHOWN = 6

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
figure { display: inline-block; margin: .4rem .8rem .4rem 0; vertical-align: top; }
figcaption { font-size: 12px; max-width: 192px; overflow-wrap: anywhere; }
.refused { color: #a00; } .fitted { color: #070; } img { display: block; }
"""


def render_report(engine: str, fits: Sequence[ProductFit]) -> str:
    """Return a self-contained HTML page; it loads nothing and runs no script."""
    title = f"Calibration of {html.escape(engine)}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join(_product(fit) for fit in fits)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n'


def _product(fit: ProductFit) -> str:
    state = '<span class="fitted">fitted</span>' if fit.decision is not None else '<span class="refused">refused, nothing written</span>'
    parts = [f"<h2>{html.escape(fit.product)}: {state}</h2>"]
    parts += [f'<p class="refused">{html.escape(text)}</p>' for text in (fit.refusal, *fit.warnings) if text]
    if fit.fit is not None:
        parts.append(f"<p>Pass threshold <b>{fit.fit.pass_threshold:.6g}</b>, floor {fit.fit.floor:.6g}: {html.escape(fit.fit.bound)}.</p>")
    if fit.ignore_mask is not None:
        share = f"{100 * fit.ignore_mask.ignored_share:.3g} % of the inspected part is not judged: a defect there passes"
        parts += ["<h3>Ignore mask</h3>", _figure(render_mask(fit.ignore_mask), share)]
    if fit.normalization is not None:
        parts += _normalization(fit, fit.normalization)
    if fit.scores:
        parts.append(_histogram(list(fit.scores.values()), None if fit.fit is None else fit.fit.pass_threshold))
        parts.append(f"<h3>Highest of {len(fit.scores)} good parts: look at them, a bad one among them hides defects</h3>")
        highest = sorted(fit.scores, key=lambda name: -fit.scores[name])[: max(GOOD_PARTS_SHOWN, min(len(fit.outliers), 50))]
        parts += [
            _figure(thumbnail(read_image(fit.paths[name], fit.bit_depth)), f"{name}: {fit.scores[name]:.5g}{_outlier_note(fit, name)}")
            for name in highest
        ]
    if fit.evidence is not None:
        parts.append(f"<h3>{100 * fit.evidence.detection_rate:.1f} % of the {fit.evidence.source} detected; the lowest score of each kind</h3>")
        for kind, (detected, total) in fit.evidence.counts.items():
            example = fit.hardest[kind]
            parts.append(_figure(example.thumbnail, f"{kind}: {detected} of {total}; this one {example.score:.5g} on {example.name}"))
    return "\n".join(parts)


def _normalization(fit: ProductFit, found: NormalizationFit) -> list[str]:
    values = found.normalization.values
    parts = ["<h3>Normalization map: the anomaly map is multiplied with it before it is judged</h3>"]
    parts.append(
        _figure(render_normalization(found.normalization), f"{values.min():.3g} (dark: good parts score high there) to {values.max():.3g} (bright)")
    )
    if fit.fit is not None and fit.evidence is not None:
        detected, total = (sum(count[index] for count in fit.evidence.counts.values()) for index in range(2))
        parts.append(
            "<table><tr><th></th><th>with the normalization map</th><th>without</th></tr>"
            f"<tr><td>{html.escape(fit.evidence.source)} detected</td><td>{detected} of {total}</td><td>{found.raw_detected} of {total}</td></tr>"
            f"<tr><td>pass threshold</td><td>{fit.fit.pass_threshold:.6g}</td><td>{found.raw_fit.pass_threshold:.6g}</td></tr></table>"
        )
    return parts


def _outlier_note(fit: ProductFit, name: str) -> str:
    return " (beyond median + 6 MAD)" if name in fit.outliers else ""


def _figure(image_rgb: Image, caption: str) -> str:
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image_rgb[..., ::-1]))
    source = base64.b64encode(encoded.tobytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{source}"><figcaption>{text}</figcaption></figure>'


def _histogram(scores: list[float], threshold: float | None) -> str:
    high = max([*scores, threshold or 0.0]) * 1.05
    counts, _ = np.histogram(scores, bins=BINS, range=(0.0, high))
    step = PLOT_WIDTH / BINS
    heights = counts / counts.max() * PLOT_HEIGHT
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{PLOT_HEIGHT - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}" fill="#5a8"/>'
        for index, height in enumerate(heights)
        if height
    )
    line = ""
    if threshold is not None:
        x = threshold / high * PLOT_WIDTH
        line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{PLOT_HEIGHT}" stroke="#a00" stroke-width="2"/>'
    axis = (
        f'<line x1="0" x2="{PLOT_WIDTH}" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT}" stroke="#222"/>'
        f'<text x="0" y="{PLOT_HEIGHT + 16}" font-size="12">0</text>'
        f'<text x="{PLOT_WIDTH}" y="{PLOT_HEIGHT + 16}" font-size="12" text-anchor="end">{high:.4g}</text>'
    )
    return (
        f'<svg role="img" aria-label="scores of the good parts" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT + 20}" '
        f'viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT + 20}">{bars}{axis}{line}</svg>'
    )
