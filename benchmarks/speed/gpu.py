"""Time on an NVIDIA GPU: both stages of kernels against the memory's peak bandwidth, and one inspection of each model that is named.

    python -m benchmarks.speed.gpu
    python -m benchmarks.speed.gpu --engine line.onnx --engine line.trt

Prints a table in Markdown under device and versions, and adds the kernels' times to ``benchmarks/results/latency.csv``. Times are
measurements of this machine and are asserted nowhere; what must be right is in ``python -m pytest -m gpu``.
"""

import argparse
import contextlib
import ctypes
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy.provenance import commit
from benchmarks.accuracy.tables import LATENCY, RESULTS, merge_rows
from benchmarks.speed import machine
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.cuda.api import CudaApi, device_scope, load_cuda
from snl_runtime.cuda.resources import CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.files import check_writable
from snl_runtime.gpu.kernels import load_kernels
from snl_runtime.gpu.pipeline import DevicePostprocess, DevicePreprocess
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.scorer import Scorer
from snl_runtime.types import OutputRequest

PROGRAM = "benchmarks.speed.gpu"
NETWORK_HW = (256, 256)
CAMERA_HW = (2048, 2592)
TURNS = 20
"""Medians are of this many turns of :data:`QUEUED` calls each."""
QUEUED = 10
INSPECTIONS = 300
_EVERYTHING = OutputRequest(frame_map=True, mask=True, overlay=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    milliseconds: str
    ratio: str
    row: Mapping[str, str] | None = None
    """The same for the table of results, without its origin; None for what is printed only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="FILE", type=Path, action="append", default=[], help="x.onnx or x.trt; may be given several times")
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULTS / "latency.csv", help="table (default: benchmarks/results/latency.csv)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options.engine, options.out, options.commit or commit()), program=PROGRAM)


def _measure(engines: Sequence[Path], out: Path, commit_name: str) -> int:
    api = load_cuda()
    check_writable(out)
    print(f"{machine.describe_gpu(api)}; {machine.versions()}\n")
    print("| what | ms | ratio |\n|---|---|---|")
    figures = time_kernels(api, machine.peak_bytes_per_s())
    for figure in (*figures, *(figure for engine in engines for figure in time_inspections(engine))):
        print(f"| {figure.what} | {figure.milliseconds} | {figure.ratio} |", flush=True)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    origin = {"device": api.describe(0).name, "commit": commit_name, "date": today}
    rows = [{**figure.row, **origin} for figure in figures if figure.row is not None]
    replaced = merge_rows(out, LATENCY, rows)
    print(f"\n{out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


def time_kernels(api: CudaApi, peak_bytes_per_s: float) -> list[Figure]:
    """Time both stages on a frame that is on the device already, and state the bytes they must move against the peak."""
    height, width = CAMERA_HW
    rows_bytes = 4 * 3 * NETWORK_HW[0] * width  # the frame with its rows resized, written and read once
    input_bytes = 3 * height * width + 2 * rows_bytes
    frame_bytes = 4 * height * width + height * width // 8 + 2 * 3 * height * width  # map, mask, and the image read and written
    with _open_stages(api) as (stream, before, after):
        return [
            _against_peak("frame to network input", before, stream, input_bytes, peak_bytes_per_s),
            _against_peak("map to frame, mask, overlay and their downloads", after, stream, frame_bytes, peak_bytes_per_s),
        ]


def time_inspections(model: Path) -> list[Figure]:
    """Time one inspection at a time, upload and everything that a verdict needs included, from frames of two sizes in host memory."""
    rng = np.random.default_rng(0)
    figures: list[Figure] = []
    with Scorer(model, device="cuda" if model.suffix == ".onnx" else None) as scorer:
        for size_hw in (scorer.size_hw, CAMERA_HW):
            frame = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
            seconds = [_time_inspection(scorer, frame) for _ in range(INSPECTIONS)][INSPECTIONS // 10 :]
            median, late = (1e3 * float(np.quantile(seconds, level)) for level in (0.5, 0.99))
            prepared = "on the GPU" if scorer.is_on_device else "on the host"
            what = f"{model.name} on {scorer.backend.name}, {size_hw[1]}x{size_hw[0]} prepared {prepared}, p50 / p99"
            first = figures[0].milliseconds.split(" / ")[0] if figures else f"{median:.2f}"
            figures.append(Figure(what=what, milliseconds=f"{median:.2f} / {late:.2f}", ratio=f"{median / float(first):.2f} of the network's size"))
    return figures


def _time_inspection(scorer: Scorer, frame: npt.NDArray[np.uint8]) -> float:
    started_s = time.perf_counter()
    if scorer.is_on_device:
        scorer.inspect(frame, "bgr", None, threshold=math.inf, keep_map=False)
    else:
        scorer.score(frame)
    return time.perf_counter() - started_s


def _against_peak(stage: str, enqueue: Callable[[], object], stream: CudaStream, byte_count: int, peak_bytes_per_s: float) -> Figure:
    for _ in range(QUEUED):
        enqueue()
    stream.synchronize()
    seconds = []
    for _ in range(TURNS):
        started_s = time.perf_counter()
        for _ in range(QUEUED):
            enqueue()
        stream.synchronize()
        seconds.append((time.perf_counter() - started_s) / QUEUED)
    median_s = float(np.median(seconds))
    percent = f"{100 * byte_count / median_s / peak_bytes_per_s:.0f}"
    row = {
        "stage": stage,
        "frame": f"{CAMERA_HW[1]}x{CAMERA_HW[0]}",
        "milliseconds": f"{1e3 * median_s:.3f}",
        "megabytes": f"{byte_count / 1e6:.0f}",
        "percent_of_peak_bandwidth": percent,
    }
    what = f"{stage.replace('frame', row['frame'], 1)}, {row['megabytes']} MB"
    return Figure(what=what, milliseconds=row["milliseconds"], ratio=f"{percent} % of {peak_bytes_per_s / 1e9:.0f} GB/s", row=row)


@contextlib.contextmanager
def _open_stages(api: CudaApi) -> Iterator[tuple[CudaStream, Callable[[], object], Callable[[], object]]]:
    """Open both stages with a frame and a map on the device; yield their stream and one call for each."""
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (*CAMERA_HW, 3), dtype=np.uint8)
    anomaly_map = upsample_map(rng.random((12, 12), dtype=np.float32), NETWORK_HW)  # smooth with a few peaks, as networks give them
    height, width = CAMERA_HW
    with device_scope(api, 0), contextlib.ExitStack() as opened:
        kernels = opened.enter_context(load_kernels(api))
        stream = opened.enter_context(CudaStream(api))
        preprocess = opened.enter_context(DevicePreprocess(api, kernels, stream, NETWORK_HW))
        postprocess = opened.enter_context(DevicePostprocess(api, kernels, stream, NETWORK_HW))
        image = opened.enter_context(DeviceBuffer(api, 3 * anomaly_map.size))
        device = opened.enter_context(DeviceBuffer(api, anomaly_map.nbytes + ctypes.sizeof(ctypes.c_float)))
        host = opened.enter_context(PinnedBuffer(api, anomaly_map.nbytes + ctypes.sizeof(ctypes.c_float)))
        host.array((anomaly_map.size + 1,), np.float32)[...] = (*anomaly_map.ravel(), anomaly_map.max())
        api.copy_async(device.handle, host.handle, host.byte_count, "host_to_device", stream.handle)
        on_device = preprocess.enqueue(frame, "bgr", image.handle)
        stream.synchronize()

        def before() -> None:
            preprocess.enqueue_device(on_device, image.handle)

        def after() -> None:
            score = device.handle + anomaly_map.nbytes
            postprocess.enqueue(device.handle, score, frame=on_device, roi_xyxy=(0, 0, width, height), threshold=0.5)
            postprocess.collect()
            postprocess.render(_EVERYTHING)

        yield stream, before, after


if __name__ == "__main__":
    sys.exit(main())
