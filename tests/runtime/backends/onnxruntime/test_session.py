"""Every session on a GPU is opened with one table of options, silently, and with the CUDA libraries that pip installed."""

from types import SimpleNamespace

import onnxruntime
import pytest

from snl_runtime.backends.onnxruntime import session as onnxruntime_session
from snl_runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from snl_runtime.backends.onnxruntime.context import OnnxRuntimeContext
from snl_runtime.backends.onnxruntime.session import graph_run_options, open_session
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ON_A_GPU = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


class Library(SimpleNamespace):
    """ONNX Runtime with a CUDA provider, whose sessions only note what they were given; in ``calls``, in order."""

    def __init__(self):
        names = ("SessionOptions", "ExecutionMode", "GraphOptimizationLevel")
        super().__init__(calls=[], starts=CUDA, **{name: getattr(onnxruntime, name) for name in names})

    def get_available_providers(self):
        return [CUDA, CPU]

    def set_default_logger_severity(self, level):
        self.calls.append(("log", level))

    def preload_dlls(self):
        self.calls.append(("preload",))

    def InferenceSession(self, path, sess_options, providers):
        self.calls.append(("session", sess_options, providers))
        item = SimpleNamespace(name="image", type="tensor(uint8)", shape=["N", 8, 8, 3])
        outputs = [("anomaly_map", ["N", 1, 8, 8]), ("anomaly_score", ["N"])]
        return SimpleNamespace(
            get_providers=lambda: [self.starts, CPU],
            get_inputs=lambda: [item],
            get_outputs=lambda: [SimpleNamespace(name=name, type="tensor(float)", shape=shape) for name, shape in outputs],
            io_binding=lambda: SimpleNamespace(bind_input=lambda *values: None, bind_output=lambda *values: None),
        )


@pytest.fixture
def library(monkeypatch):
    fake = Library()
    monkeypatch.setattr(onnxruntime_session, "load_onnxruntime", lambda: fake)
    return fake


def opened(library):
    """The providers and the session options of each session."""
    return [(providers, options) for name, *given in library.calls if name == "session" for options, providers in [given]]


@pytest.fixture
def without_a_gpu(monkeypatch):
    """A context that opens its session and nothing else."""
    stream = SimpleNamespace(handle=0x7F00, synchronize=lambda: None)

    def enter(self, api, open_session, size_hw, *, largest_batch, capture, device_index):
        self._session, self._resources, self.stream = open_session(stream.handle), SimpleNamespace(close=lambda: None), stream

    monkeypatch.setattr(OnnxRuntimeContext, "__init__", enter)
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: SimpleNamespace(current_device=lambda: 0, set_device=lambda device: None))


@pytest.mark.parametrize(("device", "index"), [("cuda", "0"), ("cuda:1", "1")])
def test_both_sessions_of_a_backend_compute_with_the_same_options(library, without_a_gpu, tmp_path, device, index):
    """The second runs on the context's stream, whose handle goes as decimal text; without it, it would work on a stream of its own."""
    with OnnxRuntimeBackend(tmp_path / "x.onnx", device=device, threads=3) as backend, backend.execution_context():
        pass
    (host, host_options), (context, context_options) = opened(library)
    assert host == [(CUDA, {"device_id": index, **ON_A_GPU}), CPU]
    assert context == [(CUDA, {"device_id": index, **ON_A_GPU, "user_compute_stream": "32512", "enable_cuda_graph": "1"}), CPU]
    for options in (host_options, context_options):
        assert (options.log_severity_level, options.intra_op_num_threads) == (4, 3)


def test_switch_keeps_every_session_from_recording(library, without_a_gpu, tmp_path):
    with OnnxRuntimeBackend(tmp_path / "x.onnx", device="cuda", cuda_graphs=False) as backend, backend.execution_context():
        pass
    assert all("enable_cuda_graph" not in providers[0][1] for providers, _ in opened(library))


@pytest.mark.parametrize(("graph", "entry"), [(None, "-1"), (1, "1"), (8, "8")])
def test_run_names_its_graph_or_none(graph, entry):
    """Numbers of ONNX Runtime's own header: -1 switches recording and replay off for a run, 0 is reserved."""
    assert graph_run_options(graph).get_run_config_entry("gpu_graph_id") == entry


def test_log_and_libraries_are_ready_before_the_session(library, tmp_path):
    open_session(tmp_path / "x.onnx", device="cuda")
    assert [name for name, *_ in library.calls] == ["log", "preload", "session"]
    assert library.calls[0] == ("log", 4)


def test_cpu_session_leaves_the_process_as_it_is(library, tmp_path):
    open_session(tmp_path / "x.onnx")
    assert [name for name, *_ in library.calls] == ["session"]
    assert opened(library)[0][0] == [CPU]


def test_libraries_that_do_not_load_are_the_sessions_to_report_and_never_on_stdout(library, tmp_path, capsys):
    def fail():
        print("Failed to load libcudnn.so.9")
        raise RuntimeError("no such folder")

    library.preload_dlls = fail
    open_session(tmp_path / "x.onnx", device="cuda")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Failed to load libcudnn.so.9\n")


def test_library_without_preloading_is_used_as_it_is(library, tmp_path, monkeypatch):
    monkeypatch.delattr(Library, "preload_dlls")
    open_session(tmp_path / "x.onnx", device="cuda")
    assert len(opened(library)) == 1


@pytest.mark.parametrize("stream", [None, 0x7F00])
def test_session_that_fell_back_to_the_cpu_is_refused(library, tmp_path, stream):
    library.starts = CPU
    with pytest.raises(BackendUnavailableError, match=r"could not start device 'cuda:1'.*snl-edge\[gpu\]"):
        open_session(tmp_path / "x.onnx", device="cuda:1", stream=stream)


def test_library_that_refuses_an_option_is_a_backend_error(library, tmp_path):
    def refuse(path, sess_options, providers):
        raise ValueError("Invalid value for\nuse_tf32")

    library.InferenceSession = refuse
    with pytest.raises(BackendError, match=r"cannot load .*x\.onnx on cuda: ValueError: Invalid value for use_tf32"):
        open_session(tmp_path / "x.onnx", device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1"])
def test_unknown_device_is_refused_before_anything_is_touched(library, tmp_path, device):
    with pytest.raises(ConfigError, match=f"no device '{device}'; use cpu, cuda or cuda:N"):
        open_session(tmp_path / "x.onnx", device=device)
    assert library.calls == []


def test_real_library_has_every_function_that_is_called():
    assert callable(onnxruntime.set_default_logger_severity)
    assert callable(onnxruntime.preload_dlls)
