"""Each aim of this project on an NVIDIA GPU, measured and printed as a fraction of what is wanted; one command, at most eight minutes.

    python -m benchmarks.speed.gpu_aims --prepare --models gpu_models    # anywhere, a CPU will do; needs the extras train and export
    python -m benchmarks.speed.gpu_aims --models gpu_models              # on the GPU

Models are exported without training: times do not depend on weights. Every row is a process of its own, so that one which fails, crashes or hangs
says why and the others go on; when the time is over, the rows that are left say so. Rows go to ``benchmarks/results/gpu.csv`` as soon as they are
measured. Aims are for an H100 or H200. Times are measurements and are asserted nowhere; what must be right is in ``python -m pytest -m gpu``.
"""

import argparse
import datetime
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.accuracy.provenance import commit
from benchmarks.accuracy.tables import AIMS, RESULTS, merge_rows
from benchmarks.speed import machine
from benchmarks.speed.models import add_manifest, graph_path, untrained_graph
from snl_runtime.backends.base import ExecutionContext
from snl_runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.cuda.api import describe_device, load_cuda
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import DataError, SnlError
from snl_runtime.files import check_writable
from snl_runtime.images.preprocess import crop_frame
from snl_runtime.images.views import Tiles, tile_views
from snl_runtime.scorer import Scorer

if TYPE_CHECKING:
    from snl_export.graph import Precision
    from snl_train.config import Architecture

