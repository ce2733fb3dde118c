"""Thresholds and metrics come from frames prepared where the line prepares them: what is fitted is what will be judged.

The GPU is one in NumPy whose kernel rounds half a gray level down, as the tolerance of one gray level allows, so that a frame prepared on the host
would score differently.
"""

import ctypes
import dataclasses

import numpy as np
import pytest

from snl_calibration.calibrate import calibrate
from snl_calibration.options import CalibrationOptions
from snl_runtime.cuda.resources import CudaModule
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.kernels import KERNEL_NAMES
from snl_runtime.images.files import write_image
from snl_runtime.images.preprocess import InputSpec, prepare, resize
from snl_runtime.images.views import Tiles, score_views, tile_views
from snl_runtime.model.manifest import TileGrid, manifest_path, read_manifest, write_manifest
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict
from tolerances import GRAY_LEVEL_ABS

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

ROI = (5, 9, 84, 70)
FRAME_HW = (77, 91)


@pytest.fixture
def fake(kernels, make_gpu, gpu, model_fixtures, monkeypatch):
    cuda = make_gpu(kernels)
    library = gpu.FakeLibrary(cuda, lambda images: model_fixtures.reference_maps(images.tobytes()), (model_fixtures.SIZE, model_fixtures.SIZE))
    launch = cuda.launch_kernel

    def round_down(kernel, *, arguments, **rest):
        if KERNEL_NAMES[kernel] == "frame_columns":
            arguments = (*arguments[:7], ctypes.c_float(0.0), *arguments[8:])
        launch(kernel, arguments=arguments, **rest)

    cuda.launch_kernel = round_down
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", lambda api: CudaModule(api, b"code"))
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    cuda.library = library
    return cuda


@pytest.fixture
def parts(model_fixtures):
    """RGB frames of good and of bad parts, larger than the network's input."""
    make = {"good": model_fixtures.good_frame, "bad": model_fixtures.bad_frame}
    return {kind: [resize(frame(seed), FRAME_HW)[:, :, ::-1].copy() for seed in range(200, 230)] for kind, frame in make.items()}


@pytest.mark.parametrize("whole", [False, True], ids=["tiles", "tiles and whole frame"])
def test_views_of_a_frame_are_scored_on_the_gpu(fake, on_gpu, write_engine, model_fixtures, whole):
    """Tiles are cut there, and on the host where the whole frame is seen beside them; also those of a frame that lies on the GPU."""
    tiles = Tiles(model_fixtures.SIZE, 8, with_whole_frame=whole)
    views = tile_views((64, 96), (model_fixtures.SIZE, model_fixtures.SIZE), tiles)
    grid = TileGrid(**tiles._asdict(), map_hw=(64, 96), count=views.count)
    frame = np.ascontiguousarray(model_fixtures.good_frame(3, 96)[:64])
    path = write_engine()
    manifest = read_manifest(manifest_path(path))
    changes = {"tiles": grid, "pass_threshold": 99.0, "reject_threshold": 99.0, "frame_range": model_fixtures.ANY_FRAME}
    own = dataclasses.replace(manifest.decisions[0], model_sha256=manifest.engines[0].sha256, **changes)
    write_manifest(manifest_path(path), manifest.with_decision(own))
    maps = model_fixtures.reference_maps(views.cut(frame[:, :, ::-1]).tobytes())
    expected, _ = score_views(frame[:, :, ::-1], views, lambda _: (maps.max(axis=(1, 2)), maps), batch_size=views.count)
    with SnlDetector(path) as detector:
        assert detector.is_on_device
        for image in (frame, on_gpu(frame)):
            result = detector.detect(image, color="bgr")
            assert (result.verdict, result.score) == (Verdict.PASS, pytest.approx(expected, abs=GRAY_LEVEL_ABS))
            assert result.anomaly_map.shape == (64, 96)


