"""Time of one training step: SNL's beside plain reverse distillation's, with the same backbone, image size and batch, and what it is made of.

    python -m benchmarks.speed.training_step
    python -m benchmarks.speed.training_step --size 128 --steps 10 --device cuda

The rows take turns, step by step in one process, so that other work on the machine falls on all of them; on a CPU the time is the process's
own, which other processes do not lengthen by their share of the cores. A ratio is the median over the steps of each row's time to the first
row's of the same turn. ``paper`` differs from ``rd`` in networks and losses alone; ``best`` has Muon and synthetic anomalies too, as has ``rd, as
best``. The teacher has random weights and the images are blurred noise: times depend on neither. The second table comes from the profiler, in
percent of steps of their own; ``other`` is what no part covers.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import machine
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_train.config import Architecture, Device, Method, TrainConfig, preset_config
from snl_train.trainer import Trainer

PROGRAM = "benchmarks.speed.training_step"
PARTS = ("synthetic anomalies", "teacher", "student", "losses", "backward", "optimizer")
"""Labels that a training step carries, see ``snl_train.trainer``."""
_PROFILED_STEPS = 2
_CLASSES = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=("resnet18", "resnet34", "resnet50", "wide_resnet50_2"), default="resnet18", help="(default: resnet18)")
    parser.add_argument("--size", metavar="PX", type=int, default=256, help="height and width of the network's input in pixels (default: 256)")
    parser.add_argument("--batch", metavar="N", type=int, default=8, help="images per step (default: 8)")
    parser.add_argument("--steps", metavar="N", type=int, default=5, help="measured steps of each row (default: 5)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    trainers = _trainers(options.teacher, options.size, options.batch, options.device)
    images, labels = _batch(options.batch, options.size)
    seconds = _seconds(trainers, images, labels, options.device, options.steps)
    print(f"{machine.versions()}; {options.teacher}, {options.size} px, batch {options.batch}, {options.device}, {options.threads} threads\n")
    _print_ratios(seconds)
    _print_parts({name: _parts(_Step(trainer, images, labels, time.perf_counter)) for name, trainer in trainers.items()})
    return EXIT_OK


def step_seconds(teacher: Architecture, size_px: int, batch: int, *, device: Device, steps: int) -> dict[str, list[float]]:
    """Return the seconds of steps of each row of :func:`rows`, taken in turns, without the first ones."""
    images, labels = _batch(batch, size_px)
    return _seconds(_trainers(teacher, size_px, batch, device), images, labels, device, steps)


def rows(teacher: Architecture, size_px: int, batch: int, device: Device) -> dict[str, TrainConfig]:
    """Return what is compared, the yardstick first."""
    return {
        "rd": _config("paper", "rd", teacher, size_px, batch, device),
        "paper": _config("paper", "snl-rd", teacher, size_px, batch, device),
        "rd, as best": _config("best", "rd", teacher, size_px, batch, device),
        "best": _config("best", "snl-rd", teacher, size_px, batch, device),
    }


def _config(preset: str, method: Method, teacher: Architecture, size_px: int, batch: int, device: Device) -> TrainConfig:
    config = preset_config(preset)
    model = dataclasses.replace(config.model, method=method, teacher=teacher, teacher_weights="random")
    return dataclasses.replace(config, model=model, image_size=(size_px, size_px), batch_size=batch, device=device)


def _batch(count: int, size_px: int) -> tuple[Tensor, Tensor]:
    """Return images (B, H, W, 3) uint8 and classes (B,)."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    images = F.interpolate(coarse, size=(size_px, size_px), mode="bilinear", align_corners=False).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous(), torch.arange(count) % _CLASSES


def _trainers(teacher: Architecture, size_px: int, batch: int, device: Device) -> dict[str, Trainer]:
    return {name: Trainer(config, total_steps=1000) for name, config in rows(teacher, size_px, batch, device).items()}


def _seconds(trainers: Mapping[str, Trainer], images: Tensor, labels: Tensor, device: Device, steps: int) -> dict[str, list[float]]:
    clock = _gpu_clock if device == "cuda" else time.process_time
    return _time_in_turns({name: _Step(trainer, images, labels, clock) for name, trainer in trainers.items()}, steps)


class _Step:
    """One training step that tells its seconds."""

    def __init__(self, trainer: Trainer, images: Tensor, labels: Tensor, clock: Callable[[], float]) -> None:
        self._trainer, self._images, self._labels, self._clock = trainer, images, labels, clock

    def __call__(self) -> float:
        started_s = self._clock()
        self._trainer.step(self._images, self._labels)
        return self._clock() - started_s


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _time_in_turns(steps: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Return the seconds of each row's steps but its first, which allocates."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(count + 1):
        for name, step in steps.items():
            taken_s = step()
            if turn:
                seconds[name].append(taken_s)
    return seconds


def _print_ratios(seconds: Mapping[str, Sequence[float]]) -> None:
    yardstick = next(iter(seconds.values()))
    print("| training | ms a step, median | ratio to rd, median | smallest | largest |\n|---|---:|---:|---:|---:|")
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, yardstick, strict=True)]
        print(f"| {name} | {1e3 * statistics.median(taken):.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")


def _parts(step: _Step) -> dict[str, float]:
    """Return each part's share of a step, on the processor, by the clock."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        whole_s = sum(step() for _ in range(_PROFILED_STEPS))
    found = {event.key: event.cpu_time_total / 1e6 for event in profiled.key_averages()}
    shares = {name: found.get(name, 0.0) / whole_s for name in PARTS}
    return {**shares, "other": 1 - sum(shares.values())}


def _print_parts(shares: Mapping[str, Mapping[str, float]]) -> None:
    names = [*PARTS, "other"]
    print(f"\n| percent of a step | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for row, of_parts in shares.items():
        print(f"| {row} | {' | '.join(f'{100 * of_parts[name]:.0f}' for name in names)} |")


if __name__ == "__main__":
    sys.exit(main())
