"""``snl-run``: one verdict for every frame of a folder, a video or a camera."""

import argparse
import contextlib
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from snl_runtime.cli.command import (
    EXIT_NOT_ALL_PASSED,
    EXIT_OK,
    CommandParser,
    add_listing_flag,
    need_stdout,
    one_line,
    report_listing,
    run_command,
    stop_signals,
)
from snl_runtime.errors import ConfigError
from snl_runtime.files import check_writable
from snl_runtime.progress import Progress
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.line.image_folders import ImageFolder, OverlaySaver, RejectSaver
    from snl_runtime.line.jsonl import JsonlSink
    from snl_runtime.line.pipeline import Pipeline
    from snl_runtime.line.records import StreamSink
    from snl_runtime.line.sinks import Sink
    from snl_runtime.line.sources import FrameSource
    from snl_runtime.types import OutputRequest

_Number = TypeVar("_Number", int, float)

PROGRAM = "snl-run"
EXAMPLE = """
snl-run --engine line.onnx --images parts/ --product bottle --jsonl verdicts.jsonl --save-rejects rejects/
snl-run --engine line.onnx --images "parts/**/cam1_*.png" --product bottle
snl-run --camera 0 --engine line.trt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _run(_parser().parse_args(argv)), program=PROGRAM, prints_results=False)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Inspect every frame of a folder, a video or a camera. One JSON record per frame goes to --jsonl or standard output, a summary to stderr.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt; x.json and x.golden.npz are found beside it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images",
        metavar="DIR|FILE|PATTERN",
        help="every image in a folder and the folders below it, one image, or those that match a pattern in quotes",
    )
    source.add_argument("--video", metavar="FILE", help="every frame of a video file")
    source.add_argument("--camera", metavar="N_OR_URL", help="number of a local camera, or an address (rtsp://..., http://..., or a plug-in's)")
    parser.add_argument("--product", metavar="P", help="product on the line (default: the strictest rule of all calibrated products)")
    parser.add_argument(
        "--pages", choices=("one", "all"), default="one", help="a file of several images is an ERROR, or one frame for each (default: one)"
    )
    add_listing_flag(parser)
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument("--jsonl", metavar="FILE", help="append the records to this file instead of writing them to standard output")
    outputs.add_argument(
        "--jsonl-max-mib",
        metavar="N",
        type=positive(int),
        help="begin a new file at this size; the full one becomes FILE-<UTC time>-<number> (default: one file)",
    )
    outputs.add_argument("--save-rejects", metavar="DIR", help="save the untouched frame of every verdict other than PASS as PNG")
    outputs.add_argument(
        "--overlay", metavar="DIR", help="save frames with heat map and verdict as JPEG; a GPU blends the heat map where frames go there"
    )
    outputs.add_argument("--overlay-of", choices=("all", "not-passed"), default="all", help="frames that --overlay saves (default: all)")
    outputs.add_argument(
        "--saved-images-max-mib",
        metavar="N",
        type=positive(int),
        default=10 << 10,
        help="MiB that each of these two folders may hold; images that do not fit are counted, not saved (default: 10240)",
    )
    outputs.add_argument("--sink", metavar="NAME:ARG", action="append", default=[], help="also hand every verdict to a plug-in; may be repeated")
    outputs.add_argument("--json", action="store_true", help="summary as one JSON object on standard output; needs --jsonl")
    outputs.add_argument("--fail-on-reject", action="store_true", help="exit with 4 if a verdict was not PASS or no frame was inspected")
    running = parser.add_argument_group("running")
    add_detector_flags(running)
    running.add_argument("--max-frames", metavar="N", type=positive(int), help="stop after this many captured frames")
    running.add_argument(
        "--frozen-after",
        metavar="N",
        type=_whole_number,
        default=25,
        help="byte-equal camera frames in a row that count as a frozen camera, 0 for never (default: 25)",
    )
    return parser


def open_detector(arguments: argparse.Namespace, engine: str, *, keep_maps: bool = True, outputs: "OutputRequest | None" = None) -> "SnlDetector":
    """Return the detector that the flags describe; snl-run and snl-bench share them.

    Args:
        arguments: With the flags of :func:`add_detector_flags`.
        engine: Model file.
        keep_maps: See ``SnlDetector``.
        outputs: See ``SnlDetector``.

    Raises:
        SnlError: If the model, its backend or the public key cannot be opened.
    """
    from snl_runtime.cli.rebuild import open_or_rebuild
    from snl_runtime.detector.detector import SnlDetector

    public_key = None
    if arguments.public_key is not None:
        try:
            public_key = Path(arguments.public_key).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read the public key {arguments.public_key}: {error.strerror or error}") from error
    return (open_or_rebuild if arguments.rebuild else SnlDetector)(
        engine,
        backend=arguments.backend,
        device=arguments.device,
        timeout_ms=arguments.timeout_ms,
        threads=arguments.threads,
        public_key=public_key,
        keep_maps=keep_maps,
        outputs=outputs,
    )


def add_detector_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that :func:`open_detector` reads."""
    parser.add_argument("--backend", metavar="NAME", help="onnxruntime, openvino, tensorrt or a plug-in (default: by the suffix of --engine)")
    parser.add_argument("--device", metavar="NAME", help="device as the backend names it, e.g. cpu or cuda (default: the backend's own)")
    parser.add_argument("--threads", metavar="N", type=positive(int), help="CPU threads of the backend (default: the backend's own)")
    parser.add_argument("--timeout-ms", metavar="MS", type=positive(float), default=10_000.0, help="time for one frame (default: 10000)")
    parser.add_argument("--public-key", metavar="FILE", help="Ed25519 public key (PEM) that must have signed the manifest")
    parser.add_argument("--rebuild", action="store_true", help="build x.trt again from x.onnx if it was built for another device")


