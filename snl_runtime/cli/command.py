"""What every command line tool shares: one-line errors, exit statuses, help that shows an example.

Exit statuses: 0 done, also when a service manager stopped the run; 1 a bug, with traceback; 2 user error in one line; 3 a gate or a calibration
refused; 4 only with ``--fail-on-reject``, from ``snl-replay`` where verdicts differ and ``snl-compare`` where too many do; 130 Ctrl-C.
"""

import argparse
import contextlib
import errno
import importlib.util
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from snl_runtime.errors import BackendUnavailableError, SinkError, SnlError
from snl_runtime.mixups import find_mix_up
from snl_runtime.text import printable

if TYPE_CHECKING:
    from snl_runtime.images.listing import Listing

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_REFUSED = 3
EXIT_NOT_ALL_PASSED = 4
EXIT_INTERRUPTED = 130

FULL_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What any write may meet; the disk is not a bug."""

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

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse; exit with status 2 and one line that names the right option or command if something is given where it does not belong."""
        arguments = super().parse_args(args, namespace)
        for action in self._actions:
            value = getattr(arguments, action.dest, None)
            if action.choices is None and isinstance(value, (str, Path)):
                for option in action.option_strings:
                    if (mix_up := find_mix_up(self.prog, option, value)) is not None:
                        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {option}: {mix_up}\n")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line; the usage text would hide it."""
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {message}; see {self.prog} -h\n")


def run_command(main_fn: Callable[[], int], *, program: str | None = None, prints_results: bool = True) -> int:
    """Run the body of a command, its parsing included, and return its exit status.

    An :class:`SnlError` becomes one line on stderr and its own ``exit_status``; Ctrl-C becomes 130; a missing, closed or full stdout becomes one line
    and 2. Everything else is a bug and escapes, so that Python prints its traceback and exits with 1. Inside, stdout and stderr take any text
    whatever the code page, and a stderr that is gone takes everything.

    Args:
        main_fn: Does the work and returns the exit status.
        program: Name before the message; the running script's name if None.
        prints_results: Whether a missing stdout ends the command before it begins; a command that does not know yet calls :func:`need_stdout`.

    Example:
        >>> run_command(lambda: 0)
        0
    """
    name = program or Path(sys.argv[0]).stem
    _let_waiting_threads_sleep()
    with _any_text_on_stdout_and_stderr():
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
        try:
            if prints_results:
                need_stdout()
            status = main_fn()
            sys.stdout.flush()
            return status
        except SnlError as error:
            logger.debug("the error came from here", exc_info=error)
            return _fail(name, f"error: {one_line(error)}", error.exit_status)
        except KeyboardInterrupt:
            return _fail(name, "interrupted", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in FULL_DISK_ERRORS:
                raise
            return _fail(name, f"error: {one_line(error)}", EXIT_USER_ERROR)


def need_stdout() -> None:
    """Refuse to work where the results would go nowhere.

    Raises:
        SinkError: If the process was started without a standard output, or with one that is open for reading only.
    """
    if not getattr(sys.stdout, "can_be_written", True):
        raise SinkError("there is no standard output to write the results to; send it to a file, a pipe or /dev/null")


def need_packages(packages: Sequence[str], *, what: str, extra: str) -> None:
    """Refuse work that this installation cannot do, before anything is read.

    Args:
        packages: Names as they are imported.
        what: Command or option, for the message.
        extra: What ``pip install`` adds, e.g. ``train``.

    Raises:
        BackendUnavailableError: If one of them is not installed; the message says what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(f"{what} needs {', '.join(missing)}: pip install 'snl-edge[{extra}]'")


def add_listing_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag that :func:`report_listing` goes by."""
    parser.add_argument("--list-left-out", action="store_true", help="name on standard error every file that was not taken as an image, and why")


def report_listing(program: str, listing: "Listing", *, list_left_out: bool) -> None:
    """Print on standard error how many files were taken, rejected and left out, and on request which and why."""
    hint = "; --list-left-out names them" if (listing.rejected or listing.left_out) and not list_left_out else ""
    print(f"{program}: {listing.summary()}{hint}", file=sys.stderr)
    for one in (*listing.rejected, *listing.left_out) if list_left_out else ():
        print(f"{program}: left out: {one}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` without line breaks; its class name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def stop_signals(on_stop: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_stop`` with the name of the signal when a service manager (SIGTERM) or a closed terminal (SIGHUP) ends the work.

    It is called on a thread of its own, one signal after the other: a handler runs in the middle of whatever the main thread does, a lock that is
    being taken or an earlier handler included, and would wait for ever for what its own thread holds.

    A signal that the process was told to ignore (nohup) stays ignored. Outside the main thread nothing happens: signals belong to the host program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)}
    received: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # put() is reentrant
    teller = threading.Thread(target=_tell, args=(received, on_stop), name="snl-stop-signals", daemon=True)
    teller.start()
    try:
        for number in previous:
            signal.signal(number, lambda number, _frame: received.put(signal.Signals(number).name))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        received.put(None)
        teller.join()


def _tell(received: "queue.SimpleQueue[str | None]", on_stop: Callable[[str], None]) -> None:
    while (name := received.get()) is not None:
        on_stop(name)


class _Results:
    """Standard output that takes any text; what cannot be written is a SinkError."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.can_be_written = _can_be_written(stream)
        if hasattr(stream, "reconfigure"):
            cast(Any, stream).reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Return whether a person watches."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write text that the code page may not hold."""
        need_stdout()
        self._try(lambda stream: stream.write(printable(text)))
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered."""
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except (OSError, ValueError) as error:
            _discard(self._stream)
            why = "the reader closed the pipe" if isinstance(error, BrokenPipeError) else one_line(error)
            raise SinkError(f"cannot write the output: {why}") from error


class _Messages(_Results):
    """Standard error that takes any text; if nobody can read it any more, the work goes on."""

    def write(self, text: str) -> int:
        """Write text that the code page may not hold."""
        with contextlib.suppress(SinkError):
            self._try(lambda stream: stream.write(printable(text)))
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered."""
        with contextlib.suppress(SinkError):
            super().flush()


@contextlib.contextmanager
def _any_text_on_stdout_and_stderr() -> Iterator[None]:
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Results(sys.stdout)), cast(TextIO, _Messages(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _occupy_closed_descriptors() -> None:
    # A process started with >&- would give number 1 to the next file it opens, and a library that prints would write into it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _can_be_written(stream: TextIO | None) -> bool:
    if stream is None or stream.closed:
        return False
    try:
        import fcntl

        return fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except (ImportError, OSError, ValueError):  # Windows, or a stream of a host program
        return True


def _discard(stream: TextIO) -> None:
    # Python flushes once more at exit and would print a traceback: give it a place where that works.
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def _let_waiting_threads_sleep() -> None:
    """Keep OpenMP threads (PyTorch's) from spinning while they wait; works until such a library is loaded, so a command does it first.

    On two busy cores a training step with two spinning threads took 9.3 s of wall and 5.3 s of processor time, with sleeping ones 1.8 s and 0.9 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _fail(name: str, message: str, status: int) -> int:
    with contextlib.suppress(SinkError):  # what was printed before the failure still counts
        sys.stdout.flush()
    print(f"{name}: {message}", file=sys.stderr)
    return status
