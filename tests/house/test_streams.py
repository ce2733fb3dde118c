"""Every command keeps its exit status and its one line whatever standard output, stderr and the code page are."""

import os
import subprocess
import sys

import pytest

COMMANDS = {
    "snl-train": ("snl_train.cli.train", "--data nowhere --out x.pt"),
    "snl-eval": ("snl_train.cli.evaluate", "--engine nowhere.onnx --data nowhere"),
    "snl-export": ("snl_export.cli", "--ckpt nowhere.pt"),
    "snl-calibrate": ("snl_calibration.cli", "--engine nowhere.onnx --good nowhere"),
    "snl-run": ("snl_runtime.cli.run", "--engine nowhere.onnx --images nowhere"),
    "snl-bench": ("snl_runtime.cli.bench", "--engine nowhere.onnx"),
    "snl-sign": ("snl_runtime.cli.sign", "--engine nowhere.onnx --public-key nowhere.pem"),
    "snl-records": ("snl_runtime.cli.records", "--store nowhere"),
    "snl-replay": ("snl_runtime.cli.replay", "--archive nowhere --engine nowhere.onnx"),
    "snl-inspect": ("snl_runtime.cli.inspect", "--engine nowhere.onnx --data nowhere --out nowhere"),
    "snl-compare": ("snl_runtime.cli.compare", "-- nowhere elsewhere"),
    "snl-serve": ("snl_runtime.cli.serve", "--engine nowhere.onnx"),
}


def shell(command, flags, redirect="", **environment):
    program = f"import sys; from {COMMANDS[command][0]} import main; sys.argv[0] = '{command}'; sys.exit(main())"
    line = ["bash", "-c", f'"$0" -c "$1" {flags} {redirect}', sys.executable, program]
    return subprocess.run(line, capture_output=True, timeout=120, env={**os.environ, **environment})


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_standard_output_is_one_line_before_anything_is_read(command):
    done = shell(command, COMMANDS[command][1], ">&-")
    assert done.returncode == 2
    said = f"{command}: error: there is no standard output to write the results to; send it to a file, a pipe or /dev/null\n"
    assert done.stderr.decode() == said


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_stderr_keeps_the_exit_status_and_never_becomes_standard_output(command):
    done = shell(command, COMMANDS[command][1], "2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_flags_without_stderr_keep_the_exit_status(command):
    assert shell(command, "--no-such-flag", "2>&-").returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_errors_fit_any_code_page(command):
    if command in ("snl-inspect", "snl-serve"):
        pytest.importorskip("ray", reason="without Ray the first error names the extra, not the file")
    helped = shell(command, "-h", PYTHONIOENCODING="ascii")
    assert (helped.returncode, helped.stderr) == (0, b"")
    option = "--data" if command == "snl-train" else COMMANDS[command][1].split()[0]
    failed = shell(command, COMMANDS[command][1].replace(f"{option} nowhere", f"{option} $'b_螺丝\\xff'"), PYTHONIOENCODING="ascii")
    assert failed.returncode == 2
    assert failed.stderr.count(b"\n") <= 2  # a stage may be announced first
    assert rb"b_\u87ba\u4e1d\xff" in failed.stderr
