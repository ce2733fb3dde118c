"""INT8 goes to the convolutions of the backbone only, signed and symmetric, with ranges that lose the least on good images."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from snl_calibration.quantize import (
    DEFAULT_PARTS,
    PARTS,
    calibration_images,
    collect_activation_ranges,
    find_convolutions,
    insert_pairs,
    quantize_backbone,
)
from snl_runtime.errors import ConfigError, DataError

SIDE = 8
WEIGHTS = {
    "model.teacher.conv1": (4, 3),
    "model.teacher.layer1.0.conv1": (4, 4),
    "model.teacher.layer2.0.conv1": (4, 4),
    "model.bottleneck.embed.0.conv1": (4, 4),
    "model.student.stages.0.0.body.3": (4, 4),
    "model.student.stages.0.1.body.3": (4, 4),
    "unsqueeze_1": (4, 4),  # CRAM's centers carry no network's name
}


def make_graph() -> onnx.ModelProto:
    """Return a chain of 1x1 convolutions with ReLUs, ``image`` (1, 8, 8, 3) uint8 to ``y``."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], name="transpose", perm=[0, 3, 1, 2]),
    ]
    initializers = []
    for index, (name, shape) in enumerate(WEIGHTS.items()):
        weight = rng.normal(size=(*shape, 1, 1)).astype(np.float32) * np.array([1, 0.1, 3, 0.5], np.float32)[:, None, None, None]
        initializers += [
            numpy_helper.from_array(weight, f"{name}.weight"),
            numpy_helper.from_array(rng.normal(size=shape[0]).astype(np.float32), f"{name}.bias"),
        ]
        nodes.append(helper.make_node("Conv", [f"x{index}", f"{name}.weight", f"{name}.bias"], [f"conv{index}"], name=f"node_{index}"))
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"x{index + 1}"], name=f"relu_{index}"))
    output = helper.make_tensor_value_info(f"x{len(WEIGHTS)}", TensorProto.FLOAT, [1, 4, SIDE, SIDE])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])], [output], initializer=initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image[None]})[0]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(1)
    for index in range(5):
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    return calibration_images(tmp_path)


def test_importing_needs_neither_torch_nor_onnx() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime'])); import snl_calibration.quantize"
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_head_cram_and_last_student_block_are_never_chosen() -> None:
    chosen = {convolution.weight.removesuffix(".weight") for convolution in find_convolutions(make_graph(), PARTS)}
    assert chosen == set(WEIGHTS) - {"model.student.stages.0.1.body.3", "unsqueeze_1"}


def test_stem_and_layer1_are_chosen_on_request_only() -> None:
    default = {convolution.node for convolution in find_convolutions(make_graph(), DEFAULT_PARTS)}
    early = {convolution.node for convolution in find_convolutions(make_graph(), ["early"])}
    assert default == {"node_2", "node_3", "node_4"}
    assert early == {"node_0", "node_1"}


def test_graph_without_a_backbone_is_refused() -> None:
    model = make_graph()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[1] = node.input[1].replace("model.", "another.")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("model.", "another.")
    with pytest.raises(ConfigError, match="no convolution of teacher, bottleneck, student"):
        find_convolutions(model)


def test_ranges_are_the_largest_values_on_the_images(images: list[Path]) -> None:
    model = make_graph()
    ranges = collect_activation_ranges(model, ["x0", "x2", "conv0"], images, threads=1)
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    largest = {"x0": 0.0, "conv0": 0.0}
    for path in images:
        pixels = cv2.imread(str(path))[..., ::-1].astype(np.float64)
        convolved = pixels @ tensors["model.teacher.conv1.weight"][:, :, 0, 0].T + tensors["model.teacher.conv1.bias"]
        largest = {"x0": max(largest["x0"], pixels.max()), "conv0": max(largest["conv0"], np.abs(convolved).max())}
    assert ranges["x0"] == largest["x0"]
    assert ranges["conv0"] == pytest.approx(largest["conv0"], rel=1e-5)
    assert ranges["x2"] > 0


