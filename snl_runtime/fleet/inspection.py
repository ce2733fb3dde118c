"""An archive inspected by many workers: plan, judge what is missing, and call it done only when all of it is there."""

import collections
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snl_runtime import errors
from snl_runtime.errors import BackendError, ConfigError, DataError, SinkError, SnlError
from snl_runtime.files import exclusive_lock
from snl_runtime.fleet.archive import Archive, ArchiveRow, is_address, list_archive
from snl_runtime.fleet.cluster import ray_cluster
from snl_runtime.fleet.inspector import PartInspector, WorkerSettings, describe_decisions
from snl_runtime.fleet.packages import load_package
from snl_runtime.fleet.results import (
    RESULT_SCHEMA,
    SUCCESS,
    Part,
    begin_run,
    extend_plan,
    is_whole,
    mark_success,
    part_verdicts,
    plan_parts,
    read_plan,
    remove_leftovers,
    require_same_run,
)
from snl_runtime.model.bundle import open_bundle
from snl_runtime.progress import ProgressReporter, no_progress
from snl_runtime.station.config import ModelConfig

PART_ROWS = 256
"""Most rows of a part: what a worker that dies has judged in vain."""
PARTS_PER_WORKER = 4
"""Parts that a small archive is cut into for each worker, so that none is left without work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionConfig:
    """What to inspect, with what, and where the results go."""

    model: ModelConfig
    """The model; without ``threads`` each worker on a CPU takes one."""
    data: str
    """Folder, Parquet table or address, see :func:`snl_runtime.fleet.archive.list_archive`."""
    out: Path
    """Folder of the results, made if it is not there."""
    product: str | None = None
    """Product of the rows that do not say theirs; none is the strictest rule of all calibrated ones."""
    product_folders: bool = False
    """Whether the first folder below ``data`` names the product."""
    address: str | None = None
    """Existing Ray cluster; none starts one on this machine."""
    workers: int | None = None
    """Processes with one opened model each; none takes one per core, or per GPU if the model runs on one."""
    part_rows: int | None = None
    """Most rows of a part; none takes 256, fewer for a small archive."""
    redo_errors: bool = False
    """Judge parts again that hold an ERROR."""
    maps: bool = False
    """Keep an anomaly map of at most 64 by 64 cells in every row."""

    def __post_init__(self) -> None:
        for name in ("workers", "part_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


@dataclass(slots=True, kw_only=True)
class InspectionSummary:
    """What became of the rows of an archive.

    Attributes:
        rows: Rows in the plan.
        judged: Rows judged by this run.
        kept: Rows judged by earlier runs.
        verdicts: How often each verdict was given, earlier runs included.
        reasons: The same for reason codes.
        workers: Processes that judged.
        done: Whether every row has its result and ``_SUCCESS`` is written.
        model_sha256: Hash of the model file.
    """

    rows: int
    judged: int = 0
    kept: int = 0
    verdicts: collections.Counter[str] = field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    workers: int = 0
    done: bool = False
    model_sha256: str = ""

    def count(self, counts: Mapping[str, int]) -> None:
        """Add the verdicts and reasons of one part."""
        for key, count in counts.items():
            verdict, _, reason = key.partition(" ")
            self.verdicts[verdict] += count
            self.reasons[reason] += count


def inspect_archive(
    config: InspectionConfig,
    *,
    report: ProgressReporter = no_progress,
    on_archive: Callable[[Archive], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> InspectionSummary:
    """Judge every row of an archive that has no result yet.

    Args:
        config: What, with what, and where to.
        report: Told of progress in rows.
        on_archive: Called with what was found before the first row is judged.
        is_stopped: Asked after every part; True ends the run, and the next one goes on from there.

    Returns:
        The counts; ``done`` is False after a stop only.

    Raises:
        ConfigError: If the folder holds results of another model, archive or setting, or a file of the archive changed meanwhile.
        DataError: If the archive cannot be listed, or parts have no results in the end.
        SnlError: If the model does not open on a worker, or a part cannot be written.
    """
    run = _describe_run(config)
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make the folder {out}: {error.strerror or error}; check the path and its permissions") from error
    with exclusive_lock(out / "results", what="snl-inspect", blocking=False):
        require_same_run(out, run)
        remove_leftovers(out)
        archive = list_archive(_absolute(config.data), product=config.product, product_folders=config.product_folders, exclude=[out])
        begin_run(out, run)  # not before the archive was found: another --data may follow
        on_archive(archive)
        return _Inspection(config, run, report, is_stopped).run(archive)


def _describe_run(config: InspectionConfig) -> dict[str, Any]:
    """Return what must be the same in every run into one folder."""
    bundle = open_bundle(config.model.file)
    return {
        "schema": RESULT_SCHEMA,
        "data": _absolute(config.data),
        "product": config.product,
        "product_folders": config.product_folders,
        "model_sha256": bundle.sha256,
        "backend": config.model.backend,
        "device": config.model.device,
        "threads": _threads(config.model),
        "maps": config.maps,
        "decisions": describe_decisions(bundle.manifest, bundle.sha256),
    }


def _absolute(data: str) -> str:
    # Workers have other current folders, and a comparison knows a file by its path.
    return data if is_address(data) else os.path.abspath(data)  # noqa: PTH100 - resolve() would follow links


def _threads(model: ModelConfig) -> int | None:
    return model.threads if model.threads is not None or needs_gpu(model) else 1


def needs_gpu(model: ModelConfig) -> bool:
    """Return whether a worker takes a GPU rather than a core."""
    return (model.device or "").lower().startswith("cuda") or (model.backend or "").startswith("tensorrt") or Path(model.file).suffix == ".trt"


class _Inspection:
    """One run into a folder that is held against others."""

    def __init__(self, config: InspectionConfig, run: Mapping[str, Any], report: ProgressReporter, is_stopped: Callable[[], bool]) -> None:
        self._config = config
        self._out = config.out
        self._run = run
        self._sha256 = str(run["model_sha256"])
        self._products = list(run["decisions"])
        self._report = report
        self._is_stopped = is_stopped

    def run(self, archive: Archive) -> InspectionSummary:
        with ray_cluster_if_needed(self._config, self._has_work(archive)) as ray:
            workers = 0 if ray is None else _count_workers(ray, self._config)
            parts = self._planned(archive, max(workers, 1))
            summary = InspectionSummary(rows=sum(len(part.rows) for part in parts), workers=workers, model_sha256=self._sha256)
            missing = [part for part in parts if not self._is_done(part, summary)]
            summary.kept = summary.rows - sum(len(part.rows) for part in missing)
            if missing:
                self._judge(ray, missing, summary)
        if summary.judged + summary.kept == summary.rows:
            mark_success(self._out, parts, self._sha256)
            summary.done = True
        elif not self._is_stopped():
            raise _unfinished(self._out, parts, self._sha256)
        return summary

    def _has_work(self, archive: Archive) -> bool:
        parts = read_plan(self._out)
        known = {row.name for part in parts for row in part.rows}
        is_new = any(row.name not in known for row in archive.rows)
        return is_new or self._config.redo_errors or not all(is_whole(self._out, part, self._sha256) for part in parts)

    def _planned(self, archive: Archive, workers: int) -> list[Part]:
        """Return all parts, those for rows that no earlier run has seen included."""
        parts = read_plan(self._out)
        known = {row.name: row for part in parts for row in part.rows}
        new = [row for row in archive.rows if _is_new(row, known, self._out)]
        if new:
            (self._out / SUCCESS).unlink(missing_ok=True)
            part_rows = self._config.part_rows or min(PART_ROWS, max(1, -(-len(new) // (PARTS_PER_WORKER * workers))))
            only = self._products[0] if len(self._products) == 1 else None
            first_id = sum(len(part.rows) for part in parts)
            added = plan_parts(new, part_rows=part_rows, only_product=only, first_id=first_id, first_part=len(parts))
            extend_plan(self._out, added)
            parts += added
        return parts

    def _is_done(self, part: Part, summary: InspectionSummary) -> bool:
        """Count a part that is whole; one that is to be judged again is removed first, and ``_SUCCESS`` before it."""
        if not is_whole(self._out, part, self._sha256):
            (self._out / SUCCESS).unlink(missing_ok=True)
            return False
        counts = collections.Counter(f"{verdict} {reason}" for verdict, reason in part_verdicts(self._out, part))
        if self._config.redo_errors and any(key.startswith("ERROR ") for key in counts):
            (self._out / SUCCESS).unlink(missing_ok=True)
            part.path(self._out).unlink()
            return False
        summary.count(counts)
        return True

    def _judge(self, ray: Any, missing: Sequence[Part], summary: InspectionSummary) -> None:
        sizes = {part.number: len(part.rows) for part in missing}
        total = sum(sizes.values())
        with self._report(total, unit="images", label="inspect") as progress:
            for number, counts in _answers(ray, missing, summary.workers, self._config, self._run):
                summary.count(counts)
                summary.judged += sizes[number]
                progress.advance(sizes[number], **dict(summary.verdicts))
                if self._is_stopped():
                    return


def ray_cluster_if_needed(config: InspectionConfig, is_needed: bool) -> Any:
    """Return a context with ``ray``, connected; with None where there is nothing to judge."""
    return ray_cluster(config.address, cpus=config.workers) if is_needed else contextlib.nullcontext()


def _is_new(row: ArchiveRow, known: Mapping[str, ArchiveRow], out: Path) -> bool:
    before = known.get(row.name)
    if before is None:
        return True
    if (before.size_bytes, before.modified_ns, before.product) != (row.size_bytes, row.modified_ns, row.product):
        raise ConfigError(f"{row.name} changed since {out} was begun; name another folder with --out")
    return False


def _count_workers(ray: Any, config: InspectionConfig) -> int:
    kind = "GPU" if needs_gpu(config.model) else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < (config.workers or 1):
        raise ConfigError(
            f"{config.workers or 1} workers need as many {kind}s, the cluster has {there}; use --workers {max(there, 1)} or another cluster"
        )
    return config.workers or there


def _answers(ray: Any, parts: Sequence[Part], workers: int, config: InspectionConfig, run: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield number and counts of each part as it is written, in any order.

    Raises:
        SnlError: The first that a worker could not go on with.
    """
    model = dataclasses.replace(config.model, threads=_threads(config.model), file=str(Path(config.model.file).absolute()))
    decisions = json.dumps(run["decisions"])
    settings = WorkerSettings(
        model=model, model_sha256=str(run["model_sha256"]), decisions=decisions, out=str(config.out.absolute()), maps=config.maps
    )
    share = {"num_cpus": 0, "num_gpus": 1} if needs_gpu(config.model) else {"num_cpus": 1}
    try:
        for row in hand_out(parts, PartInspector, settings, workers=workers, share=share):
            if row["failure"]:
                raise _failure_of(*json.loads(row["failure"]))
            yield int(row["number"]), json.loads(row["counts"])
    except ray.exceptions.RayError as error:
        raise BackendError(f"the cluster failed: {' '.join(str(error).split())[:300]}; run the same command again, it goes on from here") from error


def hand_out(parts: Sequence[Part], inspector: type, settings: object, *, workers: int, share: Mapping[str, float]) -> Iterator[Mapping[str, Any]]:
    """Give parts to workers as they become free and yield the answer to each, in any order; the cluster is connected.

    Args:
        parts: What to do, one at a time.
        inspector: Called in each worker with a batch that holds one part as JSON, as :class:`PartInspector` is.
        settings: What each is made with.
        workers: How many.
        share: What each takes of the cluster: ``num_cpus``, ``num_gpus``.
    """
    data = load_package("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"part": json.dumps(part.to_plain())} for part in parts]
    judged = data.from_items(items, override_num_blocks=len(items)).map_batches(
        inspector,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(items))),
        **share,
    )
    yield from judged.iter_rows()


def _failure_of(name: str, message: str) -> SnlError:
    kind = getattr(errors, name, None)
    return kind(message) if isinstance(kind, type) and issubclass(kind, SnlError) else ConfigError(message)


def _unfinished(out: Path, parts: Sequence[Part], sha256: str) -> DataError:
    missing = [part for part in parts if not is_whole(out, part, sha256)]
    return DataError(f"{len(missing)} parts of {out} have no results; run the same command again, it goes on from here")
