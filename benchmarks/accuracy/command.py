"""``python -m benchmarks.accuracy``: run a protocol, slice by slice, and add its figures to the results."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy import provenance
from benchmarks.accuracy.protocol import Run, expand, known_protocols, load_protocol, train_config
from benchmarks.accuracy.records import read_record, run_files
from benchmarks.accuracy.results import METRICS, export
from benchmarks.accuracy.tables import RESULTS
from snl_runtime.cli.command import EXIT_OK, EXIT_USER_ERROR, CommandParser, run_command
from snl_runtime.errors import ConfigError
from snl_runtime.files import exclusive_lock

if TYPE_CHECKING:
    from benchmarks.accuracy.protocol import Protocol
    from benchmarks.accuracy.session import Job
    from benchmarks.accuracy.workers import Report
    from snl_train.config import Device

PROGRAM = "benchmarks.accuracy"
DEFAULT_OUT = Path("runs/accuracy")
ONLY_HELP = "only runs with this in their name, or whose whole name fits a pattern with * or ?; repeat for more"
_EXAMPLE = """
python -m benchmarks.accuracy --protocol reduced --data realmix --weights resnet18.safetensors
python -m benchmarks.accuracy --protocol full --data realmix --weights resnet18.safetensors --budget-s 560
python -m benchmarks.accuracy --protocol mvtec_paper --data mvtec_anomaly_detection --list
python -m benchmarks.accuracy --export
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    return run_command(lambda: _run(options, arguments), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(PROGRAM, "Train and measure the methods of a protocol; what is done is not done again.", example=_EXAMPLE)
    what = parser.add_argument_group("what to run")
    what.add_argument("--protocol", metavar="NAME", help=f"{', '.join(known_protocols())}, or a .yaml file; with --export: this one only")
    what.add_argument("--data", type=Path, metavar="DIR", help="images in the layout of MVTec AD or VisA")
    what.add_argument("--weights", metavar="FILE", help="weights of the teacher (default: the protocol's, usually torchvision's download)")
    what.add_argument("--only", action="append", default=[], metavar="TEXT", help=ONLY_HELP)
    what.add_argument("--seeds", type=seed_list, metavar="A,B", help="only runs with these seeds, of those that --only leaves")
    what.add_argument("--list", action="store_true", help="print the runs and whether they are done, and stop")
    how = parser.add_argument_group("how")
    how.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"one JSON per run goes here (default: {DEFAULT_OUT})")
    how.add_argument("--jobs", type=_positive, metavar="N", help="processes (default: one per processor core, one in all on a GPU)")
    how.add_argument("--threads", type=_positive, metavar="N", help="threads of each process (default: 1; on a GPU its share of the cores)")
    how.add_argument("--budget-s", type=_seconds, metavar="S", help="save and stop before S seconds are over (default: no limit)")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train and measure (default: auto)")
    how.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    keep = parser.add_argument_group("results")
    keep.add_argument("--export", action="store_true", help="add the finished runs in --out to the tables of results, one CSV per protocol")
    keep.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the tables (default: benchmarks/results)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.data is None and not options.export:
        raise ConfigError("nothing to do; give --protocol and --data to run, or --export to add finished runs to the results")
    status = EXIT_OK
    if options.data is not None:
        if options.protocol is None:
            raise ConfigError(f"--data needs --protocol, one of {', '.join(known_protocols())}, or a .yaml file")
        status = _run_protocol(options, arguments)
    if options.export and status == EXIT_OK and not options.list:
        only = None if options.protocol is None else load_protocol(options.protocol).name
        print("\n".join(export(options.out, options.results, only=only)))
    return status


def _run_protocol(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    started_s = time.monotonic()
    from benchmarks.accuracy.data import class_names

    protocol = load_protocol(options.protocol)
    runs = chosen_runs(expand(protocol, class_names(options.data)), options.only, options.seeds)
    open_runs = _open_runs(options, protocol, runs)
    if options.list:
        return _list(options.out, runs, open_runs)
    failures: list[str] = []
    if open_runs:
        folder = options.out / protocol.name
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder, what="command on this protocol", blocking=False):
            failures = _work(options, arguments, protocol, open_runs, started_s)
    done = len(runs) - sum(not run_files(options.out, run).record.exists() for run in runs)
    if done < len(runs):
        print(f"not finished: {done} of {len(runs)} runs of {protocol.name} are done; the same command goes on")
    else:
        print(f"finished: all {len(runs)} runs of {protocol.name} are done, in {options.out / protocol.name}")
    for failure in failures:
        print(f"{PROGRAM}: error: {failure}", file=sys.stderr)
    return EXIT_USER_ERROR if failures else EXIT_OK


