"""Graphs that other projects exported, run with the options that our backends give the same libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.onnxruntime.session import open_session
from snl_runtime.backends.openvino import compile_options, openvino_core
from snl_runtime.errors import ConfigError


def named_file(text: str) -> tuple[str, Path]:
    """Return name and path that ``NAME=PATH`` gives.

    Raises:
        ConfigError: If it is something else, or no file lies there.
    """
    name, _, path = text.partition("=")
    if not name or not path or not Path(path).is_file():
        raise ConfigError(f"--files takes NAME=PATH of .onnx files that are there, got {text!r}")
    return name, Path(path)


def file_call(path: Path, backend: str, *, size_px: int, threads: int) -> Callable[[], None]:
    """Return a call that runs a graph with one input once, on one image of noise; all its outputs are computed.

    Args:
        path: The ``.onnx`` file.
        backend: ``onnxruntime`` or ``openvino``.
        size_px: Side of the image, where the graph leaves it open.
        threads: CPU threads.

    Raises:
        ConfigError: If the graph has more than one input, or takes no image.
    """
    if backend == "openvino":
        return _openvino_call(path, size_px, threads)
    session = open_session(path, threads=threads)
    inputs = session.get_inputs()
    image = _image(path, [(item.name, item.shape, item.type) for item in inputs], size_px)
    return lambda: session.run(None, {inputs[0].name: image})


def _openvino_call(path: Path, size_px: int, threads: int) -> Callable[[], None]:
    core = openvino_core()
    model = core.read_model(path)
    sizes = [[side.get_length() if side.is_static else None for side in port.get_partial_shape()] for port in model.inputs]
    found = [(port.any_name, size, port.get_element_type().get_type_name()) for port, size in zip(model.inputs, sizes, strict=True)]
    image = _image(path, found, size_px)
    request = core.compile_model(model, "CPU", compile_options("cpu", threads)).create_infer_request()
    return lambda: request.infer([image])


def _image(path: Path, inputs: list[tuple[str, list[Any], str]], size_px: int) -> npt.NDArray[Any]:
    """Return noise in the shape and type of the only input: one image, its open sides ``size_px``, 3 channels."""
    if len(inputs) != 1 or len(inputs[0][1]) != 4:
        raise ConfigError(f"{path} must take one image of four dimensions, it takes {', '.join(str(one[:2]) for one in inputs)}")
    _, sizes, kind = inputs[0]
    shape = [1] + [side if isinstance(side, int) else size_px for side in sizes[1:]]
    rng = np.random.default_rng(0)
    if "u8" in kind or "uint8" in kind:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.random(shape, dtype=np.float32)
