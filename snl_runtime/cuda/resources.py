"""Device memory, pinned memory, streams, events, graphs and modules that are released exactly once, in reverse order, on their own device.

Take several together through ``contextlib.ExitStack``: if the third one fails, the first two are released. ``__del__`` only warns, because the last
reference may vanish on a thread, or at a time, when CUDA must not be called.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.api import CudaApi, KernelArgument, Size3, device_scope
from snl_runtime.errors import InferenceError

_Self = TypeVar("_Self", bound="CudaResource")


class CudaResource:
    """Something that CUDA handed out.

    Args:
        api: Who handed it out.
        handle: Its handle or address.
        release: Called once with the handle, on the device it was made on.
    """

    def __init__(self, api: CudaApi, handle: int, release: Callable[[int], None]) -> None:
        self.api = api
        self._device = api.current_device()
        self._handle: int | None = handle
        self._release = release

    @property
    def handle(self) -> int:
        """Handle or address for :class:`CudaApi`.

        Raises:
            InferenceError: If it was released.
        """
        if self._handle is None:
            raise InferenceError(f"a {type(self).__name__} was used after it was released; open the backend again")
        return self._handle

    @property
    def is_closed(self) -> bool:
        """Whether it was released."""
        return self._handle is None

    def close(self) -> None:
        """Release it; a second call does nothing.

        Raises:
            InferenceError: If CUDA reports a failure; it counts as released all the same.
        """
        handle, self._handle = self._handle, None
        if handle is not None:
            with device_scope(self.api, self._device):
                self._release(handle)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            warnings.warn(f"a {type(self).__name__} was never released; use it as a context manager", ResourceWarning, stacklevel=2)


class CudaStream(CudaResource):
    """A queue of device work that does not wait for the default stream."""

    def __init__(self, api: CudaApi) -> None:
        super().__init__(api, api.create_stream(), api.destroy_stream)

    def synchronize(self) -> None:
        """Wait until everything on it is done."""
        self.api.synchronize_stream(self.handle)


class CudaEvent(CudaResource):
    """A mark in a stream."""

    def __init__(self, api: CudaApi) -> None:
        super().__init__(api, api.create_event(), api.destroy_event)

    def record(self, stream: CudaStream) -> None:
        """Put the mark behind everything now on the stream."""
        self.api.record_event(self.handle, stream.handle)

    @property
    def is_reached(self) -> bool:
        """Whether the stream has passed the mark."""
        return self.api.query_event(self.handle)

    def synchronize(self) -> None:
        """Wait until the stream has passed the mark."""
        self.api.synchronize_event(self.handle)


class DeviceBuffer(CudaResource):
    """Device memory."""

    def __init__(self, api: CudaApi, byte_count: int) -> None:
        super().__init__(api, api.allocate(byte_count), api.free)
        self.byte_count = byte_count


class PinnedBuffer(CudaResource):
    """Page-locked host memory that copies run from and to without waiting."""

    def __init__(self, api: CudaApi, byte_count: int) -> None:
        super().__init__(api, api.allocate_pinned(byte_count), api.free_pinned)
        self.byte_count = byte_count

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the first bytes as an array. The array is a view: it must not be touched after :meth:`close`."""
        wanted = np.dtype(dtype)
        byte_count = int(np.prod(shape)) * wanted.itemsize
        if byte_count > self.byte_count:
            raise InferenceError(f"a pinned buffer of {self.byte_count} bytes cannot hold {wanted} {tuple(shape)}")
        memory = (ctypes.c_ubyte * byte_count).from_address(self.handle)
        return np.ctypeslib.as_array(memory).view(wanted).reshape(tuple(shape))


class CudaGraph(CudaResource):
    """Recorded work of a stream that is launched with one call."""

    def __init__(self, api: CudaApi, graph: int) -> None:
        super().__init__(api, graph, api.destroy_graph)

    def launch(self, stream: CudaStream) -> None:
        """Run it in stream order."""
        self.api.launch_graph(self.handle, stream.handle)


class CudaModule(CudaResource):
    """Compiled kernels.

    Args:
        api: CUDA.
        image: Cubin for this device, or PTX.
    """

    def __init__(self, api: CudaApi, image: bytes) -> None:
        super().__init__(api, api.load_module(image), api.unload_module)
        self._kernels: dict[str, int] = {}

    def launch(self, name: str, *, grid: Size3, block: Size3, stream: CudaStream, arguments: Sequence[KernelArgument], shared_bytes: int = 0) -> None:
        """Run a kernel in stream order.

        Args:
            name: Its ``extern "C"`` name.
            grid: Blocks along x, y and z.
            block: Threads of a block along x, y and z.
            stream: Where it is queued.
            arguments: With the types that the kernel declares, e.g. ``ctypes.c_void_p(buffer.handle)``.
            shared_bytes: Dynamic shared memory of a block.
        """
        if name not in self._kernels:
            self._kernels[name] = self.api.find_kernel(self.handle, name)
        self.api.launch_kernel(self._kernels[name], grid=grid, block=block, stream=stream.handle, arguments=arguments, shared_bytes=shared_bytes)
