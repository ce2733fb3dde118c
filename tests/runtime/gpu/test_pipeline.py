"""Around an engine, the device stages give what the host gives, wait once, read nothing too early and lose nothing when a call fails.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU; the engine is ONNX Runtime on the CPU, bound to the same memory.
"""

import contextlib
import math

import numpy as np
import onnxruntime
import pytest

from snl_runtime.backends.onnxruntime.context import OnnxRuntimeContext
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer
from snl_runtime.errors import FrameError, InferenceError
from snl_runtime.gpu.kernels import load_kernels, loader
from snl_runtime.gpu.pipeline import DevicePostprocess, DevicePreprocess, Wanted, inspect_on_device
from snl_runtime.images.overlay import blend_heat
from snl_runtime.images.preprocess import InputSpec, prepare, to_rgb
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.scorer import Scorer
from snl_runtime.types import OutputRequest
from snl_runtime.verdict.frame_checks import frame_statistics
from snl_runtime.verdict.regions import find_regions
from tolerances import FLOAT32_REL, GRAY_LEVEL_ABS, UPSAMPLED_REL

EVERYTHING = OutputRequest(frame_map=True, mask=True, overlay=True)
MAP = Wanted(anomaly_map=True)
ROI = (5, 9, 121, 90)


class Session:
    """ONNX Runtime on the CPU, run when the stream gets there."""

    def __init__(self, cuda, path, stream):
        self._cuda, self._stream = cuda, stream
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.io_binding = self._session.io_binding

    def run_with_iobinding(self, binding):
        def work():
            self._cuda.ran.append("engine")
            self._session.run_with_iobinding(binding)

        self._cuda.push(self._stream, work)


class Stages:
    """Context, kernels and both stages on one GPU."""

    def __init__(self, cuda, path, size_hw):
        self.module = CudaModule(cuda, b"code")
        self.context = OnnxRuntimeContext(cuda, lambda stream: Session(cuda, path, stream), size_hw, device_type="cpu")
        self.before = DevicePreprocess(cuda, self.module, self.context.stream, size_hw)
        self.after = DevicePostprocess(cuda, self.module, self.context.stream, size_hw)

    def inspect(self, image, color="bgr", roi_xyxy=None, threshold=math.nan, wanted=None):
        options = {"color": color, "roi_xyxy": roi_xyxy, "threshold": threshold, "wanted": wanted}
        seen = inspect_on_device(self.context, self.before, self.after, image, **options)
        return seen.statistics, seen.map

    def close(self):
        for part in (self.after, self.before, self.context, self.module):
            part.close()


@pytest.fixture
def model(model_fixtures, tmp_path):
    path = tmp_path / "line.onnx"
    model_fixtures.write_stub_onnx(path)
    return path


@pytest.fixture
def open_stages(model, model_fixtures):
    opened = []

    def open_on(cuda):
        opened.append(Stages(cuda, model, (model_fixtures.SIZE, model_fixtures.SIZE)))
        return opened[-1]

    yield open_on
    for stages in opened:
        stages.close()


def frame(seed=3, size_hw=(100, 130)):
    rng = np.random.default_rng(seed)
    image = rng.normal(120, 12, (*size_hw, 3))
    image[40:52, 60:75] += 90
    image[70:75, 20:90] -= 80
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_device_and_host_agree_on_a_whole_inspection(kernels, make_gpu, open_stages, model, color, roi):
    image = frame()
    cuda = make_gpu(kernels)
    stages = open_stages(cuda)
    statistics, output = stages.inspect(image, color, roi, threshold=20.0, wanted=MAP)
    drawn = stages.after.render(EVERYTHING)
    covered = roi or (0, 0, 130, 100)
    part = to_rgb(image, color)[covered[1] : covered[3], covered[0] : covered[2]]
    with Scorer(model) as scorer:
        scored = scorer.score(image, color, roi)
    # The input may differ by a gray level at a tie, and the stub model passes that on.
    assert output.score == pytest.approx(scored.score, abs=GRAY_LEVEL_ABS)
    np.testing.assert_allclose(output.anomaly_map, scored.anomaly_map, atol=GRAY_LEVEL_ABS)
    assert output.score == pytest.approx(output.summary.peak, rel=FLOAT32_REL) == output.anomaly_map.max()
    assert output.summary.is_finite
    assert output.regions == find_regions(output.anomaly_map, 20.0, covered)
    assert len(output.regions) >= 2
    np.testing.assert_allclose(drawn.frame_map, upsample_map(output.anomaly_map, part.shape[:2]), rtol=UPSAMPLED_REL)
    np.testing.assert_array_equal(drawn.mask, drawn.frame_map > 20.0)
    assert np.abs(drawn.overlay.astype(int) - blend_heat(part, output.anomaly_map, 20.0)).max() <= 1
    expected = frame_statistics(prepare(image, color, InputSpec(size_hw=output.anomaly_map.shape, roi_xyxy=roi)))
    assert statistics.mean == pytest.approx(expected.mean, abs=0.02)
    assert statistics.deviation == pytest.approx(expected.deviation, abs=0.02)


