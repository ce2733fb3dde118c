"""What one worker does: open the model once, then judge part after part and write each as a whole."""

import collections
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError, DataError, ManifestError, SnlError
from snl_runtime.fleet.archive import IMAGE_COLUMN, ArchiveRow, open_file_system, read_bytes
from snl_runtime.fleet.deaths import DeathWatch
from snl_runtime.fleet.maps import pack_map
from snl_runtime.fleet.packages import load_package
from snl_runtime.fleet.results import Part, is_whole, part_verdicts, write_part
from snl_runtime.images.files import decode_frame
from snl_runtime.images.listing import display_name
from snl_runtime.line.pipeline import judge_frame
from snl_runtime.line.records import record_of
from snl_runtime.model.manifest import Manifest
from snl_runtime.station.config import ModelConfig
from snl_runtime.text import redact_credentials
from snl_runtime.types import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every worker is told.

    Attributes:
        model: The model; every machine sees it under this name.
        model_sha256: What the driver found there.
        decisions: Those that the driver found beside it, :func:`describe_decisions` as JSON.
        out: Folder of the results; every machine sees it under this name.
        maps: Whether every row keeps a small anomaly map.
    """

    model: ModelConfig
    model_sha256: str
    decisions: str
    out: str
    maps: bool = False


def open_model(config: ModelConfig, *, keep_maps: bool = False) -> SnlDetector:
    """Return the opened model.

    Args:
        config: Which, and where it runs.
        keep_maps: Whether its results carry anomaly maps.

    Raises:
        SnlError: If the model, its backend or the public key cannot be opened.
    """
    return SnlDetector(
        config.file,
        backend=config.backend,
        device=config.device,
        timeout_ms=config.timeout_ms,
        threads=config.threads,
        public_key=config.read_public_key(),
        keep_maps=keep_maps,
        cuda_graphs=config.cuda_graphs,
    )


def describe_decisions(manifest: Manifest | None, sha256: str) -> dict[str, dict[str, Any]]:
    """Return what tells the decisions that hold for a file from others, by product, with what a comparison asks of them; plain values."""
    decisions = {} if manifest is None else manifest.decisions_for(sha256)
    return {
        name: {
            "pass_threshold": decision.pass_threshold,
            "reject_threshold": decision.reject_threshold,
            "max_frr": decision.max_frr,
            "confidence": decision.confidence,
            "ignored_share": 0.0 if decision.ignore_mask is None else decision.ignore_mask.ignored_share,
            "fitted_at": decision.fitted_at,
        }
        for name, decision in sorted(decisions.items())
    }


class PartInspector:
    """Judges parts; Ray keeps one in each worker process and starts it anew where the process died.

    What the user can do something about is answered and not raised: an exception in a worker would reach the driver as a traceback.

    Args:
        settings: The same for every worker.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._out = Path(settings.out)
        self._failure: SnlError | None = None
        self._detector: SnlDetector | None = None
        try:
            self._detector = open_model(settings.model, keep_maps=settings.maps)
            if self._detector.model_sha256 != settings.model_sha256:
                self._detector.close()
                raise ManifestError(f"{settings.model.file} is another file on a worker than on the driver; copy the model to every machine")
            if json.dumps(describe_decisions(self._detector.manifest, settings.model_sha256)) != settings.decisions:
                self._detector.close()
                has_other = f"{settings.model.file} has other decisions on a worker than this run began with"
                raise ManifestError(f"{has_other}; copy the manifest to every machine, or begin again with another --out")
        except SnlError as failure:
            self._failure = failure

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return number, verdict counts as JSON and failure (empty if none) of each part of ``batch["part"]``, parts as JSON."""
        answers: list[tuple[int, str, str]] = []
        for text in batch["part"]:
            part = Part.from_plain(json.loads(str(text)))
            try:
                if self._failure is not None:
                    raise self._failure
                answers.append((part.number, json.dumps(self.inspect(part)), ""))
            except SnlError as failure:
                answers.append((part.number, "{}", json.dumps([type(failure).__name__, str(failure)])))
        numbers, counts, failures = zip(*answers)
        return {"number": np.array(numbers, np.int64), "counts": np.array(counts, object), "failure": np.array(failures, object)}

    def inspect(self, part: Part) -> dict[str, int]:
        """Judge and write a part; return how often each verdict and reason was given, as ``PASS below_threshold``.

        A part that another process has written meanwhile, before it died, is only counted.

        Raises:
            SinkError: If the part cannot be written.
        """
        if self._detector is None:
            raise ConfigError("the model is not open")
        if not is_whole(self._out, part, self._settings.model_sha256):
            watch = DeathWatch(self._out, part.number)
            records = [self._record(self._detector, frame) for frame in part_frames(part, watch)]
            write_part(self._out, part, records, self._settings.model_sha256, maps=self._settings.maps)
            watch.end()
        return dict(collections.Counter(f"{verdict} {reason}" for verdict, reason in part_verdicts(self._out, part)))

    def _record(self, detector: SnlDetector, frame: Frame) -> dict[str, Any]:
        result = judge_frame(detector, frame)
        return {**record_of(frame, result), **({"map": pack_map(result)} if self._settings.maps else {})}


def part_frames(part: Part, watch: DeathWatch | None = None) -> Iterator[Frame]:
    """Yield one frame per row, read as ``snl-run`` reads it; what cannot be read is a frame without an image that says why.

    Args:
        part: The rows.
        watch: Told of each row before it is read.
    """
    if part.rows[0].row is None:
        for row_id, row in zip(part.ids, part.rows):
            yield _frame(row_id, row, read_bytes, watch)
        return
    images: Mapping[int, Any] = {}
    fault = None
    try:
        images = _table_images(part)
    except DataError as error:
        fault = str(error)

    def encoded(name: str) -> bytes:
        row = int(name.rpartition("#row=")[2])
        if fault is not None:
            raise DataError(fault)
        data = images.get(row)
        if not isinstance(data, bytes):
            raise DataError(f"{_shown(name)} holds no image in the column {IMAGE_COLUMN!r}")
        return data

    for row_id, row in zip(part.ids, part.rows):
        yield _frame(row_id, row, encoded, watch)


def _frame(row_id: int, row: ArchiveRow, read: Callable[[str], bytes], watch: DeathWatch | None) -> Frame:
    image, fault = None, row.fault
    if watch is not None:
        watch.begin(row_id)
        fault = fault or watch.fault_of(row_id, _shown(row.name))
    if fault is None:
        try:
            image = decode_frame(read(row.name), _shown(row.name))
        except DataError as error:
            fault = str(error)
    return Frame(
        image=image,
        color="rgb",
        index=row_id,
        captured_ns=time.monotonic_ns(),
        captured_at=time.time(),
        source_id=_shown(row.name),
        product=row.product,
        fault=fault,
    )


def _shown(name: str) -> str:
    return redact_credentials(display_name(name))


def _table_images(part: Part) -> dict[int, Any]:
    """Return the encoded images of a part by row; one row group is read."""
    pyarrow, parquet = load_package("pyarrow"), load_package("pyarrow.parquet")
    first = part.rows[0]
    try:
        file_system, path = open_file_system(first.file)
        with parquet.ParquetFile(file_system.open_input_file(path)) as table:
            group = first.row_group or 0
            before = sum(table.metadata.row_group(index).num_rows for index in range(group))
            column = table.read_row_group(group, columns=[IMAGE_COLUMN])[IMAGE_COLUMN]
            return {row.row: column[row.row - before].as_py() for row in part.rows if row.row is not None}
    except (OSError, IndexError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {_shown(first.file)}: {' '.join(str(error).split())}") from error
