"""The ONNX file keeps the contract of names, types, shapes and operators, is one file, and has the same bytes every time."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from snl_export import onnx_export
from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle
from snl_export.onnx_export import BatchSize, check_contract, half_precision_head_nodes
from snl_runtime.errors import ConfigError, ParityRefusedError
from snl_train.checkpoint import load_checkpoint
from snl_train.scoring import score_features
from tolerances import EXPORTED_FP32_ABS, EXPORTED_FP32_REL


@pytest.fixture(scope="module")
def model(exported: ExportedBundle) -> onnx.ModelProto:
    return onnx.load(exported.model_path, load_external_data=False)


def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[int, list[int | str]]]:
    return {v.name: (v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values}


def test_names_types_and_shapes_are_those_of_the_design(model: onnx.ModelProto) -> None:
    assert shapes(model.graph.input) == {"image": (TensorProto.UINT8, ["N", 64, 64, 3])}
    assert shapes(model.graph.output) == {"anomaly_map": (TensorProto.FLOAT, ["N", 1, 64, 64]), "anomaly_score": (TensorProto.FLOAT, ["N"])}


def test_opset_is_18_and_no_other_domain_is_used(model: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions


def test_pixels_are_cast_before_anything_else(model: onnx.ModelProto) -> None:
    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]


def test_batch_norms_are_gone_and_nothing_branches(model: onnx.ModelProto) -> None:
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "If", "Loop", "Scan"}


def test_file_is_alone_and_names_no_file_of_this_machine(exported: ExportedBundle) -> None:
    assert sorted(path.name for path in exported.model_path.parent.iterdir()) == ["line.golden.npz", "line.json", "line.onnx"]
    content = exported.model_path.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_manifest_inside_the_file_is_the_part_that_needs_no_hash(exported: ExportedBundle, model: onnx.ModelProto) -> None:
    inside = json.loads({entry.key: entry.value for entry in model.metadata_props}["snl.manifest"])
    beside = json.loads(exported.model_path.with_suffix(".json").read_text(encoding="utf-8"))
    assert set(inside) == {"schema", "input", "outputs", "graph", "classes", "training", "training_image_sha256", "held_out"}
    assert inside == {key: beside[key] for key in inside}
    assert inside["classes"] == ["bolt", "nut"]
    assert inside["graph"]["affinity_layout"] == "rows"
    assert inside["input"]["batch"] == "dynamic"


def test_any_batch_gives_the_same_scores_as_single_images(exported: ExportedBundle) -> None:
    session = onnxruntime.InferenceSession(str(exported.model_path))
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    _, together = session.run(None, {"image": images})
    singly = np.concatenate([session.run(None, {"image": image[None]})[1] for image in images])
    np.testing.assert_allclose(together, singly, rtol=EXPORTED_FP32_REL)


def test_golden_samples_hold_what_the_checkpoint_gives(exported: ExportedBundle, checkpoint_path: Path) -> None:
    import torch

    checkpoint = load_checkpoint(checkpoint_path)
    network = checkpoint.build_model()
    with torch.no_grad():
        teacher, student = network(network.normalize(torch.from_numpy(checkpoint.golden_images)))
        maps, scores = score_features(teacher, student, (64, 64), checkpoint.config.score)
    with np.load(exported.model_path.with_suffix(".golden.npz"), allow_pickle=False) as golden:
        np.testing.assert_array_equal(golden["images"], checkpoint.golden_images)
        np.testing.assert_allclose(golden["scores"], scores.numpy(), rtol=EXPORTED_FP32_REL)
        np.testing.assert_allclose(golden["maps"], maps[:, 0].numpy(), atol=EXPORTED_FP32_ABS)


def test_second_export_has_the_same_bytes_and_prints_nothing(
    exported: ExportedBundle, checkpoint_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions())
    assert again.manifest.model_sha256 == exported.manifest.model_sha256
    assert capfd.readouterr().out == ""


def test_fixed_batch_is_in_graph_and_manifest(checkpoint_path: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions(batch=BatchSize.parse("2"), layout="triangle", tile_rows=100))
    graph = onnx.load(bundle.model_path).graph
    assert shapes(graph.input)["image"][1] == [2, 64, 64, 3]
    assert shapes(graph.output)["anomaly_score"][1] == [2]
    assert not [node for node in graph.node if node.op_type == "Shape"]
    assert (bundle.manifest.input["batch"], bundle.manifest.input["max_batch"]) == (2, 2)
    assert (bundle.manifest.graph["affinity_layout"], bundle.manifest.graph["affinity_tile_rows"]) == ("triangle", 100)


@pytest.mark.parametrize(
    ("text", "expected"), [("dynamic", BatchSize()), ("4", BatchSize(fixed=4, largest=4)), ("1..16", BatchSize(fixed=None, largest=16))]
)
def test_batch_is_read_as_written(text: str, expected: BatchSize) -> None:
    assert BatchSize.parse(text) == expected


@pytest.mark.parametrize("text", ["0", "2..8", "1..0", "-1", "many", "", "1.."])
def test_other_batches_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--batch"):
        BatchSize.parse(text)


def tiny_model(  # a graph of the right form with one thing wrong
    *, map_name: str = "anomaly_map", map_type: int = TensorProto.FLOAT, first: str = "Cast", domain: str = "", opset: int = 18
) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 4, 4, 3])
    outputs = [
        helper.make_tensor_value_info(map_name, map_type, [1, 1, 4, 4]),
        helper.make_tensor_value_info("anomaly_score", TensorProto.FLOAT, [1]),
    ]
    before = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])]
    if first == "Transpose":
        before = [
            helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    all_axes = helper.make_tensor("all_axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes = [
        *before,
        helper.make_node("ReduceMax", ["y", "axes"], ["z"]),
        helper.make_node("Cast", ["z"], [map_name], to=map_type),
        helper.make_node("ReduceMax", ["z", "all_axes"], ["anomaly_score"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", [image], outputs, [axes, all_axes])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_name": "map"}, "inputs and outputs"),
        ({"map_type": TensorProto.FLOAT16}, "inputs and outputs"),
        ({"first": "Transpose"}, "cast the pixels first"),
        ({"opset": 19}, "opset 18"),
        ({"domain": "com.example"}, "opset 18"),
    ],
)
def test_file_that_breaks_the_contract_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParityRefusedError, match=message):
        check_contract(tiny_model(**changes), size_hw=(4, 4), batch=BatchSize(fixed=1))


def test_sound_tiny_file_keeps_the_contract() -> None:
    check_contract(tiny_model(), size_hw=(4, 4), batch=BatchSize(fixed=1))


def test_norm_in_half_is_found_by_type() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 1])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceL2", ["x", "axes"], ["y"], name="norm")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [axes]), opset_imports=[helper.make_opsetid("", onnx_export.OPSET)])
    assert half_precision_head_nodes(model) == ["ReduceL2 'norm'"]
