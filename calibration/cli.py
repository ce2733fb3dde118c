"""``snl-calibrate``: a decision per product, with a bound on false rejects and evidence of detection."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, EXIT_REFUSED, CommandParser, add_listing_flag, report_listing, run_command
from snl_runtime.errors import ConfigError
from snl_runtime.files import atomic_write_text, check_writable
from snl_runtime.images.opencv import load_opencv
from snl_runtime.progress import Progress
from snl_runtime.text import to_json
from snl_runtime.types import BIT_DEPTHS

if TYPE_CHECKING:
    from .calibrate import ProductFit
    from .normalization import NormalizationFit

HISTOGRAM_BINS = 12
HISTOGRAM_WIDTH = 40
EXAMPLE = """
snl-calibrate --engine line.onnx --good calibration/bottle --max-frr 0.01 --confidence 0.95
snl-calibrate --engine line.onnx --good calibration --bad bad --review-band 0.1 --valid-days 180
snl-calibrate --engine line.onnx --good data --held-out --max-frr 0.1 --json
snl-calibrate --engine line.onnx --good calibration/pcb --fixed-pose --report pcb.html
snl-calibrate --engine line.onnx --good collected/bottle --must-reject archive/reject --by 'A. Meyer'
snl-calibrate --engine line.onnx --list-history
snl-calibrate --engine line.onnx --revert 3 --by 'A. Meyer'
"""


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(
        "snl-calibrate",
        "Fit the pass threshold of each product on good parts that were not trained on, and append it to the model's manifest.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="FILE", help="x.onnx or x.trt, with its manifest x.json beside it")
    parser.add_argument(
        "--good",
        type=Path,
        metavar="DIR",
        help="folder of good images, or of one such folder per product, folders in them included; one image per part",
    )
    parser.add_argument("--product", metavar="NAME", help="product to fit (default: the folder's name, or every product folder)")
    parser.add_argument(
        "--held-out", action="store_true", help="take the good images that snl-train --hold-out kept back; --good is then the folder it had as --data"
    )
    parser.add_argument(
        "--max-frr", type=float, default=0.01, metavar="P", help="share of good parts that may score above the threshold, 0 to 1 (default: 0.01)"
    )
    parser.add_argument("--confidence", type=float, default=0.95, metavar="C", help="probability that --max-frr is kept, 0 to 1 (default: 0.95)")
    parser.add_argument("--bad", type=Path, metavar="DIR", help="bad images as evidence, one sub-folder per kind (default: synthetic defects)")
    parser.add_argument(
        "--min-detection", type=float, default=0.5, metavar="P", help="share of bad images that must score above the threshold, 0 to 1 (default: 0.5)"
    )
    parser.add_argument(
        "--review-band", type=float, default=0.0, metavar="X", help="scores up to 1 + X times the threshold are REVIEW, not REJECT (default: 0)"
    )
    parser.add_argument("--valid-days", type=float, metavar="N", help="days until the decision expires (default: never)")
    parser.add_argument(
        "--accept-outlier", action="append", default=[], metavar="NAME", help="good image that may score beyond median + 6 MAD; repeatable"
    )
    parser.add_argument(
        "--fixed-pose",
        action="store_true",
        help="the part always lies in the same pose: fit a normalization map, which lowers the anomaly map where good parts score high",
    )
    _add_frame_flags(parser)
    _add_history_flags(parser)
    parser.add_argument("--backend", metavar="NAME", help="onnxruntime, openvino or tensorrt (default: as snl-run)")
    parser.add_argument("--device", metavar="NAME", help="device as the backend names it, the one of the line: cpu, cuda, cuda:N (default: its own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="fixes the synthetic defects (default: 0)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="page with score histograms, the highest-scoring good parts and the hardest defects"
    )
    add_listing_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _add_frame_flags(parser: CommandParser) -> None:
    parser.add_argument("--roi", type=_parse_roi, metavar="X0,Y0,X1,Y1", help="part of the frame to inspect, frame pixels (default: all of it)")
    parser.add_argument(
        "--ignore-mask", type=Path, metavar="FILE", help="black and white image of the frames' size; what is white is not judged (one product)"
    )
    parser.add_argument(
        "--max-ignored", type=float, default=0.25, metavar="P", help="share of the inspected part that --ignore-mask may hide, 0 to 1 (default: 0.25)"
    )
    parser.add_argument(
        "--tile", type=int, metavar="N", help="inspect frames in tiles of N x N frame pixels, 0 for whole frames (default: as the model was trained)"
    )
    parser.add_argument("--overlap", type=int, metavar="N", help="frame pixels by which tiles overlap at least (default: as trained, else 32)")
    parser.add_argument(
        "--with-whole-frame", action=argparse.BooleanOptionalAction, help="inspect the whole frame beside its tiles, or not (default: as trained)"
    )
    parser.add_argument("--mm-per-px", type=float, metavar="X", help="millimeters per pixel of the frame: regions then have an area in mm2 too")
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="allow frames of every height, width and aspect between those of the good images (default: only the sizes that they have)",
    )
    parser.add_argument(
        "--bit-depth",
        type=int,
        choices=BIT_DEPTHS,
        metavar="N",
        help="bits that the camera uses of 16-bit images: 10, 12, 14 or 16 (default: 8 or 16, as the files are stored)",
    )


def _add_history_flags(parser: CommandParser) -> None:
    parser.add_argument("--must-reject", type=Path, metavar="DIR", help="images that must not pass under the new decision, e.g. archived rejects")
    parser.add_argument(
        "--max-loosening", type=float, default=0.1, metavar="X", help="share by which the pass threshold may rise unasked (default: 0.1)"
    )
    parser.add_argument(
        "--accept-lenient", metavar="REASON", help="write the decision although it is more lenient or passes an image of --must-reject; kept with it"
    )
    parser.add_argument("--by", default="", metavar="NAME", help="who calibrates, kept with the decision (default: the name of the account)")
    parser.add_argument("--list-history", action="store_true", help="print every decision with its number, date, author and thresholds, and end")
    parser.add_argument(
        "--revert",
        nargs="?",
        type=_parse_number,
        const=0,
        metavar="N",
        help="put decision N of the history into force again, the one before the current by default, and end",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 fitted, 2 user error, 3 at least one product was refused."""
    return run_command(lambda: _run(build_parser().parse_args(argv)), program="snl-calibrate")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list_history or arguments.revert is not None:
        return _run_history(arguments)
    if arguments.good is None:
        raise ConfigError("--good DIR is missing: the folder of good images to fit on (or --list-history, --revert)")
    load_opencv()  # the import below needs it; without it this is one line that names the extra
    from .calibrate import calibrate
    from .options import CalibrationOptions

    if arguments.report is not None:
        check_writable(arguments.report)
    options = CalibrationOptions(
        max_frr=arguments.max_frr,
        confidence=arguments.confidence,
        product=arguments.product,
        held_out=arguments.held_out,
        bad=arguments.bad,
        min_detection=arguments.min_detection,
        review_band=arguments.review_band,
        valid_days=arguments.valid_days,
        accept_outliers=tuple(arguments.accept_outlier),
        fixed_pose=arguments.fixed_pose,
        roi_xyxy=arguments.roi,
        ignore_mask=arguments.ignore_mask,
        max_ignored=arguments.max_ignored,
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        with_whole_frame=arguments.with_whole_frame,
        mm_per_px=arguments.mm_per_px,
        any_size=arguments.any_size,
        bit_depth=arguments.bit_depth,
        backend=arguments.backend,
        device=arguments.device,
        seed=arguments.seed,
        must_reject=arguments.must_reject,
        max_loosening=arguments.max_loosening,
        accept_lenient=arguments.accept_lenient,
        written_by=arguments.by,
    )
    fits = calibrate(
        arguments.engine,
        arguments.good,
        options,
        on_listed=lambda listing: report_listing("snl-calibrate", listing, list_left_out=arguments.list_left_out),
        before_writing=lambda fits: _deliver(arguments, fits),
        progress=Progress,
    )
    for fit in fits:
        if fit.decision is not None:
            print(f"snl-calibrate: {fit.product}: decision written to {arguments.engine.with_suffix('.json')}", file=sys.stderr)
    return EXIT_OK if all(fit.decision is not None for fit in fits) else EXIT_REFUSED


