"""Everything about an engine that only a device can show, as one table to send back.

    python benchmarks/device_check/run.py --engine x.trt --onnx x.onnx --out table.md

Every part is one row: ``passed``, ``FAILED``, or ``not run: reason``. The files given are copied first and stay as they are.
Exit status: 0 all passed, 3 a check failed, 4 none failed but some were not run, 2 wrong options.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import engine_checks
import kernel_checks
import machine
from table import NotRunError, Row, as_markdown, check, exit_status

GROUPS = ("all", "device", "kernels")
_EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    options = _parser().parse_args(argv)
    if options.only == "all" and options.onnx is None:
        print("run.py: error: --onnx is needed, with x.json and x.golden.npz beside it", file=sys.stderr)
        return _EXIT_USAGE
    with tempfile.TemporaryDirectory(prefix="snl-device-check-") as folder:
        rows = [_announced(part, body) for part, body in _checks(options, Path(folder))]
    page = as_markdown(rows, heading=f"Device check of snl-edge, {date.today().isoformat()}")
    print(page, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    return exit_status(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="exported model, with x.json and x.golden.npz beside it")
    parser.add_argument("--engine", type=Path, metavar="FILE", help="engine of that model, listed in x.json (default: one is built for this GPU)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the table too")
    parser.add_argument(
        "--only",
        choices=GROUPS,
        default="all",
        help="device: what needs no model and no TensorRT; kernels: compare the kernels and nothing else (default: all)",
    )
    return parser


def _checks(options: argparse.Namespace, folder: Path) -> list[tuple[str, Callable[[], str]]]:
    kernels = ("CUDA kernels against NumPy", kernel_checks.compare_with_twins)
    if options.only == "kernels":
        return [kernels]
    machine_rows = [("versions", machine.versions), ("GPU", machine.gpu)]
    bandwidth = ("kernel bandwidth", kernel_checks.measure_bandwidth)
    if options.only == "device":
        return [*machine_rows, kernels, bandwidth]
    subject: list[engine_checks.Subject] = []

    def copy() -> str:
        subject.append(engine_checks.copy_subject(options.onnx, options.engine, folder))
        brought = "with the given engine" if subject[0].engine.is_file() else "without an engine"
        return f"{options.onnx.name} {brought}"

    def on_subject(body: Callable[[engine_checks.Subject], str]) -> str:
        if not subject:
            raise NotRunError("the model's files could not be read, see above")
        return body(subject[0])

    of_engine = [
        ("engine build", engine_checks.build),
        ("golden self-test", engine_checks.self_test),
        ("parity with the ONNX file", engine_checks.parity),
        ("CUDA graph against plain enqueue", engine_checks.graph_equals_plain),
        ("threads", engine_checks.threads_agree),
        ("device memory before and after", engine_checks.memory_returns),
        ("times, in turn", engine_checks.times),
    ]
    return [
        *machine_rows,
        ("model", copy),
        *((part, partial(on_subject, body)) for part, body in of_engine),
        kernels,
        bandwidth,
        ("compute-sanitizer", machine.sanitize),
    ]


def _announced(part: str, body: Callable[[], str]) -> Row:
    print(f"device check: {part}", file=sys.stderr)
    return check(part, body)


if __name__ == "__main__":
    sys.exit(main())
