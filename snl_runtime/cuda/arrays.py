"""Frames that lie on a GPU already: pycuda, CuPy, torch and Numba through ``__cuda_array_interface__`` (version 2 or 3) or DLPack."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda import dlpack
from snl_runtime.cuda.api import CudaApi, device_scope
from snl_runtime.cuda.resources import CudaEvent, CudaStream, PinnedBuffer
from snl_runtime.errors import FrameError

_INTERFACE = "__cuda_array_interface__"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DeviceView:
    """Somebody else's dense array in device memory, valid inside the block that gave it.

    Attributes:
        address: Of the first element.
        shape: Sizes.
        dtype: Type of an element.
        producer_stream: Stream whose earlier work must be done before the array is read; None if it is.
        owner: Whose memory it is; referenced here for as long as the view is.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    producer_stream: int | None
    owner: object

    @property
    def byte_count(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_device_array(value: object) -> bool:
    """Return whether an object is an array on a GPU; arrays on the host, whatever they are made of, are not."""
    if isinstance(value, np.ndarray):
        return False
    try:
        if isinstance(getattr(value, _INTERFACE, None), Mapping):
            return True
        where = getattr(value, "__dlpack_device__", None)
        return callable(where) and int(where()[0]) == dlpack.DEVICE_CUDA
    except Exception:  # noqa: BLE001 - any object may be asked; one that fails to answer is no array
        return False


@contextlib.contextmanager
def view_of(value: object, *, stream: int) -> Iterator[DeviceView]:
    """Lend the memory of a device array to work on ``stream``.

    The producer's memory is held until the block ends, so end it only when the stream, or an event on it, has passed the last use.

    Args:
        value: CuPy array, torch tensor, pycuda ``GPUArray`` or the like, dense in C order, on the current device.
        stream: Where it will be read; a DLPack producer orders its own work before it, for the others see ``producer_stream``.

    Raises:
        FrameError: If it is no such array; the message says what is wrong with it.
    """
    view, release = _import_array(value, stream)
    try:
        yield view
    finally:
        release()


def _import_array(value: object, stream: int) -> tuple[DeviceView, Callable[[], None]]:
    kind = type(value).__name__
    try:
        interface = getattr(value, _INTERFACE, None)
        if interface is not None:
            return _from_interface(value, interface, kind), _nothing
        imported = dlpack.take_capsule(value.__dlpack__(stream=stream))  # type: ignore[attr-defined]
        try:
            return _from_capsule(value, imported, kind), imported.release
        except BaseException:
            imported.release()
            raise
    except FrameError:
        raise
    except Exception as failure:  # whatever a foreign object raises
        raise FrameError(f"the {kind} cannot be read as a device array ({type(failure).__name__}: {failure})") from failure


def _nothing() -> None:
    """Release nothing: the view's owner is kept by reference alone."""


def wait_for_producer(api: CudaApi, view: DeviceView, stream: CudaStream) -> None:
    """Let ``stream`` wait for what the producer still has under way; the calling thread does not wait."""
    if view.producer_stream is None:
        return
    with CudaEvent(api) as event:  # CUDA keeps a destroyed event until the streams have passed it
        api.record_event(event.handle, view.producer_stream)
        api.wait_event(stream.handle, event.handle)


class DeviceFrameReader:
    """Brings frames that lie on a GPU to the host, for everything that works there. Any thread may use it.

    Args:
        device: Index of the GPU that the frames are on.
        find_cuda: Returns CUDA at the first device frame; nothing is loaded before.
    """

    def __init__(self, device: int = 0, *, find_cuda: Callable[[], CudaApi] | None = None) -> None:
        self._device = device
        self._find_cuda = find_cuda or cuda_api.load_cuda
        self._lock = threading.Lock()
        self._api: CudaApi | None = None
        self._opened = contextlib.ExitStack()
        self._stream: CudaStream | None = None
        self._host: PinnedBuffer | None = None

    def read(self, frame: object) -> object:
        """Return a device array as a NumPy array, and everything else as it is.

        Raises:
            FrameError: If the device array cannot be used.
            BackendError: If CUDA is missing or fails.
        """
        if not is_device_array(frame):
            return frame
        with self._lock:
            self._api = self._api or self._find_cuda()
            with device_scope(self._api, self._device):
                self._stream = self._stream or CudaStream(self._api)
                return self._copy(self._api, self._stream, frame)

    def close(self) -> None:
        """Release what was needed for copying; a second call does nothing."""
        with self._lock, contextlib.ExitStack() as closing:
            for resource in (self._stream, self._host):
                if resource is not None:
                    closing.callback(resource.close)
            self._stream = self._host = None

    def _copy(self, api: CudaApi, stream: CudaStream, frame: object) -> npt.NDArray[Any]:
        with view_of(frame, stream=stream.handle) as view:
            if view.byte_count == 0:
                raise FrameError(f"the frame has shape {view.shape}, expected an image")
            host = self._reserve(api, view.byte_count)
            wait_for_producer(api, view, stream)
            api.copy_async(host.handle, view.address, view.byte_count, "device_to_host", stream.handle)
            stream.synchronize()  # inside the block: the producer's memory is held until the copy is done
            return np.array(host.array(view.shape, view.dtype))

    def _reserve(self, api: CudaApi, byte_count: int) -> PinnedBuffer:
        if self._host is None or self._host.byte_count < byte_count:
            if self._host is not None:
                self._host.close()
                self._host = None
            self._host = PinnedBuffer(api, byte_count)
        return self._host


def _from_interface(value: object, interface: Mapping[str, Any], kind: str) -> DeviceView:
    shape = tuple(int(size) for size in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    address = int(interface["data"][0])
    if interface.get("mask") is not None:
        raise FrameError(f"the {kind} has a mask; hand over a plain array")
    strides = interface.get("strides")
    _check_dense(shape, None if strides is None else tuple(int(step) for step in strides), dtype.itemsize, kind)
    stream = interface.get("stream")
    if stream == 0:  # forbidden by the standard: it could mean either default stream
        raise FrameError(f"the {kind} names stream 0 in {_INTERFACE}, which is ambiguous; it must name 1, 2 or a stream of its own")
    if not address and math.prod(shape) > 0:
        raise FrameError(f"the {kind} has no memory behind it (address 0)")
    return DeviceView(address=address, shape=shape, dtype=dtype, producer_stream=None if stream is None else int(stream), owner=value)


def _from_capsule(value: object, imported: dlpack.ImportedTensor, kind: str) -> DeviceView:
    if imported.device_type != dlpack.DEVICE_CUDA:
        raise FrameError(f"the {kind} lies on a device of DLPack type {imported.device_type}, expected CUDA ({dlpack.DEVICE_CUDA})")
    strides = None if imported.strides is None else tuple(step * imported.dtype.itemsize for step in imported.strides)
    _check_dense(imported.shape, strides, imported.dtype.itemsize, kind)
    return DeviceView(address=imported.address, shape=imported.shape, dtype=imported.dtype, producer_stream=None, owner=value)


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, item_bytes: int, kind: str) -> None:
    if strides is None or 0 in shape:
        return
    expected = item_bytes
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and step != expected:
            raise FrameError(f"the {kind} of shape {shape} has strides {strides}, expected a dense array in C order; make it contiguous first")
        expected *= size
