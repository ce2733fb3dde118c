"""Map, mask and overlay come from the GPU for one upload per frame, only what is asked for comes back, and the host would give the same.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU. Bytes and calls are counted, nothing is timed.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from snl_runtime.cli import run
from snl_runtime.gpu.pipeline import DevicePostprocess
from snl_runtime.images.overlay import blend_heat
from snl_runtime.images.preprocess import to_rgb
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.types import OutputRequest, Verdict
from tolerances import TINY_MODEL_ABS, UPSAMPLED_REL

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

ENGINES = ("onnxruntime", "tensorrt")
NAMES = ("frame_map", "mask", "overlay")
EVERYTHING = OutputRequest(frame_map=True, mask=True, overlay=True)
REFUSED = (Verdict.REVIEW, Verdict.REJECT)
ROI = (5, 9, 84, 70)
WAIT_S = 10.0
ALWAYS_BYTES = 13 * 8 + 4 * (8 + 8 * 1024) + 4
"""Sums of the input, report of the map with its table of regions, score."""
MAP_BYTES = 4 * 32 * 32


@pytest.fixture
def moved(fake, monkeypatch):
    """Bytes of every copy since it was cleared, by kind."""
    copies, copy = {"host_to_device": [], "device_to_host": []}, fake.copy_async

    def watched(destination, source, byte_count, kind, stream):
        copies.setdefault(kind, []).append(byte_count)
        copy(destination, source, byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", watched)
    return copies


def saved_images_bytes(request, frame_hw):
    """By hand: 4 bytes of map, 32 pixels a word of mask, 3 bytes of overlay, each part whole words; one word says that all of it was drawn."""
    height, width = frame_hw
    sizes = {"frame_map": 4 * height * width, "mask": 4 * height * ((width + 31) // 32), "overlay": (3 * height * width + 3) // 4 * 4}
    return sum(size for name, size in sizes.items() if getattr(request, name)) + 4


def carried(result):
    return {name for name in NAMES if getattr(result, name) is not None}


def assert_equals_the_reference_of_its_map(result, image, color):
    left, top, right, bottom = result.roi_xyxy
    frame_map = upsample_map(result.anomaly_map, (bottom - top, right - left))
    np.testing.assert_allclose(result.frame_map, frame_map, rtol=UPSAMPLED_REL, atol=0)
    threshold = np.float32(result.threshold)
    decided = np.abs(frame_map - threshold) > UPSAMPLED_REL * threshold
    np.testing.assert_array_equal(result.mask[decided], (frame_map > threshold)[decided])
    np.testing.assert_array_equal(result.mask, result.frame_map > threshold)
    expected = blend_heat(to_rgb(image, color)[top:bottom, left:right], result.anomaly_map, result.threshold)
    assert np.abs(result.overlay.astype(int) - expected).max() <= 1


# ---- what it costs ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_upload_and_exactly_what_is_asked_for_comes_back(open_on, fake, frames, moved, engine, roi):
    detector, image = open_on(engine, changes=[{"roi_xyxy": roi}], keep_maps=False), frames["odd good"][0]
    frame_hw = (61, 79) if roi else (77, 91)
    detector.detect(image, outputs=EVERYTHING)  # sizes the buffers
    for flags in itertools.product([False, True], repeat=3):
        request = OutputRequest(**dict(zip(NAMES, flags)))
        fake.calls.clear(), moved["host_to_device"].clear(), moved["device_to_host"].clear()
        result = detector.detect(image, outputs=request)
        assert result.verdict is Verdict.PASS
        assert carried(result) == {name for name, wanted in zip(NAMES, flags) if wanted}
        assert moved["host_to_device"] == [frame_hw[0] * frame_hw[1] * 3]
        assert sum(moved["device_to_host"]) == ALWAYS_BYTES + (saved_images_bytes(request, frame_hw) if any(flags) else 0)
        assert fake.calls.count("synchronize_stream") == 1 + any(flags)
        assert not {name for name in fake.calls if name.startswith(("allocate", "free", "create", "destroy"))}


@pytest.mark.parametrize("engine", ENGINES)
def test_part_whose_verdict_was_not_asked_for_costs_nothing_more(open_on, fake, frames, moved, engine):
    detector = open_on(engine, outputs=OutputRequest(overlay=True, verdicts=REFUSED))
    for name, verdict, more in (("odd good", Verdict.PASS, 0), ("odd bad", Verdict.REJECT, 77 * 91 * 3 + 3 + 4), ("odd good", Verdict.PASS, 0)):
        fake.ran.clear(), moved["device_to_host"].clear()
        result = detector.detect(frames[name][0])
        assert (result.verdict, result.overlay is None) == (verdict, verdict is Verdict.PASS)
        assert sum(moved["device_to_host"]) == ALWAYS_BYTES + MAP_BYTES + more
        assert fake.ran.count("map_to_frame") == (verdict is Verdict.REJECT)


@pytest.mark.parametrize("engine", ENGINES)
def test_frame_on_the_gpu_is_drawn_where_it_lies(open_on, fake, frames, on_gpu, moved, engine, device_detector):
    detector = open_on(engine, changes=device_detector.decisions_of_every_kind(roi_xyxy=ROI), outputs=EVERYTHING)
    for name in ("odd good", "large", "gray", "16 bits", "bgra"):
        image, color = frames[name]
        product = device_detector.product_of(image)
        expected, array = detector.detect(image, color=color, product=product), on_gpu(image)
        assert carried(expected) == (set() if name == "large" else set(NAMES))  # the corner of a large frame is out of range
        moved["host_to_device"].clear()
        result = detector.detect(array, color=color, product=product)
        assert moved["host_to_device"] == []
        for picture in NAMES:
            np.testing.assert_array_equal(getattr(result, picture), getattr(expected, picture))


# ---- the same answers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_are_the_hosts_twins_for_every_kind_of_frame(open_on, frames, engine, roi, device_detector):
    changes = device_detector.decisions_of_every_kind(roi_xyxy=roi, pass_threshold=4.0, reject_threshold=5.0)
    detector, seen = open_on(engine, changes=changes, outputs=EVERYTHING), set()
    for name, (image, color) in frames.items():
        result = detector.detect(image, color=color, product=device_detector.product_of(image))
        if result.verdict is Verdict.ERROR:
            assert carried(result) == set(), name
            continue
        seen.add(name)
        try:
            assert_equals_the_reference_of_its_map(result, image, color)
        except AssertionError as failure:
            raise AssertionError(name) from failure
    assert seen >= {"odd good", "odd bad", "rgb", "gray", "16 bits", "bgra", "rgba", "not contiguous"}


@pytest.mark.parametrize("engine", ENGINES)
def test_frame_of_the_networks_size_gives_the_pictures_of_the_host(open_on, frames, engine):
    changes = [{"pass_threshold": 4.0, "reject_threshold": 5.0}]
    host, device = (open_on(where, changes=changes, outputs=EVERYTHING) for where in ("host", engine))
    for name in ("good", "bad"):
        expected, result = host.detect(frames[name][0]), device.detect(frames[name][0])
        np.testing.assert_allclose(result.frame_map, expected.frame_map, atol=TINY_MODEL_ABS)  # the engines sum in another order
        np.testing.assert_array_equal(result.mask, expected.mask)
        assert np.abs(result.overlay.astype(int) - expected.overlay).max() <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_else_of_a_result_depends_on_what_is_asked_for(open_on, frames, engine, device_detector):
    detector = open_on(engine)
    for name, (image, color) in frames.items():
        plain, result = detector.detect(image, color=color), detector.detect(image, color=color, outputs=EVERYTHING)
        assert device_detector.cause(result) == device_detector.cause(plain), name
        assert result.score == pytest.approx(plain.score, abs=0, nan_ok=True)
        assert (result.regions, result.roi_xyxy) == (plain.regions, plain.roi_xyxy)
        if plain.anomaly_map is not None:
            np.testing.assert_array_equal(result.anomaly_map, plain.anomaly_map)


# ---- whose memory ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_stay_as_they_are_while_the_device_goes_on(open_on, fake, frames, engine):
    detector = open_on(engine, outputs=EVERYTHING)
    first = detector.detect(frames["odd bad"][0])
    kept = {name: getattr(first, name).copy() for name in NAMES}
    for name in ("large", "odd good", "rgb", "one pixel"):
        detector.detect(frames[name][0], color=frames[name][1])
    detector.close()
    assert fake.leaks == {}
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(first, name), array)
        assert not getattr(first, name).flags.writeable


@pytest.mark.parametrize("engine", ENGINES)
def test_every_thread_gets_the_pictures_of_its_own_frame(open_on, frames, engine):
    names = ("odd good", "odd bad", "large", "bad")
    requests = (EVERYTHING, OutputRequest(overlay=True), OutputRequest(mask=True, verdicts=REFUSED), OutputRequest())
    detector = open_on(engine)
    work = [(frames[name][0], request) for name in names for request in requests]
    expected = [detector.detect(image, outputs=request) for image, request in work]
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda item: detector.detect(item[0], outputs=item[1]), work * 3))
    for result, alone in zip(given, expected * 3):
        assert (result.verdict, carried(result)) == (alone.verdict, carried(alone))
        for name in carried(alone):
            np.testing.assert_array_equal(getattr(result, name), getattr(alone, name))


# ---- faults ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_kernel_that_stops_drawing_is_an_error_and_no_earlier_picture(open_on, fake, frames, engine):
    detector = open_on(engine, outputs=EVERYTHING)
    assert carried(detector.detect(frames["odd bad"][0])) == set(NAMES)
    fake.broken.add("map_to_frame")
    result = detector.detect(frames["odd bad"][0])
    assert (result.verdict, result.reason_code, carried(result)) == (Verdict.ERROR, "backend_error", set())
    assert "the device drew 0 of" in result.reason
    fake.broken.clear()
    assert carried(detector.detect(frames["odd bad"][0])) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_download_that_stops_half_way_is_an_error(open_on, fake, frames, monkeypatch, name):
    request = OutputRequest(**{name: True})
    detector = open_on("tensorrt", outputs=request)
    detector.detect(frames["odd bad"][0])
    copy, whole = fake.copy_async, saved_images_bytes(request, (77, 91))

    def lossy(destination, source, byte_count, kind, stream):
        copy(destination, source, byte_count // 2 if (kind, byte_count) == ("device_to_host", whole) else byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", lossy)
    result = detector.detect(frames["odd bad"][0])
    assert (result.verdict, result.reason_code, carried(result)) == (Verdict.ERROR, "backend_error", set())


@pytest.mark.parametrize("call", ["allocate", "allocate_pinned", "fill_async", "launch_kernel", "copy_async", "synchronize_stream"])
@pytest.mark.parametrize("on_the_gpu", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_call_that_fails_while_drawing_is_an_error_and_the_line_recovers(open_on, fake, frames, on_gpu, monkeypatch, engine, on_the_gpu, call):
    detector, image = open_on(engine, outputs=EVERYTHING), frames["large"][0]  # the buffers grow for it
    frame = on_gpu(image) if on_the_gpu else image
    render = DevicePostprocess.render

    def failing(self, wanted):
        fake.failing[call] = 0
        try:
            return render(self, wanted)
        finally:
            fake.failing.clear()

    with monkeypatch.context() as broken:
        broken.setattr(DevicePostprocess, "render", failing)
        result = detector.detect(frame)
    assert (result.verdict, result.reason_code, carried(result)) == (Verdict.ERROR, "backend_error", set())
    assert "told to fail" in result.reason
    again = detector.detect(frame)
    assert (again.verdict, carried(again)) == (Verdict.REJECT, set(NAMES))
    detector.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_drawing_that_hangs_is_a_timeout_without_pictures(open_on, frames, monkeypatch, engine):
    detector, released, back = open_on(engine, timeout_ms=200, outputs=EVERYTHING), threading.Event(), threading.Event()
    render = DevicePostprocess.render

    def hanging(self, wanted):
        released.wait(WAIT_S)
        try:
            return render(self, wanted)
        finally:
            back.set()

    with monkeypatch.context() as stuck:
        stuck.setattr(DevicePostprocess, "render", hanging)
        result = detector.detect(frames["odd bad"][0])
        assert (result.reason_code, carried(result)) == ("timeout", set())
        assert detector.detect(frames["odd bad"][0]).reason_code == "backend_busy"
        released.set()
        assert back.wait(WAIT_S)


def test_output_that_is_no_number_is_not_drawn(open_on, fake, frames):
    detector = open_on("tensorrt", outputs=EVERYTHING)
    detector.detect(frames["odd bad"][0])
    fake.library.stale = True
    fake.ran.clear()
    result = detector.detect(frames["odd bad"][0])
    assert (result.reason_code, carried(result)) == ("output_not_finite", set())
    assert "map_to_frame" not in fake.ran


# ---- on the line -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(write_engine, frames, tmp_path):
    """An engine, and a folder with two good parts and a bad one."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index, name in enumerate(("odd good", "odd bad", "odd good")):
        cv2.imwrite(str(folder / f"{index}.png"), frames[name][0])
    (tmp_path / "model").mkdir()
    return write_engine(folder=tmp_path / "model"), folder


