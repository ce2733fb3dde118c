"""The detector on a GPU gives the verdicts of the detector on the host, from one upload, and no failure of any call makes it pass a part.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU; the engines are ONNX Runtime on the CPU, bound to the same memory, and
a TensorRT in NumPy.
"""

import contextlib
import ctypes
import functools
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from snl_runtime import cuda_api
from snl_runtime.backends import onnxruntime_backend
from snl_runtime.backends.base import DeviceBackend
from snl_runtime.backends.onnxruntime_lane import OnnxRuntimeLane
from snl_runtime.backends.tensorrt_backend import TensorRtBackend
from snl_runtime.cuda_resources import CudaModule, DeviceBuffer
from snl_runtime.detector import SnlDetector
from snl_runtime.device_arrays import OwnedDeviceArray
from snl_runtime.device_path import DevicePath
from snl_runtime.errors import BackendError, BackendUnavailableError, GoldenSampleError, InferenceError
from snl_runtime.kernels import KERNEL_NAMES
from snl_runtime.preprocess import resize
from snl_runtime.regions import find_regions
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict

ROI = (5, 9, 84, 70)
ENGINES = ("onnxruntime", "tensorrt")
HOST_LINE = "frames are prepared on the host"
# The input may differ by a grey level where a value lies on a tie, and the stub network passes on at most two of them.
SCORE_TOLERANCE = 2.0
plain_kernels = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


class Session:
    """ONNX Runtime on the CPU, run when the stream gets there; ``spoil`` gets the score and the map that it wrote."""

    spoil = staticmethod(lambda score, anomaly_map: None)

    def __init__(self, cuda, path, stream):
        self._cuda, self._stream = cuda, stream
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._bound = {}

    def io_binding(self):
        binding = self._session.io_binding()
        bind_output = binding.bind_output

        def remember(name, device_type, device_id, element_type, shape, address):
            self._bound[name] = (shape, address)
            bind_output(name, device_type, device_id, element_type, shape, address)

        binding.bind_output = remember
        return binding

    def run_with_iobinding(self, binding):
        def work():
            self._cuda.ran.append("engine")
            self._session.run_with_iobinding(binding)
            self.spoil(*(self._view(name) for name in ("anomaly_score", "anomaly_map")))

        self._cuda.push(self._stream, work)

    def _view(self, name):
        shape, address = self._bound[name]
        return self._cuda.view(address, 4 * int(np.prod(shape)), "device").view(np.float32).reshape(shape)


