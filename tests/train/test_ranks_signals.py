"""A training on several processes ends as a whole: one is killed, frozen, stopped or refused, and all end with one line. Real processes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rank_jobs import DEADLINE_S, processes
from snl_train.checkpoint import load_checkpoint
from snl_train.metrics_log import metrics_path
from snl_train.resume import read_resume_point, resume_path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]

TINY = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --device cpu --threads 1".split()


def wait_for(condition, *started):
    pause = threading.Event()
    until = time.monotonic() + DEADLINE_S
    while not condition() and all(process.poll() is None for process in started) and time.monotonic() < until:
        pause.wait(0.05)
    assert condition(), [process.communicate()[1] for process in started]


def has_lines(path):
    return path.is_file() and path.stat().st_size > 0


def training(root, out, *more):
    return "-m", "snl_train", "--data", root, "--out", out, *TINY, *more


def complaints(started):
    """Return the exit statuses, and everything said that is neither progress nor about the images."""
    said = "".join(process.communicate(timeout=DEADLINE_S)[1] for process in started)
    lines = [line for line in said.splitlines() if not line.startswith(("read: ", "train: ")) and "images taken" not in line]
    return [process.returncode for process in started], lines


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_other_with_one_line(picture_root, tmp_path, victim):
    out = tmp_path / "x.pt"
    with processes(2, *training(picture_root, out, "--epochs", 400)) as started:
        wait_for(lambda: has_lines(metrics_path(out)), *started)
        started[victim].kill()
        statuses, lines = complaints(started)
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 2)
    assert lines == [
        "snl-train: error: another process of this training on 2 ended or lost its connection, so all of them end; its own output and the launcher's "
        "report say why, and --resume continues what was saved"
    ]


def test_frozen_process_ends_the_other_after_the_time_it_may_be_late(picture_root, tmp_path):
    out = tmp_path / "x.pt"
    with processes(2, *training(picture_root, out, "--epochs", 400, "--rank-timeout", 10)) as started:
        wait_for(lambda: has_lines(metrics_path(out)), *started)
        started[1].send_signal(signal.SIGSTOP)
        statuses, lines = complaints(started[:1])
    assert statuses == [2]
    assert len(lines) == 1
    assert "did not answer for 10 s, so all of them end" in lines[0]


@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGINT), (0, signal.SIGTERM)])
def test_signal_to_one_process_saves_stops_all_and_is_resumed(picture_root, tmp_path, rank, number):
    out = tmp_path / "x.pt"
    with processes(2, *training(picture_root, out, "--epochs", 25)) as started:
        wait_for(lambda: has_lines(metrics_path(out)), *started)
        started[rank].send_signal(number)
        statuses, lines = complaints(started)
    assert statuses == [128 + number] * 2
    assert f"stopped by {number.name} after step" in lines[-1]
    assert lines[-1].endswith(f"continue with: torchrun --nproc-per-node 2 -m snl_train --data {picture_root} --out {out} --resume")
    assert [line for line in lines[:-1] if "stopping after this step" not in line] == []
    assert 0 < read_resume_point(resume_path(out)).state["steps_done"] < 75
    with processes(2, "-m", "snl_train", "--data", picture_root, "--out", out, "--resume") as started:
        assert complaints(started) == ([0, 0], [])
    assert load_checkpoint(out).provenance["steps_done"] == 75
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"x.pt", "x.metrics.jsonl"}


@contextlib.contextmanager
def torchrun(*command):
    """Yield a running torchrun of two processes; it is gone afterwards, and its processes with it."""
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen([*map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield launcher
    finally:
        launcher.terminate()  # which ends its processes; a kill would leave them
        launcher.communicate(timeout=DEADLINE_S)


def test_refusal_is_said_once_by_the_process_that_refuses(picture_root, tmp_path):
    out = tmp_path / "x.pt"
    out.write_text("a note")
    with torchrun(*training(picture_root, out)) as launcher:
        stderr = launcher.communicate(timeout=DEADLINE_S)[1]
    assert launcher.returncode == 1
    errors = [line for line in stderr.splitlines() if line.startswith("snl-train: error:")]
    assert len(errors) == 1
    assert "it is not replaced: move it away or name another --out" in errors[0]
    assert out.read_text() == "a note"


def test_interrupted_torchrun_saves_and_ends(picture_root, tmp_path):
    out = tmp_path / "x.pt"
    with torchrun(*training(picture_root, out, "--epochs", 400)) as launcher:
        wait_for(lambda: has_lines(metrics_path(out)), launcher)
        launcher.send_signal(signal.SIGINT)
        stdout, stderr = launcher.communicate(timeout=DEADLINE_S)
    assert stdout == ""
    assert stderr.count("snl-train: stopped by SIGINT after step") == 1
    assert load_checkpoint(out).unfinished is not None
    assert resume_path(out).exists()
