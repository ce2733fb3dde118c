"""``snl-export``: a checkpoint in, a verified ONNX bundle out."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, CommandParser, add_listing_flag, need_packages, report_listing, run_command
from snl_runtime.progress import Progress
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.model.manifest import ParityReport

    from .bundle_writer import ExportedBundle
    from .engines import ExportedEngine
    from .int8 import Int8Options
    from .triton import TritonModel

PROGRAM = "snl-export"
_EXAMPLE = """
snl-export --ckpt line.pt
snl-export --ckpt line.pt --fp16 --frames parts/bottle/test --out station/line.onnx
snl-export --ckpt line.pt --int8 --calib-data parts/bottle/train --frames parts/bottle/test --out station/line.onnx
snl-export --onnx line.onnx --triton models/
"""
_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "cv2")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``snl-export`` and return its exit status."""
    return run_command(lambda: _run(build_parser().parse_args(argv)), program=PROGRAM)


def build_parser() -> CommandParser:
    """Return the parser; it needs neither torch nor onnx."""
    parser = CommandParser(PROGRAM, "Export a checkpoint to one ONNX file and prove that it scores like the checkpoint.", example=_EXAMPLE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", type=Path, metavar="FILE", help="checkpoint of snl-train (x.pt)")
    what.add_argument("--onnx", type=Path, metavar="FILE", help="exported model (x.onnx), for --triton alone; needs no torch")
    parser.add_argument("--out", type=Path, metavar="FILE", help="ONNX file to write; x.json and x.golden.npz join it (default: beside --ckpt)")
    parser.add_argument("--fp16", action="store_true", help="half-precision convolutions and affinity operands; norms, means and scores stay fp32")
    _add_int8_options(parser)
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        help="images for the parity check (default: crops, flips and noise of the golden samples)",
    )
    parser.add_argument("--batch", default="dynamic", metavar="N", help="images per call: N exactly, 1..N, or dynamic for 1..8 (default: dynamic)")
    parser.add_argument("--tile-rows", type=int, metavar="N", help="rows of the affinity matrix that exist at a time (default: 256)")
    parser.add_argument(
        "--affinity-layout", choices=("rows", "triangle"), default="rows", help="tiles of the affinity matrix; triangle suits CPUs (default: rows)"
    )
    parser.add_argument(
        "--engine",
        choices=("tensorrt", "tensorrt-rtx", "none"),
        help="library that builds x.trt too (default: the one that is installed, where a GPU is here)",
    )
    parser.add_argument("--sm", metavar="A,B", help="compute capabilities of the engine (tensorrt-rtx; default: 86,89,120)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where the checkpoint runs: cpu, cuda, cuda:N or auto (default: cpu)")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="model repository of a Triton server that gets the model as its next version")
    parser.add_argument(
        "--keep-decisions",
        action="store_true",
        help="after snl-train --add-product: keep the decisions of products whose anomaly maps are those of the file at --out, on golden samples and "
        "on synthetic defects (default: calibrate all again)",
    )
    add_listing_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _add_int8_options(parser: CommandParser) -> None:
    parser.add_argument(
        "--int8", action="store_true", help="8-bit convolutions of the backbone, if maps, ranking and verdicts survive it; needs --calib-data"
    )
    parser.add_argument("--calib-data", type=Path, metavar="DIR", help="good images that the value ranges of --int8 are collected on")
    parser.add_argument(
        "--int8-parts",
        metavar="A,B",
        help="what --int8 quantizes, of early (stem and layer1), teacher, bottleneck, student; fewer lose less (default: teacher,bottleneck,student)",
    )


def _int8_options(options: argparse.Namespace) -> "Int8Options | None":
    from snl_calibration.quantize import DEFAULT_PARTS
    from snl_runtime.errors import ConfigError

    from .int8 import Int8Options, parse_parts

    if options.int8 and options.fp16:
        raise ConfigError("--int8 and --fp16 exclude each other: what is not 8-bit stays fp32; leave one of them out")
    if not options.int8:
        if options.calib_data is not None or options.int8_parts is not None:
            raise ConfigError("--calib-data and --int8-parts belong to --int8; add it or leave them out")
        return None
    if options.calib_data is None:
        raise ConfigError("--int8 needs --calib-data DIR, a folder of good images that value ranges are collected on")
    return Int8Options(calib_data=options.calib_data, parts=DEFAULT_PARTS if options.int8_parts is None else parse_parts(options.int8_parts))


def _run(options: argparse.Namespace) -> int:
    if options.onnx is not None:
        return _add_to_repository(options)
    need_packages(_PACKAGES, what=PROGRAM, extra="export")
    from .bundle_writer import ExportOptions, export_bundle
    from .engines import build_planned_engine, plan_engine
    from .graph import DEFAULT_TILE_ROWS
    from .onnx_export import BatchSize
    from .triton import check_repository, write_triton_model

    capabilities = _compute_capabilities(options.sm)
    plan = plan_engine(options.engine, capabilities)
    export_options = ExportOptions(
        precision="fp16" if options.fp16 else "int8" if options.int8 else "fp32",
        batch=BatchSize.parse(options.batch),
        tile_rows=DEFAULT_TILE_ROWS if options.tile_rows is None else options.tile_rows,
        layout=options.affinity_layout,
        frames=options.frames,
        device=options.device,
        int8=_int8_options(options),
        keep_decisions=options.keep_decisions,
    )
    _report_images(options)
    model_path = options.out if options.out is not None else options.ckpt.with_suffix(".onnx")
    if options.triton is not None:
        check_repository(options.triton, model_path)
    bundle = export_bundle(options.ckpt, model_path, export_options, on_stage=_say, progress=Progress)
    engine = None
    if plan.target is not None:
        _say("build the engine")
        with _naming_what_stands(model_path, f"build the engine again: snl-run --engine {model_path.with_suffix('.trt')} --rebuild"):
            engine = build_planned_engine(model_path, bundle.manifest, plan.target, frames=options.frames, progress=Progress)
        bundle = replace(bundle, manifest=engine.manifest, files=_with_engine(bundle, engine.path, engine.entry.sha256))
    served = None
    if options.triton is not None:
        _say("write the Triton model")
        with _naming_what_stands(model_path, f"write the Triton model again: {PROGRAM} --onnx {model_path} --triton {options.triton}"):
            served = write_triton_model(model_path, options.triton)
    if options.json:
        print(to_json({**_as_plain(bundle, engine, plan.why_not), "triton": _triton_plain(served)}))
        return EXIT_OK
    _print_text(bundle, engine, plan.why_not)
    if served is not None:
        print(_triton_line(served))
    return EXIT_OK