class CudaSession(onnxruntime.InferenceSession):
    """Says that it runs on a GPU."""

    def __init__(self, path, sess_options, providers):
        super().__init__(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def fake(kernels, make_gpu, monkeypatch, model_fixtures, gpu):
    """A GPU with working kernels, where ONNX Runtime and TensorRT find it."""
    cuda = make_gpu(kernels)
    size = model_fixtures.SIZE
    library = gpu.FakeLibrary(cuda, lambda images: model_fixtures._maps_of(images.tobytes()), (size, size))
    monkeypatch.setattr(cuda_api, "load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.device_path.load_kernels", lambda api: CudaModule(api, b"code"))
    monkeypatch.setattr("snl_runtime.backends.tensorrt_backend.open_library", lambda name: library)
    names = {name: getattr(onnxruntime, name) for name in ("SessionOptions", "ExecutionMode", "GraphOptimizationLevel")}
    provided = SimpleNamespace(InferenceSession=CudaSession, get_available_providers=lambda: ["CUDAExecutionProvider"], **names)
    monkeypatch.setattr(onnxruntime_backend, "_load_library", lambda: provided)
    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeLane", functools.partial(OnnxRuntimeLane, device_type="cpu"))
    monkeypatch.setattr(onnxruntime_backend, "open_cuda_session", lambda path, stream, device_index: Session(cuda, path, stream))
    monkeypatch.setattr(Session, "spoil", staticmethod(Session.spoil))  # put back after the test
    cuda.library = library
    return cuda


@pytest.fixture
def open_on(fake, tmp_path, model_fixtures, write_engine, monkeypatch):
    """Open the detector of the tiny model on ``host``, ``onnxruntime`` or ``tensorrt``; ``changes`` are those of its decision."""
    with contextlib.ExitStack() as opened:

        def open_detector(where, *, changes=None, **options):
            folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            write = model_fixtures.ModelFolder.write
            monkeypatch.setattr(model_fixtures.ModelFolder, "write", lambda self, **kwargs: write(self, decisions=changes, **kwargs))
            path = write_engine(folder=folder)
            monkeypatch.setattr(model_fixtures.ModelFolder, "write", write)
            if where == "tensorrt":
                return opened.enter_context(SnlDetector(path, **options))
            if where == "onnxruntime":
                return opened.enter_context(SnlDetector(path.with_suffix(".onnx"), device="cuda", **options))
            with monkeypatch.context() as real:
                real.setattr(onnxruntime_backend, "_load_library", lambda: onnxruntime)
                return opened.enter_context(SnlDetector(path.with_suffix(".onnx"), **options))

        yield open_detector
        fake.failing.clear()


@pytest.fixture
def on_gpu(fake):
    """Put an array into the GPU's memory; it is released after the test."""
    with contextlib.ExitStack() as opened:

        def put(array):
            array = np.ascontiguousarray(array)
            buffer = DeviceBuffer(fake, max(1, array.nbytes))
            fake.view(buffer.handle, array.nbytes, "device")[...] = array.reshape(-1).view(np.uint8)
            return opened.enter_context(OwnedDeviceArray(buffer, array.shape, array.dtype, device=0))

        yield put


@pytest.fixture(scope="session")
def frames(model_fixtures):
    """name -> (image, color): usable frames, then unusable ones."""
    good, bad = model_fixtures.good_frame(120), model_fixtures.bad_frame(120)
    odd_good, odd_bad = (resize(image, (77, 91)) for image in (good, bad))
    half = odd_good.copy()
    half[:, :45] = 0
    noise = np.random.default_rng(7).integers(0, 256, (33, 97, 3)).astype(np.uint8)
    return {
        "good": (good, "bgr"),
        "bad": (bad, "bgr"),
        "odd good": (odd_good, "bgr"),
        "odd bad": (odd_bad, "bgr"),
        "large": (np.kron(odd_bad, np.ones((3, 3, 1), np.uint8)), "bgr"),
        "rgb": (odd_good[:, :, ::-1], "rgb"),
        "gray": (odd_bad[:, :, 1], "gray"),
        "gray with an axis": (np.ascontiguousarray(odd_good[:, :, 1:2]), "gray"),
        "16 bits": (odd_bad.astype(np.uint16) * 257, "bgr"),
        "bgra": (np.dstack([odd_good, np.full((77, 91), 9, np.uint8)]), "bgra"),
        "rgba": (np.dstack([odd_bad[:, :, ::-1], np.full((77, 91), 9, np.uint8)]), "rgba"),
        "not contiguous": (np.asfortranarray(odd_good), "bgr"),
        "black": (np.zeros((77, 91, 3), np.uint8), "bgr"),
        "white": (np.full((77, 91, 3), 255, np.uint8), "bgr"),
        "half black": (half, "bgr"),
        "noise": (noise, "bgr"),
        "one pixel": (np.full((1, 1, 3), 99, np.uint8), "bgr"),
        "none": (None, "bgr"),
        "text": ("frame.png", "bgr"),
        "float": (odd_good.astype(np.float32), "bgr"),
        "empty": (np.zeros((0, 91, 3), np.uint8), "bgr"),
        "grey called colour": (odd_good[:, :, 0], "bgr"),
        "unknown colour": (odd_good, "yuv"),
    }


def cause(result):
    return result.verdict, result.reason_code, result.product


def assert_alike(result, expected):
    """The same verdict with the same evidence, as far as a grey level allows."""
    assert cause(result) == cause(expected)
    assert result.score == pytest.approx(expected.score, abs=SCORE_TOLERANCE, nan_ok=True)
    assert (result.threshold, result.reject_threshold, result.roi_xyxy) == (expected.threshold, expected.reject_threshold, expected.roi_xyxy)
    assert (result.anomaly_map is None) == (expected.anomaly_map is None)
    if expected.anomaly_map is not None:
        np.testing.assert_allclose(result.anomaly_map, expected.anomaly_map, atol=SCORE_TOLERANCE)
        assert result.regions == find_regions(result.anomaly_map, result.threshold, result.roi_xyxy)
    assert bool(result.regions) == bool(expected.regions)


# ---- the same answers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_kind_of_frame_gets_the_verdict_of_the_host(open_on, fake, frames, engine, roi, caplog):
    changes = [{"roi_xyxy": roi}]
    host, device = open_on("host", changes=changes), open_on(engine, changes=changes)
    verdicts = set()
    for name, (image, color) in frames.items():
        expected, result = host.detect(image, color=color), device.detect(image, color=color)
        verdicts.add(expected.verdict)
        try:
            assert_alike(result, expected)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {result.reason!r}, on the host {expected.reason!r}") from failure
    assert verdicts >= {Verdict.PASS, Verdict.ERROR} if roi else verdicts >= {Verdict.PASS, Verdict.REJECT, Verdict.ERROR}
    assert HOST_LINE not in caplog.text
    assert device._scorer.is_on_device


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_frame_of_the_networks_size_gives_what_the_host_gives(open_on, frames, engine):
    host, device = open_on("host"), open_on(engine)
    for name in ("good", "bad"):
        expected, result = host.detect(frames[name][0]), device.detect(frames[name][0])
        assert cause(result) == cause(expected)
        assert result.score == pytest.approx(expected.score, rel=1e-5)  # the engines sum in another order
        np.testing.assert_allclose(result.anomaly_map, expected.anomaly_map, atol=1e-4)
        assert [region.box_xyxy for region in result.regions] == [region.box_xyxy for region in expected.regions]


DECISIONS = {
    "review": {"pass_threshold": 5.0, "reject_threshold": 1e4, "floor": 2.0},
    "reject": {"pass_threshold": 2.5, "reject_threshold": 2.6, "floor": 2.0},
    "below the floor": {"pass_threshold": 900.0, "reject_threshold": 900.0, "floor": 800.0},
    "expired": {"expires_at": "2024-06-01T12:00:00+00:00"},
    "not fitted yet": {"fitted_at": "2999-06-01T12:00:00+00:00"},
    "another file": {"model_sha256": "d" * 64},
    "roi outside": {"roi_xyxy": (0, 0, 500, 500)},
}


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", DECISIONS)
def test_every_rule_of_a_decision_holds_on_the_device(open_on, frames, engine, case):
    host, device = (open_on(where, changes=[DECISIONS[case]]) for where in ("host", engine))
    expected = host.detect(frames["odd bad"][0])
    assert expected.verdict is not Verdict.PASS
    assert_alike(device.detect(frames["odd bad"][0]), expected)


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_range_of_the_device_is_that_of_the_host(open_on, frames, engine):
    from snl_runtime.manifest import FrameRange

    whole = {"mean": (0.0, 255.0), "deviation": (0.0, 255.0), "white_share": (0.0, 1.0), "black_share": (0.0, 1.0)}
    for name in whole:
        narrow = FrameRange(**{**whole, name: (0.9, 0.95)})
        changes = [{"frame_range": narrow}]
        host, device = open_on("host", changes=changes), open_on(engine, changes=changes)
        expected, result = (detector.detect(frames["odd good"][0]) for detector in (host, device))
        assert cause(result) == cause(expected) == (Verdict.ERROR, "frame_out_of_range", "bottle")


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_without_maps_everything_else_stays_the_same(open_on, fake, frames, engine):
    with_maps, without = open_on(engine), open_on(engine, keep_maps=False)
    for name in ("odd good", "odd bad", "black"):
        expected = with_maps.detect(frames[name][0])
        fake.ran.clear()
        result = without.detect(frames[name][0])
        assert fake.ran.count("device_to_host") == 3  # sums, report, score
        assert cause(result) == cause(expected)
        assert (result.score, result.regions, result.reason) == (expected.score, expected.regions, expected.reason)
        assert (result.anomaly_map, result.roi_xyxy) == (None, None)


# ---- what it costs ---------------------------------------------------------------------------------------------------------------------------


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_a_frame_costs_one_upload_of_its_inspected_part_and_no_allocation(open_on, fake, frames, engine, monkeypatch):
    detector = open_on(engine, changes=[{"roi_xyxy": ROI}])
    image = frames["odd good"][0]
    for _ in range(3):
        detector.detect(image)
    uploads, copy = [], fake.copy_async

    def watched(destination, source, byte_count, kind, stream):
        if kind == "host_to_device":
            uploads.append(byte_count)
        copy(destination, source, byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", watched)
    fake.calls.clear(), fake.ran.clear()
    for _ in range(4):
        assert detector.detect(image).verdict is Verdict.PASS
    assert uploads == [(ROI[2] - ROI[0]) * (ROI[3] - ROI[1]) * 3] * 4
    assert fake.ran.count("engine") == 4
    assert fake.calls.count("synchronize_stream") == 4
    assert fake.ran.count("device_to_host") == 4 * 4  # sums, report, score, map
    assert not {name for name in fake.calls if name.startswith(("allocate", "free", "create", "destroy", "load", "unload"))}


# ---- frames that lie on the GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_frame_on_the_gpu_is_inspected_where_it_lies(open_on, fake, frames, on_gpu, engine, roi):
    detector = open_on(engine, changes=[{"roi_xyxy": roi}])
    for name in ("odd good", "odd bad", "large", "rgb", "gray", "gray with an axis", "16 bits", "bgra", "black", "half black"):
        image, color = frames[name]
        expected, array = detector.detect(image, color=color), on_gpu(image)
        fake.ran.clear()
        result = detector.detect(array, color=color)
        assert "host_to_device" not in fake.ran
        assert cause(result) == cause(expected)
        assert (result.regions, result.roi_xyxy) == (expected.regions, expected.roi_xyxy)
        np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_unusable_frame_on_the_gpu_is_an_error_and_the_lane_goes_on(open_on, fake, frames, on_gpu, engine):
    detector = open_on(engine)
    good = frames["odd good"][0]
    streams = dict(fake.live["stream"])
    for broken in (good.astype(np.float32), good[:, :, :2], good[0], good[None], np.zeros((0, 5, 3), np.uint8)):
        result = detector.detect(on_gpu(broken))
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "frame_unusable")
    odd_address = SimpleNamespace(
        __cuda_array_interface__={"shape": (4, 4, 3), "typestr": "<u2", "data": (4097, False), "strides": None, "version": 3}
    )
    assert detector.detect(odd_address).reason_code == "frame_unusable"
    assert detector.detect(on_gpu(good)).verdict is Verdict.PASS
    assert fake.live["stream"] == streams  # nothing was opened again


@plain_kernels
def test_frame_on_the_gpu_is_fetched_where_the_host_prepares(open_on, fake, frames, on_gpu, monkeypatch):
    monkeypatch.setattr("snl_runtime.device_path.load_kernels", refuse_kernels)
    detector = open_on("tensorrt")
    for name, verdict in (("odd good", Verdict.PASS), ("odd bad", Verdict.REJECT)):
        assert detector.detect(on_gpu(frames[name][0])).verdict is verdict


# ---- falling back to the host ----------------------------------------------------------------------------------------------------------------


def refuse_kernels(api):
    raise BackendUnavailableError("compiling the kernels needs NVRTC")


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_without_kernels_the_host_prepares_and_one_line_says_so(open_on, frames, engine, monkeypatch, caplog):
    monkeypatch.setattr("snl_runtime.device_path.load_kernels", refuse_kernels)
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert [record.getMessage() for record in caplog.records] == [f"{HOST_LINE}, not on the GPU: compiling the kernels needs NVRTC"]


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["frame_rows", "frame_columns", "input_sums", "map_statistics", "measure_regions"])
def test_kernel_that_writes_nothing_is_found_at_opening(open_on, fake, frames, engine, name, caplog):
    # Not label_cells, join_cells and number_regions: the next kernel would follow labels that nobody wrote out of the map.
    fake.broken.add(name)
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert caplog.text.count(HOST_LINE) == 1


