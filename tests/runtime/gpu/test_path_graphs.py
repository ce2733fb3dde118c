"""With ONNX Runtime a GPU replays CUDA graphs that were compared with plain runs; where they cannot be had or answer otherwise, it runs without.

The GPU is one in NumPy with the real kernels, the session is ONNX Runtime on the CPU that records and replays as the library's CUDA provider does.
"""

import threading

import pytest

from snl_runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from snl_runtime.backends.onnxruntime.session import open_session
from snl_runtime.errors import InferenceError
from snl_runtime.types import Verdict

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

NO_GRAPH_LINE = "line.onnx runs without a CUDA graph: "


def test_frames_replay_a_graph_and_get_the_verdicts_of_the_host(open_on, fake, frames, device_detector, caplog):
    host, device = open_on("host"), open_on("onnxruntime")
    for name in ("odd good", "odd bad", "large", "black", "odd good"):
        fake.ran.clear()
        device_detector.assert_alike(device.detect(frames[name][0]), host.detect(frames[name][0]))
        assert fake.ran.count("graph") == 1
    assert device.has_cuda_graph
    assert not host.has_cuda_graph
    assert caplog.text == ""


def test_golden_samples_are_scored_by_replays(open_on, fake, device_detector):
    open_on("onnxruntime")
    golden_count = 3
    plain = fake.ran.count("engine") - fake.ran.count("graph")
    # For one image and for eight, twice each: two plain answers and nine runs, of which the first two are plain and the third records.
    assert plain == 2 * (2 * 2 + device_detector.RUNS_BEFORE_RECORDING)
    assert fake.ran.count("graph") == 2 * (2 * 9 - device_detector.RUNS_BEFORE_RECORDING) + golden_count


def test_replay_that_goes_wrong_after_opening_is_seen_by_the_golden_samples(open_on, frames, device_detector, caplog):
    """A self-test scores them by replays, too: what froze while the line ran is found."""
    detector = open_on("onnxruntime")
    device_detector.Session.replay = staticmethod(lambda work, count: None)
    assert not detector.self_test().passed
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS  # opened again, without a graph
    assert not detector.has_cuda_graph
    assert NO_GRAPH_LINE in caplog.text


def test_library_that_refuses_to_record_is_used_without(open_on, fake, frames, caplog):
    fake.refuses_capture = True
    detector = open_on("onnxruntime")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(NO_GRAPH_LINE)
    assert line.endswith("cannot use the graph capture feature as requested by the user")
    assert detector.is_on_device
    assert not detector.has_cuda_graph
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT


def answers_old(cuda):
    """Return a replay that gives for ever what the recording gave."""
    kept = {}

    def replay(work, count):
        cells = [cuda.view(address, size, "device") for address, size in outputs(cuda, count)]
        work()
        kept.setdefault(count, [cell.copy() for cell in cells])
        for cell, old in zip(cells, kept[count]):
            cell[...] = old

    return replay


def outputs(cuda, count):
    """The addresses of a context's outputs, by the sizes that eight maps of 32 x 32 pixels and their scores have, and the bytes of ``count``."""
    sizes = (8 * 4 * 32 * 32, 8 * 4)
    found = [(address, memory.nbytes) for address, memory in cuda._memory.items() if address in cuda.live["device"] and memory.nbytes in sizes]
    return [(address, byte_count // 8 * count) for address, byte_count in found]


@pytest.mark.parametrize("fault", ["writes nothing", "old answer", "old answer of a batch", "fails"])
def test_graph_that_answers_otherwise_is_not_used(open_on, fake, frames, fault, device_detector, caplog):
    def fail(work, count):
        raise InferenceError("cudaGraphLaunch gave cudaErrorStreamCaptureUnsupported")

    old = answers_old(fake)
    replays = {
        "writes nothing": lambda work, count: None,
        "old answer": old,
        "old answer of a batch": lambda work, count: old(work, count) if count > 1 else work(),
        "fails": fail,
    }
    device_detector.Session.replay = staticmethod(replays[fault])
    detector = open_on("onnxruntime")
    assert caplog.text.count(NO_GRAPH_LINE) == len(caplog.records) == 1
    fake.ran.clear()
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert detector.is_on_device
    assert not detector.has_cuda_graph
    assert "graph" not in fake.ran


def test_switch_turns_graphs_off(open_on, fake, frames, caplog):
    detector = open_on("onnxruntime", cuda_graphs=False)
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert detector.is_on_device
    assert not detector.has_cuda_graph
    assert "graph" not in fake.ran
    assert caplog.text == ""


def test_switch_reaches_tensorrt(open_on, fake, frames):
    with_graphs, without = open_on("tensorrt"), open_on("tensorrt", cuda_graphs=False)
    for detector in (with_graphs, without):
        for _ in range(3):
            assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert (with_graphs.has_cuda_graph, without.has_cuda_graph) == (True, False)


def test_another_thread_than_the_one_that_recorded_runs_without(fake, write_engine):
    """The library keeps a thread's graphs to that thread: another one would record a graph of its own, which nobody compared."""
    has_graph = {}

    def run(name):
        with backend.execution_context(4) as context:
            context.run_on_device(1, lambda address, stream: fake.fill_async(address, 7, 3, stream.handle))
            has_graph[name] = context.has_graph
            context.stream.synchronize()

    with OnnxRuntimeBackend(write_engine().with_suffix(".onnx"), device="cuda") as backend:
        run("same")
        other = threading.Thread(target=run, args=("other",))
        other.start()
        other.join()
        run("same again")
    assert has_graph == {"same": True, "other": False, "same again": True}
    assert fake.leaks == {}


def test_only_one_image_and_the_largest_batch_have_a_graph(fake, write_engine):
    with OnnxRuntimeBackend(write_engine().with_suffix(".onnx"), device="cuda") as backend, backend.execution_context(4) as context:
        found = []
        for count in (1, 2, 3, 4):
            context.run_on_device(count, lambda address, stream: fake.fill_async(address, 7, 3, stream.handle))
            found.append(context.has_graph)
        context.stream.synchronize()
        assert found == [True, False, False, True]
        with pytest.raises(InferenceError, match="takes 1 to 4 images at a time here, got 5"):
            context.run_on_device(5, lambda address, stream: None)


@pytest.mark.parametrize(
    "failing", [(name, after) for name in ("allocate", "allocate_pinned", "copy_async", "fill_async") for after in (0, 2, 5)], ids=str
)
def test_nothing_leaks_when_recording_fails_at_any_call(fake, write_engine, failing):
    fake.failing[failing[0]] = failing[1]
    backend = OnnxRuntimeBackend(write_engine().with_suffix(".onnx"), device="cuda")
    try:
        with backend.execution_context(2):
            pass
    except InferenceError:
        pass
    fake.failing.clear()
    backend.close()
    assert fake.leaks == {}


def test_memory_holds_one_session_after_a_refusal(fake, write_engine, monkeypatch):
    opened = []

    def note(path, *, capture=False, **options):
        opened.append(capture)
        return open_session(path, capture=capture, **options)

    monkeypatch.setattr("snl_runtime.backends.onnxruntime.backend.open_session", note)
    fake.refuses_capture = True
    with OnnxRuntimeBackend(write_engine().with_suffix(".onnx"), device="cuda") as backend:
        for _ in range(3):
            with backend.execution_context():
                pass
    assert opened == [False, True, False]  # of the host, with graphs, without; and not again
