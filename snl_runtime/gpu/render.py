"""Map -> frame resolution on the GPU: map, mask and overlay of a frame that is on the device, in one download."""

import contextlib
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.buffers import DownloadBuffer, upload
from snl_runtime.cuda.resources import CudaModule, CudaStream
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.kernels.launches import (
    DeviceFrame,
    FrameOutputs,
    frame_blocks,
    heat_values,
    launch_map_to_frame,
    mask_words,
    unpack_mask,
)
from snl_runtime.images.frame_outputs import Visualizations
from snl_runtime.types import OutputRequest

_COUNTER_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where in the buffer the wanted images of one frame lie, by name, then the counter. Every start is a multiple of 4."""

    frame_hw: tuple[int, int]
    images: dict[str, slice]
    counter: slice


class DeviceRenderer:
    """Brings a map to the size of its frame and downloads what is wanted of it. One frame at a time, on one thread.

    The last word of the download is a count of the blocks that ran, so that images of an earlier frame are never taken for those of this one.

    Args:
        api: CUDA, with the stream's device current in every call.
        kernels: Loaded kernels; outlive this object.
        stream: The engine's; outlives this object and is idle when it is closed.
        map_hw: Size of the engine's map.
    """

    def __init__(self, api: CudaApi, kernels: CudaModule, stream: CudaStream, map_hw: tuple[int, int]) -> None:
        self._api, self._kernels, self._stream, self._map_hw = api, kernels, stream, map_hw
        self._layout: _Layout | None = None
        with contextlib.ExitStack() as opened:
            self._heat = upload(heat_values(), "the color table of the overlay", stream, opened)
            self._download = opened.enter_context(DownloadBuffer(api, stream))
            self._resources = opened.pop_all()

    def enqueue(self, anomaly_map: int, *, frame: DeviceFrame, threshold: float, wanted: OutputRequest) -> None:
        """Queue what is wanted of a frame.

        Args:
            anomaly_map: Device address of its map.
            frame: The inspected part on the device.
            threshold: Of the mask, and what becomes yellow in the overlay.
            wanted: What to make, at least one.

        Raises:
            InferenceError: If CUDA fails.
        """
        self._layout = None  # until everything below is queued
        layout = _layout_of(frame.size_hw, wanted)
        start = self._download.reserve(layout.counter.stop)
        self._download.host()[layout.counter] = 0  # a copy that did not run then brought no image
        counter = start + layout.counter.start
        self._api.fill_async(counter, 0, _COUNTER_BYTES, self._stream.handle)
        launch_map_to_frame(
            self._kernels,
            anomaly_map=anomaly_map,
            map_hw=self._map_hw,
            size_hw=frame.size_hw,
            threshold=threshold,
            outputs=FrameOutputs(blocks_run=counter, **{name: start + part.start for name, part in layout.images.items()}),
            frame=frame,
            heat=self._heat.handle,
            stream=self._stream,
        )
        self._download.enqueue()
        self._layout = layout

    def take(self) -> Visualizations:
        """Return copies of what was queued last, once the stream has passed it.

        Raises:
            InferenceError: If nothing was queued, or the device did not write all of it.
        """
        layout, self._layout = self._layout, None
        if layout is None:
            raise InferenceError("there are no images on the device to take; queue some first")
        host = self._download.host()
        blocks, expected = int(host[layout.counter].view(np.uint32)[0]), frame_blocks(layout.frame_hw)
        if blocks != expected:
            raise InferenceError(f"the device drew {blocks} of {expected} parts of the images; open the backend again")
        height, width = layout.frame_hw
        drawn = {name: host[part] for name, part in layout.images.items()}
        return Visualizations(
            frame_map=drawn["frame_map"].view(np.float32).reshape(height, width).copy() if "frame_map" in drawn else None,
            mask=unpack_mask(drawn["mask"].view(np.uint32), layout.frame_hw) if "mask" in drawn else None,
            overlay=drawn["overlay"].reshape(height, width, 3).copy() if "overlay" in drawn else None,
        )

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "DeviceRenderer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _layout_of(frame_hw: tuple[int, int], wanted: OutputRequest) -> _Layout:
    height, width = frame_hw
    sizes = {"frame_map": 4 * height * width, "mask": 4 * mask_words(frame_hw), "overlay": 3 * height * width}
    images: dict[str, slice] = {}
    end = 0
    for name, size in sizes.items():
        if getattr(wanted, name):
            images[name] = slice(end, end + size)
            end += -(-size // 4) * 4
    return _Layout(frame_hw=frame_hw, images=images, counter=slice(end, end + _COUNTER_BYTES))