@plain_kernels
@pytest.mark.parametrize(("position", "wrong"), [(2, ctypes.c_int32(0)), (7, ctypes.c_float(2.5)), (7, ctypes.c_float(0.0))])
def test_kernel_that_makes_another_input_is_found_at_opening(open_on, fake, frames, position, wrong, caplog, monkeypatch):
    """The colours in another order, two grey levels more, half a grey level less."""
    launch = fake.launch_kernel

    def spoiled(kernel, *, arguments, **rest):
        if KERNEL_NAMES[kernel] == "frame_columns":
            arguments = (*arguments[:position], wrong, *arguments[position + 1 :])
        launch(kernel, arguments=arguments, **rest)

    monkeypatch.setattr(fake, "launch_kernel", spoiled)
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    if position == 7 and wrong.value == 0:
        assert detector._scorer.is_on_device  # a grey level is allowed
        return
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{HOST_LINE}, not on the GPU: its network input of a bgr uint8 frame differs by ")


@plain_kernels
def test_golden_samples_are_scored_on_the_path_that_frames_take(open_on, fake, frames, caplog):
    def moved(score, anomaly_map):
        anomaly_map *= 1.1
        score *= 1.1

    Session.spoil = staticmethod(moved)
    detector = open_on("onnxruntime")  # the session of the host is sound
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert caplog.text.count(HOST_LINE) == 1
    assert "golden sample 0" in caplog.text
    fake.library.answer = lambda images, honest=fake.library.answer: honest(images) * 1.1
    with pytest.raises(GoldenSampleError, match="golden sample 0"):
        open_on("tensorrt")


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_device_path_that_fails_twice_in_a_row_is_left_for_the_host(open_on, frames, engine, monkeypatch, caplog):
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS

    def too_large(*_, **__):
        raise InferenceError("allocate gave cudaErrorMemoryAllocation")

    monkeypatch.setattr("snl_runtime.device_path.inspect_on_device", too_large)
    real = DevicePath.infer
    monkeypatch.setattr(DevicePath, "infer", lambda self, image: golden(real, self, image, monkeypatch))
    verdicts = [detector.detect(frames["large"][0]).verdict for _ in range(4)]
    assert verdicts == [Verdict.ERROR, Verdict.ERROR, Verdict.REJECT, Verdict.REJECT]
    assert caplog.text.count("the GPU failed on 2 frames in a row") == 1


