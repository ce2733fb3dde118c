"""An archive inspected on a real Ray cluster has the verdicts of snl-run, each once, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import pytest

from snl_runtime.cli.run import main as run_main
from snl_runtime.fleet.results import SUCCESS, read_plan, read_results

pytestmark = [pytest.mark.station, pytest.mark.xdist_group("ray")]
pytest.importorskip("ray.data")

FRAMES = 48
LARGE = 1200
"""Side of a frame that takes long enough for a process to be killed while it is judged."""
LONGEST_S = 240


@pytest.fixture
def archive(tmp_path, model):
    """Frames large enough that the inspection can be caught in the middle."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for seed in range(2):
        cv2.imwrite(str(folder / f"source{seed}.png"), model.good_frame(seed, LARGE))
    cv2.imwrite(str(folder / "source2.png"), model.bad_frame(0, LARGE))
    for number in range(FRAMES - 3):
        os.link(folder / f"source{number % 3}.png", folder / f"part{number:03d}.png")
    return folder


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
    return [child for child in descendants(pid) if b"MapWorker" in _command_line(child)]


def _command_line(pid):
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


def test_verdicts_scores_and_regions_are_those_of_snl_run_bit_for_bit(engine, parts, tmp_path, capsys):
    out = tmp_path / "results"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as temporary:  # short: sockets lie in it
        environment = {**os.environ, "TMPDIR": temporary}
        status, stdout, stderr = inspect(engine, parts.name, out, "--product", "bottle", "--workers", 2, "--json", cwd=parts.parent, env=environment)
        assert status == 0, stderr
        assert list(Path(temporary).glob("snl-ray-*")) == []
    assert rows_of(out) == expected_rows(engine, parts, tmp_path)
    summary = json.loads(stdout)
    assert (summary["rows"], summary["judged"], summary["done"], summary["verdicts"]["ERROR"]) == (9, 9, True, 1)
    assert "9/9 images" in stderr
    status, stdout, stderr = inspect(engine, parts, out, "--product", "bottle", "--workers", 2, "--json", "--fail-on-reject")
    assert (status, json.loads(stdout)["judged"]) == (4, 0), stderr


def test_worker_that_is_killed_in_the_middle_loses_and_doubles_nothing(engine, archive, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = command(engine, archive, out, "--product", "bottle", "--workers", 2, "--part-rows", 6)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: list((out / "_deaths").glob("part-*.json")), driver)
        victim = wait_for(lambda: workers_of(driver.pid), driver)[0]
        os.kill(victim, signal.SIGKILL)
        _, stderr = driver.communicate(timeout=LONGEST_S)
    assert driver.returncode == 0, stderr
    assert (out / SUCCESS).exists()
    assert rows_of(out) == expected_rows(engine, archive, tmp_path)


def test_driver_that_is_killed_is_followed_by_a_run_that_does_only_what_is_missing(engine, archive, tmp_path, capsys):
    out = tmp_path / "results"
    options = ("--product", "bottle", "--workers", 2, "--part-rows", 3)
    with subprocess.Popen(command(engine, archive, out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: list(out.glob("product=*/day=*/part-*.parquet")), driver)
        workers = workers_of(driver.pid)
        assert workers
        driver.kill()
        driver.communicate(timeout=LONGEST_S)
    wait_for(lambda: not any(b"MapWorker" in _command_line(pid) for pid in workers))  # nobody goes on without the driver
    assert not (out / SUCCESS).exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("product=*/day=*/part-*.parquet")}
    sizes = {str(part.path(out)): len(part.rows) for part in read_plan(out)}
    assert 0 < len(kept) < len(sizes)
    status, stdout, stderr = inspect(engine, archive, out, *options, "--json")
    assert status == 0, stderr
    assert json.loads(stdout)["kept"] == sum(sizes[str(path)] for path in kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows_of(out) == expected_rows(engine, archive, tmp_path)


def test_archive_that_grew_is_finished_and_one_that_changed_is_refused(engine, parts, tmp_path, model, capsys):
    out = tmp_path / "results"
    assert inspect(engine, parts, out, "--product", "bottle", "--workers", 1)[0] == 0
    cv2.imwrite(str(parts / "d_new.png"), model.good_frame(9))
    status, stdout, stderr = inspect(engine, parts, out, "--product", "bottle", "--workers", 1, "--json")
    assert (status, json.loads(stdout)["judged"], json.loads(stdout)["kept"]) == (0, 1, 9), stderr
    assert rows_of(out) == expected_rows(engine, parts, tmp_path)
    cv2.imwrite(str(parts / "d_new.png"), model.bad_frame(1))
    status, _, stderr = inspect(engine, parts, out, "--product", "bottle", "--workers", 1)
    assert status == 2
    assert "d_new.png changed since" in stderr
