"""A GPU in NumPy behind the SDK's own protocols: memory, streams in order, events, capture, kernels, and a TensorRT that runs a Python function.

Nothing on a stream runs before somebody waits for it, so code that reads too early reads the wrong bytes. Every address is checked for being alive,
on the right side and large enough when the work runs, every handle for belonging to the thread's current device. A call can be told to fail.
"""

import itertools
import threading
from collections import Counter

import numpy as np

from snl_runtime.cuda.api import DeviceDescription
from snl_runtime.errors import BackendUnavailableError, InferenceError

GPU = DeviceDescription(name="Fake RTX 4070", compute_capability=89, driver_version="12.8")
LEGACY_STREAM = 1


class FakeCuda:
    """``CudaApi`` without a GPU.

    Args:
        devices: What is there.

    Attributes:
        live: kind -> {handle: device} of everything not released.
        calls: Name of every call made, in order.
        ran: What has run on the device, in order.
        failing: Call name -> how many more times it works before it fails.
        kernels: Name -> function called with (grid, block, *argument values) in stream order.
    """

    def __init__(self, devices=(GPU,)):
        self.devices = list(devices)
        self.live = {kind: {} for kind in ("stream", "device", "pinned", "event", "graph", "module")}
        self.calls, self.ran = [], []
        self.failing = {}
        self.kernels = {}
        self._memory = {}
        self.queues, self.recordings, self._graphs, self._events = {LEGACY_STREAM: []}, {}, {}, {}
        self._handles = itertools.count(1000)
        self._current = threading.local()
        self._lock = threading.RLock()

    @property
    def leaks(self):
        return {kind: len(handles) for kind, handles in self.live.items() if handles}

    def _called(self, name):
        with self._lock:
            self.calls.append(name)
            if name in self.failing:
                self.failing[name] -= 1
                if self.failing[name] < 0:
                    raise InferenceError(f"{name} gave cudaErrorFake (told to fail); the backend must be closed and opened again")

    # devices

    def device_count(self):
        self._called("device_count")
        if not self.devices:
            raise BackendUnavailableError("there is no CUDA device here")
        return len(self.devices)

    def describe(self, device):
        self._called("describe")
        return self.devices[device]

    def current_device(self):
        return getattr(self._current, "device", 0)

    def set_device(self, device):
        self._called("set_device")
        assert 0 <= device < len(self.devices)
        self._current.device = device

    def free_bytes(self):
        self._called("free_bytes")
        mine = [handle for handle, device in self.live["device"].items() if device == self.current_device()]
        return (8 << 30) - sum(self._memory[handle].nbytes for handle in mine)

    # handles

    def _make(self, kind, handle=None):
        with self._lock:
            handle = next(self._handles) if handle is None else handle
            self.live[kind][handle] = self.current_device()
            return handle

    def _release(self, kind, handle):
        with self._lock:
            self._own(kind, handle)
            del self.live[kind][handle]

    def _own(self, kind, handle):
        assert handle in self.live[kind], f"{kind} {handle} is not alive"
        assert self.live[kind][handle] == self.current_device(), f"{kind} {handle} belongs to another device"

    def create_stream(self):
        self._called("create_stream")
        stream = self._make("stream")
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream):
        self._release("stream", stream)
        assert not self.queues.pop(stream), "a stream was destroyed with work on it"
        self._called("destroy_stream")

    def synchronize_stream(self, stream):
        self._own("stream", stream)
        try:
            self._called("synchronize_stream")
        except InferenceError:
            self.queues[stream].clear()  # a device that failed does none of the work that was left
            raise
        if stream in self.recordings:
            raise InferenceError("cudaStreamSynchronize gave cudaErrorStreamCaptureUnsupported")
        self._drain(stream)

    def _drain(self, stream, last=None):
        with self._lock:
            queue = self.queues[stream]
            while queue:
                work = queue.pop(0)
                work()
                if last is not None and work is last:
                    return

    def push(self, stream, work):
        """Put a function on a stream: into its recording if it is captured, else into its queue."""
        with self._lock:
            if stream != LEGACY_STREAM:
                self._own("stream", stream)
            self.recordings.get(stream, self.queues[stream]).append(work)

    # memory

    def allocate(self, byte_count):
        self._called("allocate")
        return self._allocate("device", byte_count)

    def free(self, address):
        self._release("device", address)
        del self._memory[address]
        self._called("free")

    def allocate_pinned(self, byte_count):
        self._called("allocate_pinned")
        return self._allocate("pinned", byte_count)

    def free_pinned(self, address):
        self._release("pinned", address)
        del self._memory[address]
        self._called("free_pinned")

    def _allocate(self, kind, byte_count):
        memory = np.full(byte_count, 0x5A, np.uint8)  # whatever was there before
        address = memory.ctypes.data
        self._memory[address] = memory
        return self._make(kind, address)

    def view(self, address, byte_count, kind):
        """The bytes at an address, which must be alive and of that kind now."""
        for start, memory in self._memory.items():
            if start <= address and address + byte_count <= start + memory.size:
                assert start in self.live[kind], f"expected {kind} memory"
                return memory[address - start : address - start + byte_count]
        raise AssertionError(f"{byte_count} bytes at {address} are not inside one living allocation")

    def copy_async(self, destination, source, byte_count, kind, stream):
        self._called("copy_async")
        sides = {"host": "pinned", "device": "device"}
        before, after = (sides[side] for side in kind.split("_to_"))

        def work():
            self.ran.append(kind)
            self.view(destination, byte_count, after)[...] = self.view(source, byte_count, before)

        self.push(stream, work)

    def fill_async(self, address, value, byte_count, stream):
        self._called("fill_async")

        def work():
            self.ran.append("fill")
            self.view(address, byte_count, "device")[...] = value

        self.push(stream, work)

    # events

    def create_event(self):
        self._called("create_event")
        return self._make("event")

    def destroy_event(self, event):
        self._release("event", event)
        self._called("destroy_event")

    def record_event(self, event, stream):
        self._own("event", event)
        self._called("record_event")

        def mark():
            self.ran.append("event")
            if self._events[event][1] is mark:
                self._events[event] = (stream, None)

        self._events[event] = (stream, mark)
        self.push(stream, mark)

    def query_event(self, event):
        self._own("event", event)
        self._called("query_event")
        return self._events.get(event, (0, None))[1] is None

    def synchronize_event(self, event):
        self._own("event", event)
        self._called("synchronize_event")
        stream, mark = self._events.get(event, (0, None))
        if mark is not None:
            self._drain(stream, mark)

    def wait_event(self, stream, event):
        self._own("event", event)
        self._called("wait_event")
        other, mark = self._events.get(event, (0, None))

        def wait():
            self.ran.append("wait")
            if mark is not None and mark in self.queues[other]:
                self._drain(other, mark)

        self.push(stream, wait)

    # capture

    def begin_capture(self, stream):
        self._own("stream", stream)
        self._called("begin_capture")
        assert not self.queues[stream], "capture must begin on an idle stream"
        self.recordings[stream] = []

    def end_capture(self, stream):
        recording = self.recordings.pop(stream)
        self._called("end_capture")
        graph = self._make("graph")
        self._graphs[graph] = recording
        return graph

    def launch_graph(self, graph, stream):
        self._own("graph", graph)
        self._called("launch_graph")
        for work in self._graphs[graph]:
            self.push(stream, work)

    def destroy_graph(self, graph):
        self._release("graph", graph)
        self._called("destroy_graph")

    # kernels

    def load_module(self, image):
        self._called("load_module")
        return self._make("module")

    def find_kernel(self, module, name):
        self._own("module", module)
        self._called("find_kernel")
        if name not in self.kernels:
            raise InferenceError(f"cuLibraryGetKernel gave CUDA_ERROR_NOT_FOUND for {name}")
        return list(self.kernels).index(name)

    def unload_module(self, module):
        self._release("module", module)
        self._called("unload_module")

    def launch_kernel(self, kernel, *, grid, block, stream, arguments, shared_bytes=0):
        self._called("launch_kernel")
        values = [0 if argument.value is None else argument.value for argument in arguments]
        name = list(self.kernels)[kernel]

        def work():
            self.ran.append(name)
            self.kernels[name](grid, block, *values)

        self.push(stream, work)