def golden(real, path, image, monkeypatch):
    """Score a golden sample, which is small enough for the memory that is left."""
    from snl_runtime.device_pipeline import inspect_on_device

    with monkeypatch.context() as sound:
        sound.setattr("snl_runtime.device_path.inspect_on_device", inspect_on_device)
        return real(path, image)


def test_backends_offer_a_lane_by_what_they_can_do(model_fixtures, tmp_path):
    model = model_fixtures.ModelFolder(tmp_path).write()
    assert not isinstance(model_fixtures.FakeBackend(), DeviceBackend)
    assert issubclass(TensorRtBackend, DeviceBackend)
    with onnxruntime_backend.OnnxRuntimeBackend(model) as backend:
        assert isinstance(backend, DeviceBackend)
        assert backend.lane() is None
    with Scorer(model) as scorer:
        assert not scorer.is_on_device
        with pytest.raises(InferenceError, match="has no device path"):
            scorer.inspect(model_fixtures.good_frame(1), "bgr", None, threshold=1.0, keep_map=True)


# ---- faults ----------------------------------------------------------------------------------------------------------------------------------


def stale(score, anomaly_map):
    anomaly_map[...] = score[...] = np.frombuffer(b"\xff" * 4, np.float32)[0]  # what the lane filled in before the run


