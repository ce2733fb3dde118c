"""The page the demo ends with: what the line said, part by part, with the commands that made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
from generate_products import DEFECTS, PRODUCTS

from snl_runtime import Decision, Manifest, read_image, read_manifest
from snl_train import report_html as html
from snl_train.plots_svg import histogram_plot

VERDICTS = ("PASS", "REVIEW", "REJECT", "ERROR")
TILES_PER_PRODUCT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the demo as it was run.

    Attributes:
        title: What it is for.
        command: As a user would type it.
        elapsed_s: How long it took.
    """

    title: str
    command: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the line said about parts whose truth is known.

    Attributes:
        counts: Parts by (truth, verdict), truth ``good`` or a defect kind.
        correct: Good parts that passed plus bad parts that got REJECT or REVIEW.
        total: All parts.
        bad_passed: Bad parts that passed: what a line must never do.
        good_refused: Good parts that did not pass.
        good_total: Good parts.
        allowed: Most good parts that may be refused before the promised rate is doubtful (99.9 % of lines that keep it stay at or below).
        kept: Whether the line keeps what the demo promises.
    """

    counts: dict[tuple[str, str], int]
    correct: int
    total: int
    bad_passed: int
    good_refused: int
    good_total: int
    allowed: int
    kept: bool


def write_report(out: Path, steps: Sequence[Step], tally: Tally, records: Sequence[dict[str, Any]], truth: Sequence[str], *, teacher: str) -> None:
    """Write ``report.html`` into ``out``; it loads nothing from elsewhere.

    Args:
        out: Folder of the demo, with ``line.json``, ``evaluation.json`` and ``overlays``.
        steps: Commands in order.
        tally: Verdicts against the truth.
        records: What ``snl-run`` wrote, in order.
        truth: ``good`` or the defect kind of each record.
        teacher: Which teacher weights were used.
    """
    manifest = read_manifest(out / "line.json")
    decisions = manifest.decisions_for(manifest.model_sha256)
    sections = [
        _key_figures(tally),
        html.section("What the line said", html.card(_confusion(tally)), html.note(_promise(tally)), anchor="verdicts"),
        *(_product(out, product, decisions[product], records, truth) for product in PRODUCTS),
        html.section("How it was made", html.card(_commands(steps)), anchor="commands"),
        html.section("Model", html.card(html.facts(_facts(manifest, teacher))), anchor="model"),
    ]
    links = {"Verdicts": "verdicts", **{product: product for product in PRODUCTS}, "Commands": "commands", "Model": "model"}
    lead = "Three made-up products, one model, one threshold each: from good images to a verdict per part, on a CPU, without a download."
    (out / "report.html").write_text(html.page("A line inspected by snl-edge", lead, "".join(sections), links=links), encoding="utf-8")


def _key_figures(tally: Tally) -> str:
    bad_total = tally.total - tally.good_total
    figures = [
        ("parts judged rightly", f"{tally.correct / tally.total:.1%}", f"{tally.correct} of {tally.total} parts of the videos"),
        ("bad parts that passed", str(tally.bad_passed), f"of {bad_total} bad parts"),
        ("good parts refused", str(tally.good_refused), f"of {tally.good_total} good parts; at most {tally.allowed} fit the promise of 1 %"),
    ]
    return html.key_figures(figures)


def _confusion(tally: Tally) -> str:
    rows = [[kind, *(str(tally.counts.get((kind, verdict), 0)) for verdict in VERDICTS)] for kind in ("good", *DEFECTS)]
    return html.table(["part", *VERDICTS], rows)


def _promise(tally: Tally) -> str:
    return (
        "Thresholds were fitted on good parts that neither training nor this table saw, for at most 1 % false rejects at 95 % confidence. "
        f"With {tally.good_total} good parts on the line, 99.9 % of lines that keep the promise refuse at most {tally.allowed}."
    )


def _product(out: Path, product: str, decision: Decision, records: Sequence[dict[str, Any]], truth: Sequence[str]) -> str:
    own = [(record, kind) for record, kind in zip(records, truth) if record["product"] == product]
    good = [record["score"] for record, kind in own if kind == "good" and record["score"] is not None]
    bad = [record["score"] for record, kind in own if kind != "good" and record["score"] is not None]
    evidence = decision.evidence
    facts = {
        "pass threshold": f"{decision.pass_threshold:.4f}, from {decision.sample_count} good parts",
        "promise": decision.bound,
        "evidence of detection": f"{evidence.source}: {evidence.detection_rate:.0%} detected",
        "by kind": {kind: f"{detected} of {total}" for kind, (detected, total) in evidence.counts.items()},
    }
    plot = histogram_plot(good, bad, reference=decision.pass_threshold, reference_label="pass threshold")
    return html.section(product, html.columns(html.card(plot), html.card(html.facts(facts))), html.tiles(*_tiles(out, product, own)), anchor=product)


def _tiles(out: Path, product: str, own: Sequence[tuple[dict[str, Any], str]]) -> list[str]:
    """Return one tile for each kind of part and whatever was judged wrongly."""
    # 20261128T065326.123Z_<source>_000012_REJECT.jpg; of several runs the last one counts
    overlays = {int(path.stem.split("_")[-2]): path for path in sorted((out / "overlays" / product).glob("*.jpg"))}
    wrong = [(record, kind) for record, kind in own if (record["verdict"] == "PASS") != (kind == "good")]
    first = [next(((record, own_kind) for record, own_kind in own if own_kind == kind), None) for kind in ("good", *DEFECTS)]
    shown = [*wrong, *(pair for pair in first if pair is not None and pair not in wrong)]
    return [_tile(overlays, record, kind) for record, kind in shown[:TILES_PER_PRODUCT]]


def _tile(overlays: dict[int, Path], record: dict[str, Any], kind: str) -> str:
    is_right = (record["verdict"] == "PASS") == (kind == "good")
    path = overlays.get(record["frame_index"])
    images = [] if path is None else [cv2.resize(read_image(path), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR)]
    score = "no score" if record["score"] is None else f"score {record['score']:.3f}"
    return html.tile(images, kind.replace("_", " "), f"{score}: {record['reason']}", badge=record["verdict"], tone="good" if is_right else "bad")


def _commands(steps: Sequence[Step]) -> str:
    return "".join(f"<p>{escape(step.title)} <small>({step.elapsed_s:.0f} s)</small></p><pre>{escape(step.command)}</pre>" for step in steps)


def _facts(manifest: Manifest, teacher: str) -> dict[str, Any]:
    return {
        "teacher weights": teacher,
        "model": f"{manifest.model_file}, sha256 {manifest.model_sha256}",
        "graph": manifest.graph,
        "parity with the checkpoint": [
            f"{report.frames_source}: {report.frame_count} frames, map differs by at most {report.map_max_abs:.2g} of {report.map_scale:.3g}"
            for report in manifest.parity
        ],
    }
