"""A frame that is seen in tiles is uploaded once, cut on the GPU in one launch per batch, and judged as if the host had cut it.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU.
"""

import dataclasses

import numpy as np
import pytest

from snl_runtime.images.preprocess import resize
from snl_runtime.images.views import Tiles, score_views, tile_views
from snl_runtime.model.manifest import TileGrid, manifest_path, read_manifest, write_manifest
from snl_runtime.scorer import Scorer
from snl_runtime.types import OutputRequest, Verdict
from snl_runtime.verdict.frame_checks import frame_statistics
from tolerances import GRAY_LEVEL_ABS

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

ENGINES = {"onnxruntime": 8, "tensorrt": 4}
"""The most images that a run takes."""
MAP_HW = (64, 96)
COUNT = 3 * 4


@pytest.fixture
def views(model_fixtures):
    size = model_fixtures.SIZE
    return tile_views(MAP_HW, (size, size), Tiles(size, 8, with_whole_frame=False))


@pytest.fixture
def tiled(open_on, views, model_fixtures):
    """Open a detector whose product is seen in the views; thresholds that a scratch passes over and nothing else."""
    grid = TileGrid(tile_px=model_fixtures.SIZE, overlap_px=8, map_hw=MAP_HW, count=views.count)

    def open_tiled(where, **options):
        changes = {"tiles": grid, "pass_threshold": 60.0, "reject_threshold": 60.0, "floor": 0.1, "frame_range": model_fixtures.ANY_FRAME}
        detector = open_on(where, changes=[{**changes, **options.pop("changes", {})}], **options)
        if where == "tensorrt":  # an engine inherits no decision on tiles
            path = manifest_path(detector._scorer.bundle.path)
            manifest = read_manifest(path)
            own = dataclasses.replace(manifest.decisions[0], model_sha256=manifest.engines[0].sha256)
            write_manifest(path, manifest.with_decision(own))
            detector = type(detector)(detector._scorer.bundle.path, **options)
        return detector

    return open_tiled


@pytest.fixture
def shots(model_fixtures):
    """A good and a scratched frame of the merged map's size, BGR."""
    good = np.ascontiguousarray(model_fixtures.good_frame(3, 96)[:64])
    bad = good.copy()
    bad[40:43, 30:38] = 10
    return good, bad


def reference(model_fixtures, views, frame):
    """By hand: each tile alone through the NumPy model."""
    maps = model_fixtures.reference_maps(views.cut(frame[:, :, ::-1]).tobytes())
    return score_views(frame[:, :, ::-1], views, lambda _: (maps.max(axis=(1, 2)), maps), batch_size=views.count)


