"""Full TensorRT is driven by name, every status is looked at, and what the library said is in the error.

Proven with a fake module, not with TensorRT and not on a device.
"""

import threading

import pytest

from snl_runtime.backends.tensorrt import builder as engine_builder
from snl_runtime.backends.tensorrt import library as trt_api
from snl_runtime.backends.tensorrt.builder import EngineTarget, build_engine
from snl_runtime.backends.tensorrt.engine import EngineLibrary
from snl_runtime.backends.tensorrt.library import BuildRequest, TensorRtLibrary, build_plan
from snl_runtime.errors import BackendUnavailableError, BuildCanceledError, EngineBuildError, EngineMismatchError, InferenceError
from snl_runtime.progress import Progress

REQUEST = BuildRequest(onnx=b"graph", batches=(1, 2, 4))


@pytest.fixture
def trt(full_tensorrt, monkeypatch):
    monkeypatch.setattr(trt_api, "_loggers", {})  # one per process and library: the real one must not get the fake's
    return full_tensorrt


@pytest.fixture
def library(trt):
    return TensorRtLibrary("tensorrt", trt.__version__, trt)


@pytest.fixture
def onnx_path(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"graph")
    return path


# ---- building --------------------------------------------------------------------------------------------------------------------------------


def test_build_is_strongly_typed_without_tf32_and_hidden_streams_and_keeps_its_timings(trt, library):
    built = build_plan(library, BuildRequest(onnx=b"graph", batches=(1, 2, 4), timing_cache=b"earlier"))
    assert built.plan == b"plan of graph"
    assert built.timing_cache == b"earlier+timings"
    assert built.inputs == (("image", (-1, 8, 8, 3), "UINT8"),)
    assert ("network", 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) in trt.calls
    assert ("clear_flag", trt.BuilderFlag.TF32) in trt.calls
    assert ("create_timing_cache", b"earlier") in trt.calls
    assert ("set_timing_cache", False) in trt.calls
    assert ("set_shape", "image", (1, 8, 8, 3), (2, 8, 8, 3), (4, 8, 8, 3)) in trt.calls
    assert trt.calls[-1] == ("build", 0)


@pytest.mark.parametrize("step", ["builder", "network", "parser", "config", "profile"])
def test_step_that_the_library_refuses_is_an_error_in_its_own_words(trt, library, step):
    trt.refusing.add(step)
    with pytest.raises(EngineBuildError, match=f"Error Code 4: {step} refused"):
        build_plan(library, REQUEST)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("parse", "tensorrt 10.3.0 cannot read the graph: In node 7: unsupported"),
        ("add_optimization_profile", r"refused batches \(1, 2, 4\): Error Code 4: add_optimization_profile refused"),
        ("build", "tensorrt 10.3.0 built no engine: Error Code 4: build refused"),
    ],
)
def test_graph_profile_and_build_that_are_refused_name_what_was_asked(trt, library, step, words):
    trt.refusing.add(step)
    with pytest.raises(EngineBuildError, match=words):
        build_plan(library, REQUEST)


def test_timings_are_kept_per_library_and_device_and_given_to_the_next_build(trt, library, onnx_path, tmp_path):
    target = EngineTarget(library=library, compute_capabilities=(87,), device="Orin, driver 12.6")
    build_engine(onnx_path, tmp_path / "x.trt", target, cache_folder=tmp_path / "cache")
    onnx_path.write_bytes(b"another graph")
    build_engine(onnx_path, tmp_path / "x.trt", target, cache_folder=tmp_path / "cache")
    elsewhere = EngineTarget(library=library, compute_capabilities=(87,), device="Orin, driver 12.8")
    build_engine(onnx_path, tmp_path / "x.trt", elsewhere, cache_folder=tmp_path / "cache")
    assert [content for name, *rest in trt.calls if name == "create_timing_cache" for content in rest] == [b"", b"+timings", b""]


def test_build_reports_every_step(trt, library, onnx_path, tmp_path, capsys):
    target = EngineTarget(library=library, compute_capabilities=(87,))
    build_engine(onnx_path, tmp_path / "x.trt", target, cache_folder=tmp_path / "cache", progress=Progress)
    printed = capsys.readouterr().err
    assert "build for tensorrt SM87" in printed
    assert "3 steps" in printed


