"""Exports anomalib's methods as users do, untrained, so that their times can be measured beside ours: times do not depend on the weights.

Runs in the environment of ``benchmarks/accuracy/baselines-requirements.txt``, which also needs onnx and onnxscript:

    baselines-venv/bin/pip install onnx onnxscript
    baselines-venv/bin/python -m benchmarks.speed.peers --out peers

It prints the command that takes the files in turn with ours, in the environment of this project:

    python -m benchmarks.speed.cpu --graphs best rd --files anomalib-rd=peers/anomalib-rd.onnx

The package's own ``to_onnx`` writes them, with its preprocessing and post-processing in the graph: a resize of the image to the network's size and
its mean and standard deviation in front, thresholds behind. Images are float, (1, 3, H, W), 0 to 1. Random weights, nothing is downloaded. PatchCore
needs a memory bank: random features, as many as ``--coreset`` says.
"""

import argparse
import contextlib
import functools
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.errors import BackendUnavailableError
from snl_runtime.files import atomic_write_bytes

PROGRAM = "benchmarks.speed.peers"
METHODS = ("rd", "stfpm", "patchcore", "efficientad-s")
_OPSET = 18  # the package's default of 14 makes the exporter complain and write 18 all the same


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the files, made if it is missing")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--backbone", default="resnet18", help="of the methods that have a choice (default: resnet18)")
    parser.add_argument("--size-px", metavar="PX", type=int, default=256, help="side of the input (default: 256)")
    parser.add_argument("--coreset", metavar="N", type=int, default=10_000, help="features in PatchCore's memory bank (default: 10000)")
    options = parser.parse_args(argv)
    return run_command(lambda: _export(options), program=PROGRAM)


def _export(options: argparse.Namespace) -> int:
    print(f"anomalib {_anomalib_version()}, torch {metadata.version('torch')}, {options.size_px} px")
    options.out.mkdir(parents=True, exist_ok=True)
    with _no_downloads():
        for method in options.methods:
            path = options.out / f"anomalib-{method}.onnx"
            model, held = _model(method, options)
            _write(model, path, options.size_px)
            print(f"{path}: {held}", flush=True)
    files = " ".join(f"anomalib-{method}={options.out / f'anomalib-{method}.onnx'}" for method in options.methods)
    print(f"python -m benchmarks.speed.cpu --graphs best rd --files {files}")
    return EXIT_OK


def _model(method: str, options: argparse.Namespace) -> tuple[Any, str]:
    """Return an untrained model of the package, and what its graph holds, in words."""
    import torch
    from anomalib.models import EfficientAd, Patchcore, ReverseDistillation, Stfpm
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    resize = Resize((options.size_px, options.size_px), antialias=True)
    normalized = Compose([resize, Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])])
    plain = {"evaluator": False, "visualizer": False}
    torch.manual_seed(0)
    if method == "efficientad-s":  # normalizes inside
        return _efficient_ad(EfficientAd(model_size="small", pre_processor=PreProcessor(transform=resize), **plain)), "EfficientAD-S"
    makers: dict[str, Callable[..., Any]] = {"rd": ReverseDistillation, "stfpm": Stfpm, "patchcore": Patchcore}
    model = makers[method](backbone=options.backbone, pre_processor=PreProcessor(transform=normalized), **plain)
    if method != "patchcore":
        return model, f"{makers[method].__name__}, {options.backbone}"
    with torch.no_grad():
        features = model.model.train()(torch.rand(1, 3, options.size_px, options.size_px))  # (positions, channels)
    model.model.memory_bank = torch.rand(options.coreset, features.shape[1])
    model.model.embedding_store.clear()
    return model, f"PatchCore, {options.backbone}, {options.coreset} features of {features.shape[1]} channels"


def _efficient_ad(model: Any) -> Any:
    """Set what training would: with its zeros the graph divides by zero."""
    model.model.mean_std["std"].data.fill_(1.0)
    for name in ("qb_st", "qb_ae"):
        model.model.quantiles[name].data.fill_(1.0)
    return model


def _write(model: Any, path: Path, size_px: int) -> None:
    """Write the model by the package's own export, weights inside, under a name of our own."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter says what it does
            written = model.to_onnx(
                folder,
                model_file_name=path.stem,
                input_size=(size_px, size_px),
                opset_version=_OPSET,
                external_data=False,
                dynamic_axes=None,  # one image at a time, as on a line; PatchCore would get a graph of two
                dynamic_shapes=None,
            )
        atomic_write_bytes(path, Path(written).read_bytes())


@contextlib.contextmanager
def _no_downloads() -> Iterator[None]:
    """Have timm make every network with random weights."""
    import timm

    original = timm.create_model

    @functools.wraps(original)
    def create_model(name: str, *args: Any, **kwargs: Any) -> Any:
        return original(name, *args, **{**kwargs, "pretrained": False})

    timm.create_model = create_model
    try:
        yield
    finally:
        timm.create_model = original


def _anomalib_version() -> str:
    try:
        return metadata.version("anomalib")
    except metadata.PackageNotFoundError as error:
        raise BackendUnavailableError(
            "the peers need the package anomalib in an environment of its own: python -m venv baselines-venv && "
            "baselines-venv/bin/pip install -r benchmarks/accuracy/baselines-requirements.txt onnx onnxscript"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
