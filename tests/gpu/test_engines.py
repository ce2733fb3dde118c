"""An engine that TensorRT builds for this GPU passes its gate here, gives the verdicts of its ONNX file, and replays CUDA graphs to the bit."""

import pytest

from snl_runtime.backends.tensorrt.library import LIBRARY_NAMES
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendUnavailableError
from snl_runtime.model.bundle import open_bundle
from snl_runtime.types import Verdict

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=LIBRARY_NAMES)
def engine(request, api, model, engine_checks, tmp_path_factory):
    """An engine built and verified here, with its model beside it."""
    try:
        path = engine_checks.build_for_this_gpu(model, tmp_path_factory.mktemp("engine"), request.param)
    except BackendUnavailableError as missing:
        pytest.skip(str(missing))
    engine_checks.check_gate(path)
    return path


@pytest.fixture
def detector(engine, detector_checks, caplog):
    with SnlDetector(engine) as opened:
        assert detector_checks.HOST_LINE not in caplog.text
        yield opened


@pytest.fixture
def shots(detector, images, detector_checks):
    return detector_checks.read_shots(images, detector.products)


def test_verdicts_are_those_of_the_model_on_the_cpu(engine, detector, shots, detector_checks):
    bundle = open_bundle(engine)
    with SnlDetector(engine.with_name(bundle.manifest.model_file)) as on_cpu:
        verdicts = detector_checks.check_verdicts(on_cpu, detector, shots, allowed=detector_checks.allowed_difference(bundle))
    assert len(verdicts) > 1, f"every frame gets the same verdict, which tells nothing: {verdicts}"
    assert Verdict.ERROR not in verdicts


def test_replayed_graph_gives_what_a_plain_enqueue_gives(engine, engine_checks):
    captures_itself = open_bundle(engine).engine.library == "tensorrt-rtx"
    assert engine_checks.check_graph_equals_plain(engine) is not captures_itself


@pytest.mark.parametrize("shared", [True, False], ids=["one detector", "two detectors"])
def test_two_threads_get_what_one_gets(engine, detector, shots, detector_checks, shared):
    with SnlDetector(engine) as other:
        detector_checks.check_threads([detector, detector if shared else other], shots[:20])


def test_frames_take_no_device_memory_that_is_not_given_back(detector, shots, detector_checks, free_bytes):
    turns = iter(range(10_000))
    detector_checks.check_memory(free_bytes, lambda: detector_checks.inspect(detector, shots[next(turns) % len(shots)]), rounds=200, warm_up=50)


def test_closed_detector_gives_its_device_memory_back(engine, shots, detector_checks, free_bytes):
    def once():
        with SnlDetector(engine) as again:
            detector_checks.inspect(again, shots[0])

    detector_checks.check_memory(free_bytes, once, rounds=10, warm_up=2, allowed=detector_checks.REOPENING_BYTES)
