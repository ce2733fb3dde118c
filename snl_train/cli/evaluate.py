"""``snl-eval``: how well a checkpoint or an exported model tells good from bad, with intervals and images."""

import argparse
import contextlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, CommandParser, add_listing_flag, need_packages, report_listing, run_command
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.files import atomic_write_text, check_writable, sha256_file
from snl_runtime.images.views import Tiles, choose_tiles
from snl_runtime.progress import Progress
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.model.manifest import Decision
    from snl_train.data.samples import DatasetIndex, Sample
    from snl_train.evaluation import Evaluation, InputScorer
    from snl_train.ignored_part import IgnoredPart

_PACKAGES = ("snl-edge", "numpy", "opencv-python-headless", "opencv-python", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``snl-eval`` and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(_parser().parse_args(arguments), arguments), program="snl-eval")


def _parser() -> CommandParser:
    parser = CommandParser(
        "snl-eval",
        "Measure a checkpoint or an exported model on labeled test images.",
        example="snl-eval --ckpt line.pt --data parts --report line.html\nsnl-eval --engine line.onnx --data parts --json > line-metrics.json",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt", type=Path, metavar="FILE", help="checkpoint of snl-train (x.pt)")
    model.add_argument("--engine", type=Path, metavar="FILE", help="exported model (x.onnx, x.trt); its manifest is found beside it")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="test images with labels: MVTec AD or VisA layout")
    parser.add_argument("--classes", metavar="A,B", help="measure these classes only (default: all)")
    parser.add_argument("--backend", metavar="NAME", help="runtime for --engine: onnxruntime, openvino, tensorrt (default: as snl-run)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N for --ckpt; the backend's own name for --engine (default: auto)")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="images per call of the model (default: 8)")
    parser.add_argument("--tile", type=_not_negative, metavar="N", help="tiles of N x N image pixels, 0 for whole images (default: as trained)")
    parser.add_argument("--overlap", type=_not_negative, metavar="N", help="least overlap of tiles in pixels (default: as trained, else 32)")
    parser.add_argument(
        "--with-whole-frame", action=argparse.BooleanOptionalAction, help="see the whole image beside its tiles, or not (default: as trained)"
    )
    parser.add_argument(
        "--ignore-mask",
        action="append",
        default=[],
        metavar="[PRODUCT=]FILE",
        help="black and white image of the test images' size; what is white is not judged, as in snl-calibrate; repeatable, PRODUCT needed where "
        "several are measured (default: the mask that the decision of --engine was calibrated with)",
    )
    parser.add_argument("--bootstrap", type=_not_negative, default=1000, metavar="N", help="resamples for the intervals, 0 for none (default: 1000)")
    parser.add_argument("--seed", type=_not_negative, default=0, metavar="N", help="start of the resampling (default: 0)")
    parser.add_argument("--skip-unreadable", action="store_true", help="list unreadable files and go on, instead of stopping at the first")
    add_listing_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with curves, histograms and heat maps")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from snl_train.data.checks import notes_on_sizes
    from snl_train.evaluation import measure, score_samples
    from snl_train.evaluation_table import format_tables
    from snl_train.measures import Bootstrap

    if options.report is not None:
        check_writable(options.report)
    with contextlib.ExitStack() as opened:
        model = _open_model(options, opened)
        index = _read_test_images(options, model.bit_depth)
        _refuse_trained_images(index.test, model)
        ignored = _ignored_parts(options.ignore_mask, index, model)
        for note in notes_on_sizes(index.test, model.trained_sizes):
            print(f"snl-eval: {note}", file=sys.stderr)
        with Progress(len(index.test), unit="images", label="score") as progress:
            images, left_out = score_samples(
                model.scorer,
                index.test,
                batch_size=options.batch_size,
                tiles=choose_tiles(model.tiles, tile_px=options.tile, overlap_px=options.overlap, with_whole_frame=options.with_whole_frame),
                ignored=ignored,
                skip_unreadable=options.skip_unreadable,
                on_images=progress.advance,
            )
    bootstrap = Bootstrap(resamples=options.bootstrap, seed=options.seed)
    with Progress(len({image.sample.class_name for image in images}) + 1, unit="groups", label="measure") as progress:
        evaluation = measure(images, model.scorer.size_hw, bootstrap=bootstrap, left_out=[*index.left_out, *left_out], on_group=progress.advance)
    provenance = _provenance(options, arguments, model)
    if options.report is not None:
        _write_report(options.report, evaluation, provenance)
    if options.json:
        print(to_json({"provenance": provenance, **evaluation.to_plain(relative_to=index.root)}))
        return EXIT_OK
    for path, reason in evaluation.left_out:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    print(format_tables(evaluation))
    return EXIT_OK


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    path: Path
    sha256: str
    scorer: "InputScorer"
    runs_on: str
    trained_on: frozenset[str]
    trained_sizes: Mapping[str, Sequence[Sequence[int]]]
    config: Mapping[str, Any]
    bit_depth: int | None
    tiles: Tiles | None
    decisions: Mapping[str, "Decision"]