def _add_to_repository(options: argparse.Namespace) -> int:
    """Write a Triton model from a bundle that was exported earlier."""
    from snl_runtime.errors import ConfigError

    from .triton import check_repository, write_triton_model

    if options.triton is None:
        raise ConfigError("--onnx names a model that is exported already: add --triton DIR, or export a checkpoint with --ckpt x.pt")
    parser = build_parser()
    others = [name for name, value in vars(options).items() if name not in ("onnx", "triton", "json") and value != parser.get_default(name)]
    if others:
        raise ConfigError(f"--{others[0].replace('_', '-')} belongs to the export of a checkpoint; with --onnx leave it out")
    check_repository(options.triton, options.onnx)
    served = write_triton_model(options.onnx, options.triton)
    print(to_json({"model": str(options.onnx), "triton": _triton_plain(served)}) if options.json else _triton_line(served))
    return EXIT_OK


def _triton_plain(served: "TritonModel | None") -> dict[str, Any] | None:
    return None if served is None else {"folder": str(served.folder), "version": served.version, "is_new": served.is_new}


def _triton_line(served: "TritonModel") -> str:
    return f"{served.folder} {'has' if served.is_new else 'had'} this model as version {served.version}; it answers maps and scores, no verdicts"


@contextlib.contextmanager
def _naming_what_stands(model_path: Path, again: str) -> Iterator[None]:
    """Say which files are in place if what comes after them fails, and how to do only that again."""
    from snl_runtime.errors import SnlError

    try:
        yield
    except (SnlError, KeyboardInterrupt):
        _say(f"{model_path}, its manifest and golden samples are in place and whole; {again}")
        raise


def _report_images(options: argparse.Namespace) -> None:
    from snl_runtime.images.listing import list_images

    for folder in (options.frames, options.calib_data):
        if folder is not None:
            report_listing(PROGRAM, list_images(folder), list_left_out=options.list_left_out)


def _with_engine(bundle: "ExportedBundle", path: Path, sha256: str) -> dict[Path, str]:
    from snl_runtime.files import sha256_file
    from snl_runtime.model.manifest import manifest_path

    changed = manifest_path(bundle.model_path)
    return {**bundle.files, changed: sha256_file(changed), path: sha256}


def _print_text(bundle: "ExportedBundle", engine: "ExportedEngine | None", why_not: str | None) -> None:
    from .engines import engine_lines

    for report in bundle.manifest.parity:
        print(parity_line(report))
    for path, sha256 in bundle.files.items():
        print(f"{path}  sha256 {sha256}")
    if engine is None:
        print(f"no engine was built: {why_not}")
    else:
        if engine.entry.parity is not None:
            print(parity_line(engine.entry.parity))
        print(*engine_lines(engine), sep="\n")
    for note in bundle.notes:
        print(note)


def parity_line(report: "ParityReport") -> str:
    """Return the figures of a parity report in one line, and the guard band where there is one."""
    from snl_runtime.model.guard_band import guard_text
    from snl_runtime.parity.meter import correlation_text

    figures = [
        f"map {report.map_max_abs:.2g} (p99 {report.map_p99_abs:.2g})",
        f"score {report.score_max_abs:.2g} (p99 {report.score_p99_abs:.2g})",
        f"largest map value {report.map_scale:.4g}",
        f"allowed {report.tolerance:g} of each frame's largest map value",
        correlation_text(report),
        f"{report.flips} flips",
    ]
    if report.auroc_drift is not None:
        figures.append(f"image AUROC moves by {100 * report.auroc_drift:.2f} points")
    return (
        f"parity passed on {report.frame_count} frames ({report.frames_source}) against {report.reference}, {report.verified_on}: "
        f"largest differences {', '.join(figures)}{guard_text(report)}"
    )


def _as_plain(bundle: "ExportedBundle", engine: "ExportedEngine | None", why_not: str | None) -> dict[str, Any]:
    from snl_runtime.config import to_plain

    return {
        "model": str(bundle.model_path),
        "model_sha256": bundle.manifest.model_sha256,
        "files": {str(path): sha256 for path, sha256 in bundle.files.items()},
        "parity": [to_plain(report) for report in bundle.manifest.parity],
        "engine": None if engine is None else to_plain(engine.entry),
        "no_engine_because": why_not,
        "notes": list(bundle.notes),
    }


def _compute_capabilities(text: str | None) -> list[int]:
    from snl_runtime.errors import ConfigError

    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    if not all(name.isdecimal() and len(name) in (2, 3) for name in names):
        raise ConfigError(f"--sm must list compute capabilities such as 86,89,120, got {text!r}")
    return [int(name) for name in names]


def _say(stage: str) -> None:
    print(f"{PROGRAM}: {stage}", file=sys.stderr)
