"""What handing out parts costs: the driver of snl-inspect with many workers that sleep in place of judging, against the model of docs/scaling.md.

    python -m benchmarks.fleet_coordination --workers 1 8 16 32 --part-s 1.0

Every part carries 256 rows, as in an inspection. For each count of workers the first parts take no time, which shows the driver's own processor time
for a part; the others sleep. Printed are what the formula says, what a simulation says whose one driver serves one worker at a time, and what was
measured. The last lines say it for more workers than a small machine can start.
"""

import argparse
import heapq
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.fleet.archive import ArchiveRow
from snl_runtime.fleet.cluster import ray_cluster
from snl_runtime.fleet.inspection import PART_ROWS, hand_out
from snl_runtime.fleet.results import Part

SIMULATED = (8, 64, 512)
QUICK_PARTS = 200
"""Parts without sleep: enough for a mean of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was measured with one count of workers.

    Attributes:
        workers: How many.
        driver_s: Processor time of the driver for one part, seconds.
        rate: Parts per second that the sleeping workers finished while all were busy.
        quick_rate: The same without sleep, when all processes compete for the machine's cores.
        start_s: From the call to the first part at work.
    """

    workers: int
    driver_s: float
    rate: float
    quick_rate: float
    start_s: float


class SleepingInspector:
    """Answers like a worker and does nothing for a while, but for the first parts.

    Args:
        part_s: How long, in seconds.
    """

    def __init__(self, part_s: float) -> None:
        self._part_s = part_s

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return number, counts, failure and time of the end of the part in the batch."""
        (text,) = batch["part"]
        part = Part.from_plain(json.loads(str(text)))
        if part.number >= QUICK_PARTS:
            time.sleep(self._part_s)
        counts = np.array([json.dumps({"PASS below_threshold": len(part.rows)})], object)
        return {"number": np.array([part.number]), "counts": counts, "failure": np.array([""], object), "ended_s": np.array([time.time()])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--part-s", type=float, default=1.0, help="sleep in place of judging a part, seconds (default: 1)")
    parser.add_argument("--rounds", type=int, default=8, help="sleeping parts for each worker (default: 8)")
    arguments = parser.parse_args()
    runs = []
    with ray_cluster(None, cpus=max(arguments.workers)):
        for workers in sorted(arguments.workers):
            runs.append(run := measure(workers, arguments.part_s, arguments.rounds))
            expected = formula(workers, arguments.part_s, run.driver_s)
            simulated = simulate(workers, arguments.part_s, run.driver_s, arguments.rounds * workers)
            print(
                f"{workers} workers: formula {expected:.2f} parts/s, simulated {simulated:.2f}, measured {run.rate:.2f}; driver "
                f"{run.driver_s * 1e3:.1f} ms per part, {run.quick_rate:.0f} parts/s without sleep; start {run.start_s:.1f} s; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    driver_s = max(run.driver_s for run in runs)
    print(f"below, the driver takes {driver_s * 1e3:.1f} ms per part, the most that was measured")
    for workers, image_s in itertools.product(SIMULATED, (0.1, 0.01)):
        part_s = image_s * PART_ROWS
        rates = formula(workers, part_s, driver_s), simulate(workers, part_s, driver_s, 40 * workers)
        shown = ", ".join(f"{name} {rate * PART_ROWS:.0f}" for name, rate in zip(("formula", "simulated"), rates))
        print(f"{workers} workers of {image_s * 1e3:.0f} ms per image, not run: {shown} images/s; the driver is busy {rates[1] * driver_s:.0%}")


def measure(workers: int, part_s: float, rounds: int) -> Run:
    """Hand out parts without sleep and then parts with it, and look at both while all workers are busy."""
    began_s = time.time()
    count = QUICK_PARTS + rounds * workers
    used_s: list[float] = []
    ended_s: dict[int, float] = {}
    for row in hand_out(_parts(count), SleepingInspector, part_s, workers=workers, share={"num_cpus": 1}):
        used_s.append(time.process_time())
        ended_s[int(row["number"])] = float(row["ended_s"])
    quick, slow = (sorted(ended_s[number] for number in numbers) for numbers in (range(QUICK_PARTS), range(QUICK_PARTS, count)))
    first, last = QUICK_PARTS // 4, QUICK_PARTS - workers
    return Run(
        workers=workers,
        driver_s=(used_s[last] - used_s[first]) / (last - first),
        rate=_rate(slow, skipped=workers),
        quick_rate=_rate(quick, skipped=first),
        start_s=quick[0] - began_s,
    )


def _rate(ended_s: Sequence[float], *, skipped: int) -> float:
    """Return ends per second without the first and the last ones, when not all workers are busy."""
    middle = ended_s[skipped - 1 : len(ended_s) - skipped]
    return (len(middle) - 1) / (middle[-1] - middle[0])


def formula(workers: int, part_s: float, driver_s: float) -> float:
    """Return parts per second: all that the workers can do, or all that the driver can hand out.

    Example:
        >>> formula(8, 2.0, 0.01), formula(512, 2.0, 0.01)
        (4.0, 100.0)
    """
    return min(workers / part_s, 1 / driver_s)


def simulate(workers: int, part_s: float, driver_s: float, count: int) -> float:
    """Return parts per second where one driver serves one worker at a time, and a worker that has answered waits for its turn.

    Counted like :func:`measure`.

    Example:
        >>> round(simulate(4, 1.0, 0.001, 400), 1), round(simulate(400, 1.0, 0.01, 4000))
        (4.0, 100)
    """
    waiting = [(0.0, worker) for worker in range(workers)]
    driver_free_s = 0.0
    answered_s: list[float] = []
    while len(answered_s) < count:
        asked_s, worker = heapq.heappop(waiting)
        driver_free_s = max(driver_free_s, asked_s) + driver_s
        answered_s.append(driver_free_s + part_s)
        heapq.heappush(waiting, (driver_free_s + part_s, worker))
    return _rate(sorted(answered_s), skipped=workers)


def _parts(count: int) -> Sequence[Part]:
    rows = tuple(
        ArchiveRow(file=f"/archive/2026-11/camera-7/part_{number:06d}.png", size_bytes=1_850_000, modified_ns=0, product="bottle", day="2026-11-28")
        for number in range(PART_ROWS)
    )
    return [Part(number=number, product="bottle", day="2026-11-28", ids=tuple(range(PART_ROWS)), rows=rows) for number in range(count)]


if __name__ == "__main__":
    main()
