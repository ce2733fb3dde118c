"""The TensorRT backend orders its work, owns its memory and turns every failure into a typed error; proven on a GPU in NumPy, not on a device."""

import threading

import numpy as np
import pytest

from snl_runtime.backends.base import Backend
from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.cuda.api import DeviceDescription
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendUnavailableError, ConfigError, EngineMismatchError, InferenceError, ManifestError
from snl_runtime.types import Verdict


@pytest.fixture
def engine_path(write_engine):
    return write_engine()


@pytest.fixture
def open_backend(engine_path, cuda, library):
    """Open the backend on the fakes and close it at the end."""
    opened = []

    def open_it(path=engine_path, **options):
        backend = TensorRtBackend(path, cuda=cuda, find_library=lambda name: library, **options)
        opened.append(backend)
        return backend

    yield open_it
    for backend in opened:
        backend.close()


@pytest.fixture
def images(model_fixtures):
    return np.stack([model_fixtures.good_frame(seed) for seed in range(9)])


def outputs(count, size):
    return np.full((count, 1, size, size), np.nan, np.float32), np.full(count, np.nan, np.float32)


def check_answers(backend, images, model_fixtures, *, times=1):
    for _ in range(times - 1):
        backend.infer(images, *outputs(len(images), model_fixtures.SIZE))
    maps, scores = outputs(len(images), model_fixtures.SIZE)
    backend.infer(images, maps, scores)
    expected = np.stack([model_fixtures.reference_map(image) for image in images])
    assert np.array_equal(maps[:, 0], expected)
    assert np.array_equal(scores, expected.max(axis=(1, 2)))


def test_backend_keeps_the_protocol_and_says_where_it_runs(open_backend, model_fixtures):
    backend = open_backend()
    assert isinstance(backend, Backend)
    assert backend.name == "tensorrt"
    assert backend.device == "cuda:0 (Fake RTX 4070, SM89, driver for CUDA 12.8)"
    assert backend.input_shape == (None, model_fixtures.SIZE, model_fixtures.SIZE, 3)


