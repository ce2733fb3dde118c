"""``snl-train``: a folder of good images in, a checkpoint out."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import CommandParser, add_listing_flag, need_packages, report_listing, run_command
from snl_runtime.config import load_config as load_over
from snl_runtime.config import parse_override
from snl_runtime.errors import ConfigError
from snl_runtime.files import check_writable
from snl_runtime.progress import Progress, ProgressReporter, format_duration, no_progress
from snl_runtime.text import to_json
from snl_train.budget import with_one_budget
from snl_train.config import TrainConfig, load_config
from snl_train.launch import DEFAULT_TIMEOUT_S, launch_of
from snl_train.stopping import StoppedBySignalError, StopRequest, stop_on_signals

if TYPE_CHECKING:
    from snl_train.checkpoint import Checkpoint
    from snl_train.data.dataset import TrainingData
    from snl_train.data.samples import DatasetIndex
    from snl_train.ranks import Ranks
    from snl_train.training_result import TrainingResult

PROGRAM = "snl-train"
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
_EXAMPLE = """
snl-train --data parts/ --out parts.pt --hold-out 0.2
snl-train --data parts/ --out parts.pt --teacher resnet18 --teacher-weights resnet18.safetensors --image-size 256 --steps 2000
snl-train --data parts/ --out first.pt --method memory --teacher resnet18
snl-train --data parts/ --out parts.pt --from first.pt
snl-train --add-product cap/ --from first.pt --out second.pt
snl-train --data parts/ --out parts.pt --resume
snl-train --fetch-teacher resnet18 --out resnet18.safetensors
torchrun --nproc-per-node 4 -m snl_train --data parts/ --out parts.pt --batch-size 32
"""
_METHOD_HELP = "reverse or forward distillation, SNL or plain; or memory, which trains nothing and takes minutes (default: snl-rd)"
_PACKAGES = ("torch", "torchvision", "safetensors", "cv2")
_DOTTED = {
    "method": "model.method",
    "teacher": "model.teacher",
    "teacher_weights": "model.teacher_weights",
    "image_size": "image_size",
    "steps": "steps",
    "tile": "data.tile_px",
    "overlap": "data.tile_overlap_px",
    "with_whole_frame": "data.with_whole_frame",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "optim.learning_rate",
    "seed": "seed",
    "device": "device",
    "hold_out": "data.hold_out",
    "skip_unreadable": "data.skip_unreadable",
    "bit_depth": "data.bit_depth",
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
    files.add_argument("--from", dest="base", type=Path, metavar="FILE", help="model of --method memory: train a student beside its memory")
    files.add_argument(
        "--add-product", type=Path, metavar="DIR", help="images as for --data: add these products to the model of --from, without --data"
    )
    existing = files.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue from x.resume.pt with the settings stored there")
    existing.add_argument("--overwrite", action="store_true", help="replace the training that lies at --out, once the new one has saved")
    files.add_argument("--hold-out", type=float, metavar="P", help="share of each class's training images kept for calibration, 0 to 1 (default: 0)")
    files.add_argument("--skip-unreadable", action="store_true", default=None, help="leave unreadable images out and list them, instead of stopping")
    files.add_argument(
        "--bit-depth",
        type=int,
        choices=(10, 12, 14, 16),
        help="bits that the camera uses of 16-bit images (default: 8 or 16, as the files are stored, and dark ones refused)",
    )
    add_listing_flag(files)
    files.add_argument("--fetch-teacher", choices=ARCHITECTURES, metavar="ARCH", help="download ImageNet weights to --out (.safetensors) and stop")
    what = parser.add_argument_group("method")
    what.add_argument("--method", choices=("snl-rd", "snl-fd", "rd", "fd", "memory"), help=_METHOD_HELP)
    what.add_argument(
        "--teacher",
        metavar="ARCH",
        help=f"architecture of the teacher: {', '.join(ARCHITECTURES)}, or timm:NAME or torchvision:NAME (default: wide_resnet50_2)",
    )
    what.add_argument("--teacher-weights", metavar="FILE|imagenet|random", help="where the teacher's weights come from (default: imagenet)")
    what.add_argument("--image-size", type=_image_size, metavar="N|HxW", help="network input in pixels (default: 256)")
    what.add_argument("--tile", type=int, metavar="N", help="train on tiles of N x N image pixels instead of whole images (default: whole images)")
    what.add_argument("--overlap", type=int, metavar="N", help="image pixels by which tiles overlap at least (default: 32)")
    what.add_argument("--with-whole-frame", action="store_true", default=None, help="train on the whole image beside its tiles")
    what.add_argument("--preset", choices=("paper", "best"), help="settings to start from (default: paper; best for memory)")
    what.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the settings; flags win over it")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting by its dotted name, e.g. optim.schedule=cosine")
    how = parser.add_argument_group("training")
    budget = how.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default: 1000, but 2 to 40 epochs)")
    budget.add_argument("--epochs", type=int, metavar="N", help="passes over the training images, instead of --steps")
    how.add_argument("--batch-size", type=int, metavar="N", help="images per step of all processes, drawn evenly over the classes (default: 8)")
    how.add_argument("--lr", type=float, metavar="X", help="peak learning rate of Adam (default: 0.005)")
    how.add_argument("--seed", type=int, metavar="N", help="seed of weights, batches and hold-out (default: 0)")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to train; auto takes CUDA if there is a GPU (default: auto)")
    how.add_argument("--threads", type=int, metavar="N", help="processor threads for reading and training (default: as many as PyTorch takes)")
    how.add_argument(
        "--rank-timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help=f"seconds that the processes of one training wait for one that is late (default: {DEFAULT_TIMEOUT_S:g})",
    )
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
    _check_folders(arguments)
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads must be 1 or more, got {arguments.threads}")
    launch = launch_of()
    if launch.world_size > 1:
        if arguments.add_product is not None:
            raise ConfigError("--add-product trains nothing that several processes could share; start it as one process: snl-train")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what ends is told in one line, without PyTorch's C++ frames
    if launch.is_writer:
        check_writable(arguments.out)  # before PyTorch is loaded, which takes longer
    if arguments.out.suffix != ".pt" or arguments.out.name.endswith(".resume.pt"):  # side files are named by the stem
        named = f"{arguments.out.name.removesuffix('.resume.pt').removesuffix(arguments.out.suffix)}.pt"
        raise ConfigError(f"--out {arguments.out} is no name for a checkpoint, which ends in .pt and not in .resume.pt; name it e.g. {named}")
    with stop_on_signals(PROGRAM, is_silent=not launch.is_writer) as stop:
        try:
            from snl_train.ranks import join_ranks

            with join_ranks(launch, timeout_s=arguments.rank_timeout) as ranks:
                return _train(arguments, stop, ranks)
        except StoppedBySignalError:
            _say(f"stopped by {stop.signal_name} before the first step; nothing was saved")
            return stop.exit_status


def _check_folders(arguments: argparse.Namespace) -> None:
    if arguments.data is None and arguments.add_product is None:
        raise ConfigError("--data is missing; name the folder of images to train on")
    if arguments.add_product is not None and (arguments.data is not None or arguments.base is None or arguments.resume):
        raise ConfigError("--add-product DIR goes with --from FILE, the model that is extended, and without --data and --resume")
    if arguments.base is not None and arguments.resume:
        raise ConfigError("--from begins a training and --resume continues one; give one of them")
    if arguments.base is not None and arguments.base.resolve() == arguments.out.resolve():
        raise ConfigError(f"--from and --out name the same file {arguments.out}; name another --out")


def _train(arguments: argparse.Namespace, stop: StopRequest, ranks: "Ranks") -> int:
    import torch

    from snl_train.checkpoint import load_checkpoint
    from snl_train.device import resolve_device
    from snl_train.output import claim_output
    from snl_train.training import train

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    claim = claim_output(arguments.out, resume=arguments.resume, overwrite=arguments.overwrite) if ranks.is_writer else contextlib.nullcontext()
    progress = Progress if ranks.is_writer else no_progress
    with claim:
        if arguments.add_product is not None:
            return _add_products(arguments, ranks)
        base = None if arguments.base is None else load_checkpoint(arguments.base)
        config = resolve_config(arguments, base)
        ranks.check(config)  # before the images are read, which takes longer
        ranks.place(resolve_device(config.device))
        data = _load_data(arguments, arguments.data, config, ranks, progress)
        should_stop = stop.should_stop
        result = train(config, data, arguments.out, resume=arguments.resume, should_stop=should_stop, memory=base, progress=progress, ranks=ranks)
    if not result.is_complete:
        stop.number = ranks.largest(stop.number)
        if ranks.is_writer:
            _say(
                f"stopped by {stop.signal_name} after step {result.steps_done} of {result.total_steps}; {result.checkpoint_path} and "
                f"{result.resume_path} are whole; continue with: {ranks.command} --data {arguments.data} --out {arguments.out} --resume"
            )
        return stop.exit_status
    if ranks.is_writer:
        _report(result, data, as_json=arguments.json)
    return 0


def _add_products(arguments: argparse.Namespace, ranks: "Ranks") -> int:
    from snl_runtime.files import sha256_file
    from snl_train.adding_products import add_products
    from snl_train.checkpoint import load_checkpoint
    from snl_train.device import resolve_device

    base = load_checkpoint(arguments.base)
    config = load_over(TrainConfig, arguments.config, _overrides(arguments), base=base.config)
    check_settings_of_addition(base.config, config)
    resolve_device(config.device)
    data = _load_data(arguments, arguments.add_product, config, ranks, Progress)
    result = add_products(base, sha256_file(arguments.base), data, arguments.out, device=config.device, progress=Progress)
    _report(result, data, as_json=arguments.json)
    _say(
        f"scores of {', '.join(base.classes)} may have fallen: decisions of {arguments.base.name} do not hold for {arguments.out.name}; snl-export "
        "--keep-decisions keeps those whose anomaly maps are the same on golden samples and synthetic defects, and snl-calibrate fits the others "
        "again"
    )
    return 0


def check_settings_of_addition(stored: TrainConfig, wanted: TrainConfig) -> None:
    """Refuse to add a product with other settings than those of the model, but for how its images are read.

    Raises:
        ConfigError: Naming a setting that differs.
    """
    free = {name: getattr(wanted.data, name) for name in ("hold_out", "max_per_class", "skip_unreadable", "cache_mib")}
    same = replace(stored, device=wanted.device, data=replace(stored.data, **free))
    if same != wanted:
        raise ConfigError(
            "a product is added with the settings of the model that it is added to; with --add-product give none but --hold-out, --skip-unreadable, "
            "--device, data.max_per_class and data.cache_mib"
        )


def _overrides(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what the flags set, by dotted name."""
    overrides: dict[str, object] = dict(parse_override(text) for text in arguments.set)
    for flag, name in _DOTTED.items():
        value = getattr(arguments, flag)
        if value is not None:
            overrides[name] = value
    return overrides


