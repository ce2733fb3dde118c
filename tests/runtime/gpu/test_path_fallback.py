"""Where the device path cannot be had or does not do as the host does, the host prepares the frames and one line in the log says so.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU.
"""

import ctypes

import pytest

from snl_runtime.errors import BackendUnavailableError, GoldenSampleError, InferenceError
from snl_runtime.gpu.kernels import KERNEL_NAMES
from snl_runtime.gpu.path import DevicePath
from snl_runtime.types import Verdict

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

ENGINES = ("onnxruntime", "tensorrt")
HOST_LINE = "frames are prepared on the host"


def refuse_kernels(api):
    raise BackendUnavailableError("compiling the kernels needs NVRTC")


@pytest.mark.parametrize("engine", ENGINES)
def test_without_kernels_the_host_prepares_and_one_line_says_so(open_on, frames, engine, monkeypatch, caplog):
    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", refuse_kernels)
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert [record.getMessage() for record in caplog.records] == [f"{HOST_LINE}, not on the GPU: compiling the kernels needs NVRTC"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["frame_rows", "frame_columns", "cut_views", "input_sums", "map_statistics", "measure_regions", "map_to_frame"])
def test_kernel_that_writes_nothing_is_found_at_opening(open_on, fake, frames, engine, name, caplog):
    # Not label_cells, join_cells and number_regions: the next kernel would follow labels that nobody wrote out of the map.
    fake.broken.add(name)
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert caplog.text.count(HOST_LINE) == 1


@pytest.mark.parametrize(("position", "wrong"), [(2, ctypes.c_int32(0)), (7, ctypes.c_float(2.5)), (7, ctypes.c_float(0.0))])
def test_kernel_that_makes_another_input_is_found_at_opening(open_on, fake, frames, position, wrong, caplog, monkeypatch):
    """The colors in another order, two gray levels more, half a gray level less."""
    launch = fake.launch_kernel

    def spoiled(kernel, *, arguments, **rest):
        if KERNEL_NAMES[kernel] == "frame_columns":
            arguments = (*arguments[:position], wrong, *arguments[position + 1 :])
        launch(kernel, arguments=arguments, **rest)

    monkeypatch.setattr(fake, "launch_kernel", spoiled)
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    if position == 7 and wrong.value == 0:
        assert detector.is_on_device  # a gray level is allowed
        return
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{HOST_LINE}, not on the GPU: its network input of a bgr uint8 frame differs by ")


def test_golden_samples_are_scored_on_the_path_that_frames_take(open_on, fake, frames, caplog, device_detector):
    def moved(score, anomaly_map):
        anomaly_map *= 1.1
        score *= 1.1

    device_detector.Session.spoil = staticmethod(moved)
    detector = open_on("onnxruntime")  # the session of the host is sound
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert caplog.text.count(HOST_LINE) == 1
    assert "golden sample 0" in caplog.text
    fake.library.answer = lambda images, honest=fake.library.answer: honest(images) * 1.1
    with pytest.raises(GoldenSampleError, match="golden sample 0"):
        open_on("tensorrt")


@pytest.mark.parametrize("engine", ENGINES)
def test_device_path_that_fails_twice_in_a_row_is_left_for_the_host(open_on, frames, engine, monkeypatch, caplog):
    detector = open_on(engine)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS

    real = DevicePath.inspect_batch

    def too_large(self, tasks):
        if any(task.cropped.part.size > 32 * 32 * 3 for task in tasks):  # golden samples are small enough for the memory that is left
            raise InferenceError("allocate gave cudaErrorMemoryAllocation")
        return real(self, tasks)

    monkeypatch.setattr(DevicePath, "inspect_batch", too_large)
    verdicts = [detector.detect(frames["large"][0]).verdict for _ in range(4)]
    assert verdicts == [Verdict.ERROR, Verdict.ERROR, Verdict.REJECT, Verdict.REJECT]
    assert caplog.text.count("the GPU failed on 2 frames in a row") == 1


def test_frame_on_the_gpu_is_fetched_where_the_host_prepares(open_on, fake, frames, on_gpu, monkeypatch):
    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", refuse_kernels)
    detector = open_on("tensorrt")
    for name, verdict in (("odd good", Verdict.PASS), ("odd bad", Verdict.REJECT)):
        assert detector.detect(on_gpu(frames[name][0])).verdict is verdict
