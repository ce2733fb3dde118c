"""A model on ONNX Runtime's CUDA gives the verdicts of the CPU, from host and device memory, on several threads, without growing."""

import numpy as np
import pytest

from snl_runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.images.views import Tiles, tile_views
from snl_runtime.model.bundle import open_bundle
from snl_runtime.model.golden import check_golden
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("onnxruntime_cuda")]

SAME_DEVICE = 1e-5
"""Share of the score by which two sessions on one GPU may differ: kernels that sum with atomics have no fixed order."""


@pytest.fixture
def on_cuda(model, detector_checks, caplog):
    """The detector as a user opens it, which checks the golden samples."""
    with SnlDetector(model, device="cuda") as detector:
        assert detector_checks.HOST_LINE not in caplog.text
        yield detector


@pytest.fixture
def shots(on_cuda, images, detector_checks):
    return detector_checks.read_shots(images, on_cuda.products)


def test_golden_samples_agree_and_frames_are_prepared_on_the_gpu(on_cuda, shots, detector_checks):
    assert on_cuda.device.startswith("cuda")
    assert detector_checks.inspect(on_cuda, shots[0]).verdict is not Verdict.ERROR


def test_session_of_the_host_path_agrees_with_the_golden_samples(model):
    """It is another session than that of the device path, and takes batches."""
    bundle = open_bundle(model)
    golden, (height, width) = bundle.golden, bundle.golden.images.shape[1:3]
    with OnnxRuntimeBackend(model, device="cuda") as backend:

        def infer(images):
            anomaly_map, score = np.full((len(images), 1, height, width), np.nan, np.float32), np.full(len(images), np.nan, np.float32)
            backend.infer(images, anomaly_map, score)
            return score, anomaly_map[:, 0]

        check_golden(golden, infer, bundle.golden_tolerance)
        if backend.input_shape[0] is None:
            one_by_one = np.stack([infer(golden.images[index : index + 1])[1][0] for index in range(len(golden.images))])
            np.testing.assert_allclose(infer(golden.images)[1], one_by_one, atol=bundle.golden_tolerance * golden.maps.max())


def test_model_passes_the_gate_of_an_engine(model, detector_checks):
    with Scorer(model, golden_check=False) as reference, Scorer(model, device="cuda", golden_check=False) as subject:
        assert subject.is_on_device
        detector_checks.check_parity(reference, subject)


def test_verdicts_are_those_of_the_cpu(model, on_cuda, shots, detector_checks):
    with SnlDetector(model) as on_cpu:
        verdicts = detector_checks.check_verdicts(on_cpu, on_cuda, shots, allowed=detector_checks.allowed_difference(open_bundle(model)))
    assert len(verdicts) > 1, f"every frame gets the same verdict, which tells nothing: {verdicts}"
    assert Verdict.ERROR not in verdicts


def test_scores_do_not_depend_on_the_start(model, on_cuda, shots, detector_checks):
    expected = [detector_checks.inspect(on_cuda, shot) for shot in shots[:20]]
    with SnlDetector(model, device="cuda") as again:
        for number, shot in enumerate(shots[:20]):
            detector_checks.check_alike(expected[number], detector_checks.inspect(again, shot), f"frame {number}", relative=SAME_DEVICE)


def test_replayed_graph_gives_what_a_session_without_gives(model, on_cuda, shots, detector_checks):
    with SnlDetector(model, device="cuda", cuda_graphs=False) as plain:
        for number, shot in enumerate(shots[:20]):
            expected, result = detector_checks.inspect(plain, shot), detector_checks.inspect(on_cuda, shot)
            detector_checks.check_alike(expected, result, f"frame {number}", relative=SAME_DEVICE)
        assert (plain.has_cuda_graph, on_cuda.has_cuda_graph) == (False, True)


def test_frames_of_a_batch_get_what_each_gets_alone(model, on_cuda, shots, detector_checks):
    """Other kernels may be chosen for another number of images, so scores are equal within the tolerance of golden samples only."""
    same = [shot for shot in shots if shot.color == shots[0].color][: 2 * on_cuda.batch_size]
    results = on_cuda.detect_batch([shot.image for shot in same], color=shots[0].color, products=[shot.product for shot in same])
    tolerance = open_bundle(model).golden_tolerance
    for number, (shot, result) in enumerate(zip(same, results, strict=True)):
        detector_checks.check_alike(detector_checks.inspect(on_cuda, shot), result, f"frame {number}", relative=tolerance)


def test_tiles_score_as_on_the_cpu(model, shots, detector_checks):
    with Scorer(model) as on_cpu, Scorer(model, device="cuda") as on_gpu:
        side = on_cpu.size_hw[0]
        views = tile_views((2 * side + side // 2, 3 * side), on_cpu.size_hw, Tiles(side, side // 8, with_whole_frame=False))
        for shot in shots[:5]:
            expected, result = (scorer.score(shot.image, shot.color, tiles=views) for scorer in (on_cpu, on_gpu))
            assert abs(result.score - expected.score) <= detector_checks.allowed_difference(open_bundle(model))


@pytest.mark.parametrize("package", ["torch", "cupy"])
def test_frame_in_device_memory_gets_the_verdict_of_the_same_frame_on_the_host(on_cuda, shots, detector_checks, package):
    library = pytest.importorskip(package, reason=f"needs {package} to put a frame into device memory")
    put = library.asarray
    if package == "torch":
        if not library.cuda.is_available():
            pytest.skip("needs a torch with CUDA")
        put = lambda image: library.from_numpy(image.copy()).cuda()  # noqa: E731
    for number, shot in enumerate(shots[:20]):
        expected, result = detector_checks.inspect(on_cuda, shot), detector_checks.inspect(on_cuda, shot, put(shot.image))
        detector_checks.check_alike(expected, result, f"frame {number}", relative=SAME_DEVICE)
        assert result.roi_xyxy == expected.roi_xyxy


@pytest.mark.parametrize("shared", [True, False], ids=["one detector", "two detectors"])
def test_two_threads_get_what_one_gets(model, on_cuda, shots, detector_checks, shared):
    with SnlDetector(model, device="cuda") as other:
        detector_checks.check_threads([on_cuda, on_cuda if shared else other], shots[:20], relative=SAME_DEVICE)


def test_frames_take_no_device_memory_that_is_not_given_back(on_cuda, shots, detector_checks, free_bytes):
    turns = iter(range(10_000))
    detector_checks.check_memory(free_bytes, lambda: detector_checks.inspect(on_cuda, shots[next(turns) % len(shots)]), rounds=200, warm_up=50)


def test_closed_detector_gives_its_device_memory_back(model, shots, detector_checks, free_bytes):
    def once():
        with SnlDetector(model, device="cuda") as detector:
            detector_checks.inspect(detector, shots[0])

    detector_checks.check_memory(free_bytes, once, rounds=5, warm_up=2, allowed=detector_checks.REOPENING_BYTES)
