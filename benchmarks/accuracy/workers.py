"""Runs on several processes of one thread each, until they are done, the budget ends or the user stops them."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy.protocol import Run
from benchmarks.accuracy.records import run_files
from snl_runtime.cli.command import one_line
from snl_runtime.errors import SnlError

if TYPE_CHECKING:
    from benchmarks.accuracy.session import Job

_POLL_S = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a run: started, finished, stopped or failed."""

    run: str
    what: str
    detail: str = ""


def work_here(job: "Job", runs: Sequence[Run], is_asked_to_stop: Callable[[], bool], tell: Callable[[Report], None]) -> None:
    """Do the runs in this process, one after the other; a run that fails does not keep the others from being tried."""
    from benchmarks.accuracy.session import Session, use_threads

    use_threads(job.threads)
    session = Session(job, is_asked_to_stop)
    session.dataset  # noqa: B018 - images that cannot be used stop everything at once, and not once per run
    for run in runs:
        if not _perform(session, run, tell):
            return


def work_in_processes(
    job: "Job", runs: Sequence[Run], *, jobs: int, is_asked_to_stop: Callable[[], bool], tell: Callable[[Report], None]
) -> list[str]:
    """Do the runs in ``jobs`` processes and return what went wrong with the processes themselves (killed, out of memory)."""
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads and locks
    asked = context.Event()
    taken = context.Value("i", 0)
    reports: Queue[Report] = context.Queue()
    with _environment(dict.fromkeys(_THREAD_VARIABLES, str(job.threads))):
        workers = [context.Process(target=_worker, args=(job, list(runs), taken, asked, reports), daemon=True) for _ in range(jobs)]
        for worker in workers:
            worker.start()
    try:
        for report in _reports(reports, workers):
            if report is not None:
                tell(report)
            if is_asked_to_stop():
                asked.set()
    finally:
        asked.set()
        for worker in workers:
            worker.join()
    return [f"a worker process ended with status {worker.exitcode}; its run goes on at the next call" for worker in workers if worker.exitcode]


def _reports(reports: "Queue[Report]", workers: Sequence[BaseProcess]) -> Iterator[Report | None]:
    """Yield what workers report, and None now and then, until all have ended and nothing is left to read."""
    while True:
        is_over = not any(worker.is_alive() for worker in workers)
        try:
            yield reports.get(timeout=_POLL_S)
        except queue.Empty:
            if is_over:
                return
            yield None


def _worker(job: "Job", runs: Sequence[Run], taken: Any, asked: Event, reports: "Queue[Report]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent asks us to stop between two steps
    from benchmarks.accuracy.session import Session, use_threads

    use_threads(job.threads)
    parent = multiprocessing.parent_process()

    def is_asked_to_stop() -> bool:
        return asked.is_set() or (parent is not None and not parent.is_alive())

    session = Session(job, is_asked_to_stop)
    try:
        session.dataset  # noqa: B018 - as in work_here
    except SnlError as error:
        reports.put(Report("images", "failed", one_line(error)))
        return
    while not is_asked_to_stop():
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(runs):
            return
        log = run_files(job.out, runs[number]).log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            goes_on = _perform(session, runs[number], reports.put)
        if not goes_on:
            return


def _perform(session: Any, run: Run, tell: Callable[[Report], None]) -> bool:
    """Do one run and tell what happened; return whether there is time for another one."""
    tell(Report(run.name, "started"))
    try:
        outcome = session.perform(run)
    except SnlError as error:
        tell(Report(run.name, "failed", one_line(error)))
        return True
    tell(Report(run.name, outcome))
    return bool(outcome == "finished")


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or termination signal into a request to save and stop; the second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def on_signal(number: int, frame: object) -> None:  # noqa: ARG001
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("saving after this step; press Ctrl-C again to stop without saving", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that libraries read when a child process loads them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
