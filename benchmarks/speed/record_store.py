"""Time that one record takes to reach the disk.

    python -m benchmarks.speed.record_store --folder .

Adds records to a new store as four cameras of a station would, and prints the time of ``add`` and of ``mark_answered`` in milliseconds, beside the
time of one ``fsync`` of the same disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed import machine
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict

PROGRAM = "benchmarks.speed.record_store"
CAMERAS = ("top", "left", "right", "bottom")
_REGION = AnomalyRegion(box_xyxy=(10, 20, 30, 40), score=12.5, area_px=123)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the times and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", metavar="DIR", type=Path, default=Path(), help="folder on the disk that is measured (default: this one)")
    parser.add_argument("--adds", metavar="N", type=int, default=4000, help="records that are added (default: 4000)")
    parser.add_argument("--per-second", metavar="N", type=float, help="records a second, as parts come (default: as fast as it goes)")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options.folder, options.adds, options.per_second), program=PROGRAM)


def _measure(folder: Path, adds: int, per_second: float | None) -> int:
    add_ms, mark_ms = [], []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        sync_ms = _sync_times(Path(temporary) / "synced")
        path = Path(temporary) / "records.sqlite"
        with RecordStore(RecordStoreConfig(path=str(path))) as store:
            begun_s = time.perf_counter()
            for index in range(adds):
                if per_second is not None:
                    time.sleep(max(0.0, begun_s + index / per_second - time.perf_counter()))
                frame, result = _inspected(index)
                started_s = time.perf_counter()
                row = store.add(frame, result, camera=CAMERAS[index % len(CAMERAS)])
                added_s = time.perf_counter()
                store.mark_answered(row)
                mark_ms.append((time.perf_counter() - added_s) * 1e3)
                add_ms.append((added_s - started_s) * 1e3)
        row_bytes = path.stat().st_size / adds
    print(f"{machine.versions()}; {adds} records, {row_bytes:.0f} bytes each in the file")
    print("| step | median ms | p99 ms | longest ms |\n|---|---:|---:|---:|")
    for name, times_ms in (("write of 4 KiB and fsync", sync_ms), ("add", add_ms), ("mark_answered", mark_ms)):
        print(f"| {name} | {statistics.median(times_ms):.2f} | {np.percentile(times_ms, 99):.2f} | {max(times_ms):.2f} |")
    return EXIT_OK


def _sync_times(path: Path) -> list[float]:
    times_ms = []
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(500):
            started_s = time.perf_counter()
            os.write(handle, bytes(4096))
            os.fsync(handle)
            times_ms.append((time.perf_counter() - started_s) * 1e3)
    finally:
        os.close(handle)
    return times_ms


def _inspected(index: int) -> tuple[Frame, AnomalyResult]:
    frame = Frame(
        image=None, color="bgr", index=index, captured_ns=time.monotonic_ns(), captured_at=time.time(), source_id="camera 0", trigger_id=index + 1
    )
    is_bad = index % 10 == 0
    result = AnomalyResult(
        verdict=Verdict.REJECT if is_bad else Verdict.PASS,
        reason_code="above_reject_threshold" if is_bad else "below_threshold",
        reason="score 12.5 is above the reject threshold 11" if is_bad else "score 5.5 is at most the threshold 10",
        score=12.5 if is_bad else 5.5,
        threshold=10.0,
        reject_threshold=11.0,
        product="bottle",
        anomaly_map=None,
        roi_xyxy=None,
        regions=(_REGION,) * (3 if is_bad else 0),
        timings=StageTimings(preprocess_ms=1.5, infer_ms=20.25, decide_ms=0.5, total_ms=22.25),
        model_sha256="ab" * 32,
    )
    return frame, result


if __name__ == "__main__":
    sys.exit(main())