class FakeLibrary:
    """``EngineLibrary`` whose engines run a Python function.

    Args:
        cuda: The fake GPU.
        answer: (N, H, W, 3) uint8 -> (N, H, W) float32 maps; the score is the maximum.
        size_hw: Network size.
        batches: Smallest and largest N.

    Attributes:
        refuse_capture: Answer False when enqueued on a captured stream, as TensorRT does.
        refuse_runs: Answer False to every run from this one on, None for never.
        stale: Accept and write nothing.
        contexts: Every context made, with what happened to it.
    """

    def __init__(self, cuda, answer, size_hw, *, batches=(1, 4), name="tensorrt", version="10.3.0", captures_itself=False):
        self.cuda, self.answer, self.size_hw, self.batches = cuda, answer, size_hw, batches
        self.name, self.version, self.captures_itself = name, version, captures_itself
        self.refuse_capture = self.stale = False
        self.refuse_runs = None
        self.contexts, self.engines = [], []
        self.failing = Counter()

    def load_engine(self, plan, *, file_name, cache_path):
        if self.failing["load_engine"]:
            raise InferenceError("load_engine was told to fail")
        self.engines.append(FakeEngine(self))
        return self.engines[-1]


class FakeEngine:
    def __init__(self, library):
        self.library = library
        smallest, largest = self.batch_range = library.batches
        self.input_shape = (smallest if smallest == largest else None, *library.size_hw, 3)
        self.closed = False

    def create_context(self, stream):
        assert not self.closed
        if self.library.failing["create_context"]:
            raise InferenceError("create_context was told to fail")
        context = FakeContext(self, stream)
        self.library.contexts.append(context)
        return context

    def close(self):
        assert all(context.closed for context in self.library.contexts if context.engine is self), "an engine was closed before its contexts"
        self.closed = True