PROGRAM = "benchmarks.speed.gpu_aims"
SIZE_PX = 256
CAMERA_HW = (2048, 2592)
LARGEST_BATCH = 32
RUNS, WARM_UP_RUNS = 200, 20
TRAINING_STEPS = 5
BUDGET_S = 450.0
ROW_S = 90.0
"""Most time that one row may take."""
MODELS: dict[str, tuple["Architecture", "Precision"]] = {
    "resnet18-fp32": ("resnet18", "fp32"),
    "resnet18-fp16": ("resnet18", "fp16"),
    "wide_resnet50_2-fp32": ("wide_resnet50_2", "fp32"),
    "wide_resnet50_2-fp16": ("wide_resnet50_2", "fp16"),
}
"""Name -> backbone and precision of ``best`` at 256 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one row gives: milliseconds of a call, the frames of a call, and which of them came late."""

    p50: float
    p99: float
    unit: str = "ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One aim.

    Attributes:
        what: What is measured.
        measure: Measures it, given the folder of models.
        aim: What is wanted of its ``p50``, at most in milliseconds and as a ratio, at least in images per second; None for what has no aim.
        late_aim: Of its ``p99``.
    """

    what: str
    measure: Callable[[Path], Measured]
    aim: float | None = None
    late_aim: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="DIR", type=Path, required=True, help="folder of the models")
    parser.add_argument("--prepare", action="store_true", help="export the models into --models and end")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows with this text in their name")
    parser.add_argument("--budget-s", metavar="S", type=float, default=BUDGET_S, help=f"time for all rows in seconds (default: {BUDGET_S:g})")
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULTS / "gpu.csv", help="table (default: benchmarks/results/gpu.csv)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args(argv)
    if options.prepare:
        return run_command(lambda: _prepare(options.models), program=PROGRAM)
    if options.row is not None:
        return run_command(lambda: _measure_row(options.row, options.models), program=PROGRAM)
    return run_command(lambda: _measure_all(options), program=PROGRAM)


def rows() -> list[Row]:
    """Return every row, the most important first."""
    graph, verdict, batch = _graph_row, _verdict_row, _batch_row
    crop, camera = (SIZE_PX, SIZE_PX), CAMERA_HW
    return [
        graph("resnet18-fp16", 1, captured=True, aim=1.0),
        graph("resnet18-fp32", 1, captured=True, aim=1.0),
        verdict("resnet18-fp16", crop, aim=1.6, late_aim=2.5),
        verdict("resnet18-fp16", camera, aim=2.5),
        graph("resnet18-fp16", 32, captured=True, aim=9000.0),
        graph("wide_resnet50_2-fp16", 32, captured=True, aim=2700.0),
        _training_row("resnet18", aim=600.0),
        graph("resnet18-fp16", 1, captured=False),
        graph("resnet18-fp32", 1, captured=False),
        verdict("resnet18-fp32", crop, aim=1.6, late_aim=2.5),
        verdict("resnet18-fp32", camera, aim=2.5),
        Row(what="tiles of 256 px, 2592x2048 frame, resnet18-fp16", measure=functools.partial(_time_tiles, "resnet18-fp16")),
        batch("resnet18-fp16"),
        graph("resnet18-fp32", 32, captured=True, aim=9000.0),
        graph("wide_resnet50_2-fp16", 1, captured=True),
        graph("wide_resnet50_2-fp32", 32, captured=True, aim=2700.0),
        _training_row("wide_resnet50_2", aim=250.0),
        Row(what="training step of best to that of RD, resnet18, batch 8", measure=_time_training_ratio, aim=1.3),
    ]


def _prepare(folder: Path) -> int:
    for name, (teacher, precision) in MODELS.items():
        path = untrained_graph(folder, "best", SIZE_PX, teacher=teacher, precision=precision)
        add_manifest(path, SIZE_PX, max_batch=LARGEST_BATCH, precision=precision)
        print(f"{name}: {path}", file=sys.stderr)
    return EXIT_OK


def _measure_all(options: argparse.Namespace) -> int:
    check_writable(options.out)
    wanted = [row for row in rows() if options.only in row.what]
    if not wanted:
        raise DataError(f"no row has {options.only!r} in its name; the rows are: {'; '.join(row.what for row in rows())}")
    device = _device_name()
    print(f"{device}; {machine.versions()}\n\n| what | p50 | p99 | of the aim |\n|---|---:|---:|---:|", flush=True)
    started_s, origin = time.monotonic(), _origin(device, options.commit or commit())
    for row in wanted:
        left_s = options.budget_s - (time.monotonic() - started_s)
        measured, note = run_row(row, options.models, timeout_s=min(ROW_S, left_s)) if left_s > 1 else (None, "no time was left")
        print(_line(row, measured, note), flush=True)
        merge_rows(options.out, AIMS, [{**_plain(row, measured, note), **origin}])
    return EXIT_OK


def run_row(row: Row, models: Path, *, timeout_s: float) -> tuple[Measured | None, str]:
    """Return what a process of its own measured, or None and why not."""
    command = [sys.executable, "-m", PROGRAM, "--models", str(models), "--row", row.what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None, f"did not end within {timeout_s:.0f} s"
    if done.returncode != 0 or not done.stdout.strip():
        said = done.stderr.strip().splitlines()
        return None, " ".join(said[-2:])[-400:] if said else f"exit status {done.returncode}"
    return Measured(**json.loads(done.stdout.splitlines()[-1])), ""


def _measure_row(what: str, models: Path) -> int:
    (row,) = (row for row in rows() if row.what == what)
    measured = row.measure(models)
    print(json.dumps({"p50": measured.p50, "p99": measured.p99, "unit": measured.unit}))
    return EXIT_OK


def _graph_row(model: str, batch: int, *, captured: bool, aim: float | None = None) -> Row:
    how = "CUDA graph" if captured else "no graph"
    return Row(what=f"model, {model}, batch {batch}, {how}", measure=functools.partial(_time_graph, model, batch, captured), aim=aim)


def _verdict_row(model: str, frame_hw: tuple[int, int], *, aim: float, late_aim: float | None = None) -> Row:
    what = f"verdict, {frame_hw[1]}x{frame_hw[0]} frame from the host, {model}"
    return Row(what=what, measure=functools.partial(_time_verdicts, model, frame_hw), aim=aim, late_aim=late_aim)


def _batch_row(model: str) -> Row:
    return Row(what=f"detect_batch of {LARGEST_BATCH} crops, {model}", measure=functools.partial(_time_batches, model))


def _training_row(teacher: "Architecture", *, aim: float) -> Row:
    return Row(what=f"training step of best, {teacher}, batch 8", measure=functools.partial(_time_training, teacher), aim=aim)


def _time_graph(model: str, batch: int, captured: bool, models: Path) -> Measured:  # bound by name of the row
    """Time runs between device memory; the input stays what it is."""
    with OnnxRuntimeBackend(_model(models, model), device="cuda", cuda_graphs=captured) as backend:
        lent = backend.execution_context(batch)
        assert lent is not None, "a backend on a GPU lends its context"
        with lent as context:
            times_ms = _times_ms(functools.partial(_run_on_device, context, batch))
            if context.has_graph is not captured:
                raise DataError("there is no CUDA graph: the line before says why" if captured else "there is a CUDA graph")
    return _measured(times_ms) if batch == 1 else _images_per_s(times_ms, batch)


def _run_on_device(context: ExecutionContext, batch: int) -> None:
    context.run_on_device(batch, lambda _address, _stream: None)
    context.stream.synchronize()


def _time_verdicts(model: str, frame_hw: tuple[int, int], models: Path) -> Measured:
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)
    with SnlDetector(_model(models, model), device="cuda", keep_maps=False) as detector:
        _require_device(detector.is_on_device)
        return _measured(_times_ms(lambda: _require_score(detector.detect(frame).score)))


def _time_batches(model: str, models: Path) -> Measured:
    frames = list(np.random.default_rng(0).integers(0, 256, (LARGEST_BATCH, SIZE_PX, SIZE_PX, 3), dtype=np.uint8))
    with SnlDetector(_model(models, model), device="cuda", keep_maps=False) as detector:
        _require_device(detector.is_on_device)
        times_ms = _times_ms(lambda: _require_score(*(result.score for result in detector.detect_batch(frames))))
    return _images_per_s(times_ms, LARGEST_BATCH)


def _time_tiles(model: str, models: Path) -> Measured:
    frame = np.random.default_rng(0).integers(0, 256, (*CAMERA_HW, 3), dtype=np.uint8)
    with Scorer(_model(models, model), device="cuda") as scorer:
        _require_device(scorer.is_on_device)
        cropped, side = crop_frame(frame, "bgr", None), scorer.size_hw[0]
        views = tile_views(CAMERA_HW, scorer.size_hw, Tiles(side, side // 8, with_whole_frame=False))
        return _measured(_times_ms(lambda: scorer.inspect_tiles(cropped, "bgr", views)))


def _time_training(teacher: "Architecture", _: Path) -> Measured:
    return _images_per_s([1e3 * seconds for seconds in _training_seconds(teacher)["best"]], 8)


def _time_training_ratio(_: Path) -> Measured:
    seconds = _training_seconds("resnet18")
    ratios = [one / other for one, other in zip(seconds["best"], seconds["rd"], strict=True)]
    return Measured(p50=statistics.median(ratios), p99=max(ratios), unit="times RD")


def _training_seconds(teacher: "Architecture") -> Mapping[str, Sequence[float]]:
    from benchmarks.speed.training_step import step_seconds

    return step_seconds(teacher, SIZE_PX, 8, device="cuda", steps=TRAINING_STEPS)


def _times_ms(call: Callable[[], object]) -> list[float]:
    """Return the milliseconds of calls in a row, without the first ones; fewer of slow calls, so that a row takes seconds."""
    times_ms: list[float] = []
    ends_s = time.perf_counter() + ROW_S / 6
    for number in range(WARM_UP_RUNS + RUNS):
        started_s = time.perf_counter()
        call()
        ended_s = time.perf_counter()
        if number >= WARM_UP_RUNS or ended_s > ends_s:
            times_ms.append(1e3 * (ended_s - started_s))
        if ended_s > ends_s:
            break
    return times_ms


def _measured(times_ms: Sequence[float]) -> Measured:
    return Measured(p50=float(np.quantile(times_ms, 0.5)), p99=float(np.quantile(times_ms, 0.99)))


def _images_per_s(times_ms: Sequence[float], batch: int) -> Measured:
    middle, late = (1e3 * batch / float(np.quantile(times_ms, level)) for level in (0.5, 0.99))
    return Measured(p50=middle, p99=late, unit="img/s")


def _model(models: Path, name: str) -> Path:
    teacher, precision = MODELS[name]
    path = graph_path(models, "best", SIZE_PX, teacher=teacher, precision=precision)
    if not path.exists():
        raise DataError(f"{path} is missing; make it first: python -m {PROGRAM} --prepare --models {models}")
    return path


def _require_device(is_on_device: bool) -> None:  # a check
    if not is_on_device:
        raise DataError("the host prepares the frames: the line before says why")


def _require_score(*scores: float) -> None:
    if not np.isfinite(scores).all():
        raise DataError("a frame was not scored, so its time means nothing")


def _fraction(row: Row, measured: Measured) -> list[str]:
    """Return p50, and p99 if it has an aim, as shares of their aims: 100 % and less is met in milliseconds, 100 % and more in images per second."""
    pairs = ((measured.p50, row.aim), (measured.p99, row.late_aim))
    return [f"{100 * value / aim:.0f}" for value, aim in pairs if aim is not None]


def _line(row: Row, measured: Measured | None, note: str) -> str:
    if measured is None:
        return f"| {row.what} | not measured: {note} | | |"
    digits = 0 if measured.unit == "img/s" else 2
    share = " / ".join(_fraction(row, measured))
    return f"| {row.what} | {measured.p50:.{digits}f} {measured.unit} | {measured.p99:.{digits}f} | {share + ' %' if share else ''} |"


def _plain(row: Row, measured: Measured | None, note: str) -> dict[str, str]:
    return {
        "what": row.what,
        "p50": "" if measured is None else f"{measured.p50:.3f}",
        "p99": "" if measured is None else f"{measured.p99:.3f}",
        "unit": "" if measured is None else measured.unit,
        "aim": "" if row.aim is None else f"{row.aim:g}",
        "percent_of_aim": "" if measured is None else " ".join(_fraction(row, measured)),
        "note": note,
    }


def _origin(device: str, commit_name: str) -> dict[str, str]:
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"device": device, "versions": machine.versions(), "commit": commit_name, "date": today}


def _device_name() -> str:
    """Return what the driver says of the GPU; without one the rows say so, each by itself."""
    try:
        return describe_device(api=load_cuda()).name
    except SnlError as missing:
        print(f"{PROGRAM}: {missing}", file=sys.stderr)
        return "no GPU"


if __name__ == "__main__":
    sys.exit(main())
