"""The detector on a GPU gives the verdicts of the detector on the host, from one upload, and no failure of any call makes it pass a part.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU; the engines are ONNX Runtime on the CPU, bound to the same memory, and
a TensorRT in NumPy.
"""

import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from snl_runtime.backends.base import DeviceBackend
from snl_runtime.backends.onnxruntime import backend as onnxruntime_backend
from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.path import DevicePath
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.scorer import Scorer
from snl_runtime.types import OutputRequest, Verdict
from tolerances import TINY_MODEL_ABS, TINY_MODEL_REL

ROI = (5, 9, 84, 70)
ENGINES = ("onnxruntime", "tensorrt")
LARGEST = {"onnxruntime": 8, "tensorrt": 4}
"""The most images of a run: what the manifest says, and what the engine was built for."""
HOST_LINE = "frames are prepared on the host"
plain_kernels = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_kind_of_frame_gets_the_verdict_of_the_host(open_on, fake, frames, engine, roi, caplog, device_detector):
    changes = device_detector.decisions_of_every_kind(roi_xyxy=roi)
    host, device = open_on("host", changes=changes), open_on(engine, changes=changes)
    verdicts = set()
    for name, (image, color) in frames.items():
        product = device_detector.product_of(image)
        expected, result = (detector.detect(image, color=color, product=product) for detector in (host, device))
        verdicts.add(expected.verdict)
        try:
            device_detector.assert_alike(result, expected)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {result.reason!r}, on the host {expected.reason!r}") from failure
    assert verdicts >= {Verdict.PASS, Verdict.ERROR} if roi else verdicts >= {Verdict.PASS, Verdict.REJECT, Verdict.ERROR}
    assert HOST_LINE not in caplog.text
    assert device.is_on_device


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_frame_of_the_networks_size_gives_what_the_host_gives(open_on, frames, engine, device_detector):
    host, device = open_on("host"), open_on(engine)
    for name in ("good", "bad"):
        expected, result = host.detect(frames[name][0]), device.detect(frames[name][0])
        assert device_detector.cause(result) == device_detector.cause(expected)
        assert result.score == pytest.approx(expected.score, rel=TINY_MODEL_REL)  # the engines sum in another order
        np.testing.assert_allclose(result.anomaly_map, expected.anomaly_map, atol=TINY_MODEL_ABS)
        assert [region.box_xyxy for region in result.regions] == [region.box_xyxy for region in expected.regions]


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_frames_of_a_batch_are_judged_as_alone(open_on, frames, engine, device_detector):
    detector = open_on(engine, changes=device_detector.decisions_of_every_kind())
    images = [image for image, color in frames.values() if color == "bgr"]
    products = [device_detector.product_of(image) for image in images]
    expected = [detector.detect(image, product=product) for image, product in zip(images, products, strict=True)]
    results = detector.detect_batch(images, products=products)
    assert (detector.is_on_device, detector.batch_size) == (True, LARGEST[engine])
    for result, each in zip(results, expected, strict=True):
        assert device_detector.cause(result) == device_detector.cause(each)
        assert result.score == pytest.approx(each.score, rel=TINY_MODEL_REL, nan_ok=True)
        assert result.regions == each.regions


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_costs_an_upload_a_frame_and_one_run_of_the_engine(open_on, fake, frames, engine):
    detector = open_on(engine)
    images = [frames[name][0] for name in ("odd good", "odd bad", "large", "black")]
    alone = [detector.detect(image) for image in images]
    for _ in range(2):
        detector.detect_batch(images)  # golden samples of the first batch, and buffers for every frame
    fake.ran.clear(), fake.calls.clear()
    results = detector.detect_batch(images, outputs=OutputRequest(overlay=True))
    assert [(result.verdict, result.regions) for result in results] == [(result.verdict, result.regions) for result in alone]
    for name, count in {"host_to_device": 4, "engine": 1, "frame_columns": 4, "input_sums": 4, "measure_regions": 4, "map_to_frame": 3}.items():
        assert fake.ran.count(name) == count, name  # the black frame is an ERROR, of which nothing is drawn
    assert not {name for name in fake.calls if name.startswith(("create", "destroy", "load", "unload"))}
    for result, image in zip(results, images):
        assert result.verdict is Verdict.ERROR or result.overlay.shape == image.shape


@plain_kernels
def test_frames_of_host_device_and_other_products_share_what_they_can(open_on, fake, frames, on_gpu):
    detector = open_on("onnxruntime")
    good, bad = frames["odd good"][0], frames["odd bad"][0]
    detector.detect_batch([good, bad])
    images = [good, bad, on_gpu(bad), None, good, bad, good]
    fake.ran.clear()
    verdicts = [result.verdict.value for result in detector.detect_batch(images)]
    assert verdicts == ["PASS", "REJECT", "REJECT", "ERROR", "PASS", "REJECT", "PASS"]
    assert fake.ran.count("engine") == 3  # two of the host, the one that lies on the GPU, three of the host


