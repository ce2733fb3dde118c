"""False alarms and delays of the test for drift, simulated, beside a CUSUM test; with images also on real light and focus.

    python benchmarks/drift.py
    python benchmarks/drift.py --images ../shared/data/realmix/juice_bottle/train/good

The simulation runs many lines at once in NumPy; before anything is printed, it must agree with `DriftMonitor` frame by frame.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from snl_runtime.images.files import read_image
from snl_runtime.images.frame_look import measure_look
from snl_runtime.images.listing import list_images
from snl_runtime.station.drift import LEVELS, DriftConfig
from snl_runtime.station.sequential_test import ALTERNATIVES, SequentialTest, upper_bound
from snl_runtime.types import Image

Values = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Values]

CONFIG = DriftConfig()
TRENDS = 7
SEED = 1
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Gumbel (skewed, as maxima are)": lambda rng, shape: (rng.gumbel(size=shape) - np.euler_gamma) / (math.pi / math.sqrt(6)),
    "log-normal (heavy tail)": lambda rng, shape: (rng.lognormal(0, 0.6, shape) - math.exp(0.18)) / math.sqrt((math.exp(0.36) - 1) * math.exp(0.36)),
}
"""Each with mean 0 and standard deviation 1."""


@dataclass(slots=True)
class Lines:
    """Many lines at once, one figure in both directions: the test of `DriftMonitor`, as arrays.

    Attributes:
        limits: (lines, 2, levels): above the first, or below the second, a value is an event.
        bounds: (levels,).
        evidence: (lines, 2, levels, alternatives).
    """

    limits: Values
    bounds: Values
    evidence: Values

    @classmethod
    def fitted(cls, references: Values) -> "Lines":
        """Return lines with one reference sample each, (lines, parts)."""
        ordered = np.sort(references, axis=1)
        count = ordered.shape[1]
        ranks = [math.ceil(level * count) for level in LEVELS]
        error = (1 - CONFIG.reference_confidence) / ((TRENDS - 1) * len(LEVELS))
        bounds = np.array([1 - (1 - upper_bound(rank, count, error)) * (1 - CONFIG.max_reject_rate) for rank in ranks])
        limits = np.stack([ordered[:, [rank - 1 for rank in ranks]], ordered[:, [count - rank for rank in ranks]]], axis=1)
        return cls(limits, bounds, np.zeros((len(ordered), 2, len(LEVELS), len(ALTERNATIVES))))

    def update(self, values: Values) -> Values:
        """Take one value per line, (lines,), and return the statistics, (lines, 2)."""
        shares = np.array(ALTERNATIVES)
        came = np.stack([values[:, None] > self.limits[:, 0], values[:, None] < self.limits[:, 1]], axis=1)[..., None]
        ratios = (self.bounds[:, None] + (1 - self.bounds[:, None]) * shares) / self.bounds[:, None]
        self.evidence = np.minimum((1 + self.evidence) * np.where(came, ratios, 1 - shares), 1e30)
        mean: Values = self.evidence.mean(axis=(2, 3))
        return mean


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, action="append", default=[], metavar="DIR", help="folder of good parts of one product; repeatable")
    parser.add_argument("--lines", type=int, default=300, metavar="N", help="lines that are simulated (default: 300)")
    parser.add_argument("--frames", type=int, default=10_000, metavar="N", help="frames without drift per line (default: 10000)")
    arguments = parser.parse_args(argv)
    require_agreement()
    _print_false_alarms(arguments.lines, arguments.frames)
    _print_delays(arguments.lines)
    for folder in arguments.images:
        _print_real(folder)
    return 0


def require_agreement() -> None:
    """Exit unless the arrays give what the test of the line gives."""
    rng = np.random.default_rng(SEED)
    lines = Lines.fitted(rng.standard_normal((3, 59)))
    tests = [[SequentialTest(lines.bounds.tolist()) for _ in range(2)] for _ in range(3)]
    for _ in range(200):
        values = rng.standard_normal(3) + 0.4
        statistics = lines.update(values)
        for line, (higher, lower) in enumerate(tests):
            higher.update([bool(values[line] > limit) for limit in lines.limits[line, 0]])
            lower.update([bool(values[line] < limit) for limit in lines.limits[line, 1]])
            if not np.allclose(statistics[line], [higher.statistic, lower.statistic], rtol=1e-9):
                sys.exit(f"line {line}: the simulation gives {statistics[line]}, the line {higher.statistic} and {lower.statistic}")


def _print_false_alarms(count: int, frames: int) -> None:
    print(f"\nFalse alarms: lines (of {count}) with an alarm within {frames} frames without drift\n")
    print("| scores | good parts | 1 in 1,000,000 frames: stated at most | found | 1 in 20,000: stated at most | found | CUSUM found |")
    print("|---|---|---|---|---|---|---|")
    for name, draw in DISTRIBUTIONS.items():
        for parts in (59, 299):
            rare, often, cusum = _false_alarms(draw, parts, count, frames)
            error = 1 - CONFIG.reference_confidence
            stated = [min(1.0, 2 / TRENDS * frames / rate + error) for rate in (CONFIG.average_run_length, 20_000)]
            print(
                f"| {name} | {parts} | {stated[0]:.1%} | {rare / count:.1%} | {stated[1]:.1%} | {often / count:.1%} | {cusum / count:.1%} |",
                flush=True,
            )
    share, length = _at_the_bound()
    print(f"\nOne event exactly at its bound, threshold 500: alarm within 50 frames {share:.1%} (stated at most 10.0%);")
    print(f"mean run length {length:.0f} frames (stated at least 500)")


def _false_alarms(draw: Draw, parts: int, count: int, frames: int) -> tuple[int, int, int]:
    rng = np.random.default_rng(SEED)
    references = draw(rng, (count, parts))
    lines, cusum = Lines.fitted(references), Cusum.fitted(references)
    highest, highest_cusum = np.zeros(count), np.zeros(count)
    for _ in range(frames):
        values = draw(rng, (count,))
        highest = np.maximum(highest, lines.update(values).max(axis=1))
        highest_cusum = np.maximum(highest_cusum, cusum.update(values))
    rare, often = (int((highest >= TRENDS * rate).sum()) for rate in (CONFIG.average_run_length, 20_000))
    return rare, often, int((highest_cusum >= Cusum.limit(2 * CONFIG.average_run_length)).sum())


def _at_the_bound() -> tuple[float, float]:
    rng, count, bound, threshold = np.random.default_rng(SEED), 4000, 0.05, 500.0
    shares = np.array(ALTERNATIVES)
    evidence, first = np.zeros((count, len(ALTERNATIVES))), np.full(count, np.inf)
    for frame in range(1, 20_001):
        came = rng.random(count) < bound
        ratios = np.where(came[:, None], (bound + (1 - bound) * shares) / bound, 1 - shares)
        evidence = np.minimum((1 + evidence) * ratios, 1e30)
        first = np.where(np.isinf(first) & (evidence.mean(axis=1) >= threshold), frame, first)
        if not np.isinf(first).any():
            break
    return float((first <= 50).mean()), float(np.minimum(first, 20_000).mean())


@dataclass(slots=True)
class Cusum:
    """The textbook's test for a change of a normal mean by one standard deviation, with mean and deviation estimated from the same parts."""

    mean: Values
    deviation: Values
    sums: Values

    @classmethod
    def fitted(cls, references: Values) -> "Cusum":
        """Return one test per line, each with its own reference sample, (lines, parts)."""
        return cls(references.mean(axis=1), references.std(axis=1, ddof=1), np.zeros((len(references), 2)))

    def update(self, values: Values) -> Values:
        """Return the larger of both sums, (lines,)."""
        score = (values - self.mean) / self.deviation
        self.sums = np.maximum(0, self.sums + np.stack([score, -score], axis=1) - 0.5)
        largest: Values = self.sums.max(axis=1)
        return largest

    @staticmethod
    def limit(run_length: float) -> float:
        """Return h of Siegmund's approximation for one direction: ARL = 2 (exp(b) - b - 1), b = h + 1.166, for k = 0.5."""
        b = 1.0
        for _ in range(50):
            b = math.log(run_length / 2 + b + 1)
        return b - 1.166


