"""Buffers whose size follows the camera's frames."""

import contextlib
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.resources import CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import InferenceError

_Buffer = TypeVar("_Buffer", DeviceBuffer, PinnedBuffer)


class GrowingBuffer(Generic[_Buffer]):
    """A buffer that is replaced by a larger one when a larger frame comes."""

    def __init__(self, api: CudaApi, stream: CudaStream, kind: type[_Buffer]) -> None:
        self._api, self._stream = api, stream
        self._kind: type[_Buffer] = kind
        self._buffer: _Buffer | None = None

    def reserve(self, byte_count: int) -> _Buffer:
        """Return a buffer of at least that size; an earlier smaller one is released when the stream has passed its last use."""
        if self._buffer is None or self._buffer.byte_count < byte_count:
            if self._buffer is not None:
                self._stream.synchronize()
            self.close()
            self._buffer = self._kind(self._api, byte_count)
        return self._buffer

    def close(self) -> None:
        """Release it; :meth:`reserve` may follow."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()

    def __enter__(self) -> "GrowingBuffer[_Buffer]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class DownloadBuffer:
    """Outputs at frame resolution: where the kernel writes them and where they arrive on the host."""

    def __init__(self, api: CudaApi, stream: CudaStream) -> None:
        self._api, self._stream = api, stream
        self._device, self._host = GrowingBuffer(api, stream, DeviceBuffer), GrowingBuffer(api, stream, PinnedBuffer)
        self._byte_count = 0

    def reserve(self, byte_count: int) -> int:
        """Return the device address for that many bytes."""
        self._byte_count = byte_count
        self._host.reserve(byte_count)
        return self._device.reserve(byte_count).handle

    def enqueue(self) -> None:
        """Queue the copy of all of it to the host."""
        host, device = self._host.reserve(self._byte_count), self._device.reserve(self._byte_count)
        self._api.copy_async(host.handle, device.handle, self._byte_count, "device_to_host", self._stream.handle)

    def host(self) -> npt.NDArray[np.uint8]:
        """Return the bytes on the host, valid until the next :meth:`reserve`; the download overwrites them."""
        return self._host.reserve(self._byte_count).array((self._byte_count,), np.uint8)

    def __enter__(self) -> "DownloadBuffer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._device.close()
        self._host.close()


def upload(values: npt.NDArray[np.float32], what: str, stream: CudaStream, owner: contextlib.ExitStack) -> DeviceBuffer:
    """Return device memory that holds an array and was read back: a copy may silently do nothing, and every later frame would rest on it.

    Args:
        values: What to upload, finite.
        what: What it is, for the error.
        stream: Where it is ordered; this waits for it.
        owner: Closes the memory.

    Raises:
        InferenceError: If CUDA fails or the array does not arrive.
    """
    api = stream.api
    buffer = owner.enter_context(DeviceBuffer(api, values.nbytes))
    with PinnedBuffer(api, values.nbytes) as staging:
        staged = staging.array(values.shape, np.float32)
        try:
            staged[...] = values
            api.copy_async(buffer.handle, staging.handle, values.nbytes, "host_to_device", stream.handle)
            stream.synchronize()
            staged[...] = np.nan
            api.copy_async(staging.handle, buffer.handle, values.nbytes, "device_to_host", stream.handle)
            stream.synchronize()
            has_arrived = np.array_equal(staged, values)
        finally:
            drain(stream)  # the staging memory may not go while a copy is on its way
    if not has_arrived:
        raise InferenceError(f"{what} did not arrive on the device; open the backend again")
    return buffer


def drain(stream: CudaStream) -> None:
    """Wait for a stream before what it uses is released, whatever state it is in."""
    with contextlib.suppress(InferenceError):  # what failed before fails again here; releasing must go on
        stream.synchronize()
