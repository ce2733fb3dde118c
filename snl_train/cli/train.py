"""``snl-train``: a folder of good images in, a checkpoint out."""

import argparse
import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from snl_runtime.commandline import CommandParser, need_packages, run_command
from snl_runtime.config import parse_override
from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.progress import Progress, format_duration
from snl_runtime.text import to_json
from snl_train.config import TrainConfig, load_config

if TYPE_CHECKING:
    from snl_train.data.dataset import TrainingData
    from snl_train.training import TrainingResult

PROGRAM = "snl-train"
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
_EXAMPLE = """
snl-train --data parts/ --out parts.pt --hold-out 0.2
snl-train --data parts/ --out parts.pt --teacher resnet18 --teacher-weights resnet18.safetensors --image-size 256 --epochs 30
snl-train --data parts/ --out parts.pt --resume
snl-train --fetch-teacher resnet18 --out resnet18.safetensors
"""
_PACKAGES = ("torch", "torchvision", "safetensors", "cv2")
_DOTTED = {
    "method": "model.method",
    "teacher": "model.teacher",
    "teacher_weights": "model.teacher_weights",
    "image_size": "image_size",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "optim.learning_rate",
    "seed": "seed",
    "device": "device",
    "hold_out": "data.hold_out",
    "skip_unreadable": "data.skip_unreadable",
    "preset": "preset",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``snl-train`` and return its exit status."""
    return run_command(lambda: _run(build_parser().parse_args(argv)), program=PROGRAM)


def build_parser() -> CommandParser:
    """Return the parser; it needs neither torch nor a GPU."""
    parser = CommandParser(PROGRAM, "Train an anomaly detector on good images of one or several products.", example=_EXAMPLE)
    files = parser.add_argument_group("files")
    files.add_argument("--data", type=Path, metavar="DIR", help="images: MVTec AD layout, VisA layout, or a folder of good images per product")
    files.add_argument("--out", type=Path, metavar="FILE", required=True, help="checkpoint to write, e.g. x.pt")
    files.add_argument("--resume", action="store_true", help="continue from x.resume.pt with the settings stored there")
    files.add_argument("--hold-out", type=float, metavar="P", help="share of each class's training images kept for calibration, 0 to 1 (default: 0)")
    files.add_argument("--skip-unreadable", action="store_true", default=None, help="leave unreadable images out and list them, instead of stopping")
    files.add_argument("--fetch-teacher", choices=ARCHITECTURES, metavar="ARCH", help="download ImageNet weights to --out (.safetensors) and stop")
    what = parser.add_argument_group("method")
    what.add_argument("--method", choices=("snl-rd", "snl-fd", "rd", "fd"), help="reverse or forward distillation, SNL or plain (default: snl-rd)")
    what.add_argument("--teacher", choices=ARCHITECTURES, help="architecture of the teacher (default: wide_resnet50_2)")
    what.add_argument("--teacher-weights", metavar="FILE|imagenet|random", help="where the teacher's weights come from (default: imagenet)")
    what.add_argument("--image-size", type=_image_size, metavar="N|HxW", help="network input in pixels (default: 256)")
    what.add_argument("--preset", choices=("paper", "best"), help="settings to start from (default: paper)")
    what.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the settings; flags win over it")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting by its dotted name, e.g. optim.schedule=cosine")
    how = parser.add_argument_group("training")
    how.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default: 100)")
    how.add_argument("--batch-size", type=int, metavar="N", help="images per step, drawn evenly over the classes (default: 8)")
    how.add_argument("--lr", type=float, metavar="X", help="peak step size of Adam (default: 0.005)")
    how.add_argument("--seed", type=int, metavar="N", help="seed of weights, batches and hold-out (default: 0)")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to train; auto takes CUDA if there is a GPU (default: auto)")
    how.add_argument("--threads", type=int, metavar="N", help="processor threads for reading and training (default: as many as PyTorch takes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _image_size(text: str) -> list[int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"expected N or HxW in pixels, e.g. 256 or 256x320, got '{text}'")
    return [int(side) for side in sides] * (3 - len(sides))


def _run(arguments: argparse.Namespace) -> int:
    need_packages(_PACKAGES, what=PROGRAM, extra="train")
    if arguments.fetch_teacher is not None:
        return _fetch_teacher(arguments)
    if arguments.data is None:
        raise ConfigError("--data is missing; name the folder of images to train on")
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads must be 1 or more, got {arguments.threads}")
    _check_out(arguments.out)
    config = resolve_config(arguments)
    import torch

    from snl_train.trainer import resolve_device
    from snl_train.training import train

    resolve_device(config.device)  # before the images are read, which takes longer
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    data = _load_data(arguments, config)
    with _stop_on_signal() as should_stop:
        result = train(config, data, arguments.out, resume=arguments.resume, should_stop=should_stop)
    if not result.is_complete:
        _say(
            f"stopped after step {result.steps_done} of {result.total_steps}; {result.checkpoint_path} and {result.resume_path} are whole; "
            f"continue with: {PROGRAM} --data {arguments.data} --out {arguments.out} --resume"
        )
        raise KeyboardInterrupt
    _report(result, data, as_json=arguments.json)
    return 0


def resolve_config(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings that preset, file and flags give; a resumed training starts from its own.

    Raises:
        ConfigError: If a setting is unknown or out of range.
        CheckpointError: If there is nothing to resume.
    """
    overrides: dict[str, object] = dict(parse_override(text) for text in arguments.set)
    for flag, name in _DOTTED.items():
        value = getattr(arguments, flag)
        if value is not None:
            overrides[name] = value
    if not arguments.resume or arguments.config is not None or arguments.preset is not None:
        return load_config(arguments.config, overrides)
    from snl_runtime.config import load_config as load_over
    from snl_train.resume import read_resume_point, resume_path

    return load_over(TrainConfig, None, overrides, base=read_resume_point(resume_path(arguments.out)).config)


def _fetch_teacher(arguments: argparse.Namespace) -> int:
    from snl_train.models import fetch_teacher

    fetch_teacher(arguments.fetch_teacher, arguments.out)
    _print(
        {"teacher": arguments.fetch_teacher, "file": str(arguments.out)},
        f"wrote the ImageNet weights of {arguments.fetch_teacher} to {arguments.out}",
        as_json=arguments.json,
    )
    return 0


def _check_out(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise SinkError(f"cannot write {out}: there is no folder {out.absolute().parent}; make it first")
    if out.is_dir():
        raise SinkError(f"cannot write {out}: it is a folder; name a file, e.g. {out / 'x.pt'}")
    if out.name.endswith(".resume.pt"):
        raise ConfigError(f"--out {out} is the name of a training state; name the checkpoint, e.g. {out.name.removesuffix('.resume.pt')}.pt")


def _load_data(arguments: argparse.Namespace, config: TrainConfig) -> "TrainingData":
    from snl_train.data.dataset import load_training_data

    with contextlib.ExitStack() as opened:

        def on_listed(count: int) -> Callable[[], None]:
            return opened.enter_context(Progress(count, unit="images", label="read")).advance

        data = load_training_data(
            arguments.data, config.image_size, config=config.data, seed=config.seed, threads=arguments.threads, on_listed=on_listed
        )
    for path, reason in data.left_out:
        _say(f"left out {path}: {reason}")
    return data


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after the current step; the second one interrupts at once."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _say("stopping after this step; press Ctrl-C again to stop without saving")

    if threading.current_thread() is not threading.main_thread():  # a host program's thread: signals are not ours
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _report(result: "TrainingResult", data: "TrainingData", *, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "checkpoint": str(result.checkpoint_path),
        "metrics": str(result.metrics_path),
        "resume": str(result.resume_path),
        "epochs_done": result.epochs_done,
        "steps_done": result.steps_done,
        "classes": list(data.classes),
        "training_images": len(data.samples),
        "held_out_images": len(data.held_out),
        "left_out": [{"path": str(path), "reason": reason} for path, reason in data.left_out],
        "loss": {name: value if math.isfinite(value) else None for name, value in result.losses.items()},
        "images_per_s": round(result.images_per_s, 2),
        "seconds": round(result.seconds, 2),
    }
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items())
    text = (
        f"{result.checkpoint_path}: {result.epochs_done} epochs on {len(data.samples)} images of {', '.join(data.classes)}\n"
        f"held out for calibration: {len(data.held_out)} images; left out as unreadable: {len(data.left_out)}\n"
        f"last losses: {losses or 'none, it was complete already'}\n"
        f"{result.images_per_s:.3g} images/s, {format_duration(result.seconds)}"
    )
    _print(facts, text, as_json=as_json)


def _print(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    print(to_json(facts) if as_json else text)


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
