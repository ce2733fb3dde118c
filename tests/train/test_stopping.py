"""A training that is told to stop saves first and says how to go on; a killed one leaves what it saved last. Real processes, real signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from snl_train.checkpoint import load_checkpoint
from snl_train.cli.train import main
from snl_train.metrics_log import metrics_path
from snl_train.output import replaced_path
from snl_train.resume import read_resume_point, resume_path
from snl_train.stopping import StoppedBySignalError, StopRequest, stop_on_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to a single child process")

TINY = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --device cpu --threads 1".split()
DEADLINE_S = 120.0


@contextlib.contextmanager
def trainer(*arguments):
    """Yield a running snl-train; it is gone afterwards."""
    command = [sys.executable, "-m", "snl_train.cli.train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process):
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if condition() or process.poll() is not None:
            break
        pause.wait(0.05)
    assert condition(), process.communicate()[1]


def has_lines(path):
    return path.is_file() and path.stat().st_size > 0


def end(process, *signals):
    for number in signals:
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert stdout == ""
    assert "Traceback" not in stderr
    return stderr


@pytest.mark.parametrize(
    ("signals", "statuses"),
    [
        ([signal.SIGINT], {130}),
        ([signal.SIGTERM], {143}),
        ([signal.SIGHUP], {129}),
        ([signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGINT], {143, 129, 130}),  # the system delivers them in no order
        ([signal.SIGINT, signal.SIGINT], {130}),
    ],
    ids=["INT", "TERM", "HUP", "TERM HUP TERM INT at once", "INT twice at once"],
)
def test_stopped_training_saves_and_one_of_them_resumes_to_the_bit(plain_root, tmp_path, signals, statuses):
    out = tmp_path / "x.pt"
    arguments = ["--data", plain_root, *TINY, "--epochs", 25]
    with trainer(*arguments, "--out", out) as process:
        wait_for(lambda: has_lines(metrics_path(out)), process)
        stderr = end(process, *signals)
    assert process.returncode in statuses, stderr
    assert "continue with: snl-train" in stderr.splitlines()[-1]
    stopped = load_checkpoint(out)
    assert 0 < stopped.provenance["steps_done"] < 75
    assert read_resume_point(resume_path(out)).state["steps_done"] == stopped.provenance["steps_done"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"x.pt", "x.resume.pt", "x.metrics.jsonl"}
    if signals != [signal.SIGTERM]:
        return
    assert main([str(argument) for argument in (*arguments, "--out", out, "--resume")]) == 0
    assert main([str(argument) for argument in (*arguments, "--out", tmp_path / "straight.pt")]) == 0
    resumed, straight = load_checkpoint(out), load_checkpoint(tmp_path / "straight.pt")
    assert resumed.unfinished is None
    assert not resume_path(out).exists()
    for name, tensor in straight.state_dict.items():
        assert torch.equal(tensor, resumed.state_dict[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_images_are_read_ends_at_once_and_leaves_nothing(picture, tmp_path, number):
    for index in range(16):
        picture(tmp_path / "images" / "bolt" / f"{index}.jpg", index, (3000, 3000))  # seconds of reading
    with trainer("--data", tmp_path / "images", "--out", tmp_path / "x.pt", *TINY, "--epochs", 1) as process:
        wait_for((tmp_path / ".x.pt.lock").exists, process)
        stderr = end(process, number)
    assert process.returncode == 128 + number, stderr
    assert stderr.splitlines()[-1] == f"snl-train: stopped by {number.name} before the first step; nothing was saved"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_killed_training_leaves_its_out_to_the_next_one(plain_root, tmp_path):
    out = tmp_path / "x.pt"
    with trainer("--data", plain_root, "--out", out, *TINY, "--epochs", 400) as process:
        wait_for(lambda: has_lines(metrics_path(out)), process)
        with trainer("--data", plain_root, "--out", out, *TINY, "--epochs", 1) as second:
            stderr = second.communicate(timeout=DEADLINE_S)[1]
        assert second.returncode == 2
        assert stderr.splitlines() == [f"snl-train: error: {out} is in use by another training; wait until that ends or choose another path"]
        process.kill()
        process.wait(DEADLINE_S)
    assert main(["--data", str(plain_root), "--out", str(out), *TINY, "--epochs", "1"]) == 0  # nothing was saved, so nothing is lost
    assert load_checkpoint(out).unfinished is None


def kill_once_it_logs(arguments, log):
    before = log.read_bytes()
    with trainer(*arguments) as process:
        wait_for(lambda: log.is_file() and log.read_bytes() not in (b"", before), process)
        process.kill()
        process.wait(DEADLINE_S)


def test_killed_replacement_cannot_be_resumed_into_the_older_training(plain_root, tmp_path, capsys):
    out, aside = tmp_path / "x.pt", replaced_path(tmp_path / "x.pt")
    arguments = ["--data", plain_root, "--out", out, *TINY, "--epochs", 400]
    with trainer(*arguments) as process:
        wait_for(lambda: has_lines(metrics_path(out)), process)
        end(process, signal.SIGTERM)
    checkpoint, state, log = (path.read_bytes() for path in (out, resume_path(out), metrics_path(out)))
    for _ in range(2):  # the second time what was set aside is still the older training's
        kill_once_it_logs([*arguments, "--seed", 8, "--overwrite"], metrics_path(out))
        assert (out.read_bytes(), resume_path(aside).read_bytes(), metrics_path(aside).read_bytes()) == (checkpoint, state, log)
        assert not resume_path(out).exists()
    assert main([*map(str, arguments), "--resume"]) == 2
    message = capsys.readouterr().err
    assert "ended before its first save" in message
    assert f"--out {aside} --resume" in message
    steps = json.loads(log.splitlines()[-1])["step"]
    with trainer("--data", plain_root, "--out", aside, "--resume") as process:
        wait_for(lambda: len(metrics_path(aside).read_bytes()) > len(log), process)
        end(process, signal.SIGTERM)
    assert load_checkpoint(aside).provenance["steps_done"] > steps


# The rule itself


def test_signal_before_the_first_step_raises_once_and_a_second_one_does_not_disturb_the_clean_up():
    request = StopRequest("snl-train")
    with pytest.raises(StoppedBySignalError):
        request.on_signal(signal.SIGTERM, None)
    request.on_signal(signal.SIGTERM, None)
    request.on_signal(signal.SIGINT, None)
    assert (request.exit_status, request.signal_name) == (143, "SIGTERM")


def test_only_a_later_ctrl_c_gives_up_the_save(monkeypatch):
    seconds = iter([0.0, 0.9, 1.0])
    monkeypatch.setattr("snl_train.stopping.time.monotonic", lambda: next(seconds))
    request = StopRequest("snl-train")
    assert not request.should_stop()
    request.on_signal(signal.SIGINT, None)
    assert request.should_stop()
    request.on_signal(signal.SIGTERM, None)
    request.on_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        request.on_signal(signal.SIGINT, None)
    request.on_signal(signal.SIGINT, None)  # the clean-up of the one before is under way
    assert request.exit_status == 130


def test_ignored_hang_up_stays_ignored_and_all_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals("snl-train") as request:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == request.on_signal
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])


def test_thread_of_a_host_program_leaves_the_signals_alone():
    seen = []

    def run():
        with stop_on_signals("snl-train"):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join(DEADLINE_S)
    assert seen == [before]
