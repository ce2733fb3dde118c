"""``snl-inspect``: one verdict for every image of an archive, by many workers."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_NOT_ALL_PASSED, EXIT_OK, CommandParser, need_packages, run_command, stop_signals
from snl_runtime.cli.model_flags import add_model_flags, model_values, positive
from snl_runtime.errors import ConfigError
from snl_runtime.progress import Progress
from snl_runtime.station.config import ModelConfig
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.fleet.inspection import InspectionSummary

PROGRAM = "snl-inspect"
EXAMPLE = """
snl-inspect --engine line.onnx --data archive/ --product bottle --out results/
snl-inspect --engine line.onnx --data s3://plant/2026-11/ --out results/ --address ray-head:6379
snl-inspect --engine line.onnx --data frames.parquet --out results/ --workers 8
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _inspect(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Inspect an archive with one worker per core or GPU. The results are Parquet by product and day; a second run does what is missing.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt, under this name on every machine")
    parser.add_argument("--data", metavar="DIR|PARQUET|ADDRESS", required=True, help="folder of images, table x.parquet, or s3://bucket/folder")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the results, under this name on every machine")
    product = parser.add_mutually_exclusive_group()
    product.add_argument("--product", metavar="P", help="product of all images (default: the strictest rule of all calibrated products)")
    product.add_argument("--product-folders", action="store_true", help="the first folder below --data names the product of an image")
    parser.add_argument("--redo-errors", action="store_true", help="judge parts again that hold an ERROR")
    parser.add_argument("--maps", action="store_true", help="keep a small anomaly map in every row, at most 8 KiB, which snl-compare shows")
    parser.add_argument("--json", action="store_true", help="summary as one JSON object on standard output")
    parser.add_argument("--fail-on-reject", action="store_true", help="exit with 4 if a verdict is not PASS")
    running = parser.add_argument_group("running")
    running.add_argument("--address", metavar="HOST:PORT", help="existing Ray cluster (default: one on this machine, for this run only)")
    running.add_argument("--workers", metavar="N", type=positive(int), help="processes with one opened model each (default: one per core, or GPU)")
    running.add_argument("--part-rows", metavar="N", type=positive(int), help="images per file of results (default: 256, fewer for few images)")
    add_model_flags(running)
    return parser


class _Stop:
    """A service manager's stop: the run ends after the next part."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def ask(self, signal: str) -> None:
        self.signal = signal


def _inspect(arguments: argparse.Namespace) -> int:
    need_packages(("ray", "pyarrow"), what=PROGRAM, extra="fleet")
    from snl_runtime.fleet.inspection import InspectionConfig, inspect_archive

    if arguments.rebuild:
        raise ConfigError("--rebuild belongs to snl-run: build the engine there, then inspect with it")
    config = InspectionConfig(
        model=ModelConfig(file=arguments.engine, **model_values(arguments)),
        data=arguments.data,
        out=arguments.out,
        product=arguments.product,
        product_folders=arguments.product_folders,
        address=arguments.address,
        workers=arguments.workers,
        part_rows=arguments.part_rows,
        redo_errors=arguments.redo_errors,
        maps=arguments.maps,
    )
    stop = _Stop()
    started_s = time.perf_counter()
    with stop_signals(stop.ask):
        summary = inspect_archive(
            config,
            report=Progress,
            on_archive=lambda archive: print(f"{PROGRAM}: {archive.summary}", file=sys.stderr),
            is_stopped=lambda: stop.signal is not None,
        )
    _report(arguments, summary, time.perf_counter() - started_s, stop.signal)
    is_all_passed = summary.done and summary.verdicts["PASS"] == summary.rows
    return EXIT_NOT_ALL_PASSED if arguments.fail_on_reject and not is_all_passed else EXIT_OK


def _report(arguments: argparse.Namespace, summary: "InspectionSummary", elapsed_s: float, stopped_by: str | None) -> None:
    verdicts = ", ".join(f"{name} {summary.verdicts[name]}" for name in ("PASS", "REVIEW", "REJECT", "ERROR"))
    print(
        f"images: {summary.rows}, {summary.judged} judged now by {summary.workers} workers, {summary.kept} earlier, in {elapsed_s:.1f} s",
        file=sys.stderr,
    )
    print(f"verdicts: {verdicts}", file=sys.stderr)
    print(f"reasons: {', '.join(f'{code} {count}' for code, count in summary.reasons.most_common()) or 'none'}", file=sys.stderr)
    if not summary.done:
        left = summary.rows - summary.judged - summary.kept
        print(f"{PROGRAM}: stopped by {stopped_by}, {left} images are left; the same command goes on from here", file=sys.stderr)
    if arguments.json:
        plain: dict[str, Any] = {
            "engine": arguments.engine,
            "model_sha256": summary.model_sha256,
            "data": arguments.data,
            "out": str(arguments.out),
            "rows": summary.rows,
            "judged": summary.judged,
            "kept": summary.kept,
            "workers": summary.workers,
            "verdicts": {name: summary.verdicts[name] for name in ("PASS", "REVIEW", "REJECT", "ERROR")},
            "reasons": dict(summary.reasons.most_common()),
            "done": summary.done,
            "stopped_by": stopped_by,
            "elapsed_s": round(elapsed_s, 3),
        }
        print(to_json(plain))


if __name__ == "__main__":
    sys.exit(main())