def resolve_config(arguments: argparse.Namespace, base: "Checkpoint | None" = None) -> TrainConfig:
    """Return the settings that preset, file and flags give; a resumed training starts from its own, one beside a memory from the memory's.

    Raises:
        ConfigError: If a setting is unknown or out of range.
        CheckpointError: If there is nothing to resume.
    """
    overrides = _overrides(arguments)
    if base is not None:
        from snl_train.continuing import student_config

        return student_config(base, overrides, arguments.config)
    if not arguments.resume or arguments.config is not None or arguments.preset is not None:
        return load_config(arguments.config, overrides)
    from snl_train.output import stored_config

    return load_over(TrainConfig, None, with_one_budget(overrides), base=stored_config(arguments.out))


def _fetch_teacher(arguments: argparse.Namespace) -> int:
    from snl_train.models import fetch_teacher

    check_writable(arguments.out)
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(f"{arguments.out} exists already; replace it with --overwrite, or name another --out")
    fetch_teacher(arguments.fetch_teacher, arguments.out)
    _print(
        {"teacher": arguments.fetch_teacher, "file": str(arguments.out)},
        f"wrote the ImageNet weights of {arguments.fetch_teacher} to {arguments.out}",
        as_json=arguments.json,
    )
    return 0


def _load_data(arguments: argparse.Namespace, root: Path, config: TrainConfig, ranks: "Ranks", progress: ProgressReporter) -> "TrainingData":
    from snl_train.data.dataset import load_training_data

    with contextlib.ExitStack() as opened:

        def on_listed(index: "DatasetIndex") -> Callable[[], None]:
            if index.listing is not None and ranks.is_writer:
                report_listing(PROGRAM, index.listing, list_left_out=arguments.list_left_out)
            return opened.enter_context(progress(len(index.train) + len(index.test), unit="images", label="read")).advance

        data = load_training_data(root, config.image_size, config=config.data, seed=config.seed, threads=arguments.threads, on_listed=on_listed)
    for path, reason in data.left_out if ranks.is_writer else ():
        _say(f"left out {path}: {reason}")
    return data


