"""Arrays of other packages come in from the GPU with their stream and owner respected."""

import gc
import weakref

import numpy as np
import pytest

from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.cuda import dlpack
from snl_runtime.cuda.arrays import DeviceFrameReader, is_device_array, view_of
from snl_runtime.cuda.resources import CudaStream, DeviceBuffer
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import FrameError, InferenceError
from snl_runtime.types import Verdict


class CupyLike:
    """What CuPy, pycuda's GPUArray and torch show: memory on the fake GPU behind ``__cuda_array_interface__``."""

    def __init__(self, cuda, array, *, stream=None, pending=None, **changes):
        self.buffer = DeviceBuffer(cuda, max(array.nbytes, 1))
        self.cuda = cuda

        def write():
            cuda.view(self.buffer.handle, array.nbytes, "device")[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        if pending is None:
            write()
        else:  # still being computed on the producer's stream
            cuda.push(pending, write)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.buffer.handle, False),
            "strides": None,
            "version": 3,
            "stream": stream,
            **changes,
        }

    def close(self):
        self.buffer.close()


class DlpackLike(CupyLike):
    """The same behind DLPack."""

    make_capsule = None

    def __init__(self, cuda, array, *, device_type=dlpack.DEVICE_CUDA, **options):
        super().__init__(cuda, array, **options)
        del self.__cuda_array_interface__
        self.array, self.device_type, self.asked, self.released = array, device_type, [], 0

    def __dlpack_device__(self):
        return self.device_type, 0

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)

        def release():
            self.released += 1

        return self.make_capsule(self.buffer.handle, self.array.shape, self.array.dtype, device_type=self.device_type, device=0, release=release)


@pytest.fixture
def make(cuda, dlpack_producer):
    made = []
    DlpackLike.make_capsule = staticmethod(dlpack_producer.make_capsule)

    def make_it(kind, array, **options):
        made.append(kind(cuda, array, **options))
        return made[-1]

    yield make_it
    for array in made:
        array.close()


@pytest.fixture
def reader(cuda):
    reader = DeviceFrameReader(find_cuda=lambda: cuda)
    yield reader
    reader.close()
    assert cuda.live["stream"] == {}
    assert cuda.live["pinned"] == {}


FRAME = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "value", [FRAME, None, "text", 3, [FRAME], object(), FRAME[:, :, 0].astype(np.uint16)], ids=lambda value: type(value).__name__
)
def test_what_is_on_the_host_is_no_device_array_and_passes_through_untouched(cuda, value):
    reader = DeviceFrameReader(find_cuda=lambda: pytest.fail("CUDA was loaded for a host frame"))
    assert not is_device_array(value)
    assert reader.read(value) is value


def test_object_that_fails_when_asked_is_no_device_array():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert not is_device_array(Hostile())


@pytest.mark.parametrize("kind", [CupyLike, DlpackLike])
@pytest.mark.parametrize("array", [FRAME, FRAME.astype(np.uint16) * 257, FRAME[:, :, 0]], ids=["rgb", "16 bit", "gray"])
def test_frame_on_the_gpu_is_read_as_it_is(reader, make, kind, array):
    frame = make(kind, np.ascontiguousarray(array))
    assert is_device_array(frame)
    read = reader.read(frame)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_frame_that_is_still_being_computed_is_waited_for(cuda, reader, make):
    with CudaStream(cuda) as producer:
        frame = make(CupyLike, FRAME, stream=producer.handle, pending=producer.handle)
        assert np.array_equal(reader.read(frame), FRAME)
        assert "wait" in cuda.ran


def test_dlpack_producer_is_told_our_stream_and_released_after_the_copy(cuda, reader, make):
    frame = make(DlpackLike, FRAME)
    reader.read(frame)
    assert frame.asked == list(cuda.live["stream"])
    assert frame.released == 1
    assert cuda.ran[-1] == "device_to_host"


