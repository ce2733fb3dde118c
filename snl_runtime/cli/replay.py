"""``snl-replay``: judge archived frames again and compare with the record."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_NOT_ALL_PASSED, EXIT_OK, CommandParser, run_command
from snl_runtime.cli.model_flags import add_model_flags, model_values, open_detector
from snl_runtime.errors import DataError
from snl_runtime.progress import Progress
from snl_runtime.station.config import ModelConfig
from snl_runtime.text import printable, to_json

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.line.archived_frames import ArchivedFrame
    from snl_runtime.parity.replay import Replayed

PROGRAM = "snl-replay"
EXAMPLE = """
snl-replay --engine line.onnx --archive rejects/
snl-replay --engine line.onnx --archive rejects/ --records records.sqlite --exact --threads 2
"""
MOST_NAMED = 20
"""Files and records of one kind that a report names; --json names all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _replay(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Judge the frames that --save-rejects kept once more, and list verdicts that are not those on record. Exit status 4 if there are any.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt; x.json and x.golden.npz are found beside it")
    parser.add_argument("--archive", metavar="DIR", type=Path, required=True, help="folder of frames that --save-rejects wrote")
    parser.add_argument(
        "--records",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="records of these frames, a station's store or a file of --jsonl; may be repeated (default: what each image holds)",
    )
    parser.add_argument("--exact", action="store_true", help="scores must be equal bit for bit: same model file, backend, device and threads")
    parser.add_argument("--json", action="store_true", help="report as one JSON object on standard output")
    add_model_flags(parser.add_argument_group("running"))
    return parser


@dataclass(slots=True)
class _Report:
    """What was compared, and what could not be."""

    replayed: "list[Replayed]" = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    images_without_record: list[str] = field(default_factory=list)
    records_without_image: list[str] = field(default_factory=list)


class _Records:
    """Records by their key; those that passed have no image and are left out."""

    def __init__(self, files: Sequence[Path]) -> None:
        from snl_runtime.line.archived_frames import record_key
        from snl_runtime.line.record_files import read_records

        self.is_given = bool(files)
        self._by_key: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._by_name: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._taken: set[tuple[Any, ...]] = set()
        for file in files:
            for record in read_records(file):
                if record["verdict"] != "PASS":
                    key = record_key(record)
                    self._by_key[key] = record
                    self._by_name[(*key[:2], record["verdict"])] = key

    @property
    def left(self) -> list[str]:
        """Records, by names for people, whose frame had an image that was not among the files."""
        return [
            f"{key[0]} frame {key[1]} of {key[2]}"
            for key, record in self._by_key.items()
            if key not in self._taken and record["reason_code"] != "frame_fault"
        ]

    def take(self, archived: "ArchivedFrame") -> Mapping[str, Any] | None:
        """Return the record of a frame; a file that holds none is found by its name, which has no source."""
        key: tuple[Any, ...] | None = archived.key
        if not archived.is_labeled:
            key = self._by_name.get((*archived.key[:2], archived.record["verdict"]))
        if key is None or key not in self._by_key:
            return None
        self._taken.add(key)
        return self._by_key[key]


def _replay(arguments: argparse.Namespace) -> int:
    from snl_runtime.parity.replay import counts_of

    config = ModelConfig(file=arguments.engine, **model_values(arguments))
    files = _files(arguments.archive)
    records = _Records(arguments.records)
    report = _Report()
    with contextlib.ExitStack() as opened:
        detector = opened.enter_context(open_detector(config, keep_maps=False))
        progress = opened.enter_context(Progress(len(files), unit="images", label="replay"))
        for path in files:
            _replay_file(path, detector, records, report)
            progress.advance()
        where = {
            "engine": arguments.engine,
            "model_sha256": detector.model_sha256,
            "backend": detector.backend_name,
            "device": detector.device,
            "threads": arguments.threads,
        }
    report.records_without_image = records.left
    counts = counts_of(report.replayed)
    if arguments.json:
        frames = [{**dataclasses.asdict(each), "outcome": each.outcome.value} for each in report.replayed]
        missing = {name: getattr(report, name) for name in ("unreadable", "images_without_record", "records_without_image")}
        print(to_json({**where, **counts, **missing, "frames": frames}))
    else:
        _print(report, counts)
    failed = counts["different"] or report.unreadable or counts["replayed"] == counts["not_compared"]
    inexact = arguments.exact and (counts["scores_different"] or counts["scores_unknown"])
    return EXIT_NOT_ALL_PASSED if failed or inexact else EXIT_OK


def _files(archive: Path) -> list[Path]:
    """Return the frames of an archive by name, which is by time of capture; overlays are drawings, not frames."""
    try:
        files = sorted(path for path in archive.iterdir() if path.suffix in (".png", ".npy") and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the archive {archive}: {error.strerror or error}; name a folder that --save-rejects wrote") from error
    if not files:
        raise DataError(f"{archive} holds no frames (.png, .npy); name a folder that --save-rejects wrote")
    return files


def _replay_file(path: Path, detector: "SnlDetector", records: _Records, report: _Report) -> None:
    from snl_runtime.line.archived_frames import read_archived
    from snl_runtime.parity.replay import replay_frame

    try:
        archived = read_archived(path)
    except DataError as error:
        report.unreadable.append(str(error))
        return
    record = records.take(archived)
    if record is None:
        if records.is_given or not archived.is_labeled:
            report.images_without_record.append(printable(path.name))
        record = archived.record
    guard_band = _guard_band(detector, record.get("model_sha256"))
    report.replayed.append(replay_frame(detector, archived, record, guard_band=guard_band))


def _guard_band(detector: "SnlDetector", recorded_sha256: str | None) -> float:
    """Return by how much an engine may score differently from the model of the record that it was built from."""
    manifest = detector.manifest
    if manifest is None or recorded_sha256 != manifest.model_sha256:
        return 0.0
    for engine in manifest.engines:
        if engine.sha256 == detector.model_sha256 and engine.parity is not None:
            return engine.parity.guard_band or 0.0
    return 0.0


def _print(report: _Report, counts: Mapping[str, int]) -> None:
    from snl_runtime.parity.replay import Outcome

    shown = [each for each in report.replayed if each.outcome in (Outcome.DIFFERENT, Outcome.WITHIN_GUARD_BAND) or each.is_score_equal is False]
    rows = [("image", "product", "record", "now", "score on record", "score now", "reason now", "outcome")]
    for each in shown:
        scores = (_score(each.score_before), _score(each.score))
        outcome = "score differs" if each.outcome is Outcome.EQUAL else each.outcome.value.replace("_", " ")
        rows.append((each.name, each.product or "-", each.verdict_before, each.verdict, *scores, each.reason_code, outcome))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows if shown else ():
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print(
        f"{counts['replayed']} frames judged again: {counts['equal']} verdicts equal, {counts['different']} different, "
        f"{counts['within_guard_band']} stricter within the guard band, {counts['not_compared']} not compared (ERRORs of the moment)"
    )
    print(f"scores: {counts['scores_equal']} equal bit for bit, {counts['scores_different']} different, {counts['scores_unknown']} not on record")
    for title, names in (
        ("images that cannot be judged", report.unreadable),
        ("images without a record", report.images_without_record),
        ("records without an image", report.records_without_image),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMED} more (--json names all)" if len(names) > MOST_NAMED else ""
            print(f"{len(names)} {title}: {'; '.join(names[:MOST_NAMED])}{more}")


def _score(value: float | None) -> str:
    return "-" if value is None else repr(value)


if __name__ == "__main__":
    sys.exit(main())