class FakeContext:
    def __init__(self, engine, stream):
        self.engine, self.stream = engine, stream
        self.captures_itself = engine.library.captures_itself
        self.thread = threading.current_thread()
        self.batch, self.addresses, self.runs, self.closed = 0, None, 0, False

    def set_batch(self, count):
        if self.engine.library.failing["set_batch"]:
            raise InferenceError("set_batch was told to fail")
        assert not self.engine.library.cuda.queues[self.stream], "a context was changed under work that is under way"
        self.batch = count

    def set_addresses(self, image, anomaly_map, anomaly_score):
        if self.engine.library.failing["set_addresses"]:
            raise InferenceError("set_addresses was told to fail")
        self.addresses = (image, anomaly_map, anomaly_score)

    def enqueue(self, stream):
        library, cuda, count = self.engine.library, self.engine.library.cuda, self.batch
        assert stream == self.stream
        assert threading.current_thread() is self.thread, "a context was used by two threads"
        assert not self.closed
        self.runs += 1
        if library.refuse_capture and stream in cuda.recordings:
            return False
        if library.refuse_runs is not None and self.runs > library.refuse_runs:
            return False
        cuda.push(stream, lambda: self._run(count))
        return True

    def _run(self, count):
        library, cuda = self.engine.library, self.engine.library.cuda
        cuda.ran.append("engine")
        if library.stale:
            return
        height, width = library.size_hw
        image, anomaly_map, anomaly_score = self.addresses
        images = cuda.view(image, count * height * width * 3, "device").reshape(count, height, width, 3)
        maps = library.answer(images).astype(np.float32)
        cuda.view(anomaly_map, maps.nbytes, "device")[...] = maps.reshape(-1).view(np.uint8)
        cuda.view(anomaly_score, 4 * count, "device")[...] = maps.max(axis=(1, 2)).view(np.uint8)

    def close(self):
        self.closed = True