@plain_kernels
def test_frame_that_fails_on_the_device_costs_no_other_its_verdict(open_on, fake, frames, monkeypatch):
    detector = open_on("onnxruntime")
    good, bad, large = (frames[name][0] for name in ("odd good", "odd bad", "large"))
    detector.detect_batch([good, bad])
    real = DevicePath.inspect_batch

    def too_large(self, tasks):
        if any(task.cropped.part.shape == large.shape for task in tasks):
            raise InferenceError("allocate gave cudaErrorMemoryAllocation")
        return real(self, tasks)

    monkeypatch.setattr(DevicePath, "inspect_batch", too_large)
    results = detector.detect_batch([good, large, bad])
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.ERROR, Verdict.REJECT]


@plain_kernels
def test_device_that_mixes_up_a_batch_scores_one_frame_at_a_time(open_on, fake, frames, device_detector, caplog):
    def mix_up(score, anomaly_map):
        score[...] = score[::-1].copy()
        anomaly_map[...] = anomaly_map[::-1].copy()

    device_detector.Session.spoil = staticmethod(mix_up)
    detector = open_on("onnxruntime")
    good, bad = frames["odd good"][0], frames["odd bad"][0]
    assert [result.verdict for result in detector.detect_batch([good, bad])] == [Verdict.PASS, Verdict.REJECT]
    assert "images are scored one at a time from now on" in caplog.text
    assert detector.is_on_device


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["odd good", "odd bad", "large"])
def test_work_per_frame_is_a_fixed_number_of_calls(open_on, fake, frames, engine, name):
    detector = open_on(engine)
    for _ in range(3):  # buffers have their size and the engine's graph is captured then
        detector.detect(frames[name][0])
    fake.calls.clear()
    detector.detect(frames[name][0])
    # Kernels: two of the resize, one of the frame statistics, five of the map's checks and regions.
    expected = {"launch_kernel": 3 + 5, "copy_async": 5, "fill_async": 4, "synchronize_stream": 1, "launch_graph": int(engine == "tensorrt")}
    assert collections.Counter(fake.calls) == collections.Counter(expected)


DECISIONS = {
    "review": {"pass_threshold": 5.0, "reject_threshold": 1e4, "floor": 2.0},
    "reject": {"pass_threshold": 2.5, "reject_threshold": 2.6, "floor": 2.0},
    "below the floor": {"pass_threshold": 900.0, "reject_threshold": 900.0, "floor": 800.0},
    "expired": {"expires_at": "2024-06-01T12:00:00+00:00"},
    "not fitted yet": {"fitted_at": "2999-06-01T12:00:00+00:00"},
    "another file": {"model_sha256": "d" * 64},
    "roi outside": {"roi_xyxy": (0, 0, 500, 500)},
    "another size": {"frame_sizes": FrameSizes(seen_hw=[(91, 77)], any_size=False)},
    "another bit depth": {"bit_depth": 16},
    "declared bit depth": {"bit_depth": 12},
}


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", DECISIONS)
def test_every_rule_of_a_decision_holds_on_the_device(open_on, frames, engine, case, device_detector):
    host, device = (open_on(where, changes=[DECISIONS[case]]) for where in ("host", engine))
    expected = host.detect(frames["odd bad"][0])
    assert expected.verdict is not Verdict.PASS
    device_detector.assert_alike(device.detect(frames["odd bad"][0]), expected)


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_range_of_the_device_is_that_of_the_host(open_on, frames, engine, device_detector, model_fixtures):
    for name in ("mean", "deviation", "white_share", "black_share", "red_blue", "green"):
        narrow = dataclasses.replace(model_fixtures.ANY_FRAME, **{name: (0.9, 0.95)})
        changes = [{"frame_range": narrow}]
        host, device = open_on("host", changes=changes), open_on(engine, changes=changes)
        expected, result = (detector.detect(frames["odd good"][0]) for detector in (host, device))
        assert device_detector.cause(result) == device_detector.cause(expected) == (Verdict.ERROR, "frame_out_of_range", "bottle")


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_without_maps_everything_else_stays_the_same(open_on, fake, frames, engine, device_detector):
    with_maps, without = open_on(engine), open_on(engine, keep_maps=False)
    for name in ("odd good", "odd bad", "black"):
        expected = with_maps.detect(frames[name][0])
        fake.ran.clear()
        result = without.detect(frames[name][0])
        assert fake.ran.count("device_to_host") == 3  # sums, report, score
        assert device_detector.cause(result) == device_detector.cause(expected)
        assert (result.score, result.regions, result.reason) == (expected.score, expected.regions, expected.reason)
        assert (result.anomaly_map, result.roi_xyxy) == (None, None)


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


