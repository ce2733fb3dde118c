"""``snl-run`` with a record store: cameras with triggers and deadlines, one answer each, and what tells the line."""

import argparse
import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_NOT_ALL_PASSED, EXIT_OK, need_stdout, report_listing
from snl_runtime.cli.model_flags import open_detector
from snl_runtime.cli.run_flags import PROGRAM
from snl_runtime.errors import ConfigError, SnlError
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.line.record_store import RecordStore
    from snl_runtime.station.config import StationConfig
    from snl_runtime.station.outbox import Outbox
    from snl_runtime.station.self_test import SelfTestSchedule
    from snl_runtime.station.snapshot import StationSnapshot, UnitSnapshot
    from snl_runtime.station.station import Station

WAIT_S = 0.25
"""How often a run looks whether it shall end, or test itself."""


def run_station(arguments: argparse.Namespace, config: "StationConfig", on_stop: Callable[[Callable[[], None]], None]) -> int:
    """Run until every camera has ended or a signal stops the run, and return the exit status.

    After an end without a signal, consumers get a bounded time for what they do not have yet.

    Args:
        arguments: The flags that are no part of the configuration.
        config: The station.
        on_stop: Is given what a signal shall call.

    Raises:
        SnlError: If anything cannot be opened.
    """
    from snl_runtime.line.record_store import RecordStore
    from snl_runtime.station.assembly import build_station
    from snl_runtime.station.build import build_sinks, check_paths, check_products
    from snl_runtime.station.outbox import drain
    from snl_runtime.station.self_test import SelfTestSchedule

    if arguments.max_frames is not None:
        raise ConfigError("--max-frames is for one camera without a record store; leave it out")
    if config.records.store is None:
        raise ConfigError("a station needs the record store: add records.store")
    if config.records.jsonl is None or arguments.json:
        need_stdout()
    check_paths(config)
    sinks = build_sinks(config)
    stopped = threading.Event()
    with contextlib.ExitStack() as opened:
        detector = opened.enter_context(open_detector(config.model, keep_maps=sinks.need_maps or config.web is not None, outputs=sinks.request))
        check_products(config, detector.products)
        store = opened.enter_context(RecordStore(config.records.store))
        built = build_station(
            config,
            detector,
            store,
            sinks=[sinks.records, *sinks.others],
            on_listed=lambda listing: report_listing(PROGRAM, listing, list_left_out=arguments.list_left_out),
        )
        with contextlib.ExitStack() as running:
            at_last = running.enter_context(contextlib.ExitStack())  # left when the outboxes are closed
            for beside in built.beside:
                running.enter_context(beside)
            station = running.enter_context(built.station)
            at_last.enter_context(_telling_at_last(lambda: _report_left(built.outboxes, store)))
            with _telling_at_last(lambda: _report(arguments, config, station.snapshot(), detector.model_sha256)):
                try:
                    on_stop(stopped.set)
                    if built.screen is not None:
                        print(f"{PROGRAM}: the screen is at {built.screen.url}", file=sys.stderr)
                    _run_until_ended(station, SelfTestSchedule(config.self_test, detector.self_test, time.monotonic), stopped)
                finally:
                    station.stop()
            snapshot = station.snapshot()
            drain(built.outboxes, timeout_s=config.outputs.outbox.max_drain_s, stopped=stopped)
    return EXIT_NOT_ALL_PASSED if arguments.fail_on_reject and not _all_passed(snapshot) else EXIT_OK


@contextlib.contextmanager
def _telling_at_last(tell: Callable[[], None]) -> Iterator[None]:
    """Tell something at the end, also after Ctrl-C or an error, which stays the error if nothing can be told."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(SnlError):
            tell()
        raise
    tell()


def _run_until_ended(station: "Station", self_test: "SelfTestSchedule", stopped: threading.Event) -> None:
    while not stopped.is_set() and not station.wait(WAIT_S):
        self_test.run_if_due(has_open_trigger=any(unit.line.busy for unit in station.snapshot().cameras.values()))


def _report_left(outboxes: "Sequence[Outbox]", store: "RecordStore") -> None:
    """Say what each consumer did not take; the outboxes are closed, so that no row is on its way any more."""
    for counts in (outbox.counts for outbox in outboxes):
        left = store.backlog(counts.consumer)
        why = f"; {counts.last_error}" if left and not counts.connected and counts.last_error else ""
        print(f"{PROGRAM}: {counts.consumer}: records left for the next start: {left}{why}", file=sys.stderr)


def _all_passed(snapshot: "StationSnapshot") -> bool:
    verdicts = [(verdict.value, count) for unit in snapshot.cameras.values() for verdict, count in unit.verdicts.items() if count]
    return bool(verdicts) and all(name == "PASS" for name, _ in verdicts)


def _report(arguments: argparse.Namespace, config: "StationConfig", snapshot: "StationSnapshot", model_sha256: str) -> None:
    cameras = {name: _plain(unit) for name, unit in snapshot.cameras.items()}
    for name, camera in cameras.items():
        counts = ", ".join(f"{verdict} {count}" for verdict, count in camera["verdicts"].items())
        latency = ", ".join(f"{key} {'-' if value is None else f'{value:.4g}'}" for key, value in camera["latency_ms"].items())
        print(f"camera {name}: {camera['captured']} captured, {camera['dropped']} dropped; {counts}", file=sys.stderr)
        print(f"camera {name}: trigger to answer ms: {latency}{camera['fault'] and '; fault: ' + camera['fault']}", file=sys.stderr)
    if snapshot.observations_lost or snapshot.observers_failed:
        failed = ", ".join(snapshot.observers_failed) or "none"
        print(f"{PROGRAM}: {snapshot.observations_lost} results did not reach files and plug-ins, failed: {failed}", file=sys.stderr)
    if arguments.json:
        print(to_json({"engine": config.model.file, "model_sha256": model_sha256, "elapsed_s": snapshot.elapsed_s, "cameras": cameras}))


def _plain(unit: "UnitSnapshot") -> dict[str, Any]:
    latency = unit.latency_ms
    times = {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99, "max": latency.max}
    return {
        "captured": unit.frames.captured,
        "inspected": unit.frames.inspected,
        "dropped": unit.frames.dropped,
        "failed": unit.frames.failed,
        "waiting": unit.frames.waiting,
        "refused": unit.refused,
        "verdicts": {verdict.value: count for verdict, count in unit.verdicts.items()},
        "latency_ms": {name: round(value, 3) if math.isfinite(value) else None for name, value in times.items()},
        "fault": unit.line.fault_reason,
    }