def _work(options: argparse.Namespace, arguments: Sequence[str], protocol: "Protocol", runs: Sequence[Run], started_s: float) -> list[str]:
    from benchmarks.accuracy.workers import stop_on_signal, work_here, work_in_processes

    job, jobs = _job(options, arguments, protocol, runs, started_s)
    failures: list[str] = []
    tell = _teller(options.out, {run.name: run for run in runs}, failures)
    with stop_on_signal() as is_asked_to_stop:
        if jobs == 1:
            work_here(job, runs, is_asked_to_stop, tell)
        else:
            failures += work_in_processes(job, runs, jobs=jobs, is_asked_to_stop=is_asked_to_stop, tell=tell)
        if is_asked_to_stop():
            print("stopped; the same command goes on")
            raise KeyboardInterrupt
    return failures


def _job(options: argparse.Namespace, arguments: Sequence[str], protocol: "Protocol", runs: Sequence[Run], started_s: float) -> tuple["Job", int]:
    """Return what the processes are told, and how many there shall be."""
    from benchmarks.accuracy.session import SAVE_RESERVE_S, Job
    from snl_train.device import resolve_device

    device: Device = "cuda" if resolve_device(options.device).type == "cuda" else "cpu"
    cores = os.cpu_count() or 1
    jobs = min(options.jobs or (1 if device == "cuda" else cores), len(runs))
    budget_s = float("inf") if options.budget_s is None else options.budget_s
    job = Job(
        protocol=protocol,
        data=options.data,
        out=options.out,
        classes=tuple(sorted({name for run in runs for name in run.classes})),
        weights=options.weights,
        device=device,
        threads=options.threads or (max(1, cores // jobs) if device == "cuda" else 1),
        deadline_s=started_s + budget_s,
        reserve_s=min(SAVE_RESERVE_S, 0.1 * budget_s),
        command=provenance.command_line(arguments),
        commit=options.commit or provenance.commit(),
    )
    return job, jobs


def chosen_runs(runs: Sequence[Run], only: Sequence[str], seeds: Sequence[int] | None) -> list[Run]:
    """Return the runs with any of the texts in their name (all without a text) and any of the seeds (all for None).

    A text with ``*`` or ``?`` is a pattern of the whole name: ``rd_*`` leaves out ``snl-rd_...``.

    Raises:
        ConfigError: If none is left.
    """
    chosen = [run for run in runs if not only or any(_fits(run.name, text) for text in only)]
    if not chosen:
        raise ConfigError(f"--only {only[0]} fits no run; a run is called like {runs[0].name}")
    if seeds is not None:
        known = sorted({run.seed for run in chosen})
        chosen = [run for run in chosen if run.seed in seeds]
        if not chosen:
            raise ConfigError(f"--seeds {','.join(map(str, seeds))} fits no run; their seeds are {', '.join(map(str, known))}")
    return chosen


def _fits(name: str, text: str) -> bool:
    return fnmatchcase(name, text) if set(text) & set("*?") else text in name


def _open_runs(options: argparse.Namespace, protocol: "Protocol", runs: Sequence[Run]) -> list[Run]:
    from benchmarks.accuracy.session import is_finished

    open_runs = []
    for run in runs:
        config = train_config(protocol, run.variant, image_size=run.image_size, seed=run.seed, weights=options.weights)
        if not is_finished(run_files(options.out, run), run, config):
            open_runs.append(run)
    return open_runs


def _list(out: Path, runs: Sequence[Run], open_runs: Sequence[Run]) -> int:
    for run in runs:
        state = "done"
        if run in open_runs:
            state = "begun" if run_files(out, run).slices.exists() else "open"
        print(f"{state:6} {run.name}")
    return EXIT_OK


def _teller(out: Path, runs: dict[str, Run], failures: list[str]) -> Callable[["Report"], None]:
    done: list[str] = []

    def tell(report: "Report") -> None:
        if report.what == "failed":
            failures.append(f"{report.run}: {report.detail}")
        line = f"{report.run}: {report.what}" + (f": {report.detail}" if report.detail else "")
        if report.what == "finished":
            done.append(report.run)
            line += f", {_result(out, runs[report.run])} ({len(done)} of {len(runs)})"
        print(line, flush=True)

    return tell


def _result(out: Path, run: Run) -> str:
    record = read_record(run_files(out, run).record)
    if record.get("failure"):
        return str(record["failure"])
    metrics: dict[str, Any] = record["evaluation"]["mean"]["metrics"]
    figures = [(title, metrics[name]["value"]) for name, title in METRICS.items()]
    return ", ".join(f"{title} {value:.3f}" for title, value in figures if value is not None)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def seed_list(text: str) -> tuple[int, ...]:
    """Return the seeds in ``0,2``.

    Raises:
        argparse.ArgumentTypeError: If it is no list of numbers of 0 or more.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers like 0,2, got {text!r}")
    return tuple(int(part) for part in parts)


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value