def test_backends_offer_a_context_by_what_they_can_do(model_fixtures, tmp_path):
    model = model_fixtures.ModelFolder(tmp_path).write()
    assert not isinstance(model_fixtures.FakeBackend(), DeviceBackend)
    assert issubclass(TensorRtBackend, DeviceBackend)
    with onnxruntime_backend.OnnxRuntimeBackend(model) as backend:
        assert isinstance(backend, DeviceBackend)
        assert backend.execution_context() is None
    with Scorer(model) as scorer:
        assert not scorer.is_on_device
        with pytest.raises(InferenceError, match="has no device path"):
            scorer.inspect(model_fixtures.good_frame(1), "bgr", None, threshold=1.0, keep_map=True)


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_frame_on_the_gpu_is_inspected_where_it_lies(open_on, fake, frames, on_gpu, engine, roi, device_detector):
    detector = open_on(engine, changes=device_detector.decisions_of_every_kind(roi_xyxy=roi))
    for name in ("odd good", "odd bad", "large", "rgb", "gray", "gray with an axis", "16 bits", "bgra", "black", "half black"):
        image, color = frames[name]
        product = device_detector.product_of(image)
        expected, array = detector.detect(image, color=color, product=product), on_gpu(image)
        fake.ran.clear()
        result = detector.detect(array, color=color, product=product)
        assert "host_to_device" not in fake.ran
        assert device_detector.cause(result) == device_detector.cause(expected)
        assert (result.regions, result.roi_xyxy) == (expected.regions, expected.roi_xyxy)
        np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)


SIZES = {"frame_sizes": FrameSizes(seen_hw=[(77, 91)], any_size=False)}
GOOD = lambda good: good  # noqa: E731
FORMATS = {
    "transposed": (SIZES, lambda good: good.transpose(1, 0, 2), {}, "frame_size"),
    "another size around an equal region": ({**SIZES, "roi_xyxy": (0, 0, 60, 60)}, lambda good: good[:70, :70], {}, "frame_size"),
    "region outside": ({**SIZES, "roi_xyxy": ROI}, lambda good: good[:40], {}, "frame_size"),
    "8 bits for a product of 16": ({"bit_depth": 16}, GOOD, {}, "frame_bit_depth"),
    "8 bits for a product of 12": ({"bit_depth": 12}, GOOD, {}, "frame_bit_depth"),
    "16 bits for a product of 8": ({}, lambda good: good.astype(np.uint16) * 257, {}, "frame_bit_depth"),
    "12 bits on the device": ({"bit_depth": 12}, lambda good: good.astype(np.uint16) * 16, {}, "frame_bit_depth"),
    "another declared bit depth": ({"bit_depth": 16}, lambda good: good.astype(np.uint16) * 257, {"bit_depth": 14}, "frame_bit_depth"),
    "swapped": ({}, GOOD, {"color": "rgb"}, "frame_color_order"),
}


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", FORMATS)
def test_frame_on_the_gpu_that_was_not_qualified_is_an_error(open_on, frames, on_gpu, engine, case):
    changes, make, call, code = FORMATS[case]
    detector = open_on(engine, changes=[{"pass_threshold": 1e6, "reject_threshold": 1e6, **changes}])
    result = detector.detect(on_gpu(make(frames["odd good"][0])), **call)
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, code), result.reason
    assert detector.is_on_device


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_frame_of_12_bits_is_uploaded_as_8_and_gives_the_same(open_on, frames, monkeypatch, fake, engine):
    image = frames["odd bad"][0]
    of_12_bits = np.round(image.astype(np.float64) * 4095 / 255).astype(np.uint16)
    expected = open_on(engine).detect(image)
    detector = open_on(engine, changes=[{"bit_depth": 12}])
    detector.detect(of_12_bits)  # sizes the buffers
    uploads, copy = [], fake.copy_async

    def watched(destination, source, byte_count, kind, stream):
        uploads.append((kind, byte_count))
        copy(destination, source, byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", watched)
    result = detector.detect(of_12_bits)
    assert [count for kind, count in uploads if kind == "host_to_device"] == [image.nbytes]
    assert (result.verdict, result.score, result.regions) == (expected.verdict, expected.score, expected.regions)
    of_12_bits[3, 4, 0] = 4096
    assert detector.detect(of_12_bits).reason_code == "frame_bit_depth"


@plain_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_unusable_frame_on_the_gpu_is_an_error_and_the_context_goes_on(open_on, fake, frames, on_gpu, engine):
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
