"""Triggers that a station answers in time: four simulated cameras, one model, two CPU cores, durable records and a Modbus server.

    python -m benchmarks.speed.station
    python -m benchmarks.speed.station --untrained-px 128 --seconds 60
    python -m benchmarks.speed.station --model line.onnx --rate 5 --no-search

A clock triggers each camera ``--rate`` times a second, all at once. A trigger is lost if the station refuses it, because the one before is under
way or after a fault, which is reset at once; it is missed if its answer is ERROR at the deadline. Prints both, the time from trigger to answer, the
share of the two cores, the model's own rate in the same process, and the highest rate that holds: nothing lost or missed, p99 inside the deadline.
Exits with 1 if the asked rate does not hold.

Without ``--model`` it is the tiny model of the tests; ``--untrained-px`` exports a ResNet-18 of that size without training (needs the extra export):
times do not depend on the weights, and its verdicts are ERROR no_manifest after the whole work.
"""

import argparse
import contextlib
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from benchmarks.speed import machine
from benchmarks.speed.models import tiny_model, untrained_graph
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.jsonl import JsonlSink
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.line.sources.base import FrameStamper, SourceCounters
from snl_runtime.station.line_state import LineOutput
from snl_runtime.station.outputs.modbus import ModbusConfig, ModbusOutput
from snl_runtime.station.snapshot import UnitSnapshot
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.timer import TimerTrigger
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit_config import UnitConfig
from snl_runtime.types import Frame

