"""The CUDA calls that this SDK makes, behind one small class.

Everything works in the device's primary context, which torch, CuPy, OpenCV and TensorRT share: no context is made, no device reset, no flag set, and
nothing happens at import time. Handles and addresses are plain integers, so that a fake in NumPy can stand in for a GPU.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from snl_runtime.errors import BackendUnavailableError, InferenceError

CopyKind: TypeAlias = Literal["host_to_device", "device_to_host", "device_to_device"]
KernelArgument: TypeAlias = (
    ctypes.c_void_p | ctypes.c_int32 | ctypes.c_uint32 | ctypes.c_int64 | ctypes.c_uint64 | ctypes.c_float | ctypes.c_double | ctypes.c_uint8
)
"""An argument with the type that the kernel declares; an address is a ``ctypes.c_void_p``."""
Size3: TypeAlias = tuple[int, int, int]

_REMEDY = "install an NVIDIA driver, or run x.onnx on the CPU"
# What says that there is no usable GPU here, as opposed to a call that went wrong on one.
_UNAVAILABLE = frozenset(
    {
        "cudaErrorInsufficientDriver",
        "cudaErrorNoDevice",
        "cudaErrorInitializationError",
        "cudaErrorInvalidDevice",
        "cudaErrorDevicesUnavailable",
        "cudaErrorStubLibrary",
        "cudaErrorSystemNotReady",
        "cudaErrorSystemDriverMismatch",
        "cudaErrorCompatNotSupportedOnDevice",
        "cudaErrorOperatingSystem",
        "cudaErrorCallRequiresNewerDriver",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDescription:
    """One GPU.

    Attributes:
        name: As the driver states it.
        compute_capability: Major times ten plus minor, e.g. 89.
        driver_version: Newest CUDA version that the driver runs, e.g. ``12.8``.
    """

    name: str
    compute_capability: int
    driver_version: str


class CudaApi:
    """What is asked of CUDA. Every failing status becomes an ``InferenceError``, a missing driver or GPU a ``BackendUnavailableError``.

    Calls act on the calling thread's current device, see :func:`device_scope`. ``*_async`` calls return before the work is done; what they read and
    write must stay alive until the stream has passed them. Holds no state: any thread may use one.
    """

    def __init__(self) -> None:
        self._runtime, self._driver = _load_bindings()

    def device_count(self) -> int:
        """Return how many GPUs there are, 1 or more."""
        (count,) = self._call("cudaGetDeviceCount")
        if count == 0:
            raise BackendUnavailableError(f"there is no CUDA device here; {_REMEDY}")
        return int(count)

    def describe(self, device: int) -> DeviceDescription:
        """Return name, compute capability and driver version."""
        (properties,) = self._call("cudaGetDeviceProperties", device)
        (version,) = self._call("cudaDriverGetVersion")
        name = properties.name
        return DeviceDescription(
            name=(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=int(properties.major) * 10 + int(properties.minor),
            driver_version=f"{version // 1000}.{version % 1000 // 10}",
        )

    def current_device(self) -> int:
        """Return the calling thread's device."""
        return int(self._call("cudaGetDevice")[0])

    def set_device(self, device: int) -> None:
        """Make a device the calling thread's; use :func:`device_scope`, which puts the caller's back."""
        self._call("cudaSetDevice", device)

    def free_bytes(self) -> int:
        """Return the free memory of the current device, of all processes together."""
        return int(self._call("cudaMemGetInfo")[0])

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)[0])

    def destroy_stream(self, stream: int) -> None:
        """Release a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize_stream(self, stream: int) -> None:
        """Wait until everything on the stream is done; failures of earlier asynchronous work surface here."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, byte_count: int) -> int:
        """Return the address of new device memory."""
        return int(self._call("cudaMalloc", byte_count)[0])

    def free(self, address: int) -> None:
        """Release device memory."""
        self._call("cudaFree", address)

    def allocate_pinned(self, byte_count: int) -> int:
        """Return the address of new page-locked host memory."""
        return int(self._call("cudaHostAlloc", byte_count, self._runtime.cudaHostAllocPortable)[0])

    def free_pinned(self, address: int) -> None:
        """Release page-locked host memory."""
        self._call("cudaFreeHost", address)

    def copy_async(self, destination: int, source: int, byte_count: int, kind: CopyKind, stream: int) -> None:
        """Copy in stream order; the host side must be page-locked to be asynchronous."""
        kinds = self._runtime.cudaMemcpyKind
        direction = {
            "host_to_device": kinds.cudaMemcpyHostToDevice,
            "device_to_host": kinds.cudaMemcpyDeviceToHost,
            "device_to_device": kinds.cudaMemcpyDeviceToDevice,
        }[kind]
        self._call("cudaMemcpyAsync", destination, source, byte_count, direction, stream)

    def fill_async(self, address: int, value: int, byte_count: int, stream: int) -> None:
        """Set every byte of device memory to ``value`` in stream order; 0xFF makes NaN of float32."""
        self._call("cudaMemsetAsync", address, value, byte_count, stream)

    def create_event(self) -> int:
        """Return a new event without timing."""
        return int(self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)[0])

    def record_event(self, event: int, stream: int) -> None:
        """Let the event be reached when everything now on the stream is done."""
        self._call("cudaEventRecord", event, stream)

    def query_event(self, event: int) -> bool:
        """Return whether the event was reached."""
        status = self._invoke(self._runtime.cudaEventQuery, event)[0]
        if status == self._runtime.cudaError_t.cudaErrorNotReady:
            return False
        self._check("cudaEventQuery", status)
        return True

    def synchronize_event(self, event: int) -> None:
        """Wait on the calling thread until the event is reached."""
        self._call("cudaEventSynchronize", event)

    def wait_event(self, stream: int, event: int) -> None:
        """Let the stream wait for the event; the calling thread does not."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def destroy_event(self, event: int) -> None:
        """Release an event."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """Record what follows on the stream instead of running it; :meth:`end_capture` must follow whatever happens."""
        # Thread-local: another thread of the host program may allocate memory meanwhile without spoiling the recording.
        self._call("cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: int) -> int:
        """Return what was recorded as an executable graph.

        Raises:
            InferenceError: If the recording was invalidated; the stream takes work again afterwards.
        """
        (recorded,) = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", recorded, 0)[0])
        finally:
            self._call("cudaGraphDestroy", recorded)  # the executable graph does not need it

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run a recorded graph in stream order."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Release an executable graph."""
        self._call("cudaGraphExecDestroy", graph)

    # The runtime bindings have no launch call, so kernels go through the driver's library calls, which belong to no context.

    def load_module(self, image: bytes) -> int:
        """Return compiled kernels, loaded from cubin or PTX."""
        return int(self._call_driver("cuLibraryLoadData", image + b"\0", [], [], 0, [], [], 0)[0])  # PTX must end in a zero byte

    def find_kernel(self, module: int, name: str) -> int:
        """Return a kernel of a module by its ``extern "C"`` name; it lives as long as the module."""
        return int(self._call_driver("cuLibraryGetKernel", self._driver.CUlibrary(module), name.encode("ascii"))[0])

    def unload_module(self, module: int) -> None:
        """Release a module."""
        self._call_driver("cuLibraryUnload", self._driver.CUlibrary(module))

    def launch_kernel(
        self, kernel: int, *, grid: Size3, block: Size3, stream: int, arguments: Sequence[KernelArgument], shared_bytes: int = 0
    ) -> None:
        """Run a kernel in stream order; ``arguments`` are copied before the call returns."""
        values = tuple(0 if argument.value is None else argument.value for argument in arguments)  # c_void_p(0) has the value None
        types = tuple(type(argument) for argument in arguments)
        function, queue = self._driver.CUfunction(kernel), self._driver.CUstream(stream)
        self._call_driver("cuLaunchKernel", function, *grid, *block, shared_bytes, queue, (values, types), 0)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *values = self._invoke(getattr(self._runtime, name), *arguments)
        self._check(name, status)
        return tuple(values)

    def _check(self, call: str, status: Any) -> None:
        if int(status) == 0:
            return
        name = str(getattr(status, "name", status))
        words = self._runtime.cudaGetErrorString(status)[1]
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
        if name in _UNAVAILABLE:
            raise BackendUnavailableError(f"CUDA is not usable here: {call} gave {name} ({text}); {_REMEDY}")
        raise InferenceError(f"{call} gave {name} ({text}); the backend must be closed and opened again")

    def _call_driver(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *values = self._invoke(getattr(self._driver, name), *arguments)
        if int(status) != 0:
            raise InferenceError(f"{name} gave {getattr(status, 'name', status)}; the backend must be closed and opened again")
        return tuple(values)

    @staticmethod
    def _invoke(function: Any, *arguments: Any) -> tuple[Any, ...]:
        try:
            return tuple(function(*arguments))
        except RuntimeError as failure:  # how the bindings say that the driver's library, or a call in it, is not there
            raise BackendUnavailableError(f"the CUDA driver cannot be used ({' '.join(str(failure).split())}); {_REMEDY}") from failure


@contextlib.contextmanager
def device_scope(api: CudaApi, device: int) -> Iterator[None]:
    """Work on ``device`` meanwhile and give the calling thread its own device back, also when the body raises."""
    earlier = api.current_device()
    if earlier == device:
        yield
        return
    api.set_device(device)
    try:
        yield
    finally:
        api.set_device(earlier)


def load_cuda() -> CudaApi:
    """Return CUDA through NVIDIA's own bindings; a driver is looked for at the first call only.

    Raises:
        BackendUnavailableError: If the package is missing.
    """
    return CudaApi()


def describe_device(device: int = 0, api: CudaApi | None = None) -> DeviceDescription:
    """Return what GPU is here.

    Raises:
        BackendUnavailableError: If the package, the driver or the GPU is missing.
    """
    api = api or load_cuda()
    count = api.device_count()
    if not 0 <= device < count:
        raise BackendUnavailableError(f"there is no CUDA device {device} here; use one of {', '.join(f'cuda:{index}' for index in range(count))}")
    return api.describe(device)


@functools.cache
def _load_bindings() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, runtime
    except (ImportError, OSError, RuntimeError) as failure:
        raise BackendUnavailableError(
            f"CUDA needs the package cuda-bindings: pip install 'snl-edge[gpu]' or 'snl-edge[tensorrt]' ({' '.join(str(failure).split())})"
        ) from failure
    return runtime, driver
