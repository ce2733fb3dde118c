"""An archive inspected on a real Ray cluster has the verdicts of snl-run, each once, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import cv2
import pytest

from inspections import LONGEST_S, command, command_line, expected_rows, inspect, rows_of, wait_for, workers_of
from snl_runtime.fleet.results import SUCCESS, read_plan

pytestmark = pytest.mark.station
pytest.importorskip("ray.data")

FRAMES = 48
LARGE = 1200
"""Side of a frame that takes long enough for a process to be killed while it is judged."""


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
    wait_for(lambda: not any(b"MapWorker" in command_line(pid) for pid in workers))  # nobody goes on without the driver
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