@pytest.mark.parametrize(("which", "saved"), [("all", ["PASS", "REJECT", "PASS"]), ("not-passed", ["REJECT"])])
def test_snl_run_draws_on_the_gpu_exactly_the_frames_that_it_saves(fake, line, moved, tmp_path, monkeypatch, capsys, which, saved):
    engine, folder = line
    monkeypatch.setattr("snl_runtime.images.overlay.blend_heat", None)  # the host must not need it
    opened, real = [], run.open_detector

    def remembered(*arguments, **options):
        detector = real(*arguments, **options)
        fake.ran.clear(), moved["host_to_device"].clear(), moved["device_to_host"].clear()  # what opening took
        opened.append(detector)
        return detector

    monkeypatch.setattr(run, "open_detector", remembered)
    overlays = tmp_path / "overlays"
    arguments = ["--engine", engine, "--images", folder, "--overlay", overlays, "--overlay-of", which]
    assert run.main([str(argument) for argument in arguments]) == 0
    assert [path.stem.split("_")[-1] for path in sorted(overlays.iterdir())] == saved
    assert fake.ran.count("map_to_frame") == len(saved)
    assert moved["host_to_device"] == [77 * 91 * 3] * 3
    overlay_bytes = saved_images_bytes(OutputRequest(overlay=True), (77, 91))
    assert sum(moved["device_to_host"]) == 3 * (ALWAYS_BYTES + MAP_BYTES) + len(saved) * overlay_bytes


def test_snl_run_without_overlays_leaves_map_and_pictures_on_the_gpu(fake, line, moved, monkeypatch, capsys):
    engine, folder = line
    real = run.open_detector

    def remembered(*arguments, **options):
        detector = real(*arguments, **options)
        moved["device_to_host"].clear()
        return detector

    monkeypatch.setattr(run, "open_detector", remembered)
    assert run.main(["--engine", str(engine), "--images", str(folder)]) == 0
    assert sum(moved["device_to_host"]) == 3 * ALWAYS_BYTES


def test_overlay_of_the_gpu_is_the_picture_of_the_host(fake, line, tmp_path, monkeypatch, capsys):
    engine, folder = line
    for name, model in (("device", engine), ("host", engine.with_suffix(".onnx"))):
        assert run.main(["--engine", str(model), "--images", str(folder), "--overlay", str(tmp_path / name)]) == 0
    pairs = [[cv2.imread(str(path)).astype(int) for path in sorted((tmp_path / name).iterdir())] for name in ("device", "host")]
    for on_device, on_host in zip(*pairs, strict=True):
        assert on_device.shape == on_host.shape
        assert np.abs(on_device - on_host).mean() < 1  # the banner says another last digit, and JPEG spreads a gray level