def test_tensor_of_zeros_has_a_usable_scale(tmp_path: Path) -> None:
    model = make_graph()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "model.teacher.layer1.0.conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, -1e9, np.float32), bias.name))  # layer2 reads zeros behind the ReLU
    assert cv2.imwrite(str(tmp_path / "1.png"), np.full((SIDE, SIDE, 3), 128, np.uint8))
    quantized = quantize_backbone(model, calibration_images(tmp_path), threads=1).model
    assert np.isfinite(run(quantized, np.full((SIDE, SIDE, 3), 128, np.uint8))).all()


def test_values_that_are_not_finite_are_refused_and_name_the_image(images: list[Path]) -> None:
    model = make_graph()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "model.teacher.conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0, 0, 0], np.float32), bias.name))
    with pytest.raises(DataError, match=r"0\.png: .* not finite in conv0"):
        collect_activation_ranges(model, ["conv0"], images, threads=1)


def test_quantized_graph_computes_what_int8_arithmetic_by_hand_gives() -> None:
    model = make_graph()
    (convolution,) = find_convolutions(model, ["bottleneck"])
    scale = 0.37
    quantized = insert_pairs(model, [convolution], {convolution.activation: scale})
    onnx.checker.check_model(quantized, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    image = np.random.default_rng(3).integers(0, 3, (SIDE, SIDE, 3), dtype=np.uint8)
    x = image.transpose(2, 0, 1).astype(np.float64)
    for name in WEIGHTS:
        weight, bias = tensors[f"{name}.weight"][:, :, 0, 0], tensors[f"{name}.bias"]
        if name.startswith("model.bottleneck"):
            steps = np.abs(weight).max(1, keepdims=True) / 127
            weight = np.rint(weight / steps) * steps
            x = np.clip(np.rint(x / scale), -128, 127) * scale
        x = np.maximum(np.einsum("oi,ihw->ohw", weight, x) + bias[:, None, None], 0)
    np.testing.assert_allclose(run(quantized, image)[0], x, rtol=1e-4, atol=1e-4 * np.abs(x).max())


def test_pairs_are_signed_with_zero_point_0_and_biases_stay_float(images: list[Path]) -> None:
    quantized = quantize_backbone(make_graph(), images, parts=PARTS, threads=1).model
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    pairs = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3 * 5
    for node in pairs:
        assert tensors[node.input[2]].dtype == np.int8
        assert not tensors[node.input[2]].any()
        assert all(reader.op_type in ("Conv", "DequantizeLinear") for reader in quantized.graph.node if node.output[0] in reader.input)
    for node in quantized.graph.node:
        if node.op_type == "Conv" and node.name in {"node_0", "node_4"}:
            assert made_by[node.input[1]].op_type == "DequantizeLinear"
            assert tensors[made_by[node.input[1]].input[1]].shape == (4,)
            assert tensors[node.input[2]].dtype == np.float32
    assert "model.teacher.conv1.weight" not in tensors
    assert tensors["unsqueeze_1.weight"].dtype == np.float32


def test_same_graph_and_images_give_the_same_bytes(images: list[Path]) -> None:
    first, second = (quantize_backbone(make_graph(), images, threads=1) for _ in range(2))
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert first.images_sha256 == second.images_sha256
    assert first.image_count == 5


def test_only_good_images_of_a_data_set_are_taken_evenly(tmp_path: Path) -> None:
    for name in (*(f"train/good/{i}.png" for i in range(10)), "test/dent/0.png", "ground_truth/dent/0.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    chosen = calibration_images(tmp_path, most=4)
    assert [path.relative_to(tmp_path).as_posix() for path in chosen] == [f"train/good/{i}.png" for i in (0, 3, 6, 9)]


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        calibration_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        calibration_images(tmp_path / "none")
