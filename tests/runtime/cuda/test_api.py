"""Every status of CUDA becomes a typed error that names it, and nothing that was acquired outlives a failure."""

import contextlib
import ctypes
import inspect
import subprocess
import sys

import numpy as np
import pytest

from snl_runtime.cuda.api import CudaApi, describe_device, device_scope, load_cuda
from snl_runtime.cuda.resources import CudaEvent, CudaGraph, CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import BackendUnavailableError, InferenceError

METHODS = [name for name, _ in inspect.getmembers(CudaApi, inspect.isfunction) if not name.startswith("_")]
NO_GPU = {"cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInvalidDevice", "cudaErrorInitializationError"}


@pytest.fixture(scope="module")
def bindings():
    return pytest.importorskip("cuda.bindings.runtime", reason="needs the package cuda-bindings")


@pytest.fixture(scope="module")
def without_gpu(bindings):
    if int(bindings.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has a GPU")


def test_fake_cuda_has_every_method_of_the_real_one_with_its_parameters(gpu):
    for name in METHODS:
        expected = inspect.signature(getattr(CudaApi, name)).parameters
        assert list(inspect.signature(getattr(gpu.FakeCuda, name)).parameters) == list(expected), name


ARGUMENTS = {
    "describe": (0,),
    "set_device": (0,),
    "allocate": (16,),
    "allocate_pinned": (16,),
    "load_module": (b"no code",),
    "create_stream": (),
    "create_event": (),
    "device_count": (),
    "current_device": (),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_without_a_driver_every_entry_says_that_cuda_is_not_usable(without_gpu, name):
    with pytest.raises(BackendUnavailableError, match="install an NVIDIA driver, or run x.onnx on the CPU"):
        getattr(load_cuda(), name)(*ARGUMENTS[name])


def test_every_status_is_a_typed_error_with_its_name(bindings):
    api = CudaApi()
    for status in bindings.cudaError_t:
        if int(status) == 0:
            api._check("cudaMalloc", status)
            continue
        with pytest.raises((InferenceError, BackendUnavailableError), match=f"cudaMalloc gave {status.name} ") as caught:
            api._check("cudaMalloc", status)
        if status.name in NO_GPU:
            assert caught.type is BackendUnavailableError
    with pytest.raises(InferenceError, match="cudaErrorMemoryAllocation"):
        api._check("cudaMalloc", bindings.cudaError_t.cudaErrorMemoryAllocation)


def test_missing_package_names_the_extra(monkeypatch):
    from snl_runtime.cuda import api as cuda_api

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    cuda_api._load_bindings.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match=r"pip install 'snl-edge\[gpu\]'"):
            load_cuda()
    finally:
        cuda_api._load_bindings.cache_clear()


def test_import_touches_no_cuda_package():
    program = (
        "import sys, snl_runtime.cuda.api, snl_runtime.cuda.resources, snl_runtime.backends.tensorrt.backend, snl_runtime.cuda.arrays;"
        "print([name for name in sys.modules if name.split('.')[0] in ('cuda', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'cupy', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_no_call_that_a_guest_in_the_process_must_not_make():
    from snl_runtime.cuda import api as cuda_api

    source = inspect.getsource(cuda_api) + inspect.getsource(sys.modules["snl_runtime.cuda.resources"])
    for forbidden in ("cuCtxCreate", "cudaDeviceReset", "cudaSetDeviceFlags", "cuCtxDestroy", "cuDevicePrimaryCtxReset"):
        assert forbidden not in source


def test_description_of_a_device_that_is_not_there_names_those_that_are(cuda, gpu):
    cuda.devices = [gpu.GPU, gpu.GPU]
    assert describe_device(1, cuda) == gpu.GPU
    with pytest.raises(BackendUnavailableError, match="no CUDA device 2 here; use one of cuda:0, cuda:1"):
        describe_device(2, cuda)


def test_callers_device_comes_back_whatever_happens(cuda, gpu):
    cuda.devices = [gpu.GPU, gpu.GPU]
    with pytest.raises(InferenceError, match="on device 1"), device_scope(cuda, 1):
        fail(f"on device {cuda.current_device()}")
    assert cuda.current_device() == 0


def fail(words):
    raise InferenceError(words)


KINDS = {
    "stream": CudaStream,
    "event": CudaEvent,
    "buffer": lambda api: DeviceBuffer(api, 64),
    "pinned": lambda api: PinnedBuffer(api, 64),
    "module": lambda api: CudaModule(api, b"code"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resource_is_released_once_on_its_own_device_and_refused_afterwards(cuda, gpu, kind):
    cuda.devices = [gpu.GPU, gpu.GPU]
    with device_scope(cuda, 1):
        resource = KINDS[kind](cuda)
    assert list(cuda.leaks.values()) == [1]
    resource.close()
    resource.close()
    assert cuda.leaks == {}
    assert cuda.current_device() == 0
    assert resource.is_closed
    with pytest.raises(InferenceError, match="was used after it was released"):
        _ = resource.handle


@pytest.mark.parametrize("failing", range(6))
def test_nothing_is_left_when_any_of_several_acquisitions_fails(cuda, failing):
    calls = ("create_stream", "allocate", "allocate_pinned", "create_event", "load_module")
    if failing < len(calls):
        cuda.failing[calls[failing]] = 0
    expectation = pytest.raises(InferenceError, match="told to fail") if failing < len(calls) else contextlib.nullcontext()
    with expectation, contextlib.ExitStack() as opened:
        for make in (KINDS[kind] for kind in ("stream", "buffer", "pinned", "event", "module")):
            opened.enter_context(make(cuda))
    assert cuda.leaks == {}
    released = [call for call in cuda.calls if call in ("unload_module", "destroy_event", "free_pinned", "free", "destroy_stream")]
    order = ["unload_module", "destroy_event", "free_pinned", "free", "destroy_stream"]
    assert released == order[5 - failing if failing < 5 else 0 :]


def test_forgotten_resource_warns_and_calls_nothing(cuda):
    stream = CudaStream(cuda)
    handle, before = stream.handle, len(cuda.calls)
    with pytest.warns(ResourceWarning, match="CudaStream was never released"):
        stream.__del__()
    assert len(cuda.calls) == before
    assert handle in cuda.live["stream"]
    stream.close()


def test_pinned_array_is_a_view_of_the_buffer_and_fits_in_it(cuda):
    with PinnedBuffer(cuda, 24) as pinned:
        pinned.array((2, 3), np.float32)[...] = [[1, 2, 3], [4, 5, 6]]
        assert pinned.array((6,), np.float32).tolist() == [1, 2, 3, 4, 5, 6]
        with pytest.raises(InferenceError, match="24 bytes cannot hold float32"):
            pinned.array((7,), np.float32)


def test_copies_and_kernels_run_in_the_order_of_their_stream(cuda):
    seen = []
    cuda.kernels["double"] = lambda grid, block, address, count, factor: seen.append(
        (grid, block, cuda.view(address, count, "device").tolist(), factor)
    )
    with CudaStream(cuda) as stream, DeviceBuffer(cuda, 4) as device, PinnedBuffer(cuda, 4) as host, CudaModule(cuda, b"code") as module:
        host.array((4,), np.uint8)[...] = [1, 2, 3, 4]
        cuda.copy_async(device.handle, host.handle, 4, "host_to_device", stream.handle)
        arguments = [ctypes.c_void_p(device.handle), ctypes.c_int32(4), ctypes.c_float(2.0)]
        module.launch("double", grid=(1, 1, 1), block=(4, 1, 1), stream=stream, arguments=arguments)
        assert seen == []
        stream.synchronize()
    assert seen == [((1, 1, 1), (4, 1, 1), [1, 2, 3, 4], 2.0)]


def test_recorded_work_runs_at_each_launch_and_not_while_it_is_recorded(cuda):
    with CudaStream(cuda) as stream, DeviceBuffer(cuda, 1) as device:
        cuda.begin_capture(stream.handle)
        cuda.fill_async(device.handle, 7, 1, stream.handle)
        with CudaGraph(cuda, cuda.end_capture(stream.handle)) as graph:
            stream.synchronize()
            assert cuda.view(device.handle, 1, "device")[0] == 0x5A
            graph.launch(stream)
            graph.launch(stream)
            stream.synchronize()
        assert cuda.ran == ["fill", "fill"]


def test_event_is_reached_when_its_stream_has_passed_it(cuda):
    with CudaStream(cuda) as stream, DeviceBuffer(cuda, 1) as device, CudaEvent(cuda) as event:
        cuda.fill_async(device.handle, 1, 1, stream.handle)
        event.record(stream)
        cuda.fill_async(device.handle, 2, 1, stream.handle)
        assert not event.is_reached
        event.synchronize()
        assert event.is_reached
        assert cuda.view(device.handle, 1, "device")[0] == 1
        stream.synchronize()