def test_ctrl_c_cancels_the_build_at_its_next_step(trt, library, onnx_path, tmp_path, monkeypatch):
    waiting, ended = threading.Event(), []

    class Thread(threading.Thread):
        """The first wait for it is interrupted, as Ctrl-C does in the main thread."""

        def join(self, timeout=None):
            if not waiting.is_set():
                waiting.set()
                raise KeyboardInterrupt
            super().join(timeout)
            ended.append(not self.is_alive())

    real = trt_api._progress_monitor

    def slow(module, on_progress):
        def step(*arguments):
            waiting.wait(10)  # the build is under way when the interrupt comes
            return on_progress(*arguments)

        return real(module, step)

    monkeypatch.setattr(engine_builder.threading, "Thread", Thread)
    monkeypatch.setattr(trt_api, "_progress_monitor", slow)
    trt.steps = 10_000_000
    with pytest.raises(KeyboardInterrupt):
        build_engine(onnx_path, tmp_path / "x.trt", EngineTarget(library=library, compute_capabilities=(87,)), cache_folder=tmp_path / "cache")
    assert ended == [True]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.onnx"]


def test_cancel_that_was_asked_for_is_told_from_a_failure(trt, library):
    with pytest.raises(BuildCanceledError, match="the build with tensorrt was canceled"):
        build_plan(library, REQUEST, on_progress=lambda *_: False)


# ---- running ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(library):
    return EngineLibrary(library).load_engine(b"plan", file_name="x.trt", cache_path=None)


def test_engine_is_read_and_run_by_tensor_names(trt, engine):
    assert engine.input_shape == (None, 8, 8, 3)
    assert engine.batch_range == (1, 4)
    context = engine.create_context(77)
    assert not context.captures_itself
    context.set_batch(2)
    context.set_addresses(10, 20, 30)
    assert context.enqueue(77)
    assert [call for call in trt.calls if call[0] != "output_shape"] == [
        ("runtime",),
        ("deserialize", b"plan"),
        ("context", trt.ExecutionContextAllocationStrategy.STATIC),
        ("select_profile", 0, 77),
        ("set_input_shape", "image", (2, 8, 8, 3)),
        ("infer_shapes",),
        ("set_tensor_address", "image", 10),
        ("set_tensor_address", "anomaly_map", 20),
        ("set_tensor_address", "anomaly_score", 30),
        ("execute", 77),
    ]


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ("runtime", BackendUnavailableError, "tensorrt 10.3.0 cannot start: Error Code 4: runtime refused"),
        ("deserialize", EngineMismatchError, "refuses x.trt: Error Code 4: deserialize refused; rebuild it: snl-run --engine x.trt --rebuild"),
        ("context", InferenceError, "could not make a context for x.trt: Error Code 4: context refused"),
        ("select_profile", InferenceError, "could not select the profile of x.trt: Error Code 4: select_profile refused"),
        ("set_input_shape", InferenceError, "does not take a batch of 2: Error Code 4: set_input_shape refused"),
        ("infer_shapes", InferenceError, "leaves its output shapes open for a batch of 2: Error Code 4: infer_shapes refused"),
        ("output_shape", InferenceError, r"gives anomaly_map the shape \(3, 1, 8, 8\), expected \(2, 1, 8, 8\)"),
        ("set_tensor_address", InferenceError, "refused the address of image"),
    ],
)
def test_refused_step_is_a_typed_error_in_the_librarys_words(trt, library, step, error, words):
    trt.refusing.add(step)

    def run():
        context = EngineLibrary(library).load_engine(b"plan", file_name="x.trt", cache_path=None).create_context(77)
        context.set_batch(2)
        context.set_addresses(10, 20, 30)

    with pytest.raises(error, match=words):
        run()


@pytest.mark.parametrize("fault", ["execute", "raise"])
def test_run_that_is_refused_or_raises_is_answered_and_not_raised(trt, engine, fault):
    context = engine.create_context(77)
    trt.refusing.add(fault)
    assert not context.enqueue(77)  # called while a stream is being captured
