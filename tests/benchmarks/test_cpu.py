"""The command that times graphs on a CPU measures ours and files of other projects, each backend in turn, and says what it cannot take."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.speed import cpu, peers
from benchmarks.speed.models import GRAPHS, QUANTIZED, tiny_model, untrained_graph

SIZE = 32


@pytest.fixture
def folder(tmp_path):
    """A folder in which two graphs lie already: the tiny one, which needs no export."""
    assert tiny_model().SIZE == SIZE
    for name in ("rd", "best"):
        tiny_model().write_stub_onnx(tmp_path / f"{name}-resnet18-{SIZE}-rows.onnx")
    return tmp_path


def write_foreign_graph(path, *, inputs=1):
    """Write a graph as other projects do: a float image with an open batch and open sides, outputs of its own."""
    names = [f"picture{index}" for index in range(inputs)]
    nodes = [helper.make_node("Relu", ["picture0"], ["heat"]), helper.make_node("GlobalMaxPool", ["heat"], ["peak"])]
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in names]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("heat", "peak")]
    graph = helper.make_graph(nodes, "foreign", taken, given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def measure(folder, *arguments):
    return cpu.main(["--folder", str(folder), "--size-px", str(SIZE), "--rounds", "2", *arguments])


def test_table_has_a_row_for_each_graph_backend_and_batch_and_for_files_of_others(folder, capsys):
    pytest.importorskip("openvino")
    other = write_foreign_graph(folder / "other.onnx")
    assert measure(folder, "--graphs", "rd", "best", "--batch", "1", "2", "--files", f"other={other}") == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line][1:]
    of_one = [("rd", "1"), ("rd", "2"), ("best", "1"), ("best", "2"), ("other", "1")]
    assert [(name.strip("| "), backend, batch) for name, backend, batch, *_ in rows] == [
        (name, backend, batch) for backend in cpu.BACKENDS for name, batch in of_one
    ]
    assert {row[4] for row in rows if row[0] == "| rd" and row[2] == "1"} == {"1.000 |"}


@pytest.mark.parametrize("text", ["other", "other=", "=x.onnx", "other=none.onnx"])
def test_file_without_a_name_or_that_is_not_there_is_one_line(text, folder, capsys):
    assert measure(folder, "--graphs", "rd", "--files", text) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "NAME=PATH" in captured.err


@pytest.mark.parametrize("backend", cpu.BACKENDS)
def test_file_with_two_inputs_is_one_line(backend, folder, capsys):
    pytest.importorskip(backend)
    other = write_foreign_graph(folder / "other.onnx", inputs=2)
    assert measure(folder, "--graphs", "rd", "--backend", backend, "--files", f"other={other}") == 2
    assert "must take one image" in capsys.readouterr().err


def test_graphs_in_8_bits_are_those_of_best_with_more_and_fewer_convolutions(tmp_path):
    pytest.importorskip("onnxscript")
    counts = {}
    for name in ("best", *QUANTIZED):
        graph = onnx.load(untrained_graph(tmp_path, name, SIZE)).graph
        counts[name] = sum(node.op_type == "Conv" and node.input[0].endswith("_dequantized") for node in graph.node)
        assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in graph.initializer if tensor.name.endswith("_scale"))
    stem_and_layer1 = 5
    assert counts["best"] == 0
    assert counts["best-int8-all"] == counts["best-int8"] + stem_and_layer1
    assert not set(QUANTIZED) & set(GRAPHS)


def test_peers_without_their_package_is_one_line_that_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers.metadata, "version", lambda name: missing(name))
    assert peers.main(["--out", str(tmp_path / "peers")]) != 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "baselines-requirements.txt" in captured.err
    assert not (tmp_path / "peers").exists()
    assert "anomalib" not in sys.modules


def missing(name):
    raise peers.metadata.PackageNotFoundError(name)