def one_nan(score, anomaly_map):
    anomaly_map[0, 0, 5, 5] = np.nan


def infinite(score, anomaly_map):
    anomaly_map[0, 0, 5, 5] = score[0] = np.inf


def nan_score(score, anomaly_map):
    score[0] = np.nan


def lower_score(score, anomaly_map):
    score[0] -= 0.5


def zero(score, anomaly_map):
    anomaly_map[...] = score[...] = 0


SPOILERS = {
    stale: "output_not_finite",
    one_nan: "output_not_finite",
    infinite: "output_not_finite",
    nan_score: "output_not_finite",
    lower_score: "output_inconsistent",
    zero: "below_floor",
}


@plain_kernels
@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_unusable_output_on_the_device_is_an_error(open_on, frames, spoil, keep_maps):
    detector = open_on("onnxruntime", keep_maps=keep_maps)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    Session.spoil = staticmethod(spoil)
    for _ in range(2):
        result = detector.detect(frames["odd good"][0])
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, SPOILERS[spoil])
    Session.spoil = staticmethod(lambda score, anomaly_map: None)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS


@plain_kernels
@pytest.mark.parametrize("keep_maps", [True, False])
def test_engine_that_writes_nothing_gives_no_earlier_answer(open_on, fake, frames, keep_maps):
    detector = open_on("tensorrt", keep_maps=keep_maps)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    fake.library.stale = True
    for _ in range(3):
        result = detector.detect(frames["odd good"][0])
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "output_not_finite")
        assert np.isnan(result.score)


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_device_that_takes_work_and_does_none_of_it_is_an_error(open_on, fake, frames, engine):
    """As after a sticky fault that no call reports."""
    detector = open_on(engine)
    good = frames["odd good"][0]
    assert detector.detect(good).verdict is Verdict.PASS
    fake.broken.update(KERNEL_NAMES)
    assert cause(detector.detect(good))[:2] == (Verdict.ERROR, "backend_error")
    fake.broken.clear()
    assert detector.detect(good).verdict is Verdict.PASS


