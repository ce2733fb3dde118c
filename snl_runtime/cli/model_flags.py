"""The flags that say which model runs and on what; snl-run and snl-bench share them."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from snl_runtime.station.config import ModelConfig

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.types import OutputRequest

_Number = TypeVar("_Number", int, float)
_KEYS = {
    "backend": "backend",
    "device": "device",
    "threads": "threads",
    "timeout_ms": "timeout_ms",
    "public_key": "public_key_file",
    "rebuild": "rebuild",
    "cuda_graphs": "cuda_graphs",
}
"""Flag -> key of ``ModelConfig``."""


def add_model_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that :func:`model_values` reads; one that is not given has the value None."""
    parser.add_argument(
        "--backend", metavar="NAME", help="onnxruntime, openvino, tensorrt or a plug-in (default: the one of the calibration, if installed)"
    )
    parser.add_argument("--device", metavar="NAME", help="device as the backend names it, e.g. cpu or cuda (default: the backend's own)")
    parser.add_argument("--threads", metavar="N", type=positive(int), help="CPU threads of the backend (default: the backend's own)")
    parser.add_argument("--timeout-ms", metavar="MS", type=positive(float), help="time for one frame (default: 10000)")
    parser.add_argument("--public-key", metavar="FILE", help="Ed25519 public key (PEM) that must have signed the manifest")
    parser.add_argument("--rebuild", action="store_true", default=None, help="build x.trt again from x.onnx if it was built for another device")
    parser.add_argument("--no-cuda-graphs", dest="cuda_graphs", action="store_false", default=None, help="record no CUDA graphs on a GPU")


def model_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of ``ModelConfig`` that the flags give."""
    return {key: getattr(arguments, flag) for flag, key in _KEYS.items() if getattr(arguments, flag) is not None}


def open_detector(config: ModelConfig, *, keep_maps: bool = True, outputs: "OutputRequest | None" = None) -> "SnlDetector":
    """Return the opened detector.

    Args:
        config: The model; with ``rebuild`` its engine is built here if that is needed.
        keep_maps: See ``SnlDetector``.
        outputs: See ``SnlDetector``.

    Raises:
        SnlError: If the model, its backend or the public key cannot be opened.
    """
    from snl_runtime.cli.rebuild import open_or_rebuild
    from snl_runtime.detector.detector import SnlDetector

    return (open_or_rebuild if config.rebuild else SnlDetector)(
        config.file,
        backend=config.backend,
        device=config.device,
        timeout_ms=config.timeout_ms,
        threads=config.threads,
        public_key=config.read_public_key(),
        keep_maps=keep_maps,
        outputs=outputs,
        cuda_graphs=config.cuda_graphs,
    )


def positive(kind: type[_Number]) -> Callable[[str], _Number]:
    """Return a converter for argparse that accepts numbers above 0."""

    def convert(text: str) -> _Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse shows it: "invalid int value: 'x'"
    return convert


def whole_number(text: str) -> int:
    """Convert for argparse: 0 and above."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value
