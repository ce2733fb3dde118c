"""What one thread needs to run an engine: a stream, a context, device buffers and a ring of pinned slots.

Order on the stream: image to the device, NaN over the outputs, the engine, outputs to a pinned slot, an event. The host touches a slot again only
after its event. Outputs start as NaN on the device and in the slot, so an engine or a copy that did not run cannot hand out an earlier answer.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.tensorrt.engine import Engine, EngineContext
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.resources import CudaEvent, CudaGraph, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import BackendError, InferenceError

logger = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

RING_SLOTS = 2
"""Pinned slots: the host fills one while the device works from the other."""
_NAN_BYTE = 0xFF  # four of them are a float32 NaN
_FLOAT_BYTES = 4


@dataclass(slots=True, eq=False)
class _Slot:
    """Pinned memory of one batch on its way."""

    image: PinnedBuffer
    anomaly_map: PinnedBuffer
    anomaly_score: PinnedBuffer
    done: CudaEvent
    targets: tuple[Floats, Floats] | None = None
    """Arrays of the caller that wait for this slot's outputs; None while the slot is free."""


@dataclass(slots=True)
class _GraphState:
    """Where the recording of the current batch size stands."""

    batch: int = 0
    runs: int = 0
    refused: bool = False
    graph: CudaGraph | None = field(default=None)

    def drop(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.graph = None
        self.runs = 0


class TensorRtContext:
    """One stream with everything on it; used by one thread, on one device, until :meth:`close`.

    Args:
        api: CUDA, with the context's device current on this thread in every call.
        engine: What runs.
        capture: Record the engine's work as a CUDA graph once a batch size has come twice in a row.
    """

    def __init__(self, api: CudaApi, engine: Engine, *, capture: bool = True) -> None:
        self._api = api
        _, self._height, self._width, _ = engine.input_shape
        self._smallest, self._largest = engine.batch_range
        pixels = self._largest * self._height * self._width
        with contextlib.ExitStack() as opened:
            self.stream = opened.enter_context(CudaStream(api))
            self.image = opened.enter_context(DeviceBuffer(api, 3 * pixels))
            self.anomaly_map = opened.enter_context(DeviceBuffer(api, _FLOAT_BYTES * pixels))
            self.anomaly_score = opened.enter_context(DeviceBuffer(api, _FLOAT_BYTES * self._largest))
            self._slots = [self._open_slot(opened, pixels) for _ in range(RING_SLOTS)]
            self._context: EngineContext = engine.create_context(self.stream.handle)
            opened.callback(self._context.close)
            self._context.set_addresses(self.image.handle, self.anomaly_map.handle, self.anomaly_score.handle)
            self._state = _GraphState(refused=not capture or self._context.captures_itself)
            opened.callback(self._state.drop)
            opened.callback(self.drain)  # first on close: nothing may be released while the device still uses it
            self._resources = opened.pop_all()

    @property
    def largest_batch(self) -> int:
        """Most images of one run: the most that the engine was built for."""
        return self._largest

    @property
    def has_graph(self) -> bool:
        """Whether runs of the current batch size replay a CUDA graph that this context recorded."""
        return self._state.graph is not None

    def infer(self, images: Images, anomaly_map: Floats, anomaly_score: Floats) -> None:
        """Run any number of images and return when the caller's arrays hold the answers.

        Args:
            images: (N, H, W, 3) uint8.
            anomaly_map: (N, 1, H, W), written.
            anomaly_score: (N,), written.

        Raises:
            InferenceError: If CUDA or the engine failed; the context must be closed.
        """
        count = len(images)
        for index, start in enumerate(range(0, count, self._largest)):
            slot = self._slots[index % RING_SLOTS]
            self._collect(slot)
            stop = min(start + self._largest, count)
            self._submit(slot, images[start:stop], anomaly_map[start:stop], anomaly_score[start:stop])
        for slot in self._slots:
            self._collect(slot)

    def run_on_device(self, count: int, bring_image: Callable[[int, CudaStream], None]) -> None:
        """Queue one run whose input is already on the device; outputs are in the context's own device buffers until the next run.

        Args:
            count: Images, at most the engine's largest batch.
            bring_image: Queues the copy into the buffer at the given address.
        """
        bring_image(self.image.handle, self.stream)
        self._execute(count)

    def close(self) -> None:
        """Wait for the device and release everything in reverse order; a second call does nothing."""
        for slot in self._slots:
            slot.targets = None
        self._resources.close()

    def drain(self) -> None:
        """Wait for the stream, whatever state it is in, before something that it uses is released."""
        try:
            self.stream.synchronize()
        except BackendError as failure:  # what failed before fails again here; releasing must go on
            logger.debug("the stream could not be drained: %s", failure)

    def _open_slot(self, opened: contextlib.ExitStack, pixels: int) -> _Slot:
        api = self._api
        return _Slot(
            image=opened.enter_context(PinnedBuffer(api, 3 * pixels)),
            anomaly_map=opened.enter_context(PinnedBuffer(api, _FLOAT_BYTES * pixels)),
            anomaly_score=opened.enter_context(PinnedBuffer(api, _FLOAT_BYTES * self._largest)),
            done=opened.enter_context(CudaEvent(api)),
        )

    def _submit(self, slot: _Slot, images: Images, anomaly_map: Floats, anomaly_score: Floats) -> None:
        count = len(images)
        maps, scores = self._outputs(slot, count)
        slot.image.array(images.shape, np.uint8)[...] = images
        maps[...] = np.nan
        scores[...] = np.nan
        stream = self.stream.handle
        self._api.copy_async(self.image.handle, slot.image.handle, images.size, "host_to_device", stream)
        self._execute(count)
        self._api.copy_async(slot.anomaly_map.handle, self.anomaly_map.handle, maps.nbytes, "device_to_host", stream)
        self._api.copy_async(slot.anomaly_score.handle, self.anomaly_score.handle, scores.nbytes, "device_to_host", stream)
        slot.done.record(self.stream)
        slot.targets = (anomaly_map, anomaly_score)

    def _collect(self, slot: _Slot) -> None:
        if slot.targets is None:
            return
        slot.done.synchronize()
        (anomaly_map, anomaly_score), slot.targets = slot.targets, None
        anomaly_map[...], anomaly_score[...] = self._outputs(slot, len(anomaly_score))

    def _outputs(self, slot: _Slot, count: int) -> tuple[Floats, Floats]:
        return slot.anomaly_map.array((count, 1, self._height, self._width), np.float32), slot.anomaly_score.array((count,), np.float32)

    def _execute(self, count: int) -> None:
        if not self._smallest <= count <= self._largest:
            raise InferenceError(f"the engine takes batches of {self._smallest} to {self._largest}, got {count}; build it for this batch: --batch")
        if count != self._state.batch:
            self.stream.synchronize()  # the context must not change under work that is under way
            self._state.drop()
            self._context.set_batch(count)
            self._state.batch = count
        pixels, stream = count * self._height * self._width, self.stream.handle
        self._api.fill_async(self.anomaly_map.handle, _NAN_BYTE, _FLOAT_BYTES * pixels, stream)
        self._api.fill_async(self.anomaly_score.handle, _NAN_BYTE, _FLOAT_BYTES * count, stream)
        if self._state.graph is None and self._state.runs > 0 and not self._state.refused:
            self._state.graph = self._record()
        if self._state.graph is not None:
            self._state.graph.launch(self.stream)
            return
        self._enqueue()
        if self._state.runs == 0:
            self.stream.synchronize()  # what the library does lazily on a first run must not fall into a recording
        self._state.runs += 1

    def _enqueue(self) -> None:
        if not self._context.enqueue(self.stream.handle):
            raise InferenceError("the library refused to run the engine; its reason is in the log; the backend must be closed and opened again")

    def _record(self) -> CudaGraph | None:
        """Return one enqueue as a graph; None if the library or CUDA refuses, and then it is not tried again.

        Nothing is raised between begin and end: the stream would stay in capture. A refused enqueue records an empty graph, which would run nothing
        for ever, so its answer decides and not that of the capture.
        """
        stream = self.stream.handle
        self.stream.synchronize()
        try:
            self._api.begin_capture(stream)
            accepted = self._context.enqueue(stream)
            graph = CudaGraph(self._api, self._api.end_capture(stream))
        except BackendError as failure:
            logger.debug("no CUDA graph, the engine is enqueued each time: %s", failure)
            self._state.refused = True
            return None
        if accepted:
            return graph
        graph.close()
        logger.debug("no CUDA graph, the engine is enqueued each time: the library refused to be captured")
        self._state.refused = True
        return None
