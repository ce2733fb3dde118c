"""What every inference backend must offer, and the checks they share."""

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import BackendError, InferenceError
from snl_runtime.text import printable

if TYPE_CHECKING:
    from snl_runtime.cuda.resources import CudaStream, DeviceBuffer

INPUT_NAME = "image"
MAP_NAME = "anomaly_map"
SCORE_NAME = "anomaly_score"


@runtime_checkable
class Backend(Protocol):
    """Runs one model file; used by one thread at a time.

    Every exception of the library underneath becomes a ``BackendError``. After an ``InferenceError`` from ``infer`` the backend must be closed,
    unless the arrays were at fault.

    Attributes:
        name: Name of the backend, e.g. ``onnxruntime``.
        device: Where it runs, e.g. ``cpu``.
    """

    name: str
    device: str

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """(N, H, W, 3); N is None if any batch will do."""
        ...

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write the raw map and score of every image into the caller's arrays.

        The caller owns all three arrays and fills the outputs with NaN before the call, so that a value that was not written is seen.

        Args:
            image: (N, H, W, 3) uint8 RGB, not modified.
            anomaly_map: (N, 1, H, W) float32, overwritten.
            anomaly_score: (N,) float32, overwritten.

        Raises:
            InferenceError: If an array does not fit, the library failed or the backend is closed.
        """
        ...

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        ...

    def __enter__(self) -> "Backend":
        """Return the backend itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        """Close the backend."""
        ...


class ExecutionContext(Protocol):
    """An engine that reads and writes device memory on one stream: that of TensorRT or of ONNX Runtime CUDA."""

    @property
    def stream(self) -> "CudaStream":
        """What everything is queued on."""
        ...

    @property
    def largest_batch(self) -> int:
        """Most images of one run."""
        ...

    @property
    def has_graph(self) -> bool:
        """Whether runs as the last one replay a CUDA graph."""
        ...

    @property
    def anomaly_map(self) -> "DeviceBuffer":
        """Where the engine writes its maps, one after the other."""
        ...

    @property
    def anomaly_score(self) -> "DeviceBuffer":
        """Where the engine writes its scores, one after the other."""
        ...

    def run_on_device(self, count: int, bring_image: "Callable[[int, CudaStream], None]") -> None:
        """Queue one run of ``count`` images that ``bring_image`` queues, one after the other from the address it is given."""
        ...


@runtime_checkable
class DeviceBackend(Protocol):
    """What a backend may offer besides: its engine between device memory, so that frames are prepared and maps are checked on the GPU."""

    def execution_context(self, largest_batch: int = 1) -> "AbstractContextManager[ExecutionContext] | None":
        """Return the calling thread's context, lent with its device current; None if the engine does not run on a CUDA device.

        The same context is lent each time until it fails. After any failure in the body the backend must be closed.

        Args:
            largest_batch: Most images that one run will be given; counts when the context is made. An engine may take fewer.

        Raises:
            InferenceError: If the backend is closed or failed before, or CUDA fails.
        """
        ...


def check_arrays(
    name: str,
    input_shape: tuple[int | None, int, int, int],
    image: npt.NDArray[Any],
    anomaly_map: npt.NDArray[Any],
    anomaly_score: npt.NDArray[Any],
) -> None:
    """Return if the three arrays of ``Backend.infer`` fit the model and each other.

    Raises:
        InferenceError: If one does not; the message names it, its shape and the expected one.
    """
    batch, height, width, _ = input_shape
    count = image.shape[0] if isinstance(image, np.ndarray) and image.ndim == 4 and batch is None else batch
    expected: dict[str, tuple[npt.NDArray[Any], type[np.generic], tuple[int | None, ...]]] = {
        INPUT_NAME: (image, np.uint8, (count, height, width, 3)),
        MAP_NAME: (anomaly_map, np.float32, (count, 1, height, width)),
        SCORE_NAME: (anomaly_score, np.float32, (count,)),
    }
    for argument, (array, dtype, shape) in expected.items():
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape or array.size == 0:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            wanted = ("N", *shape[1:]) if shape[0] is None else shape
            raise InferenceError(f"backend '{name}': {argument} must be {np.dtype(dtype)} ({', '.join(map(str, wanted))}), got {got}")
    for argument, output in ((MAP_NAME, anomaly_map), (SCORE_NAME, anomaly_score)):
        if not output.flags.writeable:
            raise InferenceError(f"backend '{name}': {argument} must be writeable")


def store_outputs(
    name: str,
    outputs: dict[str, npt.NDArray[Any]],
    anomaly_map: npt.NDArray[np.float32],
    anomaly_score: npt.NDArray[np.float32],
) -> None:
    """Copy what the library returned into the caller's arrays, without any broadcasting or cast.

    Raises:
        InferenceError: If an output has another dtype or shape than its array.
    """
    for argument, target in ((MAP_NAME, anomaly_map), (SCORE_NAME, anomaly_score)):
        value = outputs[argument]
        if value.dtype != target.dtype or value.shape != target.shape:
            raise InferenceError(f"backend '{name}': output {argument} is {value.dtype} {value.shape}, expected {target.dtype} {target.shape}")
        target[...] = value


def check_signature(
    file_name: str, inputs: dict[str, tuple[str, tuple[int | None, ...]]], outputs: dict[str, str]
) -> tuple[int | None, int, int, int]:
    """Return the (N, H, W, 3) of a graph that takes and gives what the SDK's graphs do.

    Args:
        file_name: For the message.
        inputs: Name -> (NumPy dtype name, shape with None where dynamic).
        outputs: Name -> NumPy dtype name.

    Raises:
        BackendError: If the graph is another one.
    """
    expected_outputs = {MAP_NAME: "float32", SCORE_NAME: "float32"}
    dtype, shape = inputs.get(INPUT_NAME, ("", ()))
    fits = len(inputs) == 1 and dtype == "uint8" and len(shape) == 4 and shape[3] == 3
    if not fits or outputs != expected_outputs:
        raise BackendError(
            f"{file_name} takes {inputs} and gives {outputs}, expected {INPUT_NAME} uint8 (N, H, W, 3) and {expected_outputs}; "
            "export the model with snl-export"
        )
    batch, height, width, _ = shape
    if height is None or width is None:
        raise BackendError(f"{file_name} leaves the image size open {shape}, expected a fixed height and width; export the model with snl-export")
    return batch, height, width, 3


def path_or_bytes(path: Path) -> str | bytes:
    """Return a model file as libraries take it: its path, or its content where the path is not UTF-8, which they refuse."""
    return str(path) if printable(str(path)) == str(path) else path.read_bytes()


def scored_by(backend: Backend, *, is_on_device: bool) -> str:
    """Return how a decision names what scored its sample: the backend, and its device where that prepares the frames as well."""
    return f"{backend.name} on {backend.device}, frames prepared there" if is_on_device else backend.name


def one_line(error: BaseException) -> str:
    """Return a foreign exception's type and message without line breaks, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