def test_owner_is_referenced_until_the_view_ends(cuda, make):
    frame = CupyLike(cuda, FRAME)
    alive = weakref.ref(frame)
    buffer = frame.buffer
    imported = view_of(frame, stream=1)
    del frame
    with imported as view:
        gc.collect()
        assert alive() is view.owner
    buffer.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": (30, 3, 1)}, r"strides \(30, 3, 1\), expected a dense array in C order"),
        ({"strides": (15, 3, -1)}, "expected a dense array"),
        ({"mask": object()}, "has a mask"),
        ({"stream": 0}, "stream 0"),
        ({"data": (0, False)}, "no memory behind it"),
        ({"typestr": "nonsense"}, "cannot be read as a device array"),
        ({"shape": None}, "cannot be read as a device array"),
        ({"data": None}, "cannot be read as a device array"),
        ({"shape": (0, 5, 3)}, r"shape \(0, 5, 3\), expected an image"),
    ],
)
def test_device_array_that_cannot_be_used_is_a_frame_error(reader, make, changes, words):
    with pytest.raises(FrameError, match=words):
        reader.read(make(CupyLike, FRAME, **changes))


def test_strides_of_a_dense_array_are_fine_also_where_a_size_is_one(reader, make):
    assert np.array_equal(reader.read(make(CupyLike, FRAME, strides=(15, 3, 1))), FRAME)
    assert np.array_equal(reader.read(make(CupyLike, FRAME[:1], strides=(999, 3, 1))), FRAME[:1])


def test_failing_copy_is_a_backend_error_and_the_producer_is_released(cuda, reader, make):
    frame = make(DlpackLike, FRAME)
    cuda.failing["copy_async"] = 0
    with pytest.raises(InferenceError, match="copy_async"):
        reader.read(frame)
    assert frame.released == 1
    cuda.failing.clear()
    assert np.array_equal(reader.read(frame), FRAME)


# ---- capsules, against the implementations of NumPy and torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.int64])
def test_capsule_of_numpy_is_understood(dtype):
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    imported = dlpack.take_capsule(array.__dlpack__())
    assert (imported.address, imported.shape, imported.dtype, imported.device_type) == (array.ctypes.data, (3, 4), np.dtype(dtype), dlpack.DEVICE_CPU)
    assert imported.strides in (None, (4, 1))
    imported.release()


def test_capsule_can_be_taken_once():
    capsule = np.zeros(3).__dlpack__()
    dlpack.take_capsule(capsule).release()
    with pytest.raises(ValueError, match="used before"):
        dlpack.take_capsule(capsule)


# ---- in the detector ---------------------------------------------------------------------------------------------------------


def test_detector_gives_the_same_verdict_for_a_frame_on_the_gpu(write_engine, cuda, library, make, model_fixtures, monkeypatch):
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    path = write_engine()
    with SnlDetector(path, backend=TensorRtBackend(path, cuda=cuda, find_library=lambda name: library)) as detector:
        for frame, verdict in ((model_fixtures.good_frame(120), Verdict.PASS), (model_fixtures.bad_frame(120), Verdict.REJECT)):
            on_host, on_gpu = detector.detect(frame), detector.detect(make(CupyLike, frame))
            assert on_host.verdict is on_gpu.verdict is verdict
            assert on_host.score == on_gpu.score
            assert on_host.roi_xyxy == on_gpu.roi_xyxy
        broken = detector.detect(make(CupyLike, frame, strides=(1, 1, 1)))
        assert (broken.verdict, broken.reason_code) == (Verdict.ERROR, "frame_unusable")


def test_frame_on_a_gpu_is_unusable_for_a_backend_on_the_host_and_says_what_to_do(model_fixtures, cuda, make, tmp_path):
    pytest.importorskip("onnxruntime")
    with SnlDetector(model_fixtures.ModelFolder(tmp_path).write(), backend="onnxruntime") as detector:
        result = detector.detect(make(CupyLike, model_fixtures.good_frame(120)))
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "frame_unusable")
        assert "copy it there first" in result.reason
        assert "device='cuda'" in result.reason
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
