"""What every command line tool shares: one-line errors, exit statuses, help that shows an example.

Exit statuses: 0 done; 1 a bug, with traceback; 2 user error in one line; 3 a gate or a calibration refused; 4 only with ``--fail-on-reject``;
130 Ctrl-C.
"""

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from snl_runtime.errors import SnlError

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_REFUSED = 3
EXIT_NOT_ALL_PASSED = 4
EXIT_INTERRUPTED = 130

FULL_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What print() meets where the output goes to a file on a full disk."""

logger = logging.getLogger(__name__)


class CommandParser(argparse.ArgumentParser):
    """Argument parser of the snl-* tools: no abbreviations, errors in one line, the example kept as typed.

    Args:
        program: Name of the command, e.g. ``snl-run``.
        description: One sentence.
        example: Command lines that work as written, shown at the end of ``-h``.
    """

    def __init__(self, program: str, description: str, *, example: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog="example:\n" + "\n".join(f"  {line.strip()}" for line in example.strip().splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line; the usage text would hide it."""
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {message}; see {self.prog} -h\n")


def run_command(main_fn: Callable[[], int], *, program: str | None = None) -> int:
    """Run the body of a command and return its exit status.

    An :class:`SnlError` becomes one line on stderr and its own ``exit_status``; Ctrl-C becomes 130; a closed or full stdout becomes one line and 2.
    Everything else is a bug and escapes, so that Python prints its traceback and exits with 1.

    Args:
        main_fn: Does the work and returns the exit status.
        program: Name before the message; the running script's name if None.

    Example:
        >>> run_command(lambda: 0)
        0
    """
    name = program or Path(sys.argv[0]).stem
    _let_waiting_threads_sleep()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        status = main_fn()
        problem = _flush_stdout()
        return status if problem is None else _stdout_failed(name, problem)
    except SnlError as error:
        logger.debug("the error came from here", exc_info=error)
        _flush_stdout()  # what was printed before the failure still counts
        return _say(name, f"error: {one_line(error)}", error.exit_status)
    except KeyboardInterrupt:
        _flush_stdout()
        return _say(name, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return _stdout_failed(name, "the reader closed the pipe")
    except OSError as error:
        if error.errno not in FULL_DISK_ERRORS:
            raise
        return _stdout_failed(name, one_line(error))


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` without line breaks; its class name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _flush_stdout() -> str | None:
    """Write out what was printed; return what went wrong."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard_stdout()
        return "the reader closed the pipe" if isinstance(error, BrokenPipeError) else one_line(error)
    return None


def _discard_stdout() -> None:
    # Python flushes stdout once more at exit and would print a traceback: give it a place where that works.
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _stdout_failed(name: str, why: str) -> int:
    _discard_stdout()
    return _say(name, f"error: cannot write the output: {why}", EXIT_USER_ERROR)


def _let_waiting_threads_sleep() -> None:
    """Keep OpenMP threads (PyTorch's) from spinning while they wait; works until such a library is loaded, so a command does it first.

    On two busy cores a training step with two spinning threads took 9.3 s of wall and 5.3 s of processor time, with sleeping ones 1.8 s and 0.9 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _say(name: str, message: str, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more; the status still tells
        print(f"{name}: {message}", file=sys.stderr)  # noqa: T201 - the one place where commands report failure
    return status