def _print_delays(count: int) -> None:
    print("\nDelay: frames from the change to the alarm after 2,000 frames without drift, median (90th percentile) of Gumbel scores\n")
    print("| good parts | shift 0.5 sd | shift 1 sd | shift 2 sd | shift -1 sd | half of the parts rejected |")
    print("|---|---|---|---|---|---|")
    for parts in (29, 59, 299, 1000):
        cells = [_delay(parts, shift, count) for shift in (0.5, 1.0, 2.0, -1.0)]
        print(f"| {parts} | {' | '.join(cells)} | {_reject_delay()} |", flush=True)


def _delay(parts: int, shift: float, count: int) -> str:
    rng, draw = np.random.default_rng(SEED), DISTRIBUTIONS["Gumbel (skewed, as maxima are)"]
    lines = Lines.fitted(draw(rng, (count, parts)))
    for _ in range(2000):
        lines.update(draw(rng, (count,)))
    return _first_alarm(lines, lambda _: draw(rng, (count,)) + shift, 5000)


def _reject_delay() -> str:
    rng, delays = np.random.default_rng(SEED), []
    for _ in range(200):
        test = SequentialTest([CONFIG.max_reject_rate])
        frame = 1
        while test.update([bool(rng.random() < 0.5)]) < TRENDS * CONFIG.average_run_length:
            frame += 1
        delays.append(frame)
    return _cell(np.array(delays, float), 5000)


