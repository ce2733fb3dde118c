"""Commands end with the documented exit status and at most one line on stderr, bugs with their traceback."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from snl_runtime.cli.command import CommandParser, run_command, stop_signals
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
    script = "from snl_runtime.cli.command import run_command\nimport sys\n" + textwrap.dedent(body)
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
    script = "from snl_runtime.cli.command import run_command\nimport sys\n" + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 2
    assert error == "snl-x: error: cannot write the output: the reader closed the pipe\n"


def in_shell(body, redirect, **environment):
    script = "from snl_runtime.cli.command import run_command\nimport sys\n" + textwrap.dedent(body)
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, script]
    return subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **environment})


@pytest.mark.parametrize("redirect", [">&-", "1</dev/null"])
def test_missing_standard_output_is_one_line_before_the_work(redirect):
    done = in_shell("sys.exit(run_command(lambda: sys.stderr.write('worked') * 0, program='snl-x'))", redirect)
    assert done.returncode == 2
    assert done.stderr == b"snl-x: error: there is no standard output to write the results to; send it to a file, a pipe or /dev/null\n"


def test_missing_standard_output_is_no_matter_where_nothing_is_printed():
    done = in_shell("sys.exit(run_command(lambda: 0, program='snl-x', prints_results=False))", ">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2</dev/null"])
def test_missing_or_full_stderr_leaves_the_work_and_its_results_alone(redirect):
    body = """
    import logging
    def main_fn():
        print("progress", file=sys.stderr, flush=True)
        logging.getLogger("x").warning("a warning")
        print("result")
        return 0
    sys.exit(run_command(main_fn, program='snl-x'))
    """
    done = in_shell(body, redirect)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"result\n", b"")


def test_a_file_opened_by_the_work_never_becomes_standard_output(tmp_path):
    body = f"""
    import os
    def main_fn():
        with open({str(tmp_path / "file")!r}, "w") as file:
            assert file.fileno() > 2
        os.system("echo printed by a library")
        return 0
    sys.exit(run_command(main_fn, program='snl-x', prints_results=False))
    """
    assert in_shell(body, ">&- <&-").returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", rb"part_\xff \u87ba\xfc"),
        ("cp1252", rb"part_\xff \u87ba" + "ü".encode("cp1252")),
        ("utf-8", rb"part_\xff " + "螺ü".encode()),
    ],
)
def test_any_text_can_be_printed_whatever_the_code_page(encoding, expected):
    body = r"""
    def main_fn():
        print("part_\udcff \u87ba\xfc")
        print("part_\udcff \u87ba\xfc", file=sys.stderr)
        return 0
    sys.exit(run_command(main_fn, program='snl-x'))
    """
    done = in_shell(body, "", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + b"\n", expected + b"\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_stop_signal_is_reported_by_its_name_and_the_handler_is_put_back(name):
    number = getattr(signal, name)
    before, heard = signal.getsignal(number), []
    with stop_signals(heard.append):
        signal.raise_signal(number)  # to this thread: a process with other threads may hand it to one of them, and be late
    assert heard == [name]
    assert signal.getsignal(number) is before


def test_signal_in_the_middle_of_what_its_answer_needs_is_answered_afterwards():
    """A handler runs within the main thread, between any two of its steps; two signals in a row are the same, one within the other's handler."""
    lock, heard = threading.Lock(), []

    def on_stop(name):
        if lock.acquire(timeout=20.0):
            heard.append(name)
            lock.release()

    with stop_signals(on_stop), lock:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert heard == []
    assert heard == ["SIGTERM", "SIGHUP"]


def test_signals_of_a_host_program_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_signals(seen.append):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [before]


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