@plain_kernels
@pytest.mark.parametrize("name", ["input_sums", "map_statistics"])
def test_kernel_that_stops_counting_is_an_error(open_on, fake, frames, name):
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    fake.broken.add(name)
    assert cause(detector.detect(frames["odd good"][0]))[:2] == (Verdict.ERROR, "backend_error")


@plain_kernels
def test_map_that_arrives_other_than_it_was_counted_is_an_error(open_on, fake, frames, monkeypatch):
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    copy = fake.copy_async
    map_bytes = 4 * 32 * 32

    def lossy(destination, source, byte_count, kind, stream):
        copy(destination, source, byte_count // 2 if (kind, byte_count) == ("device_to_host", map_bytes) else byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", lossy)
    result = detector.detect(frames["odd bad"][0])
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, "backend_error")
    assert "what arrived is" in result.reason


RUNNING_CALLS = [
    *(("copy_async", after) for after in range(6)),
    *(("fill_async", after) for after in range(5)),
    *(("launch_kernel", after) for after in range(9)),
    ("synchronize_stream", 0),
    ("synchronize_stream", 1),
    *(("allocate", after) for after in range(3)),
    ("allocate_pinned", 0),
    ("launch_graph", 0),
]


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("failing", RUNNING_CALLS, ids=lambda value: f"{value[0]}-{value[1]}")
def test_failing_call_never_passes_a_part_and_the_line_recovers(open_on, fake, frames, engine, failing):
    detector = open_on(engine)
    good, bad, large = (frames[name][0] for name in ("odd good", "odd bad", "large"))
    assert [detector.detect(good).verdict for _ in range(3)] == [Verdict.PASS] * 3
    name, after = failing
    fake.calls.clear()
    fake.failing[name] = after
    during = [detector.detect(image) for image in (large, bad, large, bad)]
    if fake.failing[name] < 0:
        assert Verdict.ERROR in [result.verdict for result in during]
    for result in during:
        assert result.verdict in (Verdict.ERROR, Verdict.REJECT)
        assert result.reason_code in ("backend_error", "above_reject_threshold")
    fake.failing.clear()
    assert detector.detect(good).verdict is Verdict.PASS
    assert detector.detect(bad).verdict is Verdict.REJECT
    detector.close()
    assert fake.leaks == {}


OPENING_CALLS = ("load_module", "find_kernel", "create_stream", "allocate", "allocate_pinned", "copy_async", "launch_kernel", "synchronize_stream")


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "failing", [(name, after) for name in OPENING_CALLS for after in (0, 1, 3, 6, 12)], ids=lambda value: f"{value[0]}-{value[1]}"
)
def test_call_that_fails_while_opening_is_an_error_or_leaves_the_host_path(open_on, fake, frames, engine, failing):
    fake.failing[failing[0]] = failing[1]
    try:
        detector = open_on(engine)
    except BackendError:
        fake.failing.clear()
    else:
        fake.failing.clear()
        assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
        assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
        detector.close()
    assert fake.leaks == {}