def positive(kind: type[_Number]) -> Callable[[str], _Number]:
    """Return a converter for argparse that accepts numbers above 0."""

    def convert(text: str) -> _Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse shows it: "invalid int value: 'x'"
    return convert


def _run(arguments: argparse.Namespace) -> int:
    request = _StopRequest()
    with stop_signals(request.ask):
        return _inspect(arguments, request)


def _inspect(arguments: argparse.Namespace, request: "_StopRequest") -> int:
    from snl_runtime.line.pipeline import Pipeline
    from snl_runtime.line.summary import RunTally

    _check_outputs(arguments)
    source = _source(arguments)
    outputs = _outputs(arguments)
    with open_detector(arguments, arguments.engine, keep_maps=outputs.need_maps, outputs=outputs.request) as detector:
        _check_product(arguments.product, detector.products)
        progress = _progress(arguments)
        tally = RunTally(source, progress=progress)
        pipeline = Pipeline(source, detector, [outputs.records, tally, *outputs.others], max_frames=arguments.max_frames)
        request.pass_to(pipeline.stop)
        failure: BaseException | None = None
        try:
            with progress or contextlib.nullcontext():
                pipeline.run()
        except BaseException as raised:
            failure = raised
            raise
        finally:
            _report_undelivered(pipeline, outputs.records)
            summary = tally.summary(pipeline.counts, saved_images=outputs.saved_images) | {"stopped_by": request.signal}
            _report(arguments, summary, detector, failure)
    return EXIT_NOT_ALL_PASSED if arguments.fail_on_reject and not tally.all_passed else EXIT_OK