@pytest.mark.parametrize("engine", ENGINES)
def test_score_map_and_verdict_are_those_of_tiles_cut_on_the_host(tiled, shots, views, model_fixtures, engine):
    assert views.count == COUNT
    host, detector = (tiled(where, outputs=OutputRequest(overlay=True)) for where in ("host", engine))
    with detector:
        assert detector.is_on_device
        for frame, verdict in zip(shots, (Verdict.PASS, Verdict.REJECT)):
            expected, result = host.detect(frame), detector.detect(frame)
            score, merged = reference(model_fixtures, views, frame)
            assert (result.verdict, expected.verdict) == (verdict, verdict)
            assert result.score == pytest.approx(score, abs=1e-3)
            np.testing.assert_allclose(result.anomaly_map, merged, atol=1e-3)
            assert [region.box_xyxy for region in result.regions] == [region.box_xyxy for region in expected.regions]
            np.testing.assert_array_equal(result.overlay, expected.overlay)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frame_costs_one_upload_and_a_launch_a_batch(tiled, fake, shots, engine):
    with tiled(engine) as detector:
        for frame in shots:
            detector.detect(frame)  # sizes the buffers
        fake.ran.clear(), fake.calls.clear()
        detector.detect(shots[0])
        batches = -(-COUNT // ENGINES[engine])
        counted = {name: fake.ran.count(name) for name in ("host_to_device", "frame_rows", "frame_columns", "input_sums", "cut_views")}
        assert counted == {"host_to_device": 1, "frame_rows": 1, "frame_columns": 1, "input_sums": 1, "cut_views": batches}
        assert fake.ran.count("device_to_host") == 1 + 3 * batches  # sums; maps, scores and the count of blocks


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_cut_of_any_batch_gives_equal_bits(fake, write_engine, shots, views, batch):
    """At native size the device's input is the host's, byte for byte, so that nothing but the batch could make a difference."""
    path = write_engine().with_suffix(".onnx")
    with Scorer(path, device="cuda") as scorer:
        scored = [scorer._device_path.inspect_tiles(shots[1], "bgr", views, batch_size=size) for size in (8, batch)]
        host_cut, host_map = score_views(np.ascontiguousarray(shots[1][:, :, ::-1]), views, scorer.infer, batch_size=batch)
    assert scored[0][0] == scored[1][0] == host_cut
    for _, merged, statistics in scored:
        np.testing.assert_array_equal(merged, host_map)
        expected = dataclasses.asdict(frame_statistics(np.ascontiguousarray(shots[1][:, :, ::-1])))
        assert dataclasses.asdict(statistics) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_frame_that_is_resized_scores_as_on_the_host_within_a_gray_level(fake, write_engine, shots, views):
    frame = resize(shots[1], (131, 177))
    path = write_engine().with_suffix(".onnx")
    with Scorer(path) as host, Scorer(path, device="cuda") as device:
        expected, scored = host.score(frame, "bgr", tiles=views), device.score(frame, "bgr", tiles=views)
    assert scored.score == pytest.approx(expected.score, abs=GRAY_LEVEL_ABS)
    np.testing.assert_allclose(scored.anomaly_map, expected.anomaly_map, atol=GRAY_LEVEL_ABS)


def test_frame_on_the_gpu_is_brought_to_the_host_and_cut_all_the_same(tiled, shots, on_gpu, fake):
    with tiled("onnxruntime") as detector:
        expected = detector.detect(shots[1])
        fake.ran.clear()
        result = detector.detect(on_gpu(shots[1]))
    assert (result.verdict, result.score) == (expected.verdict, expected.score)
    assert fake.ran.count("cut_views") == 2


def test_cut_that_stops_working_is_an_error_and_never_an_old_answer(tiled, shots, fake):
    with tiled("onnxruntime") as detector:
        assert detector.detect(shots[0]).verdict is Verdict.PASS
        fake.broken.add("cut_views")
        result = detector.detect(shots[1])
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "backend_error")
        assert "the device cut 0 of" in result.reason
        assert detector.detect(shots[1]).verdict is Verdict.REJECT  # opened again, where the check finds it: the host prepares


def test_device_that_mixes_up_a_batch_leaves_the_tiles_to_the_host(tiled, shots, fake, device_detector, caplog):
    """One image at a time it answers right; golden samples side by side show it at opening."""

    def mix_up(score, anomaly_map):
        score[...] = score[::-1].copy()
        anomaly_map[...] = anomaly_map[::-1].copy()

    device_detector.Session.spoil = staticmethod(mix_up)
    with tiled("onnxruntime") as detector:
        assert not detector.is_on_device
        assert "frames are prepared on the host, not on the GPU: golden sample" in caplog.text
        assert [detector.detect(frame).verdict for frame in shots] == [Verdict.PASS, Verdict.REJECT]


def test_nothing_leaks_when_a_frame_in_tiles_fails_at_any_call(tiled, shots, fake):
    for name in ("allocate", "copy_async", "launch_kernel"):
        with tiled("onnxruntime") as detector:
            fake.failing[name] = 1
            assert detector.detect(shots[1]).verdict is Verdict.ERROR or name.startswith("allocate")
            fake.failing.clear()
    assert fake.leaks == {}