PROGRAM = "benchmarks.speed.station"
CAMERAS = ("top", "left", "right", "bottom")
CORES = 2
IMAGES = 16
SEARCH_STEPS = 6
OWN_RATE_S = 5.0
EXIT_DOES_NOT_HOLD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run at one rate (triggers a second and camera) gave, all cameras together; times of the slowest camera."""

    rate: float
    triggers: int
    answers: int
    records: int
    lost: int
    missed: int
    faults: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cpu_share: float

    def holds(self, deadline_ms: float) -> bool:
        """Return whether every trigger was taken, recorded and answered in time."""
        return self.lost == self.missed == 0 and self.triggers == self.answers == self.records and self.p99_ms < deadline_ms


class SimulatedCamera:
    """A software-triggered camera: one image of a ring for each trigger, at once."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._images = images
        self._stamper = FrameStamper("simulated", product=None, color="bgr")
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._count = 0

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: each image was asked for."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """Nothing goes wrong."""
        return SourceCounters()

    def __enter__(self) -> "SimulatedCamera":
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is open."""

    def trigger(self) -> int:
        """Take one image."""
        asked_ns = time.monotonic_ns()
        self._count += 1
        self._asked.put(self._count)
        return asked_ns

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield what was asked for until ``stop`` is set."""
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                number = self._asked.get(timeout=0.1)
                yield self._stamper.stamp(self._images[number % len(self._images)].copy())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FILE", type=Path, help="a model of one's own, x.onnx")
    which.add_argument("--untrained-px", metavar="PX", type=int, help="a ResNet-18 of this size, a multiple of 32, exported without training")
    parser.add_argument("--rate", metavar="N", type=float, default=10.0, help="triggers a second and camera (default: 10)")
    parser.add_argument("--deadline-ms", metavar="MS", type=float, default=100.0, help="trigger to answer (default: 100)")
    parser.add_argument("--seconds", metavar="S", type=float, default=20.0, help="time of the run at --rate; a step of the search takes a third (20)")
    parser.add_argument("--no-search", action="store_true", help="do not look for the highest rate that holds")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        folder = Path(temporary)
        model, size_px = _model(options, folder)
        with SnlDetector(model, threads=len(cores), keep_maps=False) as detector:
            images = _images(size_px)
            print(f"{machine.versions()}; {len(cores)} cores, load average {os.getloadavg()[0]:.1f}; {model.name}, frames {size_px}x{size_px}")
            own = _own_rate(detector, images)
            asked = _run(detector, images, folder, options, rate=options.rate, seconds=options.seconds)
            _print_table([asked], options.deadline_ms)
            print(f"the model alone, one frame after the other: {own:.1f} frames/s; {asked.rate * len(CAMERAS):.0f} were asked for")
            if not options.no_search:
                _search(detector, images, folder, options, own)
    return EXIT_OK if asked.holds(options.deadline_ms) else EXIT_DOES_NOT_HOLD


def _search(detector: SnlDetector, images: Sequence[npt.NDArray[np.uint8]], folder: Path, options: argparse.Namespace, own: float) -> None:
    """Halve the range between nothing and somewhat more than the model can do alone, and print each step."""
    lowest, highest, steps = 0.0, 1.25 * own / len(CAMERAS), list[Load]()
    for _ in range(SEARCH_STEPS):
        rate = (lowest + highest) / 2
        load = _run(detector, images, folder, options, rate=rate, seconds=options.seconds / 3)
        steps.append(load)
        lowest, highest = (rate, highest) if load.holds(options.deadline_ms) else (lowest, rate)
    _print_table(sorted(steps, key=lambda load: load.rate), options.deadline_ms)
    share = lowest * len(CAMERAS) / own
    print(f"highest rate that held: {lowest:.1f} a second and camera, {lowest * len(CAMERAS):.1f} in all, {share:.0%} of the model's own")


def _run(
    detector: SnlDetector, images: Sequence[npt.NDArray[np.uint8]], folder: Path, options: argparse.Namespace, *, rate: float, seconds: float
) -> Load:
    name = f"records-{time.monotonic_ns()}"
    timer = TimerTrigger(dict.fromkeys(CAMERAS, 1e3 / rate))
    outputs: list[LineOutput] = [timer, ModbusOutput(ModbusConfig(port=_free_port()), CAMERAS)]
    unit = UnitConfig(
        deadline_ms=options.deadline_ms,
        record_margin_ms=options.deadline_ms / 10,
        missed_before_fault=1 << 30,  # a fault would refuse the rest, which is to be counted
        trigger=TriggerConfig(mode=TriggerMode.COMMAND, frame_timeout_ms=options.deadline_ms / 2),
    )
    cameras = [StationCamera(name=camera, source=SimulatedCamera(images), config=unit) for camera in CAMERAS]
    with RecordStore(RecordStoreConfig(path=str(folder / f"{name}.sqlite"))) as store:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with Station(cameras, detector, store, outputs=outputs, sinks=[JsonlSink(folder / f"{name}.jsonl")]) as station:
            faults = _wait_and_reset(station, until_s=began_s + seconds)
            lost = sum(timer.refused.values())  # what comes while the station stops is not asked for
            elapsed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
            station.stop()
            units = list(station.snapshot().cameras.values())
        return _load(units, rate=rate, lost=lost, faults=faults, records=store.backlog("nobody"), cpu_share=cpu_s / elapsed_s / CORES)


def _wait_and_reset(station: Station, *, until_s: float) -> int:
    """Reset every fault, as an operator does, and return how many there were."""
    faults, faulty = 0, set[str]()
    while (left_s := until_s - time.perf_counter()) > 0:
        station.wait(min(0.05, left_s))
        for name, unit in station.snapshot().cameras.items():
            if not unit.line.fault:
                faulty.discard(name)
                continue
            faults += name not in faulty
            faulty.add(name)
            station.commands[name].reset()
    return faults


def _load(units: Sequence[UnitSnapshot], *, rate: float, lost: int, faults: int, records: int, cpu_share: float) -> Load:
    def slowest(name: str) -> float:
        return max(float(getattr(unit.latency_ms, name)) for unit in units)

    return Load(
        rate=rate,
        triggers=sum(unit.triggers.triggered for unit in units),
        answers=sum(unit.triggers.answered for unit in units),
        records=records,
        lost=lost,
        faults=faults,
        missed=sum(unit.triggers.missed for unit in units),
        p50_ms=slowest("p50"),
        p95_ms=slowest("p95"),
        p99_ms=slowest("p99"),
        max_ms=slowest("max"),
        cpu_share=cpu_share,
    )


def _print_table(loads: Sequence[Load], deadline_ms: float) -> None:
    names = "rate,triggers,answers,records,lost,missed,faults,p50 ms,p95 ms,p99 ms,longest ms,CPU of 2 cores,holds".split(",")
    print(f"| {' | '.join(names)} |\n|{'---:|' * (len(names) - 1)}---|")
    for one in loads:
        counts = f"{one.triggers} | {one.answers} | {one.records} | {one.lost} | {one.missed} | {one.faults}"
        times = f"{one.p50_ms:.1f} | {one.p95_ms:.1f} | {one.p99_ms:.1f} | {one.max_ms:.1f}"
        print(f"| {one.rate:.1f} | {counts} | {times} | {one.cpu_share:.0%} | {'yes' if one.holds(deadline_ms) else 'no'} |", flush=True)


def _own_rate(detector: SnlDetector, images: Sequence[npt.NDArray[np.uint8]]) -> float:
    """Return frames a second of one caller, after a warm-up."""
    for image in images:
        detector.detect(image)
    began_s, count = time.perf_counter(), 0
    while time.perf_counter() - began_s < OWN_RATE_S:
        detector.detect(images[count % len(images)])
        count += 1
    return count / (time.perf_counter() - began_s)


def _model(options: argparse.Namespace, folder: Path) -> tuple[Path, int]:
    """Return the model and the edge of its frames in pixels."""
    if options.untrained_px is not None:
        return untrained_graph(folder, "snl", options.untrained_px), options.untrained_px
    if options.model is None:
        fixtures = tiny_model()
        return Path(fixtures.ModelFolder(folder).write()), int(fixtures.SIZE)
    with SnlDetector(options.model, keep_maps=False) as detector:
        if detector.manifest is None:
            raise ValueError(f"{options.model} has no manifest, which tells the size of its frames")
        return options.model, int(detector.manifest.input["size_hw"][0])


def _images(size_px: int) -> list[npt.NDArray[np.uint8]]:
    fixtures = tiny_model()
    return [fixtures.good_frame(seed, size_px) for seed in range(IMAGES)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
