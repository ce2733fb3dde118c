"""snl-run as a process: what signals, a missing or full standard output and the locale do to records and exit status."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def command(*arguments):
    return [sys.executable, "-m", "snl_runtime.cli.run", *map(str, arguments)]


def test_full_standard_output_exits_2(engine, parts):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("--engine", engine, "--images", parts), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write records to standard output" in done.stderr.splitlines()[-1]


LONG = 4000


@pytest.fixture(scope="session")
def long_video(model, tmp_path_factory):
    """A video that still runs when the test strikes: seconds of work, milliseconds into it."""
    path = tmp_path_factory.mktemp("long") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 160))
    frames = [model.good_frame(seed, 160) for seed in range(10)]
    for index in range(LONG):
        writer.write(frames[index % 10])
    writer.release()
    return path


def start_and_wait_for_records(engine, video, path, *flags):
    """Start a run and return when its file has grown; the wait ends with the process at the latest."""
    process = subprocess.Popen(
        command("--engine", engine, "--video", video, "--jsonl", path, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (path.exists() and path.stat().st_size > 2000):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the run ended with {process.wait(0.01)} before it wrote records")
    return process


STOPS = {
    "Ctrl-C": (signal.SIGINT, [], 130, "snl-run: interrupted"),
    "a service manager": (signal.SIGTERM, [], 0, "snl-run: stopped by SIGTERM after {captured} frames; all records are written"),
    "a closed terminal": (signal.SIGHUP, [], 0, "snl-run: stopped by SIGHUP after {captured} frames; all records are written"),
    "a gate": (signal.SIGTERM, ["--fail-on-reject"], 4, "snl-run: stopped by SIGTERM after {captured} frames; all records are written"),
}


@pytest.mark.parametrize("name", STOPS)
def test_stop_delivers_what_is_under_way_and_says_so(engine, long_video, tmp_path, name):
    number, flags, status, last_line = STOPS[name]
    path = tmp_path / "out.jsonl"
    process = start_and_wait_for_records(engine, long_video, path, "--json", *flags)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    summary = json.loads(out)
    indices = [record["frame_index"] for record in lines_of(path.read_text())]
    assert indices == list(range(summary["captured"]))
    assert summary["waiting"] == summary["dropped"] == 0
    assert summary["captured"] < LONG
    assert summary["stopped_by"] == (None if number is signal.SIGINT else number.name)
    assert error.splitlines()[-1] == last_line.format(captured=summary["captured"])


def test_stop_whose_last_records_find_no_place_exits_2_and_prints_them(engine, long_video, tmp_path):
    path = tmp_path / "out.jsonl"
    process = start_and_wait_for_records(engine, long_video, path)
    process.send_signal(signal.SIGSTOP)
    path.unlink()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert "all records are written" not in error
    assert [line for line in error.splitlines() if line.startswith('{"record"')]


def test_hangup_that_the_process_was_told_to_ignore_ends_nothing(engine, long_video, tmp_path):
    path = tmp_path / "out.jsonl"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; the child inherits it
    try:
        process = start_and_wait_for_records(engine, long_video, path, "--max-frames", 300)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert len(lines_of(path.read_text())) == 300


def test_kill_in_the_middle_leaves_whole_records(engine, long_video, tmp_path):
    path = tmp_path / "out.jsonl"
    process = start_and_wait_for_records(engine, long_video, path)
    process.kill()
    process.communicate(timeout=60)
    content = path.read_text()
    assert content.endswith("\n")
    indices = [record["frame_index"] for record in lines_of(content)]
    assert indices == list(range(len(indices)))
    assert 0 < len(indices) < LONG


def shell(text, **environment):
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def shown(*arguments):
    return " ".join(command(*arguments))


@pytest.mark.parametrize("redirect", [">&-", "1</dev/null", ">&- 2>&-"])
def test_missing_standard_output_is_one_line_before_any_frame(engine, parts, tmp_path, redirect):
    done = shell(f"{shown('--engine', engine, '--images', parts, '--save-rejects', tmp_path / 'rejects')} {redirect}")
    assert done.returncode == 2
    assert done.stdout == ""
    said = (
        [] if "2>&-" in redirect else ["snl-run: error: there is no standard output to write the results to; send it to a file, a pipe or /dev/null"]
    )
    assert done.stderr.splitlines() == said
    assert not (tmp_path / "rejects").exists()


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_records_in_a_file_need_neither_standard_output_nor_stderr(engine, parts, tmp_path, redirect):
    done = shell(f"{shown('--engine', engine, '--images', parts, '--jsonl', tmp_path / 'out.jsonl')} {redirect}")
    assert done.returncode == 0
    assert len(lines_of((tmp_path / "out.jsonl").read_text())) == 9
    assert done.stdout == ""


def test_full_stderr_ends_nothing(engine, parts):
    done = shell(f"{shown('--engine', engine, '--images', parts)} 2>/dev/full")
    assert done.returncode == 0
    assert len(lines_of(done.stdout)) == 9


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "utf-16", "utf-8"])
def test_records_are_the_same_whatever_the_code_page(engine, parts, tmp_path, encoding):
    names = ["b_螺丝.png", os.fsdecode(b"d_\xff\xe9.png")]
    for name in names:
        shutil.copy(parts / "a_good0.png", parts / name)
    arguments = command("--engine", engine, "--images", parts, "--save-rejects", tmp_path / "r", "--overlay", tmp_path / "o")
    done = subprocess.run(arguments, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    recorded = [Path(record["source_id"]).name for record in lines_of(done.stdout.decode("ascii"))]
    assert sorted(set(recorded) - {path.name for path in parts.iterdir()}) == ["d_\\xff\\xe9.png"]
    assert "b_螺丝.png" in recorded
    assert len(recorded) == 11