def _run_history(arguments: argparse.Namespace) -> int:
    load_opencv()
    from .history import describe_history, plain_history, read_history, revert
    from .options import CalibrationOptions

    if arguments.good is not None or (arguments.list_history and arguments.revert is not None):
        raise ConfigError("--good, --list-history and --revert exclude each other; give one of them")
    if arguments.revert is not None:
        options = CalibrationOptions(
            product=arguments.product, max_loosening=arguments.max_loosening, accept_lenient=arguments.accept_lenient, written_by=arguments.by
        )
        entry = revert(arguments.engine, options, arguments.revert or None)
        back_to = "" if entry.decision.change is None else f", back to {entry.decision.change.reverted_to}"
        print(f"snl-calibrate: {entry.decision.product}: decision {entry.number} written{back_to}", file=sys.stderr)
    entries = read_history(arguments.engine, arguments.product)
    print(to_json({"engine": str(arguments.engine), "history": plain_history(entries)}) if arguments.json else describe_history(entries), flush=True)
    return EXIT_OK


def _deliver(arguments: argparse.Namespace, fits: "Sequence[ProductFit]") -> None:
    """Report and print what was fitted; the decisions are written last, so that a full disk or a closed pipe leaves none of them."""
    from .report import render_report

    if arguments.report is not None:
        atomic_write_text(arguments.report, render_report(str(arguments.engine), fits))
    if arguments.json:
        print(to_json({"engine": str(arguments.engine), "products": [_plain(fit) for fit in fits]}), flush=True)
    else:
        print("\n".join(describe(fit) for fit in fits), flush=True)
    for fit in fits:
        for warning in fit.warnings:
            print(f"snl-calibrate: {fit.product}: {warning}", file=sys.stderr)
        if fit.refusal is not None:
            print(f"snl-calibrate: {fit.product}: refused: {fit.refusal}", file=sys.stderr)