def _open_model(options: argparse.Namespace, opened: contextlib.ExitStack) -> _Model:
    return _open_checkpoint(options) if options.ckpt is not None else _open_engine(options, opened)


def _open_checkpoint(options: argparse.Namespace) -> _Model:
    if options.backend is not None:
        raise ConfigError(f"--backend {options.backend} belongs to --engine; a checkpoint always runs in PyTorch")
    need_packages(("torch", "torchvision"), what="--ckpt", extra="train")
    from snl_train.checkpoint import load_checkpoint
    from snl_train.config import to_plain
    from snl_train.evaluation import CheckpointScorer

    checkpoint = load_checkpoint(options.ckpt)
    if options.ignore_mask and checkpoint.config.score.top_k != 1:
        raise ConfigError(f"--ignore-mask needs score.top_k 1, the largest judged value; {options.ckpt} has {checkpoint.config.score.top_k}")
    if checkpoint.unfinished:
        print(f"{options.ckpt}: {checkpoint.unfinished}", file=sys.stderr)
    scorer = CheckpointScorer(checkpoint, options.device or "auto")
    return _Model(
        path=options.ckpt,
        sha256=sha256_file(options.ckpt),
        scorer=scorer,
        runs_on=f"PyTorch on {scorer.device}",
        trained_on=frozenset(checkpoint.training_image_sha256),
        trained_sizes=checkpoint.provenance.get("frame_sizes", {}),
        config={
            **to_plain(checkpoint.config),
            "epochs_done": checkpoint.epochs_done,
            **{name: checkpoint.provenance.get(name) for name in ("steps_done", "total_steps", "stopped_early")},
        },
        bit_depth=checkpoint.config.data.bit_depth,
        tiles=checkpoint.config.data.tiles,
        decisions={},
    )


def _open_engine(options: argparse.Namespace, opened: contextlib.ExitStack) -> _Model:
    from snl_runtime.scorer import Scorer

    device = None if options.device in (None, "auto") else options.device
    scorer = opened.enter_context(Scorer(options.engine, backend=options.backend, device=device))
    manifest = scorer.bundle.manifest
    return _Model(
        path=options.engine,
        sha256=scorer.bundle.sha256,
        scorer=scorer,
        runs_on=f"{scorer.backend.name} on {scorer.backend.device}",
        trained_on=frozenset(manifest.training_image_sha256 if manifest is not None else ()),
        trained_sizes={} if manifest is None else manifest.training.get("provenance", {}).get("frame_sizes", {}),
        config={"graph": dict(manifest.graph), "training": dict(manifest.training)} if manifest is not None else {},
        bit_depth=None if manifest is None else manifest.training_bit_depth,
        tiles=None if manifest is None else manifest.training_tiles,
        decisions={} if manifest is None else manifest.decisions_for(scorer.bundle.sha256),
    )