def test_one_upload_and_only_what_was_asked_for_comes_back(kernels, make_gpu, open_stages):
    cuda = make_gpu(kernels)
    stages = open_stages(cuda)
    stages.inspect(frame(), threshold=20.0)  # sizes the buffers
    cuda.ran.clear(), cuda.calls.clear()
    stages.inspect(frame(4), threshold=20.0)
    input_stage = ["host_to_device", "frame_rows", "frame_columns", "fill", "input_sums", "device_to_host"]
    region_stage = ["fill", "map_statistics", "label_cells", "join_cells", "number_regions", "measure_regions", "device_to_host", "device_to_host"]
    assert cuda.ran == [*input_stage, "fill", "fill", "engine", *region_stage]
    assert cuda.calls.count("synchronize_stream") == 1
    assert not {"allocate", "allocate_pinned", "free", "free_pinned"} & set(cuda.calls)
    cuda.ran.clear()
    stages.after.render(OutputRequest(overlay=True))
    assert cuda.ran == ["fill", "map_to_frame", "device_to_host"]


def test_only_the_inspected_part_is_uploaded(kernels, make_gpu, open_stages, monkeypatch):
    cuda = make_gpu(kernels)
    stages, uploads = open_stages(cuda), []
    copy = cuda.copy_async

    def watched_copy(destination, source, byte_count, kind, stream):
        if kind == "host_to_device":
            uploads.append(byte_count)
        copy(destination, source, byte_count, kind, stream)

    monkeypatch.setattr(cuda, "copy_async", watched_copy)
    stages.inspect(frame(), roi_xyxy=ROI)
    assert uploads == [(121 - 5) * (90 - 9) * 3]


def test_frames_of_changing_size_and_kind_follow_each_other(kernels, make_gpu, open_stages):
    stages = open_stages(make_gpu(kernels))
    frames = [(frame(size_hw=(80, 100)), "bgr"), (frame(), "bgr"), (frame()[:, :, :1], "gray"), (frame().astype(np.uint16) * 257, "rgb")]
    for image, color in [*frames, frames[0]]:
        _, output = stages.inspect(image, color, threshold=20.0, wanted=MAP)
        part = to_rgb(image, color)
        assert np.abs(stages.after.render(EVERYTHING).overlay.astype(int) - blend_heat(part, output.anomaly_map, 20.0)).max() <= 1


def test_the_frame_may_be_changed_and_results_kept_after_the_call(kernels, make_gpu, open_stages):
    stages = open_stages(make_gpu(kernels))
    _, first = stages.inspect(frame(), threshold=20.0, wanted=MAP)
    drawn = stages.after.render(EVERYTHING)
    arrays = (first.anomaly_map, drawn.frame_map, drawn.mask, drawn.overlay)
    kept = [array.copy() for array in arrays]
    stages.inspect(frame(8), threshold=5.0, wanted=MAP)
    stages.after.render(EVERYTHING)
    for array, copy in zip(arrays, kept):
        np.testing.assert_array_equal(array, copy)