def describe(fit: "ProductFit") -> str:
    """Return the tables of one product: the promise, the scores of its good parts, and what was detected."""
    lines = [
        f"{fit.product}: {'fitted' if fit.decision is not None else 'REFUSED, nothing written'}",
        f"  good parts        {fit.sample_count}",
    ]
    if fit.refusal is not None:
        lines.append(f"  refused           {fit.refusal}")
    if fit.fit is not None:
        lines.append(f"  pass threshold    {fit.fit.pass_threshold:.6g}   (floor {fit.fit.floor:.6g}, {fit.fit.exceeding} of the sample above)")
        lines.append(f"  bound             {fit.fit.bound}")
    if fit.normalization is not None:
        values, raw = fit.normalization.normalization.values, fit.normalization.raw_fit.pass_threshold
        lines.append(f"  normalization map {values.min():.3g} to {values.max():.3g}   (pass threshold without it {raw:.6g})")
    if fit.ignore_mask is not None:
        lines.append(f"  NOT JUDGED        {100 * fit.ignore_mask.ignored_share:.3g} % of the inspected part (ignore mask): a defect there passes")
    if fit.decision is not None:
        lines.append(f"  frames            {fit.decision.frame_sizes} pixels, {fit.decision.bit_depth} bits; others are ERROR on the line")
        if fit.decision.tiles is not None:
            tiles = fit.decision.tiles
            lines.append(f"  frames seen in    {tiles}, overlap {tiles.overlap_px} px or more: {tiles.count} runs of the network")
        lines.append(f"  reject threshold  {fit.decision.reject_threshold:.6g}")
        lines.append(f"  valid             {fit.decision.fitted_at} to {fit.decision.expires_at or 'no end'}")
    if fit.evidence is not None:
        lines.append(f"  detected          {100 * fit.evidence.detection_rate:.1f} % of the {fit.evidence.source}")
        if fit.normalization is not None:
            lines.append(f"  without normalization map  {100 * fit.normalization.raw_detected / len(fit.normalization.raw_peaks):.1f} % detected")
        lines += [f"    {kind:<16}{detected:>5} of {total}" for kind, (detected, total) in fit.evidence.counts.items()]
    if fit.scores:
        lines += ["  scores of the good parts", *_histogram(list(fit.scores.values()), fit.fit.pass_threshold if fit.fit else None)]
    return "\n".join(lines)


def _histogram(scores: list[float], threshold: float | None) -> list[str]:
    low, high = min(scores), max(scores)
    width = (high - low) / HISTOGRAM_BINS or 1.0
    counts = [0] * HISTOGRAM_BINS
    for score in scores:
        counts[min(int((score - low) / width), HISTOGRAM_BINS - 1)] += 1
    lines = []
    for index, count in enumerate(counts):
        left, right = low + index * width, low + (index + 1) * width
        is_last = index == HISTOGRAM_BINS - 1
        mark = "  <- pass threshold" if threshold is not None and (left <= threshold < right or (is_last and threshold >= left)) else ""
        bar = "#" * max(round(HISTOGRAM_WIDTH * count / max(counts)), count > 0)
        lines.append(f"    {left:>11.5g} {count:>5} {bar}{mark}")
        if low == high:
            break
    return lines


def _plain(fit: "ProductFit") -> dict[str, Any]:
    return {
        "product": fit.product,
        "fitted": fit.decision is not None,
        "refusal": fit.refusal,
        "sample_count": fit.sample_count,
        "decision": None if fit.decision is None else dataclasses.asdict(fit.decision),
        "threshold": None if fit.fit is None else dataclasses.asdict(fit.fit),
        "evidence": None if fit.evidence is None else dataclasses.asdict(fit.evidence),
        "normalization": None if fit.normalization is None else _plain_normalization(fit.normalization),
        "ignored_share": 0.0 if fit.ignore_mask is None else fit.ignore_mask.ignored_share,
        "outliers": fit.outliers,
        "scores": fit.scores,
        "warnings": fit.warnings,
    }


def _plain_normalization(found: "NormalizationFit") -> dict[str, Any]:
    return {
        "lowest": float(found.normalization.values.min()),
        "highest": float(found.normalization.values.max()),
        "threshold_without": dataclasses.asdict(found.raw_fit),
        "detected_without": found.raw_detected,
    }


def _parse_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected the number of a decision, as --list-history shows it, got {text!r}")
    return int(text)


def _parse_roi(text: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected X0,Y0,X1,Y1 in whole pixels, got {text!r}") from error
    return left, top, right, bottom


if __name__ == "__main__":
    sys.exit(main())