@pytest.mark.parametrize("roi", [None, ROI])
def test_scorer_gives_the_score_map_and_statistics_that_the_detector_judges(fake, write_engine, parts, roi):
    path = write_engine()
    manifest = read_manifest(manifest_path(path))
    decision = dataclasses.replace(manifest.decisions[0], roi_xyxy=roi)
    write_manifest(manifest_path(path), dataclasses.replace(manifest, decisions=[decision]))
    differing = 0
    with SnlDetector(path) as detector, Scorer(path) as scorer:
        assert scorer.is_on_device
        for frame in parts["good"][:6]:
            judged, scored = detector.detect(frame, color="rgb"), scorer.score(frame, "rgb", roi)
            assert scored.score == judged.score
            assert np.array_equal(scored.anomaly_map, judged.anomaly_map)
            seen = scorer.inspect(frame, "rgb", roi, threshold=1.0, keep_map=False)
            assert scored.statistics == seen.statistics
            host_scores, _ = scorer.score_inputs(prepare(frame, "rgb", InputSpec(size_hw=scorer.size_hw, roi_xyxy=roi))[None])
            differing += float(host_scores[0]) != scored.score
    assert differing > 0  # else this test could not tell the two paths apart
    assert fake.leaks == {}


def write_parts(parts, root):
    for kind, images in parts.items():
        for index, image in enumerate(images):
            folder = root / kind / "bottle" / ("scratch" if kind == "bad" else "")
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{index:02d}.png", image)


def test_threshold_and_range_are_fitted_on_what_the_detector_will_see(fake, write_engine, parts, tmp_path):
    path = write_engine()
    write_parts(parts, tmp_path)
    (fit,) = calibrate(path, tmp_path / "good", CalibrationOptions(max_frr=0.1, bad=tmp_path / "bad"))
    assert fit.refusal is None
    assert fit.decision.model_sha256 == read_manifest(manifest_path(path)).engines[0].sha256
    assert fit.decision.backend == "tensorrt on cuda:0 (Fake RTX 4070, SM89, driver for CUDA 12.8), frames prepared there"
    with SnlDetector(path) as detector:
        judged = [detector.detect(image, color="rgb") for image in parts["good"]]
    assert list(fit.scores.values()) == [result.score for result in judged]
    assert {result.verdict for result in judged if result.score <= fit.decision.pass_threshold} == {Verdict.PASS}


def test_fixtured_parts_are_judged_on_the_gpu_by_the_scores_of_the_fit(fake, write_engine, parts, tmp_path):
    path = write_engine()
    write_parts(parts, tmp_path)
    options = CalibrationOptions(max_frr=0.1, bad=tmp_path / "bad", fixed_pose=True, accept_lenient="the engine's inherited decision is of raw maps")
    (fit,) = calibrate(path, tmp_path / "good", options)
    assert fit.refusal is None
    with Scorer(path) as scorer:
        expected = [float((scorer.score(image, "rgb").anomaly_map * fit.normalization.normalization.values).max()) for image in parts["bad"]]
    with SnlDetector(path, keep_maps=False) as detector:
        assert detector.is_on_device
        judged = [detector.detect(image, color="rgb") for image in parts["bad"]]
    assert [result.score for result in judged] == expected
    detected = sum(result.verdict is Verdict.REJECT for result in judged)
    assert fit.evidence.counts == {"scratch": (detected, len(judged))}
    assert fake.leaks == {}


def test_evaluation_measures_the_scores_that_the_detector_gives(fake, write_engine, parts, tmp_path):
    pytest.importorskip("torch")
    from snl_train.data.layouts import read_dataset
    from snl_train.evaluation import score_samples

    path = write_engine()
    for index in range(6):
        for split, kind in (("train", "good"), ("test", "good"), ("test", "bad")):
            folder = tmp_path / "data" / "bottle" / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{index}.png", parts[kind][index + (10 if split == "train" else 0)])
    samples = read_dataset(tmp_path / "data").test
    with Scorer(path) as scorer:
        images, left_out = score_samples(scorer, samples, batch_size=4)
    assert left_out == []
    with SnlDetector(path) as detector:
        for image in images:
            result = detector.detect(parts["bad" if image.sample.is_anomalous else "good"][int(image.sample.path.stem)], color="rgb")
            assert image.score == result.score
            assert np.array_equal(image.anomaly_map, result.anomaly_map)


def test_unusable_answer_on_the_device_raises(fake, write_engine, parts):
    with Scorer(write_engine()) as scorer:
        fake.library.stale = True
        with pytest.raises(InferenceError, match="no usable answer for the frame on tensorrt"):
            scorer.score(parts["good"][0], "rgb")