class _StopRequest:
    """A service manager's stop: what is under way is delivered, the summary printed, and the run has done its work."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._stop: Callable[[], None] = lambda: None

    def ask(self, signal: str) -> None:
        """Stop now, or before the first frame if the model is still being opened."""
        self.signal = signal
        self._stop()

    def pass_to(self, stop: Callable[[], None]) -> None:
        """Say what stops the run."""
        self._stop = stop
        if self.signal is not None:
            stop()


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """Where verdicts go; the records come first, because a PLC and an image may take long."""

    records: "JsonlSink | StreamSink"
    plug_ins: "list[Sink]"
    rejects: "RejectSaver | None"
    overlays: "OverlaySaver | None"

    @property
    def saved_images(self) -> "list[ImageFolder]":
        return [folder for folder in (self.rejects, self.overlays) if folder is not None]

    @property
    def others(self) -> "list[Sink]":
        return [*self.plug_ins, *self.saved_images]  # a PLC waits for its verdict, an image does not

    @property
    def need_maps(self) -> bool:
        return bool(self.plug_ins) or self.overlays is not None

    @property
    def request(self) -> "OutputRequest | None":
        return None if self.overlays is None else self.overlays.outputs


def _check_outputs(arguments: argparse.Namespace) -> None:
    if arguments.json and not arguments.jsonl:
        raise ConfigError("--json puts the summary on standard output, so the records need a file: add --jsonl FILE")
    if arguments.jsonl_max_mib is not None and not arguments.jsonl:
        raise ConfigError("--jsonl-max-mib limits the file that --jsonl writes: add --jsonl FILE")
    if arguments.images is None and (arguments.pages != "one" or arguments.list_left_out):
        raise ConfigError("--pages and --list-left-out belong to --images; leave them out")
    if arguments.overlay_of != "all" and not arguments.overlay:
        raise ConfigError("--overlay-of chooses among the frames that --overlay saves: add --overlay DIR")
    if arguments.json or not arguments.jsonl:
        need_stdout()
    if arguments.jsonl:
        check_writable(arguments.jsonl, append=True)  # before an engine is rebuilt


def _source(arguments: argparse.Namespace) -> "FrameSource":
    from snl_runtime.line.plugins import find_source
    from snl_runtime.line.sources import CameraSource, ImageFolderSource, VideoSource, parse_camera

    if arguments.images is not None:
        return ImageFolderSource(
            arguments.images,
            product=arguments.product,
            pages=arguments.pages,
            exclude=[Path(folder) for folder in (arguments.overlay, arguments.save_rejects) if folder],
            on_listed=lambda listing: report_listing(PROGRAM, listing, list_left_out=arguments.list_left_out),
        )
    if arguments.video is not None:
        return VideoSource(arguments.video, product=arguments.product)
    plug_in = find_source(arguments.camera, product=arguments.product)
    return plug_in or CameraSource(parse_camera(arguments.camera), product=arguments.product, frozen_after=arguments.frozen_after)


def _outputs(arguments: argparse.Namespace) -> _Outputs:
    from snl_runtime.line.image_folders import OverlaySaver, RejectSaver
    from snl_runtime.line.jsonl import JsonlSink
    from snl_runtime.line.plugins import open_sink
    from snl_runtime.line.records import StreamSink
    from snl_runtime.types import Verdict

    jsonl_bytes = None if arguments.jsonl_max_mib is None else arguments.jsonl_max_mib << 20
    saved_images_bytes = arguments.saved_images_max_mib << 20
    drawn = [verdict for verdict in Verdict if arguments.overlay_of == "all" or verdict is not Verdict.PASS]
    return _Outputs(
        records=JsonlSink(arguments.jsonl, max_bytes=jsonl_bytes) if arguments.jsonl else StreamSink(),
        plug_ins=[open_sink(text) for text in arguments.sink],
        rejects=RejectSaver(arguments.save_rejects, max_bytes=saved_images_bytes) if arguments.save_rejects else None,
        overlays=OverlaySaver(arguments.overlay, verdicts=drawn, max_bytes=saved_images_bytes) if arguments.overlay else None,
    )


def _check_product(product: str | None, products: Sequence[str]) -> None:
    """Refuse a product that was never calibrated while others were; a model without any decision runs, and every verdict is ERROR."""
    if product is None and len(products) > 1:
        names = ", ".join(products)
        print(f"{PROGRAM}: no --product: the strictest rule of {names} applies, PASS only where each of them would pass", file=sys.stderr)
    if product is None or not products or product in products:
        return
    close = difflib.get_close_matches(product, products, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"no decision for product '{product}' in this model, it has {', '.join(products)}{hint}")


def _progress(arguments: argparse.Namespace) -> Progress | None:
    """Return a progress bar, None where it would be drawn between records on the same terminal."""
    if not arguments.jsonl and sys.stdout.isatty() and sys.stderr.isatty():
        return None
    return Progress(arguments.max_frames, unit="frames", label="inspect")


def _report(arguments: argparse.Namespace, summary: dict[str, Any], detector: "SnlDetector", failure: BaseException | None) -> None:
    from snl_runtime.line.summary import summary_lines

    if failure is None or summary["captured"]:
        for line in (*summary_lines(summary), *detector.notes):
            print(line, file=sys.stderr)
    if arguments.json:
        where = {"engine": arguments.engine, "model_sha256": detector.model_sha256, "product": arguments.product, "records": arguments.jsonl}
        error = None if failure is None else one_line(failure)
        print(to_json(where | summary | {"notes": list(detector.notes), "error": error}))
    if failure is None and summary["stopped_by"] is not None:
        print(f"{PROGRAM}: stopped by {summary['stopped_by']} after {summary['captured']} frames; all records are written", file=sys.stderr)


def _report_undelivered(pipeline: "Pipeline", records: "Sink") -> None:
    """Print the records that found no place, so that they are not lost with the process, and count what other sinks missed."""
    from snl_runtime.line.records import record_line

    lost = [missed for missed in pipeline.undelivered if missed.sink is records]
    others = len(pipeline.undelivered) - len(lost)
    if lost:
        print(f"{PROGRAM}: {len(lost)} records could not be written, here they are:", file=sys.stderr)
    for missed in lost:
        print(record_line(missed.frame, missed.result), file=sys.stderr)
    if others:
        print(f"{PROGRAM}: {others} verdicts did not reach a plug-in", file=sys.stderr)


def _whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
