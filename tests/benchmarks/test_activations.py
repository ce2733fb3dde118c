"""Peak activation memory is the largest sum of the tensors that live at once, which follows from shapes and order alone."""

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.speed import activations
from benchmarks.speed.activations import Peak, peak_activations
from benchmarks.speed.models import untrained_graph
from snl_runtime.errors import DataError


def graph(nodes, outputs, *, batch="N", shape=(4,), weights=()):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            list(weights),
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def test_chain_needs_two_tensors_at_a_time():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["y"])]
    # x and a, then a and b, then b and y: 2 tensors of 4 floats.
    assert peak_activations(graph(nodes, ["y"])).byte_count == 2 * 4 * 4
    assert peak_activations(graph(nodes, ["y"]), batch=3).byte_count == 3 * 2 * 4 * 4


def test_skip_connection_keeps_its_tensor_alive():
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["wide"], axis=1, name="widen"),
        helper.make_node("Relu", ["wide"], ["bent"], name="bend"),
        helper.make_node("ReduceSum", ["bent", "axis"], ["sum"], name="reduce"),
        helper.make_node("Add", ["x", "sum"], ["y"], name="skip"),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    # By hand, in floats: widen 4 + 8; bend 4 + 8 + 8 = 20; reduce 4 + 8 + 1; skip 4 + 1 + 4. The axis is a constant and does not count.
    assert peak_activations(graph(nodes, ["y"], weights=[axis])) == Peak(byte_count=20 * 4, node="bend", kind="Relu")


def test_output_of_the_graph_lives_to_the_end():
    nodes = [helper.make_node("Relu", ["x"], ["early"]), helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    # early stays: early, x and a, then early, a and y.
    assert peak_activations(graph(nodes, ["early", "y"])).byte_count == 3 * 4 * 4


def test_size_of_an_element_counts():
    nodes = [helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16), helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT)]
    assert peak_activations(graph(nodes, ["y"])).byte_count == 4 * 4 + 4 * 2


def test_tensor_of_unknown_size_is_said():
    nodes = [helper.make_node("NonZero", ["x"], ["where"]), helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT)]
    with pytest.raises(DataError, match="the shape of tensor 'where' does not follow"):
        peak_activations(graph(nodes, ["y"]))


def test_exported_graph_takes_most_where_the_first_feature_map_is_rectified(tmp_path):
    peak = peak_activations(onnx.load(untrained_graph(tmp_path, "best", 64)))
    stem = 64 * (64 // 2) ** 2 * 4  # bytes of ResNet-18's first feature map: 64 channels at half the size, float32
    assert (peak.byte_count, peak.kind) == (2 * stem, "Relu")


def test_file_that_is_no_graph_is_one_line(tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"\xff\xff\xff")
    assert activations.main(["--engine", str(tmp_path / "x.onnx")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
