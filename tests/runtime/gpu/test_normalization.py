"""A normalization map is uploaded once and applied on the GPU, the verdicts are those of the host, and no failure lets a raw or an earlier map be
judged.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.gpu.kernels import launches
from snl_runtime.gpu.kernels.launches import STATISTICS_WORDS, launch_map_statistics, launch_normalization, read_map_statistics
from snl_runtime.images.overlay import hatch_ignored
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.types import OutputRequest, Verdict
from snl_runtime.verdict.regions import find_regions
from tolerances import GRAY_LEVEL_ABS, TINY_MODEL_ABS, TINY_MODEL_REL, UPSAMPLED_REL

ENGINES = ("onnxruntime", "tensorrt")
SIZE = 32
ROI = (5, 9, 84, 70)
ORDER = [Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR]
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)
plain_kernels = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


def normalization_values(seed=0, low=0.4, high=1.6):
    return np.random.default_rng(seed).uniform(low, high, (SIZE, SIZE)).astype(np.float32)


@EXAMPLES
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1e-42, 1e-3, 1.0, 3e38]), st.integers(0, 1000))
def test_normalized_map_is_that_of_the_host_bit_for_bit(cpu, kernels, height, width, scale, seed):
    rng = np.random.default_rng(seed)
    anomaly_map = (scale * rng.uniform(0, 1, (height, width))).astype(np.float32)
    anomaly_map[rng.random((height, width)) < 0.05] = np.nan
    normalization = NormalizationMap(rng.uniform(0.1, 3, (height, width)).astype(np.float32))
    normalized = cpu.Guarded((height, width), np.float32)
    launch_normalization(
        kernels,
        anomaly_map=anomaly_map.ctypes.data,
        normalization=normalization.values.ctypes.data,
        cells=anomaly_map.size,
        normalized=normalized.pointer.value,
        stream=None,
    )
    assert np.array_equal(normalized.check(), normalization.apply(anomaly_map), equal_nan=True)


@EXAMPLES
@given(st.integers(1, 3000), st.integers(0, 1000))
def test_statistics_of_the_raw_map_are_counted_without_a_threshold(cpu, kernels, cells, seed):
    rng = np.random.default_rng(seed)
    anomaly_map = rng.normal(size=cells).astype(np.float32)
    anomaly_map[rng.random(cells) < 0.1] = np.inf
    words = cpu.Guarded((STATISTICS_WORDS,), np.uint32, fill=0)
    launch_map_statistics(kernels, anomaly_map=anomaly_map.ctypes.data, cells=cells, statistics=words.pointer.value, stream=None)
    peak, non_finite, seen = read_map_statistics(words.check())
    finite = anomaly_map[np.isfinite(anomaly_map)]
    assert (non_finite, seen) == (cells - finite.size, cells)
    assert peak == finite.max() if finite.size else np.isnan(peak)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("roi", [None, ROI])
@plain_kernels
def test_every_kind_of_frame_gets_the_verdict_of_the_host(open_on, fake, frames, engine, roi, caplog, device_detector):
    changes, normalizations = [{"roi_xyxy": roi}], {"bottle": normalization_values(low=0.85, high=1.02)}
    host, device = (open_on(where, changes=changes, normalizations=normalizations) for where in ("host", engine))
    verdicts = set()
    for name, (image, color) in frames.items():
        expected, result = host.detect(image, color=color), device.detect(image, color=color)
        verdicts.add(expected.verdict)
        try:
            device_detector.assert_alike(result, expected)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {result.reason!r}, on the host {expected.reason!r}") from failure
    assert verdicts >= {Verdict.PASS, Verdict.ERROR} if roi else verdicts >= {Verdict.PASS, Verdict.REJECT, Verdict.ERROR}
    assert "frames are prepared on the host" not in caplog.text
    assert device.is_on_device
    device.close()
    assert fake.leaks == {}


@pytest.mark.parametrize("engine", ENGINES)
@plain_kernels
def test_frame_of_the_networks_size_has_the_raw_map_times_the_normalization(open_on, frames, engine):
    """By hand: what a detector without a normalization map says, multiplied."""
    values = normalization_values()
    plain, normalized = open_on(engine), open_on(engine, normalizations={"bottle": values})
    for name in ("good", "bad"):
        raw = plain.detect(frames[name][0])
        result = normalized.detect(frames[name][0], outputs=OutputRequest(frame_map=True, mask=True))
        expected = raw.anomaly_map * values
        assert np.array_equal(result.anomaly_map, expected)
        assert result.score == expected.max()
        assert result.regions == find_regions(expected, result.threshold, result.roi_xyxy)
        np.testing.assert_allclose(result.frame_map, upsample_map(expected, (SIZE, SIZE)), rtol=UPSAMPLED_REL)
        assert np.array_equal(result.mask, result.frame_map > np.float32(result.threshold))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("with_normalization", [False, True])
@plain_kernels
def test_what_an_ignore_mask_hides_is_hidden_on_the_gpu_as_on_the_host(open_on, frames, engine, with_normalization):
    ignored = np.zeros((SIZE, SIZE), bool)
    ignored[SIZE // 3 - 4 : SIZE // 3 + 6, SIZE // 4 - 4 : SIZE // 2 + 4] = True  # the scratch of the bad frame
    given = {"ignored": ignored, "normalizations": {"bottle": normalization_values(low=0.9, high=1.0)} if with_normalization else None}
    host, device = open_on("host", **given), open_on(engine, **given)
    for name in ("good", "bad"):
        expected, result = host.detect(frames[name][0]), device.detect(frames[name][0], outputs=OutputRequest(overlay=True))
        assert (result.verdict, result.ignored_share) == (Verdict.PASS, ignored.mean())
        assert result.score == result.anomaly_map.max() == pytest.approx(expected.score, abs=TINY_MODEL_ABS)
        assert not result.anomaly_map[ignored].any()
        assert np.array_equal(result.ignored, ignored)
        assert np.array_equal(result.overlay, hatch_ignored(result.overlay, np.zeros_like(ignored)))
    assert device.is_on_device
    assert open_on(engine).detect(frames["bad"][0]).verdict is Verdict.REJECT


@pytest.mark.parametrize("engine", ENGINES)
@plain_kernels
def test_normalization_map_is_uploaded_once_and_the_raw_map_stays_on_the_device(open_on, fake, frames, engine, monkeypatch):
    changes = [{"roi_xyxy": ROI}, {"product": "cap", "roi_xyxy": ROI}]
    detector = open_on(engine, changes=changes, normalizations={"bottle": normalization_values(1), "cap": normalization_values(2)}, keep_maps=False)
    image = frames["odd good"][0]
    for product in ("bottle", "cap", "bottle", "cap"):
        detector.detect(image, product=product)
    uploads, copy = [], fake.copy_async

    def watched(destination, source, byte_count, kind, stream):
        if kind == "host_to_device":
            uploads.append(byte_count)
        copy(destination, source, byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", watched)
    fake.calls.clear(), fake.ran.clear()
    for product in ("bottle", "cap"):
        detector.detect(image, product=product)
    assert uploads == [(ROI[2] - ROI[0]) * (ROI[3] - ROI[1]) * 3] * 2
    assert fake.calls.count("synchronize_stream") == 2
    assert fake.ran.count("device_to_host") == 2 * 4  # sums, statistics of the raw map, report, score
    assert not {name for name in fake.calls if name.startswith(("allocate", "free"))}


@pytest.mark.parametrize("engine", ENGINES)
@plain_kernels
def test_without_maps_everything_else_stays_the_same(open_on, frames, engine, device_detector):
    normalizations = {"bottle": normalization_values()}
    with_maps, without = open_on(engine, normalizations=normalizations), open_on(engine, normalizations=normalizations, keep_maps=False)
    for name in ("odd good", "odd bad", "black"):
        expected, result = with_maps.detect(frames[name][0]), without.detect(frames[name][0])
        assert device_detector.cause(result) == device_detector.cause(expected)
        assert np.array_equal([result.score], [expected.score], equal_nan=True)
        assert (result.regions, result.reason, result.anomaly_map) == (expected.regions, expected.reason, None)


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
@plain_kernels
def test_with_no_product_named_each_decision_has_its_own_normalization(open_on, frames, engine, keep_maps):
    limits = [(25.0, 30.0), (14.0, 40.0), (18.0, 19.0)]
    products = ("bottle", "cap", "plain")
    changes = [{"product": name, "pass_threshold": low, "reject_threshold": high, "floor": 0.01} for name, (low, high) in zip(products, limits)]
    normalizations = {"bottle": normalization_values(1), "cap": normalization_values(2, 0.2, 0.9)}
    host = open_on("host", changes=changes, normalizations=normalizations, keep_maps=keep_maps)
    device = open_on(engine, changes=changes, normalizations=normalizations, keep_maps=keep_maps)
    request = OutputRequest(frame_map=True, overlay=True)
    for name in ("good", "bad", "odd good", "odd bad", "large", "noise"):
        image, color = frames[name]
        named = [device.detect(image, color=color, product=product) for product in products]
        result, expected = (detector.detect(image, color=color, outputs=request) for detector in (device, host))
        assert ORDER.index(result.verdict) == max(ORDER.index(each.verdict) for each in named)
        assert result.verdict is expected.verdict
        assert (result.anomaly_map is None) == (not keep_maps or result.verdict is Verdict.ERROR and np.isnan(result.score))
        assert result.score == pytest.approx(expected.score, abs=2 * GRAY_LEVEL_ABS, nan_ok=True)
        if result.verdict is not Verdict.ERROR:
            assert result.score / result.threshold == pytest.approx(max(each.score / each.threshold for each in named), rel=TINY_MODEL_REL)
            assert bool(result.regions) == (result.verdict is not Verdict.PASS)
            np.testing.assert_allclose(result.frame_map, expected.frame_map, atol=2 * GRAY_LEVEL_ABS)


@plain_kernels
def test_map_with_too_many_regions_is_normalized_once(open_on, frames, monkeypatch):
    values = normalization_values(3, 0.5, 0.9)
    plain, normalized = open_on("tensorrt"), open_on("tensorrt", normalizations={"bottle": values})
    raw = plain.detect(frames["bad"][0])
    before = normalized.detect(frames["bad"][0])
    monkeypatch.setattr(launches, "MAX_COMPONENTS", 0)  # now every region is found on the host
    result = normalized.detect(frames["bad"][0])
    assert np.array_equal(result.anomaly_map, raw.anomaly_map * values)
    assert result.regions == before.regions != ()


@pytest.mark.parametrize("keep_maps", [True, False])
@plain_kernels
def test_normalization_that_is_not_applied_leaves_no_map_to_judge(open_on, fake, frames, keep_maps):
    detector = open_on("tensorrt", normalizations={"bottle": normalization_values(low=0.9, high=1.0)}, keep_maps=keep_maps)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    fake.broken.add("normalization_cells")
    result = detector.detect(frames["odd good"][0])
    assert (result.verdict, result.regions) == (Verdict.ERROR, ())
    assert result.reason_code == ("backend_error" if keep_maps else "output_not_finite")
    after = detector.detect(frames["odd bad"][0])  # with the map here the lie is seen, and the host takes over
    assert after.verdict is (Verdict.REJECT if keep_maps else Verdict.ERROR)
    fake.broken.clear()
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS


@plain_kernels
def test_normalization_map_that_does_not_arrive_is_an_error(open_on, fake, frames, monkeypatch):
    detector = open_on("tensorrt", normalizations={"bottle": normalization_values(low=0.9, high=1.0)})
    copy = fake.copy_async

    def lossy(destination, source, byte_count, kind, stream):
        copy(destination, source, byte_count // 2 if (kind, byte_count) == ("host_to_device", 4 * SIZE * SIZE) else byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", lossy)
    result = detector.detect(frames["odd good"][0])
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, "backend_error")
    assert "normalization map or ignore mask did not arrive" in result.reason


@plain_kernels
def test_device_whose_normalization_is_wrong_is_not_used(open_on, fake, frames, caplog):
    fake.broken.add("normalization_cells")
    detector = open_on("tensorrt", normalizations={"bottle": normalization_values(low=0.9, high=1.0)})
    assert not detector.is_on_device
    assert "frames are prepared on the host, not on the GPU: it finds" in caplog.text
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT


FAILING = [
    *(("copy_async", after) for after in range(8)),
    *(("fill_async", after) for after in range(7)),
    *(("launch_kernel", after) for after in (3, 4, 5, 9)),
    *(("synchronize_stream", after) for after in range(3)),
    *(("allocate", after) for after in range(2)),
    ("allocate_pinned", 0),
]


@pytest.mark.parametrize("failing", FAILING, ids=lambda value: f"{value[0]}-{value[1]}")
@plain_kernels
def test_failing_call_on_the_first_normalized_frame_never_passes_a_bad_part(open_on, fake, frames, failing):
    """The normalization map is uploaded with that frame, so its calls are among those that fail."""
    detector = open_on("tensorrt", normalizations={"bottle": normalization_values(low=0.9, high=1.0)})
    fake.failing[failing[0]] = failing[1]
    during = [detector.detect(frames["odd bad"][0]) for _ in range(3)]
    for result in during:
        assert (result.verdict, result.reason_code) in ((Verdict.ERROR, "backend_error"), (Verdict.REJECT, "above_reject_threshold"))
    fake.failing.clear()
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    detector.close()
    assert fake.leaks == {}