def _read_test_images(options: argparse.Namespace, bit_depth: int | None) -> "DatasetIndex":
    from snl_train.data.checks import check_dataset
    from snl_train.data.layouts import list_dataset

    index = list_dataset(options.data)
    if index.listing is not None:
        report_listing("snl-eval", index.listing, list_left_out=options.list_left_out)
    measurable = [name for name in index.classes if any(sample.class_name == name for sample in index.test)]
    if not measurable:
        raise DataError(f"{options.data} has no labeled test images; expected test/good and test/<defect> folders (MVTec AD) or VisA's CSV")
    chosen = measurable if options.classes is None else [name.strip() for name in options.classes.split(",")]
    unknown = [name for name in chosen if name not in measurable]
    if unknown:
        raise ConfigError(f"--classes: {options.data} has no test images of {unknown[0]!r}; expected some of {', '.join(measurable)}")
    test = [sample for sample in index.test if sample.class_name in chosen]
    # Training images are not read: those that matter are known by the hashes in the model.
    index = replace(index.without_training(), classes=sorted(set(chosen)), test=test)
    with Progress(len(test), unit="images", label="check") as progress:
        return check_dataset(
            index,
            skip_unreadable=options.skip_unreadable,
            require_train=False,
            bit_depth=bit_depth,
            on_image=lambda *_: progress.advance(),
        )


def _ignored_parts(texts: Sequence[str], index: "DatasetIndex", model: _Model) -> "dict[str, IgnoredPart]":
    """Return what is not judged, by class, and say so: what the options name, else what the model's decisions were fitted under."""
    from snl_train.ignored_part import ignored_part_of_file

    parts = {name: ignored_part_of_file(path) for name, path in _mask_files(texts, index.classes).items()}
    for name, part in parts.items():
        if (misfit := part.misfit(index.test, name)) is not None:
            raise DataError(f"the {part.source} does not fit the test images of {name}: {misfit} pixels; draw it on one of them")
    for name in index.classes:
        if name in model.decisions and name not in parts and (decided := _decided_part(model, name, index.test)) is not None:
            parts[name] = decided
    for name, part in parts.items():
        print(f"snl-eval: {name}: measured under the {part.source}", file=sys.stderr)
    return parts


def _decided_part(model: _Model, name: str, samples: "Sequence[Sample]") -> "IgnoredPart | None":
    from snl_train.ignored_part import ignored_part_of_decision

    decision = model.decisions[name]
    part = ignored_part_of_decision(model.path, decision, model.scorer.size_hw)
    if part is None:
        return None
    why = part.misfit(samples, name)
    if decision.roi_xyxy is not None:
        why = "it lies on a region of interest, and test images are measured as a whole"
    if why is None:
        return part
    print(f"snl-eval: {name}: the {part.source} is NOT used: {why}; give one: --ignore-mask {name}=FILE", file=sys.stderr)
    return None


def _mask_files(texts: Sequence[str], classes: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        product, has_product, path = text.rpartition("=")
        if not has_product and len(classes) > 1:
            raise ConfigError(f"--ignore-mask {text} must name its product, one of {', '.join(classes)}: --ignore-mask {classes[0]}={text}")
        name = product if has_product else classes[0]
        if name not in classes:
            raise ConfigError(f"--ignore-mask {text}: {name!r} is not measured; expected one of {', '.join(classes)}")
        if name in files:
            raise ConfigError(f"--ignore-mask names two files for {name!r}; give one")
        files[name] = Path(path)
    return files


def _refuse_trained_images(samples: Sequence["Sample"], model: _Model) -> None:
    trained = [sample.path for sample in samples if sample.pixel_sha256 in model.trained_on]
    if trained:
        raise DataError(
            f"{len(trained)} of {len(samples)} test images were trained on by {model.path}, the first is {trained[0]}; "
            "measure on images that training never saw"
        )


def _provenance(options: argparse.Namespace, arguments: Sequence[str], model: _Model) -> dict[str, Any]:
    return {
        "model": model.path.name,
        "sha256": model.sha256,
        "runs_on": model.runs_on,
        "data": str(options.data),
        "command": shlex.join(["snl-eval", *arguments]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "config": dict(model.config),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _write_report(path: Path, evaluation: "Evaluation", provenance: Mapping[str, Any]) -> None:
    from snl_train.report import evaluation_report

    atomic_write_text(path, evaluation_report(evaluation, provenance))
    print(f"report: {path}", file=sys.stderr)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