def _report(result: "TrainingResult", data: "TrainingData", *, as_json: bool) -> None:
    image_count = len({sample.path for sample in data.samples})
    facts: dict[str, Any] = {
        "checkpoint": str(result.checkpoint_path),
        "metrics": str(result.metrics_path) if result.metrics_path.exists() else None,
        "epochs_done": result.epochs_done,
        "steps_done": result.steps_done,
        "stopped_early": None if result.stopped_early is None else dict(result.stopped_early),
        "classes": list(data.classes),
        "training_images": image_count,
        "training_views": len(data.samples),
        "held_out_images": len(data.held_out),
        "left_out": [{"path": str(path), "reason": reason} for path, reason in data.left_out],
        "loss": {name: value if math.isfinite(value) else None for name, value in result.losses.items()},
        "images_per_s": round(result.images_per_s, 2),
        "seconds": round(result.seconds, 2),
    }
    made = f"{result.steps_done} steps ({result.epochs_done} epochs)" if result.total_steps else "memory of the teacher's features"
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items())
    if result.stopped_early is not None:
        made += f", {result.total_steps} were allowed: the validation loss had not improved since step {result.stopped_early['best_step']},"
    text = (
        f"{result.checkpoint_path}: {made} on {image_count} images of {', '.join(data.classes)}\n"
        f"held out for calibration: {len(data.held_out)} images; left out as unreadable: {len(data.left_out)}\n"
        + (f"last losses: {losses or 'none, it was complete already'}\n" if result.total_steps else "")
        + f"{result.images_per_s:.3g} images/s, {format_duration(result.seconds)}"
    )
    _print(facts, text, as_json=as_json)


def _print(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    print(to_json(facts) if as_json else text)


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
