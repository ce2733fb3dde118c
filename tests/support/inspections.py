"""A real snl-inspect in a process of its own, what it starts, and what snl-run says of the same images."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from snl_runtime.cli.run import main as run_main
from snl_runtime.fleet.results import read_results

LONGEST_S = 240


def command(engine, data, out, *more):
    return [sys.executable, "-m", "snl_runtime.cli.inspect", "--engine", str(engine), "--data", str(data), "--out", str(out), *map(str, more)]


def inspect(*arguments, **options):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LONGEST_S, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def wait_for(condition, process=None):
    """Look until ``condition`` gives something true, bounded."""
    deadline = time.monotonic() + LONGEST_S
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        pause.wait(0.02)
    return found


def descendants(pid):
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if not fields["State"].startswith("Z"):
            parents[int(status.parent.name)] = int(fields["PPid"])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def workers_of(pid):
    return [child for child in descendants(pid) if b"MapWorker" in command_line(child)]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rows_of(out):
    columns = ["row_id", "file", "verdict", "reason_code", "reason", "score", "threshold", "reject_threshold", "regions", "model_sha256", "product"]
    return read_results(out, columns).drop_columns(["day"]).sort_by("row_id").to_pylist()


def expected_rows(engine, data, tmp_path):
    records = tmp_path / "expected.jsonl"
    assert run_main(["--engine", str(engine), "--images", str(data), "--threads", "1", "--product", "bottle", "--jsonl", str(records)]) == 0
    rows = []
    for line in records.read_text().splitlines():
        record = json.loads(line)
        kept = ("verdict", "reason_code", "reason", "score", "threshold", "reject_threshold", "regions", "model_sha256", "product")
        rows.append({"row_id": record["frame_index"], "file": record["source_id"], **{name: record[name] for name in kept}})
    return rows