def test_work_runs_in_order_and_the_host_waits_before_it_reads(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    cuda.ran.clear()
    check_answers(backend, images[:1], model_fixtures)
    assert cuda.ran == ["host_to_device", "fill", "fill", "engine", "device_to_host", "device_to_host", "event"]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_any_number_of_images_is_cut_into_the_engines_batches(open_backend, images, model_fixtures, count):
    check_answers(open_backend(), images[:count], model_fixtures)


def test_two_batches_are_under_way_at_once_and_no_more(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    check_answers(backend, images[:4], model_fixtures)
    cuda.calls.clear()
    check_answers(backend, images[:8], model_fixtures)
    waits = [index for index, call in enumerate(cuda.calls) if call == "synchronize_event"]
    copies = [index for index, call in enumerate(cuda.calls) if call == "copy_async"]
    assert len(waits) == 2
    assert waits[0] > copies[-1]  # both batches were queued before the host waited


def test_same_batch_is_recorded_after_one_plain_run_and_replayed(open_backend, cuda, library, images, model_fixtures):
    backend = open_backend()
    for _ in range(4):
        check_answers(backend, images[:2], model_fixtures)
    assert cuda.calls.count("begin_capture") == 1
    assert cuda.calls.count("launch_graph") == 3
    assert library.contexts[0].runs == 2  # one plain, one recorded
    first_capture = cuda.calls.index("begin_capture")
    assert "synchronize_stream" in cuda.calls[:first_capture]


def test_change_of_batch_drops_the_recording_and_records_anew(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    for count in (2, 2, 2, 3, 3, 3):
        check_answers(backend, images[:count], model_fixtures)
    assert cuda.calls.count("begin_capture") == 2
    assert cuda.calls.count("destroy_graph") == 1
    assert len(cuda.live["graph"]) == 1


def test_alternating_batches_are_never_recorded(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    for count in (2, 3, 2, 3):
        check_answers(backend, images[:count], model_fixtures)
    assert "begin_capture" not in cuda.calls


def test_refused_capture_falls_back_to_plain_runs_for_good(open_backend, cuda, library, images, model_fixtures):
    library.refuse_capture = True
    backend = open_backend()
    for _ in range(4):
        check_answers(backend, images[:2], model_fixtures)
    assert cuda.calls.count("begin_capture") == 1
    assert "launch_graph" not in cuda.calls
    assert cuda.live["graph"] == {}  # the empty recording was thrown away


@pytest.mark.parametrize("call", ["begin_capture", "end_capture"])
def test_failing_capture_falls_back_to_plain_runs(open_backend, cuda, images, model_fixtures, call):
    backend = open_backend()
    cuda.failing[call] = 0
    for _ in range(3):
        check_answers(backend, images[:2], model_fixtures)
    assert cuda.calls.count(call) == 1
    assert "launch_graph" not in cuda.calls


def test_library_that_captures_by_itself_is_left_alone(open_backend, cuda, library, images, model_fixtures):
    library.captures_itself = True
    backend = open_backend()
    for _ in range(3):
        check_answers(backend, images[:2], model_fixtures)
    assert "begin_capture" not in cuda.calls


def test_engine_that_writes_nothing_leaves_nan_and_not_the_last_answer(open_backend, library, images, model_fixtures):
    backend = open_backend()
    check_answers(backend, images[:1], model_fixtures)
    library.stale = True
    for _ in range(3):  # plain, recorded, replayed
        maps, scores = np.zeros((1, 1, model_fixtures.SIZE, model_fixtures.SIZE), np.float32), np.zeros(1, np.float32)
        backend.infer(images[:1], maps, scores)
        assert np.isnan(maps).all()
        assert np.isnan(scores).all()


def test_each_thread_has_its_own_context_stream_and_buffers(open_backend, cuda, library, images, model_fixtures):
    backend = open_backend()
    barrier, failures = threading.Barrier(2), []

    def work(seed):
        try:
            barrier.wait(10)
            for _ in range(5):
                check_answers(backend, images[seed : seed + 3], model_fixtures)
        except BaseException as failure:  # noqa: BLE001 - shown below
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len({context.stream for context in library.contexts}) == len(library.contexts) == 3  # the opener and two threads
    check_answers(backend, images[:1], model_fixtures)
    backend.close()
    assert cuda.leaks == {}


def test_context_of_an_ended_thread_is_released_when_the_next_one_comes(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    for _ in range(4):
        thread = threading.Thread(target=check_answers, args=(backend, images[:1], model_fixtures))
        thread.start()
        thread.join(30)
    assert len(cuda.live["stream"]) == 2  # the opener's and the last one's


ACQUIRING = ("create_stream", "allocate", "allocate_pinned", "create_event")


@pytest.mark.parametrize(("call", "nth"), [(call, nth) for call in ACQUIRING for nth in range(6)])
def test_nothing_leaks_when_the_nth_allocation_fails(open_backend, cuda, library, call, nth):
    cuda.failing[call] = nth
    try:
        backend = open_backend()
    except InferenceError as failure:
        assert call in str(failure)  # noqa: PT017 - the other branch is the proof that nth covers them all
        assert cuda.leaks == {}
        assert all(engine.closed for engine in library.engines)
        return
    assert cuda.calls.count(call) <= nth
    backend.close()
    assert cuda.leaks == {}


@pytest.mark.parametrize("step", ["load_engine", "create_context", "set_addresses"])
def test_nothing_leaks_when_the_library_refuses(open_backend, cuda, library, step):
    library.failing[step] = 1
    with pytest.raises(InferenceError, match=step):
        open_backend()
    assert cuda.leaks == {}


RUNNING = ("copy_async", "fill_async", "record_event", "synchronize_event", "synchronize_stream", "launch_graph")


@pytest.mark.parametrize(("call", "nth"), [(call, nth) for call in RUNNING for nth in range(3)])
def test_failing_call_is_a_typed_error_that_ends_the_backend_without_a_leak(open_backend, cuda, images, model_fixtures, call, nth):
    backend = open_backend()
    cuda.failing[call] = nth
    with pytest.raises(InferenceError, match=call):
        check_answers(backend, images[:2], model_fixtures, times=8)
    cuda.failing.clear()
    with pytest.raises(InferenceError, match="failed before"):
        backend.infer(images[:1], *outputs(1, model_fixtures.SIZE))
    backend.close()
    assert cuda.leaks == {}


@pytest.mark.parametrize("runs", [0, 1, 2])
def test_refused_run_is_a_typed_error(open_backend, library, images, model_fixtures, runs):
    library.refuse_runs, library.refuse_capture = runs, True
    backend = open_backend()
    with pytest.raises(InferenceError, match="refused to run the engine"):
        check_answers(backend, images[:2], model_fixtures, times=4)


@pytest.mark.parametrize("call", ["free", "free_pinned", "destroy_event", "destroy_stream", "destroy_graph"])
def test_failing_release_does_not_keep_the_rest(open_backend, cuda, library, images, model_fixtures, call):
    backend = open_backend()
    for _ in range(3):
        check_answers(backend, images[:2], model_fixtures)
    cuda.failing[call] = 0
    with pytest.raises(InferenceError, match=call):
        backend.close()
    assert cuda.leaks == {}
    assert library.engines[0].closed


def test_callers_device_is_restored_also_after_a_failure(gpu, cuda, library, engine_path, images, model_fixtures):
    cuda.devices = [DeviceDescription(name="small", compute_capability=86, driver_version="12.8"), gpu.GPU]
    backend = TensorRtBackend(engine_path, device="cuda:1", cuda=cuda, find_library=lambda name: library)
    assert cuda.current_device() == 0
    assert set(cuda.live["device"].values()) == {1}
    check_answers(backend, images[:2], model_fixtures)
    assert cuda.current_device() == 0
    cuda.failing["copy_async"] = 0
    with pytest.raises(InferenceError):
        backend.infer(images[:1], *outputs(1, model_fixtures.SIZE))
    assert cuda.current_device() == 0
    backend.close()
    assert cuda.current_device() == 0
    assert cuda.leaks == {}


def test_array_that_does_not_fit_is_refused_before_the_device_sees_it(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    before = list(cuda.calls)
    with pytest.raises(InferenceError, match="image must be uint8"):
        backend.infer(images[:, :-1], *outputs(9, model_fixtures.SIZE))
    assert cuda.calls == before
    check_answers(backend, images[:1], model_fixtures)


def test_batch_outside_the_engines_range_is_refused(engine_path, cuda, library, images, model_fixtures):
    library.batches = (2, 4)
    with TensorRtBackend(engine_path, cuda=cuda, find_library=lambda name: library) as backend, pytest.raises(InferenceError, match="2 to 4, got 1"):
        backend.infer(images[:5], *outputs(5, model_fixtures.SIZE))


def test_close_twice_is_harmless_and_use_after_close_is_an_inference_error(open_backend, cuda, images, model_fixtures):
    backend = open_backend()
    backend.close()
    backend.close()
    assert cuda.leaks == {}
    with pytest.raises(InferenceError, match="is closed"):
        backend.infer(images[:1], *outputs(1, model_fixtures.SIZE))


# ---- engines that do not fit -----------------------------------------------------------------------------------------------------------------

REBUILD = r"rebuild it: snl-run --engine line\.trt --rebuild"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"compute_capability": ["8.6", "12.0"]}, r"built for compute capability 8\.6, 12\.0, this device \(Fake RTX 4070\) has 8\.9"),
        ({"compute_capability": []}, r"built for compute capability none, this device \(Fake RTX 4070\) has 8\.9"),
        ({"library_version": "10.7.0"}, r"built with tensorrt 10\.7\.0, this machine has tensorrt 10\.3\.0"),
        ({"library": "tensorrt-rtx", "library_version": "1.7.1.116"}, r"built with tensorrt-rtx 1\.7\.1\.116, this machine has tensorrt 10\.3\.0"),
    ],
)
def test_engine_for_another_gpu_or_version_says_how_to_rebuild(write_engine, cuda, library, entry, words):
    path = write_engine(**entry)
    with pytest.raises(EngineMismatchError, match=f"line.trt was {words}; {REBUILD}"):
        TensorRtBackend(path, cuda=cuda, find_library=lambda name: library)
    assert library.engines == []  # nothing was loaded
    assert cuda.leaks == {}


@pytest.mark.parametrize("damage", [lambda plan: plan[:-1], lambda plan: b"", lambda plan: plan[:3] + b"\0" + plan[4:], lambda plan: plan + b"x"])
def test_truncated_or_altered_engine_is_refused_before_it_is_loaded(engine_path, cuda, library, damage):
    engine_path.write_bytes(damage(engine_path.read_bytes()))
    with pytest.raises(ManifestError, match=f"truncated, altered or from another build; {REBUILD}"):
        TensorRtBackend(engine_path, cuda=cuda, find_library=lambda name: library)
    assert library.engines == []


def test_missing_engine_says_how_to_rebuild(engine_path, cuda, library):
    engine_path.unlink()
    with pytest.raises(ManifestError, match=REBUILD):
        TensorRtBackend(engine_path, cuda=cuda, find_library=lambda name: library)


def test_engine_without_manifest_is_refused(engine_path, cuda, library):
    engine_path.with_suffix(".json").unlink()
    with pytest.raises(ManifestError, match=r"line\.json"):
        TensorRtBackend(engine_path, cuda=cuda, find_library=lambda name: library)


@pytest.mark.parametrize(("device", "words"), [("cpu", "no device 'cpu'"), ("cuda:x", "no device"), ("cuda:-1", "no device"), ("0", "no device")])
def test_device_that_means_nothing_is_refused(open_backend, device, words):
    with pytest.raises(ConfigError, match=words):
        open_backend(device=device)


def test_device_that_is_not_there_is_named(open_backend):
    with pytest.raises(BackendUnavailableError, match=r"no CUDA device 3 here; use one of cuda:0"):
        open_backend(device="cuda:3")


def test_machine_without_a_gpu_is_a_backend_unavailable_error(open_backend, cuda):
    cuda.devices = []
    with pytest.raises(BackendUnavailableError):
        open_backend()


def test_unknown_library_in_the_manifest_is_a_typed_error(write_engine, cuda):
    with pytest.raises(BackendUnavailableError, match="no library called 'tensorrt_9'"):
        TensorRtBackend(write_engine(library="tensorrt_9"), cuda=cuda)


# ---- in the detector -------------------------------------------------------------------------------------------------------------------------


def test_detector_passes_good_parts_on_an_engine_with_parity(engine_path, open_backend, model_fixtures):
    with SnlDetector(engine_path, backend=open_backend()) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        assert detector.detect(model_fixtures.bad_frame(120)).verdict is Verdict.REJECT


def test_detector_answers_error_to_stale_outputs_and_recovers_nothing_from_them(engine_path, open_backend, library, model_fixtures):
    with SnlDetector(engine_path, backend=open_backend()) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        library.stale = True
        for _ in range(3):
            result = detector.detect(model_fixtures.good_frame(120))
            assert result.verdict is Verdict.ERROR
            assert np.isnan(result.score)


def test_detector_refuses_an_engine_whose_golden_scores_moved(engine_path, open_backend, library):
    honest = library.answer
    library.answer = lambda images: honest(images) * 1.1
    with pytest.raises(Exception, match="golden sample 0"):
        SnlDetector(engine_path, backend=open_backend())


def test_engine_without_parity_report_has_no_threshold(write_engine, open_backend, model_fixtures):
    path = write_engine(parity=False)
    with SnlDetector(path, backend=open_backend(path)) as detector:
        result = detector.detect(model_fixtures.good_frame(120))
        assert result.verdict is Verdict.ERROR
        assert "engine" in result.reason
