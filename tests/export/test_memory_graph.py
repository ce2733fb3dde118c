"""A memory goes the way of every model: a graph that scores like its checkpoint, thresholds, verdicts; in float32 beside any backbone."""

import importlib.util
import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from snl_calibration.quantize import PARTS, find_convolutions  # noqa: E402
from snl_export.cost import memory_cost  # noqa: E402
from snl_export.graph import SnlGraph  # noqa: E402
from snl_export.onnx_export import BatchSize, export_onnx  # noqa: E402
from snl_runtime.backends import open_backend  # noqa: E402
from snl_runtime.backends.openvino import openvino_core  # noqa: E402
from snl_runtime.model.manifest import read_manifest  # noqa: E402
from snl_train import scoring  # noqa: E402
from snl_train.config import ModelConfig, ScoreConfig  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.models import TeacherStudent, build_model  # noqa: E402
from tolerances import EXPORTED_FP16_ABS, EXPORTED_FP32_ABS  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZE_HW = (32, 64)
SCORE = ScoreConfig(affinity_weight=0.0, smoothing_sigma=4.0)
CENTERS = 150  # two tiles and a smaller one
LAYERS = 2


def made_model(method: str) -> TeacherStudent:
    """Return random networks whose memory holds the features of random images, so that distances are small beside 1."""
    torch.manual_seed(3)
    model = build_model(ModelConfig(method=method, teacher="resnet18", teacher_weights="random"), MemoryConfig(centers=CENTERS)).eval()
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (24, 4, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2))
    from snl_train.models.memory import remembered_features

    for codebook, layer, weight in zip(model.memory.codebooks, model.memory.layers, (3.0, 5.0), strict=True):
        cells = remembered_features(model.teacher(model.normalize(images))[layer - 1]).movedim(1, -1).flatten(0, -2)
        codebook.set_centers(0.98 * cells[torch.randperm(len(cells))[:CENTERS]])
        codebook.weight.fill_(weight)
    model.memory.student_weight.fill_(0.25)
    return model


@pytest.fixture(scope="module", params=["memory", "rd"])
def model(request: pytest.FixtureRequest) -> TeacherStudent:
    return made_model(request.param)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    cells = np.random.default_rng(1).integers(0, 256, (2, 4, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(cells.repeat(8, 1).repeat(8, 2))


def expected_map(model: TeacherStudent, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        teacher, student = model(model.normalize(torch.from_numpy(pixels)))
        maps, _ = scoring.score_features(teacher, student, SIZE_HW, SCORE, memory=model.memory)
    return maps.numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EXPORTED_FP32_ABS), ("fp16", EXPORTED_FP16_ABS)])
def test_graph_with_a_memory_equals_the_training_side(precision: str, tolerance: float, model: TeacherStudent, pixels: np.ndarray) -> None:
    expected = expected_map(model, pixels)
    with torch.no_grad():
        maps, scores = SnlGraph(model, SCORE, size_hw=SIZE_HW, precision=precision)(torch.from_numpy(pixels))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=0, atol=tolerance * float(expected.max()))
    np.testing.assert_array_equal(scores.numpy(), maps.flatten(1).amax(1).numpy())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EXPORTED_FP32_ABS), ("fp16", EXPORTED_FP16_ABS)])
def test_every_backend_scores_like_the_checkpoint(
    backend: str, precision: str, tolerance: float, model: TeacherStudent, pixels: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    path = tmp_path / "x.onnx"
    export_onnx(SnlGraph(model, SCORE, size_hw=SIZE_HW, precision=precision), path, size_hw=SIZE_HW, batch=BatchSize(), metadata="{}")
    expected = expected_map(model, pixels)
    opened = open_backend(path, backend)
    found, scores = np.empty_like(expected), np.empty(len(pixels), np.float32)
    try:
        opened.infer(pixels, found, scores)
    finally:
        opened.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=max(tolerance, EXPORTED_FP32_ABS) * float(expected.max()))


