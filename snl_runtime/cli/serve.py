"""``snl-serve``: verdicts over HTTP for lines that have no computer of their own."""

import argparse
import sys
import threading
import time
from collections.abc import Sequence

from snl_runtime.cli.command import EXIT_OK, CommandParser, need_packages, run_command, stop_signals
from snl_runtime.cli.model_flags import add_model_flags, model_values, positive, whole_number
from snl_runtime.errors import ConfigError
from snl_runtime.station.config import ModelConfig

PROGRAM = "snl-serve"
EXAMPLE = """
snl-serve --engine line.onnx --replicas 2
curl --data-binary @part.png "http://127.0.0.1:8000/inspect?product=bottle"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _serve(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Answer every image that is posted to /inspect with its record. Only status 200 with the verdict PASS is a good part.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt; x.json and x.golden.npz are found beside it")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (default: 127.0.0.1); others need --token-file")
    parser.add_argument("--port", metavar="N", type=positive(int), default=8000, help="TCP port (default: 8000)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the token that clients send as Authorization: Bearer TOKEN")
    parser.add_argument("--replicas", metavar="N", type=positive(int), default=1, help="processes with one opened model each (default: 1)")
    parser.add_argument("--max-waiting", metavar="N", type=whole_number, default=8, help="images that may wait, more are ERROR (default: 8)")
    parser.add_argument("--deadline-ms", metavar="MS", type=positive(float), default=1000.0, help="time for an answer (default: 1000)")
    parser.add_argument("--max-mib", metavar="N", type=positive(float), default=64.0, help="largest image file in MiB (default: 64)")
    running = parser.add_argument_group("running")
    running.add_argument("--address", metavar="HOST:PORT", help="existing Ray cluster (default: one on this machine, for this run only)")
    add_model_flags(running)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    need_packages(("ray", "starlette", "prometheus_client"), what=PROGRAM, extra="fleet")
    import dataclasses
    from pathlib import Path

    from snl_runtime.fleet.inspection import needs_gpu
    from snl_runtime.fleet.service import ServiceConfig, run_service

    if arguments.rebuild:
        raise ConfigError("--rebuild belongs to snl-run: build the engine there, then serve it")
    model = ModelConfig(file=str(Path(arguments.engine).absolute()), **model_values(arguments))
    if model.threads is None and not needs_gpu(model):
        model = dataclasses.replace(model, threads=1)
    names = ("host", "port", "token_file", "replicas", "max_waiting", "deadline_ms", "max_mib", "address")
    config = ServiceConfig(model=model, **{name: getattr(arguments, name) for name in names})
    started_s = time.perf_counter()
    stopped = threading.Event()

    def ready(address: str) -> None:
        elapsed_s = time.perf_counter() - started_s
        print(f"{PROGRAM}: ready after {elapsed_s:.1f} s, POST {address}/inspect", file=sys.stderr, flush=True)

    with stop_signals(lambda _: stopped.set()):
        run_service(config, on_ready=ready, stopped=stopped)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
