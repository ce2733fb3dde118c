"""What workers cost and bring: plain snl-run against snl-inspect with 1 and 2 workers, and what a part costs the driver.

    python -m benchmarks.fleet_scaling --engine line.onnx --data archive/ --product bottle

The time per image is the slope between a quarter of the images and all of them, so the start of the cluster and of the model is left out and printed
by itself. The cost of a part is the slope over many parts of one image of 32 by 32 pixels each, which cost next to nothing by themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from snl_runtime.images.listing import list_images

PARTS = (50, 250)
"""Numbers of parts between which the cost of one is measured."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--product")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    files = list_images(arguments.data).taken
    print(f"{len(files)} images, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sets = [_linked(root / "quarter", files[: len(files) // 4]), _linked(root / "all", files)]
        counts = [len(files) // 4, len(files)]
        plain = [_run_s(arguments, data, root) for data in sets]
        print(f"snl-run, 1 thread: {_line(plain, counts)}")
        for workers in arguments.workers:
            times = [_inspect_s(arguments, data, root, workers) for data in sets]
            print(f"snl-inspect, {workers} workers: {_line(times, counts)}, load {os.getloadavg()[0]:.1f}")
        tiny = [_linked(root / f"tiny{count}", [_tiny(root)] * count) for count in PARTS]
        times = [_inspect_s(arguments, data, root, 1, "--part-rows", "1") for data in tiny]
        print(f"a part of one tiny image: {_line(times, list(PARTS))}")


def _line(times: list[float], counts: list[int]) -> str:
    slope_s = (times[1] - times[0]) / (counts[1] - counts[0])
    return f"{slope_s * 1e3:.1f} ms per image, {max(0.0, times[0] - slope_s * counts[0]):.1f} s to start, {times[1]:.1f} s in all"


def _linked(folder: Path, files: list[Path] | tuple[Path, ...]) -> Path:
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:06d}{file.suffix}").symlink_to(file.absolute())
    return folder


def _tiny(root: Path) -> Path:
    path = root / "tiny.png"
    if not path.exists():
        cv2.imwrite(str(path), np.full((32, 32, 3), 120, np.uint8))
    return path


def _product(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.product is None else ["--product", arguments.product]


def _run_s(arguments: argparse.Namespace, data: Path, root: Path) -> float:
    records = root / f"{data.name}.jsonl"
    command = ["-m", "snl_runtime.cli.run", "--engine", arguments.engine, "--images", str(data), "--threads", "1", "--jsonl", str(records)]
    return _timed([*command, *_product(arguments)])


def _inspect_s(arguments: argparse.Namespace, data: Path, root: Path, workers: int, *more: str) -> float:
    out = tempfile.mkdtemp(dir=root)
    command = ["-m", "snl_runtime.cli.inspect", "--engine", arguments.engine, "--data", str(data), "--out", out, "--workers", str(workers), "--json"]
    return _timed([*command, *_product(arguments), *more])


def _timed(arguments: list[str]) -> float:
    started_s = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    elapsed_s = time.perf_counter() - started_s
    if done.stdout:
        assert json.loads(done.stdout)["done"]
    return elapsed_s


if __name__ == "__main__":
    main()