def test_half_precision_leaves_the_memory_in_float_and_the_graph_has_no_gather_and_no_loop(model: TeacherStudent, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    export_onnx(SnlGraph(model, SCORE, size_hw=SIZE_HW, precision="fp16"), path, size_hw=SIZE_HW, batch=BatchSize(), metadata="{}")
    graph = onnx.load(path).graph
    centers = {tensor.name: tensor for tensor in graph.initializer if tensor.name.endswith(".centers") or "memory" in tensor.name}
    assert centers
    assert {tensor.data_type for tensor in centers.values()} == {onnx.TensorProto.FLOAT}
    assert not {node.op_type for node in graph.node} & {
        "Gather",
        "GatherND",
        "GatherElements",
        "Loop",
        "Scan",
        "If",
        "Slice",
        "Split",
        "TopK",
        "ArgMax",
    }
    assert not [
        tensor.name for tensor in graph.initializer if "layer3" in tensor.name and model.student is None
    ]  # costs nothing where nobody reads it
    products = [node for node in graph.node if node.op_type == "Conv" and "memory." in node.input[1]]
    assert len(products) == LAYERS * 4  # tiles of 150 centers, at most 64 each and an even number
    assert sum(node.op_type == "Max" for node in graph.node) == LAYERS  # between two pairs of tiles; inside a pair there is none
    scales = LAYERS if model.student is None else 3  # of memory and student together: maps of one grid are added before they are resized
    assert sum(node.op_type == "Transpose" for node in graph.node) == 1 + 3 * scales  # of the image, and around a resize


def test_int8_has_no_part_of_the_memory(model: TeacherStudent, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    export_onnx(SnlGraph(model, SCORE, size_hw=SIZE_HW), path, size_hw=SIZE_HW, batch=BatchSize(), metadata="{}")
    found = find_convolutions(onnx.load(path), PARTS)
    assert found
    assert not [one.weight for one in found if "memory" in one.weight or "tiles" in one.weight]


def test_cost_in_the_manifest_is_that_of_the_products_with_the_centers() -> None:
    model = made_model("memory")
    cost = memory_cost(model, (64, 64))
    memory = 2 * CENTERS * (64 * 16 * 16 + 128 * 8 * 8)
    stem = 2 * 64 * 3 * 49 * 32 * 32
    layer1 = 2 * 4 * 64 * 64 * 9 * 16 * 16
    layer2 = 2 * (128 * 64 * 9 + 3 * 128 * 128 * 9 + 128 * 64) * 8 * 8
    assert cost == {
        "memory_centers": CENTERS,
        "memory_layers": [1, 2],
        "memory_flop_share": pytest.approx(memory / (memory + stem + layer1 + layer2), abs=1e-4),
    }
    assert memory_cost(build_model(ModelConfig(method="rd", teacher="resnet18", teacher_weights="random")), (64, 64)) == {}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of generated parts and the checkpoint of a memory of them."""
    from snl_train.cli.train import main

    spec = importlib.util.spec_from_file_location("snl_tests_generator", ROOT / "examples" / "generate_products.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    folder = tmp_path_factory.mktemp("products")
    amounts = generator.Amounts(train=20, calibration=70, bad_per_defect=3, test_good=1, per_defect=1, line_good=1, line_per_defect=0)
    generator.write_products(folder, amounts, 7)
    checkpoint = folder / "line.pt"
    arguments = ["--data", str(folder / "images"), "--out", str(checkpoint), "--method", "memory", "--teacher", "resnet18"]
    assert main([*arguments, "--teacher-weights", "random", "--image-size", "64", "--set", "memory.centers=64", "--device", "cpu"]) == 0
    return folder, checkpoint


@pytest.mark.parametrize("options", [(), ("--fp16",)], ids=["fp32", "fp16"])
def test_memory_exports_calibrates_and_judges_parts(options: tuple[str, ...], line: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    from snl_calibration.cli import main as calibrate
    from snl_export.cli import main as export
    from snl_runtime.cli.run import main as run

    folder, checkpoint = line
    engine = tmp_path / "line.onnx"
    assert export(["--ckpt", str(checkpoint), "--out", str(engine), "--engine", "none", *options]) == 0
    manifest = read_manifest(engine.with_suffix(".json"))
    assert (manifest.graph["method"], manifest.graph["memory_centers"], manifest.graph["memory_layers"]) == ("memory", 64, [1, 2])
    assert all(report.passed for report in manifest.parity)
    product = sorted(path.name for path in (folder / "calibration").iterdir())[0]
    arguments = ["--engine", str(engine), "--good", str(folder / "calibration" / product), "--bad", str(folder / "bad" / product)]
    arguments += ["--product", product, "--max-frr", "0.05", "--min-detection", "0.1"]
    if calibrate(arguments) != 0:  # all parts are good, and which one lies far out depends on how this processor rounds
        outliers = re.findall(r"--accept-outlier (\S+)", capsys.readouterr().err)
        assert calibrate([*arguments, *(word for name in outliers for word in ("--accept-outlier", name))]) == 0
    frames = tmp_path / "frames"
    frames.mkdir()
    good = cv2.imread(str(sorted((folder / "calibration" / product).iterdir())[0]))
    assert good is not None
    ruined = good.copy()
    half = np.array(good.shape[:2]) // 2
    ruined[half[0] - 12 : half[0] + 12, half[1] - 12 : half[1] + 12] = (0, 255, 0)
    assert cv2.imwrite(str(frames / "0.png"), good)
    assert cv2.imwrite(str(frames / "1.png"), ruined)
    capsys.readouterr()
    records = tmp_path / "records.jsonl"
    run(["--engine", str(engine), "--images", str(frames), "--product", product, "--jsonl", str(records)])
    verdicts = [json.loads(text)["verdict"] for text in records.read_text(encoding="utf-8").splitlines()]
    assert verdicts[0] == "PASS"
    assert verdicts[1] != "PASS"


class Head(torch.nn.Module):
    """The head of a graph, for features in place of an image."""

    def __init__(self, graph: SnlGraph, scales: int) -> None:
        super().__init__()
        self.scoring, self.scales = graph, scales

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.scoring.head(features[: self.scales], features[self.scales :])


@pytest.mark.parametrize("kind", ["rd without memory", "rd", "memory"])
def test_feature_that_overflows_leaves_no_finite_map_on_any_library(kind: str, tmp_path: Path):
    """OpenVINO's ReLU, clamp and maximum make 0 of NaN, and 0 is what a perfect part has."""
    import onnxruntime

    model = build_model(ModelConfig(method="rd", teacher="resnet18", teacher_weights="random")).eval() if " " in kind else made_model(kind)
    graph = SnlGraph(model, SCORE, size_hw=SIZE_HW)
    with torch.no_grad():
        teacher, student = graph.model(torch.zeros(1, 3, *SIZE_HW))
        features = [torch.rand_like(one) + 0.1 for one in (*teacher, *student)]
    head = Head(graph, len(teacher)).eval()
    path = tmp_path / "head.onnx"
    torch.onnx.export(head, (features,), dynamo=True, opset_version=18, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [one.name for one in session.get_inputs()]
    spoiled = [None, *(range(len(names)) if student else (0, 1))]  # a memory alone looks at two layers
    for number in spoiled:
        given = [one.numpy().copy() for one in features]
        if number is not None:
            given[number][0, 3, 1, 1] = np.inf
        found = {
            "onnxruntime": session.run(None, dict(zip(names, given, strict=True)))[0],
            "openvino": compiled(dict(zip(names, given, strict=True)))[0],
        }
        for library, anomaly_map in found.items():
            assert np.isfinite(anomaly_map).all() == (number is None), (library, number)
