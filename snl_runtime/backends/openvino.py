"""OpenVINO, mainly for Intel processors."""

import contextlib
import functools
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, check_arrays, check_signature, one_line, path_or_bytes, store_outputs
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError, InferenceError

_TELEMETRY = "openvino_telemetry"
_core_guard = threading.Lock()
_DTYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoBackend:
    """Runs an ``.onnx`` file with OpenVINO in float32."""

    name = "openvino"

    def __init__(self, model_path: str | os.PathLike[str], *, device: str | None = None, threads: int | None = None) -> None:
        """Load and compile the model.

        Args:
            model_path: The ``.onnx`` file.
            device: An OpenVINO device in any case: ``cpu`` (default), ``gpu``, ``npu``, ``gpu.1``.
            threads: CPU threads for one call; None for OpenVINO's choice.

        Raises:
            BackendUnavailableError: If the package or the device is missing.
            BackendError: If the file cannot be loaded or is another graph.
            ConfigError: If ``threads`` means nothing.
        """
        self.device = (device or "cpu").lower()
        path = Path(model_path)
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        core = openvino_core()
        self._request: Any = None
        try:
            model = core.read_model(path_or_bytes(path))
        except Exception as error:  # the library's exception classes share no base
            raise BackendError(f"openvino cannot load {path}: {one_line(error)}; export the model again: snl-export --ckpt x.pt") from error
        self.input_shape: tuple[int | None, int, int, int] = check_signature(
            path.name,
            {port.any_name: (_dtype_name(port), _fixed_sizes(port)) for port in model.inputs},
            {port.any_name: _dtype_name(port) for port in model.outputs},
        )
        _check_device(core, self.device)
        try:
            self._request = core.compile_model(model, self.device.upper(), compile_options(self.device, threads)).create_infer_request()
        except Exception as error:  # the library's exception classes share no base
            raise BackendError(f"openvino cannot compile {path.name} for device '{self.device}': {one_line(error)}") from error

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write map and score into the caller's arrays; see ``Backend.infer``."""
        if self._request is None:
            raise InferenceError("backend 'openvino' is closed; open the model again")
        check_arrays(self.name, self.input_shape, image, anomaly_map, anomaly_score)
        try:
            self._request.infer({INPUT_NAME: np.ascontiguousarray(image)})
            outputs = {name: np.asarray(self._request.get_tensor(name).data) for name in (MAP_NAME, SCORE_NAME)}
        except Exception as error:  # the library's exception classes share no base
            raise InferenceError(f"backend 'openvino' failed on {self.device}: {one_line(error)}") from error
        store_outputs(self.name, outputs, anomaly_map, anomaly_score)

    def close(self) -> None:
        """Release the compiled model; a second call does nothing."""
        self._request = None

    def __enter__(self) -> "OpenVinoBackend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()


def openvino_core() -> Any:
    """Return the one ``openvino.Core`` of this process, which lives until the process ends; it takes calls from any thread.

    OpenVINO's CPU plugin gives the thread that loads it another stack for signals. When a core goes, it puts the stack before its own back and frees
    its own. Where the older of two cores goes first, as when a line changes its model, the thread is left with a stack that is gone, and its next
    signal, an ordinary request to stop too, ends the process with a segmentation fault.

    The package reports its import over the network, and for that writes an identifier below the user's home, where the package openvino-telemetry is
    found. For the time of the import it is hidden, and OpenVINO takes its own stub of it.

    In a fork of the process that made it, its threads are missing, and a model would be compiled for ever.

    Raises:
        BackendUnavailableError: If the package is missing, its libraries do not load or start, or this is a fork of a process that used it.
    """
    try:
        with _hidden(_TELEMETRY):
            import openvino
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"backend 'openvino' needs the package openvino: pip install 'snl-edge[openvino]' ({one_line(error)})"
        ) from error
    with _core_guard:  # two threads that ask at first must not make two
        try:
            process, core = _core(openvino)
        except Exception as error:  # the library's exception classes share no base
            raise BackendUnavailableError(f"backend 'openvino' does not start; install the package openvino again ({one_line(error)})") from error
    if process != os.getpid():
        raise BackendUnavailableError(
            "openvino was used before this process was forked, and does not work in it; start processes with 'spawn', or fork before the first model"
        )
    return core


@functools.cache
def _core(library: types.ModuleType) -> tuple[int, Any]:
    return os.getpid(), library.Core()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make a module seem missing, unless somebody imported it before."""
    if module in sys.modules:
        yield
        return
    hidden: dict[str, Any] = {module: None}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def _check_device(core: Any, device: str) -> None:
    available = [name.lower() for name in core.available_devices]
    if device.partition(".")[0] not in {name.partition(".")[0] for name in available}:
        raise BackendUnavailableError(f"openvino finds no device '{device}' here, only {', '.join(available)}; use one of them or install its driver")


def compile_options(device: str, threads: int | None) -> dict[str, Any]:
    """Return the options that every model of this SDK is compiled with.

    Args:
        device: An OpenVINO device in lower case.
        threads: CPU threads for one call; None for OpenVINO's choice.
    """
    # OpenVINO picks bf16 by itself on some CPUs, which changes scores beyond the golden tolerance.
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if device == "cpu":
        # A thread that is pinned to a core waits there for whatever else runs on it, and the other threads for that one.
        options["ENABLE_CPU_PINNING"] = False
    if threads is not None and device == "cpu":
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _dtype_name(port: Any) -> str:
    name = str(port.get_element_type().get_type_name())
    return _DTYPES.get(name, name)


def _fixed_sizes(port: Any) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