def test_noise_with_more_components_than_the_table_gets_its_regions_from_the_host(kernels, make_gpu):
    cuda = make_gpu(kernels)
    anomaly_map = np.zeros((80, 80), np.float32)
    anomaly_map[::2, ::2] = np.random.default_rng(0).uniform(1, 2, (40, 40))
    score_offset = anomaly_map.nbytes
    with contextlib.ExitStack() as opened:
        module, stream = opened.enter_context(CudaModule(cuda, b"code")), opened.enter_context(CudaStream(cuda))
        memory, target = opened.enter_context(DeviceBuffer(cuda, score_offset + 4)), opened.enter_context(DeviceBuffer(cuda, 80 * 80 * 3))
        before = opened.enter_context(DevicePreprocess(cuda, module, stream, (80, 80)))
        after = opened.enter_context(DevicePostprocess(cuda, module, stream, (80, 80)))
        uploaded = before.enqueue(np.zeros((80, 80, 3), np.uint8), "rgb", target.handle)
        cuda.view(memory.handle, score_offset, "device")[...] = anomaly_map.reshape(-1).view(np.uint8)
        cuda.view(memory.handle + score_offset, 4, "device")[...] = anomaly_map.max().reshape(1).view(np.uint8)
        after.enqueue(memory.handle, memory.handle + score_offset, frame=uploaded, roi_xyxy=(0, 0, 80, 80), threshold=0.5)
        assert after.collect().regions == find_regions(anomaly_map, 0.5, (0, 0, 80, 80))
    assert cuda.leaks == {}


def test_kernels_that_did_not_run_give_an_error_and_no_answer(make_gpu, open_stages):
    """Every launch is taken and nothing is written, as after a sticky fault that nobody reports."""
    with pytest.raises(InferenceError, match=r"the device looked at 0 of \d+ cells"):
        open_stages(make_gpu()).inspect(frame(), threshold=20.0)


def test_an_engine_that_wrote_nothing_is_seen(kernels, make_gpu, open_stages, monkeypatch):
    monkeypatch.setattr(Session, "run_with_iobinding", lambda self, binding: None)
    _, output = open_stages(make_gpu(kernels)).inspect(frame(), threshold=20.0)
    assert not output.summary.is_finite
    assert math.isnan(output.score)
    assert math.isnan(output.summary.peak)


