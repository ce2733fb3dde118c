"""Every backend answers alike: right values in the caller's arrays, typed errors only, nothing after close.

One suite over every implementation. The graph is made here and its answers come from NumPy: the map is the mean of the three channels over 255, the
score its maximum.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from snl_runtime import backends
from snl_runtime.backends import available_backends, open_backend
from snl_runtime.backends.base import Backend
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError, InferenceError
from tolerances import FLOAT32_REL

NAMES = ["onnxruntime", "openvino"]
HEIGHT, WIDTH = 8, 12


def write_graph(path, *, batch="N", height=HEIGHT, width=WIDTH, dtype=TensorProto.UINT8, output="anomaly_map"):
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "white"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "channel_axis"], ["gray"], keepdims=0),
        helper.make_node("Unsqueeze", ["gray", "map_axis"], [output]),
        helper.make_node("ReduceMax", [output, "all_axes"], ["anomaly_score"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("channel_axis", TensorProto.INT64, [1], [3]),
        helper.make_tensor("map_axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("all_axes", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    inputs = [helper.make_tensor_value_info("image", dtype, [batch, height, width, 3])]
    outputs = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 1, height, width]),
        helper.make_tensor_value_info("anomaly_score", TensorProto.FLOAT, [batch]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def answers(images):
    maps = images.astype(np.float64).mean(axis=3)[:, None] / 255
    return maps, maps.max(axis=(1, 2, 3))


def outputs(count):
    return np.full((count, 1, HEIGHT, WIDTH), np.nan, np.float32), np.full(count, np.nan, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("model") / "x.onnx")


@pytest.fixture(params=NAMES)
def name(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def backend(name, model):
    with open_backend(model, name, threads=1) as opened:
        yield opened


def test_backend_keeps_the_protocol_and_says_what_it_takes(backend, name):
    assert isinstance(backend, Backend)
    assert (backend.name, backend.device) == (name, "cpu")
    assert backend.input_shape == (None, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_map_and_score_of_any_batch_are_written_into_the_callers_arrays(backend, count):
    images, (maps, scores) = pictures(count), outputs(count)
    addresses = maps.ctypes.data, scores.ctypes.data
    assert backend.infer(images, maps, scores) is None
    expected_maps, expected_scores = answers(images)
    np.testing.assert_allclose(maps, expected_maps, rtol=FLOAT32_REL)
    np.testing.assert_allclose(scores, expected_scores, rtol=FLOAT32_REL)
    assert (maps.ctypes.data, scores.ctypes.data) == addresses


def test_batch_of_three_equals_three_single_calls_to_the_bit(backend):
    images, (maps, scores) = pictures(3), outputs(3)
    backend.infer(images, maps, scores)
    for index in range(3):
        one_map, one_score = outputs(1)
        backend.infer(images[index : index + 1], one_map, one_score)
        assert np.array_equal(one_map[0], maps[index])
        assert one_score[0] == scores[index]


def test_input_is_not_modified_and_may_be_read_only_or_strided(backend):
    wide = np.repeat(pictures(2), 2, axis=2)
    view = wide[:, :, ::2]
    view.flags.writeable = False
    before, (maps, scores) = wide.copy(), outputs(2)
    backend.infer(view, maps, scores)
    assert np.array_equal(wide, before)
    np.testing.assert_allclose(maps, answers(view)[0], rtol=FLOAT32_REL)


def test_outputs_may_be_parts_of_larger_arrays(backend):
    maps, scores = outputs(6)
    backend.infer(pictures(2), maps[::3], scores[::3])
    assert np.isfinite(maps[[0, 3]]).all()
    assert np.isnan(maps[[1, 2, 4, 5]]).all()
    assert np.isnan(scores[[1, 2, 4, 5]]).all()


def test_answer_is_not_a_view_that_the_next_call_overwrites(backend):
    first, (maps, scores) = pictures(1, seed=1), outputs(1)
    backend.infer(first, maps, scores)
    kept = maps.copy()
    backend.infer(pictures(1, seed=2), *outputs(1))
    assert np.array_equal(maps, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(image=a["image"][0]), r"image must be uint8 \(N, 8, 12, 3\), got uint8 \(8, 12, 3\)"),
        (lambda a: a.update(image=a["image"][:, :7]), r"image must be uint8 \(2, 8, 12, 3\), got uint8 \(2, 7, 12, 3\)"),
        (lambda a: a.update(image=a["image"][:, :, :, :1]), "image must be"),
        (lambda a: a.update(image=a["image"][:0], anomaly_map=a["anomaly_map"][:0], anomaly_score=a["anomaly_score"][:0]), "image must be"),
        (lambda a: a.update(image=a["image"].astype(np.float32)), "image must be uint8 .*, got float32"),
        (lambda a: a.update(image=a["image"].transpose(0, 3, 1, 2)), "image must be"),
        (lambda a: a.update(image=a["image"].tolist()), "image must be uint8 .*, got list"),
        (lambda a: a.update(image=None), "got NoneType"),
        (lambda a: a.update(anomaly_map=a["anomaly_map"][:1]), r"anomaly_map must be float32 \(2, 1, 8, 12\), got float32 \(1, 1, 8, 12\)"),
        (lambda a: a.update(anomaly_map=a["anomaly_map"][:, 0]), "anomaly_map must be"),
        (lambda a: a.update(anomaly_map=a["anomaly_map"].astype(np.float64)), "anomaly_map must be float32"),
        (lambda a: a.update(anomaly_score=a["anomaly_score"][:, None]), r"anomaly_score must be float32 \(2\), got float32 \(2, 1\)"),
        (lambda a: a.update(anomaly_score=a["anomaly_score"][:1]), "anomaly_score must be"),
    ],
)
def test_array_that_does_not_fit_is_an_inference_error_and_nothing_is_written(backend, change, message):
    maps, scores = outputs(2)
    arguments = {"image": pictures(2), "anomaly_map": maps, "anomaly_score": scores}
    change(arguments)
    with pytest.raises(InferenceError, match=f"backend '{backend.name}': .*{message}"):
        backend.infer(**arguments)
    assert np.isnan(maps).all()
    assert np.isnan(scores).all()
    backend.infer(pictures(2), maps, scores)  # the arrays were at fault, not the backend
    assert np.isfinite(maps).all()


def test_output_that_cannot_be_written_is_an_inference_error(backend):
    maps, scores = outputs(1)
    maps.flags.writeable = False
    with pytest.raises(InferenceError, match="anomaly_map must be writeable"):
        backend.infer(pictures(1), maps, scores)


def test_fixed_batch_is_declared_and_held(name, tmp_path):
    with open_backend(write_graph(tmp_path / "x.onnx", batch=2), name) as backend:
        assert backend.input_shape == (2, HEIGHT, WIDTH, 3)
        maps, scores = outputs(2)
        backend.infer(pictures(2), maps, scores)
        np.testing.assert_allclose(scores, answers(pictures(2))[1], rtol=FLOAT32_REL)
        with pytest.raises(InferenceError, match=r"image must be uint8 \(2, 8, 12, 3\), got uint8 \(1, 8, 12, 3\)"):
            backend.infer(pictures(1), *outputs(1))


def test_close_twice_is_harmless_and_use_after_close_is_an_inference_error(name, model):
    backend = open_backend(model, name)
    backend.close()
    backend.close()
    with pytest.raises(InferenceError, match=f"backend '{name}' is closed"):
        backend.infer(pictures(1), *outputs(1))


def test_leaving_the_block_closes_also_when_it_raises(name, model):
    with pytest.raises(KeyError), open_backend(model, name) as backend:
        raise KeyError("in the host program")
    with pytest.raises(InferenceError, match="is closed"):
        backend.infer(pictures(1), *outputs(1))


class Broken:
    """A library whose every call raises what no library should."""

    def __init__(self, error):
        self._error = error

    def run(self, *arguments, **options):
        raise self._error

    infer = run


@pytest.mark.parametrize(
    "error", [RuntimeError("device lost\nline 2"), ValueError("v"), TypeError(), MemoryError(), OSError(5, "io"), StopIteration()]
)
def test_exception_of_the_library_becomes_an_inference_error(backend, error):
    setattr(backend, {"onnxruntime": "_session", "openvino": "_request"}[backend.name], Broken(error))
    with pytest.raises(InferenceError, match=f"backend '{backend.name}' failed on cpu: {type(error).__name__}") as caught:
        backend.infer(pictures(1), *outputs(1))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_interrupt_by_the_operator_is_not_swallowed(backend):
    setattr(backend, {"onnxruntime": "_session", "openvino": "_request"}[backend.name], Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        backend.infer(pictures(1), *outputs(1))


@pytest.mark.parametrize("part", [0, 1, 30, 99])
def test_truncated_model_is_a_backend_error_that_names_the_file(name, model, tmp_path, part):
    data = model.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) * part // 100])
    with pytest.raises(BackendError, match=r"cut\.onnx"):
        open_backend(tmp_path / "cut.onnx", name)


def test_random_bytes_as_model_are_a_backend_error(name, tmp_path):
    for seed in range(5):
        (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(seed).bytes(500))
        with pytest.raises(BackendError, match=r"noise\.onnx"):
            open_backend(tmp_path / "noise.onnx", name)


def test_missing_model_is_a_backend_error_that_names_the_file(name, tmp_path):
    with pytest.raises(BackendError, match=r"none\.onnx"):
        open_backend(tmp_path / "none.onnx", name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": TensorProto.FLOAT}, "float32.*expected image uint8"),
        ({"output": "heatmap"}, "heatmap.*snl-export"),
        ({"height": "H"}, "leaves the image size open"),
    ],
)
def test_graph_of_another_signature_is_refused_when_it_is_opened(name, tmp_path, options, message):
    path = write_graph(tmp_path / "other.onnx", **options)
    with pytest.raises(BackendError, match=rf"other\.onnx.*{message}"):
        open_backend(path, name)


def test_missing_package_is_an_error_that_names_the_extra(name, model, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"onnxruntime": "cpu", "openvino": "openvino"}[name]
    with pytest.raises(BackendUnavailableError, match=rf"backend '{name}' needs the package {name}: pip install 'snl-edge\[{extra}\]'"):
        open_backend(model, name)


@pytest.mark.parametrize("threads", [0, -1])
def test_impossible_thread_count_is_a_config_error(name, model, threads):
    with pytest.raises(ConfigError, match=f"threads must be at least 1, got {threads}"):
        open_backend(model, name, threads=threads)


def test_threads_that_wait_leave_the_cores_to_others(model):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    with open_backend(model, "onnxruntime", threads=2) as on_onnxruntime:
        options = on_onnxruntime._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 2
    with open_backend(model, "openvino", threads=2) as on_openvino:
        compiled = on_openvino._request.get_compiled_model()
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 2


def test_missing_device_is_an_error_that_says_what_there_is(model):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="no device 'tpu'; use cpu, cuda or cuda:N"):
        open_backend(model, "onnxruntime", device="tpu")
    pytest.importorskip("openvino")
    with pytest.raises(BackendUnavailableError, match="no device 'tpu' here, only .*cpu"):
        open_backend(model, "openvino", device="tpu")


def test_cuda_without_its_provider_names_the_extra(model, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=r"pip install 'snl-edge\[gpu\]'"):
        open_backend(model, "onnxruntime", device="cuda:0")


def test_what_no_backend_runs_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=r"no backend runs '\.pt' files \(x\.pt\); expected \.onnx or \.trt"):
        open_backend(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"backend 'onnxruntime' runs \.onnx files, got x\.trt"):
        open_backend(tmp_path / "x.trt", "onnxruntime")
    with pytest.raises(ConfigError, match="unknown backend 'onnx'; expected one of onnxruntime, openvino, tensorrt"):
        open_backend(model, "onnx")


def test_available_backends_are_those_whose_package_is_installed(monkeypatch):
    monkeypatch.setattr(backends, "_is_installed", lambda package: package in {"openvino", "tensorrt_rtx"})
    assert available_backends()[:2] == ["openvino", "tensorrt"]


class EntryPoint:
    name = "fpga"
    value = "vendor.snl:open_fpga"

    def __init__(self, load):
        self.load = load


def test_third_party_adds_a_backend_through_an_entry_point(model, monkeypatch):
    seen = {}

    def open_fpga(path, *, device, threads):
        seen.update(path=path, device=device, threads=threads)
        return "the backend"

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [EntryPoint(lambda: open_fpga)] if group == "snl_edge.backends" else [])
    assert open_backend(model, "fpga", device="board1", threads=3) == "the backend"
    assert seen == {"path": model, "device": "board1", "threads": 3}
    assert "fpga" in available_backends()


def test_exception_of_a_third_party_becomes_a_backend_error(model, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("vendor bug")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [EntryPoint(lambda: broken)])
    with pytest.raises(BackendError, match=r"backend 'fpga' cannot open x\.onnx: ZeroDivisionError: vendor bug"):
        open_backend(model, "fpga")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [EntryPoint(broken)])
    with pytest.raises(BackendUnavailableError, match="backend 'fpga' from vendor.snl:open_fpga cannot be imported"):
        open_backend(model, "fpga")


def test_opening_a_model_writes_nothing_below_the_users_home(name, model_folder, tmp_path):
    """ONNX Runtime 1.32 and later collect telemetry on Linux unless the environment forbids it before the import, OpenVINO unless a package lacks."""
    model = model_folder.write()
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    program = f"from snl_runtime import open_backend; open_backend({str(model)!r}, {name!r}).close()"
    done = subprocess.run([sys.executable, "-c", program], env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
