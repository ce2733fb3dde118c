"""``snl-run``: one verdict for every frame of a folder, a video or a camera."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_NOT_ALL_PASSED, EXIT_OK, need_stdout, one_line, report_listing, run_command, stop_signals
from snl_runtime.cli.model_flags import open_detector
from snl_runtime.cli.run_flags import PROGRAM, config_of, parse_flags
from snl_runtime.errors import ConfigError
from snl_runtime.progress import Progress
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.line.pipeline import Detector, Pipeline
    from snl_runtime.line.sinks import Sink
    from snl_runtime.line.sources import FrameSource
    from snl_runtime.station.config import StationCameraConfig, StationConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _run(parse_flags(argv)), program=PROGRAM, prints_results=False)


def _run(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    if arguments.init is not None:
        return _init(Path(arguments.init), config)
    if arguments.print_config:
        return _print_config(config)
    if arguments.check:
        return _check(config)
    request = _StopRequest()
    with stop_signals(request.ask):
        return _inspect(arguments, config, request)


def _init(path: Path, config: "StationConfig") -> int:
    from snl_runtime.station.station_file import write_station_file

    write_station_file(path, config)
    print(f"{PROGRAM}: {path} is written; edit it, then try it: {PROGRAM} --config {path} --check", file=sys.stderr)
    return EXIT_OK


def _print_config(config: "StationConfig") -> int:
    from snl_runtime.station.station_file import printed

    need_stdout()
    print(printed(config), end="")
    return EXIT_OK


def _check(config: "StationConfig") -> int:
    from snl_runtime.station.assembly import build_consumers, build_outputs
    from snl_runtime.station.build import build_sinks, check_paths, check_products
    from snl_runtime.station.check import check_camera, describe_model

    need_stdout()
    check_paths(config)
    build_sinks(config)  # what is missing or refuses says so here; nothing is entered
    build_outputs(config)
    build_consumers(config.outputs)
    with open_detector(dataclasses.replace(config.model, rebuild=False)) as detector:
        check_products(config, detector.products)
        print("\n".join(describe_model(detector, config)))
        errors = []
        for name in config.cameras:
            report = check_camera(name, config, detector)
            print("\n".join(report.lines))
            errors += [] if report.error is None else [f"cameras.{name}: {report.error}"]
    if errors:
        raise ConfigError(f"a frame could not be inspected: {'; '.join(errors)}")
    return EXIT_OK


def _inspect(arguments: argparse.Namespace, config: "StationConfig", request: "_StopRequest") -> int:
    from snl_runtime.line.pipeline import Pipeline
    from snl_runtime.line.summary import RunTally
    from snl_runtime.station.build import build_sinks, check_paths, check_products, needs_station, overflow_of

    if needs_station(config):
        from snl_runtime.cli.run_station import run_station

        return run_station(arguments, config, request.pass_to)
    if config.records.jsonl is None or arguments.json:
        need_stdout()
    check_paths(config)
    (camera,) = config.cameras.values()
    source = _source(arguments, camera, config)
    outputs = build_sinks(config)
    with open_detector(config.model, keep_maps=outputs.need_maps, outputs=outputs.request) as detector:
        check_products(config, detector.products)
        _note_missing_product(camera.product, detector.products)
        progress = _progress(arguments, config)
        tally = RunTally(source, progress=progress)
        policy, capacity = overflow_of(camera.queue)
        sinks = [outputs.records, tally, *outputs.others]
        judge = _judge(detector, camera)
        pipeline = Pipeline(source, judge, sinks, policy=policy, frame_capacity=capacity, max_frames=arguments.max_frames)
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
            _report(config, summary, detector, failure, as_json=arguments.json)
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


def _source(arguments: argparse.Namespace, camera: "StationCameraConfig", config: "StationConfig") -> "FrameSource":
    from snl_runtime.station.build import build_source

    return build_source(
        camera, records=config.records, on_listed=lambda listing: report_listing(PROGRAM, listing, list_left_out=arguments.list_left_out)
    )


def _judge(detector: "SnlDetector", camera: "StationCameraConfig") -> "Detector":
    from snl_runtime.station.crop import CroppedDetector

    return detector if camera.crop_xyxy is None else CroppedDetector(detector, camera.crop_xyxy)


def _note_missing_product(product: str | None, products: Sequence[str]) -> None:
    if product is None and len(products) > 1:
        names = ", ".join(products)
        print(f"{PROGRAM}: no --product: the strictest rule of {names} applies, PASS only where each of them would pass", file=sys.stderr)


def _progress(arguments: argparse.Namespace, config: "StationConfig") -> Progress | None:
    """Return a progress bar, None where it would be drawn between records on the same terminal."""
    if config.records.jsonl is None and sys.stdout.isatty() and sys.stderr.isatty():
        return None
    return Progress(arguments.max_frames, unit="frames", label="inspect")


def _report(config: "StationConfig", summary: dict[str, Any], detector: "SnlDetector", failure: BaseException | None, *, as_json: bool) -> None:
    from snl_runtime.line.summary import summary_lines

    if failure is None or summary["captured"]:
        for line in (*summary_lines(summary), *detector.notes):
            print(line, file=sys.stderr)
    if as_json:
        (camera,) = config.cameras.values()
        records = None if config.records.jsonl is None else config.records.jsonl.file
        where = {"engine": config.model.file, "model_sha256": detector.model_sha256, "product": camera.product, "records": records}
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


if __name__ == "__main__":
    sys.exit(main())