@pytest.mark.parametrize("image", [None, np.zeros((4, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((9, 9, 3), np.float32)])
def test_an_unusable_frame_queues_nothing(make_gpu, open_stages, image):
    cuda = make_gpu()
    stages = open_stages(cuda)
    cuda.calls.clear()
    with pytest.raises(FrameError):
        stages.inspect(image)
    assert cuda.calls == []


def test_collecting_without_a_frame_is_an_error(make_gpu, open_stages):
    with pytest.raises(InferenceError, match="no frame on the device"):
        open_stages(make_gpu()).after.collect()


def test_drawing_without_an_inspected_frame_is_an_error(kernels, make_gpu, open_stages):
    stages = open_stages(make_gpu(kernels))
    with pytest.raises(InferenceError, match="no inspected frame on the device"):
        stages.after.render(EVERYTHING)
    stages.inspect(frame(), threshold=20.0)
    on_device = stages.before.enqueue(frame(), "bgr", stages.context.image.handle)
    stages.after.enqueue(
        stages.context.anomaly_map.handle, stages.context.anomaly_score.handle, frame=on_device, roi_xyxy=(0, 0, 130, 100), threshold=1.0
    )
    with pytest.raises(InferenceError, match="no inspected frame on the device"):
        stages.after.render(EVERYTHING)


def test_a_frame_of_another_size_than_its_roi_is_refused(kernels, make_gpu, open_stages):
    stages = open_stages(make_gpu(kernels))
    uploaded = stages.before.enqueue(frame(), "bgr", stages.context.image.handle)
    with pytest.raises(InferenceError, match="its ROI"):
        stages.after.enqueue(stages.context.anomaly_map.handle, stages.context.anomaly_score.handle, frame=uploaded, roi_xyxy=ROI, threshold=1.0)


OPENING_CALLS = ("load_module", "create_stream", "allocate", "allocate_pinned", "copy_async", "synchronize_stream")


@pytest.mark.parametrize("failing", [(name, after) for name in OPENING_CALLS for after in range(8)], ids=lambda value: f"{value[0]}-{value[1]}")
def test_nothing_leaks_when_opening_fails_at_any_call(make_gpu, model, failing):
    cuda = make_gpu()
    cuda.failing[failing[0]] = failing[1]
    with contextlib.suppress(InferenceError), contextlib.ExitStack() as opened:
        module = opened.enter_context(CudaModule(cuda, b"code"))
        context = opened.enter_context(OnnxRuntimeContext(cuda, lambda stream: Session(cuda, model, stream), (32, 32), device_type="cpu"))
        opened.enter_context(DevicePreprocess(cuda, module, context.stream, (32, 32)))
        opened.enter_context(DevicePostprocess(cuda, module, context.stream, (32, 32)))
    assert cuda.leaks == {}


RUNNING_CALLS = ("allocate", "allocate_pinned", "copy_async", "fill_async", "find_kernel", "launch_kernel", "synchronize_stream")


@pytest.mark.parametrize("failing", [(name, after) for name in RUNNING_CALLS for after in range(10)], ids=lambda value: f"{value[0]}-{value[1]}")
def test_nothing_leaks_and_nothing_is_answered_when_a_run_fails_at_any_call(make_gpu, model, failing):
    cuda = make_gpu()
    stages = Stages(cuda, model, (32, 32))
    cuda.failing[failing[0]] = failing[1]
    with pytest.raises(InferenceError):  # without kernels even a run of which no call fails has no answer
        stages.inspect(frame(), threshold=20.0, wanted=MAP)
    cuda.failing.clear()
    stages.close()
    assert cuda.leaks == {}


def test_a_session_that_fails_closes_as_an_inference_error(make_gpu, open_stages, monkeypatch):
    stages = open_stages(make_gpu())
    monkeypatch.setattr(Session, "run_with_iobinding", lambda self, binding: 1 / 0)
    with pytest.raises(InferenceError, match="backend 'onnxruntime' failed on the GPU: ZeroDivisionError"):
        stages.inspect(frame())


def test_kernels_are_loaded_for_the_gpu_at_hand(make_gpu, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(loader, "cached_image", lambda number, cache_folder: asked.append((number, cache_folder)) or b"code")
    cuda = make_gpu()
    with load_kernels(cuda, cache_folder=tmp_path):
        assert asked == [(89, tmp_path)]
        assert cuda.leaks == {"module": 1}
    assert cuda.leaks == {}


def test_a_tensorrt_context_takes_the_same_stages(kernels, make_gpu, gpu, model_fixtures):
    from snl_runtime.backends.tensorrt.context import TensorRtContext

    cuda = make_gpu(kernels)
    size_hw = (model_fixtures.SIZE, model_fixtures.SIZE)
    library = gpu.FakeLibrary(cuda, lambda images: model_fixtures.reference_maps(images.tobytes()), size_hw)
    engine = library.load_engine(b"plan", file_name="x.trt", cache_path=None)
    context, module = TensorRtContext(cuda, engine), CudaModule(cuda, b"code")
    with module, DevicePreprocess(cuda, module, context.stream, size_hw) as before, DevicePostprocess(cuda, module, context.stream, size_hw) as after:
        for seed in (3, 4, 5):  # the third run is a launch of the recorded graph
            image = frame(seed)
            output = inspect_on_device(context, before, after, image, color="bgr", roi_xyxy=ROI, threshold=20.0, wanted=MAP).map
            expected = model_fixtures.reference_map(prepare(image, "bgr", InputSpec(size_hw=size_hw, roi_xyxy=ROI)))
            np.testing.assert_allclose(output.anomaly_map, expected, atol=GRAY_LEVEL_ABS)
            assert output.regions == find_regions(output.anomaly_map, 20.0, ROI)
    assert "launch_graph" in cuda.calls
    context.close()
    assert cuda.leaks == {}