def _first_alarm(lines: Lines, draw: Callable[[int], Values], frames: int) -> str:
    first = np.full(len(lines.evidence), np.inf)
    for frame in range(1, frames + 1):
        alarm = lines.update(draw(frame)).max(axis=1) >= TRENDS * CONFIG.average_run_length
        first = np.where(np.isinf(first) & alarm, frame, first)
        if not np.isinf(first).any():
            break
    return _cell(first, frames)


def _cell(first: Values, frames: int) -> str:
    def text(quantile: float) -> str:
        value = float(np.sort(first)[min(len(first) - 1, int(quantile * len(first)))])
        return f"> {frames}" if math.isinf(value) else f"{value:.0f}"

    return f"{text(0.5)} ({text(0.9)})"


_CHANGES: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "brightness -5 %": lambda image: _scaled(image, 0.95),
    "brightness -10 %": lambda image: _scaled(image, 0.9),
    "brightness +10 %": lambda image: _scaled(image, 1.1),
    "blur, sigma 0.5 px": lambda image: _blurred(image, 0.5),
    "blur, sigma 1 px": lambda image: _blurred(image, 1.0),
}


def _print_real(folder: Path) -> None:
    images = [read_image(path) for path in list_images(folder).taken]
    order = np.random.default_rng(SEED).permutation(len(images))
    reference, stream = ([images[index] for index in part] for part in np.array_split(order, 2))
    print(f"\n{folder}: {len(reference)} parts for the reference, {len(stream)} others drawn in random order; alarm within 2,000 frames, 100 lines\n")
    print("| change | brightness: lines with an alarm, delay | sharpness: lines with an alarm, delay |")
    print("|---|---|---|")
    fitted = _looks(reference)
    for name, change in _CHANGES.items():
        changed = _looks([change(image) for image in stream])
        cells = [_real_cell(fitted[:, column], changed[:, column]) for column in range(2)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _real_cell(reference: Values, stream: Values) -> str:
    rng = np.random.default_rng(SEED)
    lines = Lines.fitted(np.tile(reference, (100, 1)))
    first = np.full(100, np.inf)
    for frame in range(1, 2001):
        alarm = lines.update(rng.choice(stream, 100)).max(axis=1) >= TRENDS * CONFIG.average_run_length
        first = np.where(np.isinf(first) & alarm, frame, first)
    found = first[np.isfinite(first)]
    return f"{len(found)} of 100" + (f", {np.median(found):.0f}" if len(found) else "")


def _looks(images: Sequence[Image]) -> Values:
    looks = [measure_look(image, "rgb") for image in images]
    return np.array([(look.brightness, look.sharpness) for look in looks])


def _scaled(image: Image, gain: float) -> Image:
    return np.asarray(np.clip(np.rint(image * gain), 0, 255), np.uint8)


def _blurred(image: Image, sigma: float) -> Image:
    blurred: npt.NDArray[Any] = cv2.GaussianBlur(image, (0, 0), sigma)
    return np.asarray(blurred, np.uint8)


if __name__ == "__main__":
    sys.exit(main())
