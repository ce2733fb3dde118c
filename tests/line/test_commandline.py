"""Commands end with the documented exit status and at most one line on stderr, bugs with their traceback."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from snl_runtime.commandline import CommandParser, run_command
from snl_runtime.errors import CalibrationRefusedError, ConfigError, SnlError


def raising(error):
    def main_fn():
        raise error

    return main_fn


@pytest.mark.parametrize(("error", "status"), [(ConfigError("lr must be\n positive"), 2), (CalibrationRefusedError("299 parts needed"), 3)])
def test_sdk_error_becomes_one_line_and_its_exit_status(capsys, error, status):
    assert run_command(raising(error), program="snl-x") == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"snl-x: error: {' '.join(str(error).split())}\n"


def test_error_without_message_names_its_class(capsys):
    assert run_command(raising(SnlError()), program="snl-x") == 2
    assert capsys.readouterr().err == "snl-x: error: SnlError\n"


def test_ctrl_c_exits_130(capsys):
    assert run_command(raising(KeyboardInterrupt()), program="snl-x") == 130
    assert capsys.readouterr().err == "snl-x: interrupted\n"


def test_a_bug_escapes_with_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), program="snl-x")


def run_script(body, **keywords):
    script = "from snl_runtime.commandline import run_command\nimport sys\n" + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=60, **keywords)


def test_full_standard_output_is_a_user_error_not_success():
    with Path("/dev/full").open("w") as full:
        done = run_script("sys.exit(run_command(lambda: print('{}') or 0, program='snl-x'))", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "snl-x: error: cannot write the output: [Errno 28] No space left on device\n"


def test_reader_that_closes_the_pipe_gives_one_line():
    body = """
    def main_fn():
        for _ in range(100_000):
            print("x" * 100)
        return 0
    sys.exit(run_command(main_fn, program='snl-x'))
    """
    script = "from snl_runtime.commandline import run_command\nimport sys\n" + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 2
    assert error == "snl-x: error: cannot write the output: the reader closed the pipe\n"


def test_parser_error_is_one_line_with_status_2(capsys):
    parser = CommandParser("snl-x", "Do x.", example="snl-x --data DIR")
    parser.add_argument("--data", required=True)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--dat", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_ends_with_the_example(capsys):
    with pytest.raises(SystemExit):
        CommandParser("snl-x", "Do x.", example="snl-x --data DIR").parse_args(["-h"])
    assert capsys.readouterr().out.endswith("example:\n  snl-x --data DIR\n")


def test_a_command_keeps_waiting_threads_from_spinning_unless_the_user_chose(monkeypatch):
    seen = []
    for chosen in (None, "active"):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if chosen is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
        run_command(lambda: seen.append(os.environ["OMP_WAIT_POLICY"]) or 0, program="x")
    assert seen == ["passive", "active"]
