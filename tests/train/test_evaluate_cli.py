"""``snl-eval`` prints tables or exactly one JSON object, writes a report, and ends user errors in one line with status 2."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from snl_runtime.images.files import pixel_sha256, read_image
from snl_train.checkpoint import Checkpoint, save_checkpoint
from snl_train.cli.evaluate import main
from snl_train.config import ModelConfig, TrainConfig
from snl_train.models import build_model

SIZE_HW = (32, 48)
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision"]))
from snl_train.cli.evaluate import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def checkpoint_file(tmp_path):
    return write_checkpoint(tmp_path / "x.pt")


def write_checkpoint(path, trained_on=(), **provenance):
    torch.manual_seed(5)
    config = TrainConfig(model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4), image_size=SIZE_HW)
    checkpoint = Checkpoint(
        config=config,
        state_dict=build_model(config.model).state_dict(),
        classes=["cap", "nut"],
        seed=5,
        epochs_done=3,
        training_image_sha256=list(trained_on),
        golden_images=np.zeros((0, *SIZE_HW, 3), np.uint8),
        golden_classes=[],
        provenance=provenance,
    )
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture
def onnx_file(tmp_path):
    """The map is the red channel in 0..1, the score its maximum."""
    height, width = SIZE_HW
    nodes = [
        helper.make_node("Cast", ["image"], ["floating"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["floating", "first", "second", "channel"], ["red"]),
        helper.make_node("Div", ["red", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["anomaly_map"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMax", ["anomaly_map", "space"], ["anomaly_score"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        helper.make_tensor("second", TensorProto.INT64, [1], [1]),
        helper.make_tensor("channel", TensorProto.INT64, [1], [3]),
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("space", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", 1, height, width]),
            helper.make_tensor_value_info("anomaly_score", TensorProto.FLOAT, ["N"]),
        ],
        constants,
    )
    path = tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """Run a command that must end with status 2 and return its one line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    return errors[0]


def test_checkpoint_gives_both_tables_on_stdout(capsys, checkpoint_file, mvtec_root):
    assert run("--ckpt", checkpoint_file, "--data", mvtec_root, "--bootstrap", 20, "--device", "cpu") == 0
    captured = capsys.readouterr()
    rows = [line.split()[0] for line in captured.out.splitlines() if line and line[0] not in "-M["]
    assert rows == ["images", "cap", "nut", "mean", "pooled", "pixels", "cap", "nut", "mean", "pooled"]
    assert "score: 8/8 images" in captured.err


def test_test_images_of_a_size_that_training_did_not_see_are_told(capsys, tmp_path, mvtec_root):
    (size_hw,) = {read_image(path).shape[:2] for path in (mvtec_root / "cap" / "test").rglob("*.png")}
    trained = {"cap": [[9, 7], [160, 160]], "nut": [list(size_hw)]}
    path = write_checkpoint(tmp_path / "x.pt", frame_sizes=trained)
    assert run("--ckpt", path, "--data", mvtec_root, "--bootstrap", 0, "--device", "cpu") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "training did not see" in line]
    assert len(notes) == 1
    assert "test images of cap have a size" in notes[0]
    assert f"({size_hw[1]}x{size_hw[0]}; trained on 7x9, 160x160)" in notes[0]


def test_json_is_exactly_one_object_with_null_for_what_is_not_defined(capsys, checkpoint_file, mvtec_root):
    assert run("--ckpt", checkpoint_file, "--data", mvtec_root, "--json", "--bootstrap", 20, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert result["size_hw"] == [32, 48]
    assert result["classes"]["cap"]["metrics"]["aupro"] == {"value": None, "interval": None}
    assert 0 <= result["classes"]["nut"]["metrics"]["aupro"]["value"] <= 1
    low, high = result["mean"]["metrics"]["image_auroc"]["interval"]
    assert 0 <= low <= high <= 1
    assert len(result["images"]) == 8
    assert result["provenance"]["command"].startswith("snl-eval --ckpt")
    assert result["provenance"]["config"]["model"]["method"] == "snl-fd"
    assert len(result["provenance"]["sha256"]) == 64


def test_engine_scores_are_those_of_the_file(capsys, onnx_file, mvtec_root):
    assert run("--engine", onnx_file, "--backend", "onnxruntime", "--data", mvtec_root, "--json", "--bootstrap", 0, "--batch-size", 3) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["provenance"]["runs_on"].startswith("onnxruntime")
    assert result["classes"]["nut"]["metrics"]["aupro"]["interval"] is None
    assert all(0 <= entry["score"] <= 1 for entry in result["images"])


def test_whole_image_beside_no_tiles_is_refused(capsys, onnx_file, mvtec_root):
    assert "there are none; give --tile N" in refused(capsys, "--engine", onnx_file, "--data", mvtec_root, "--with-whole-frame")


def test_report_is_written_whole(capsys, onnx_file, mvtec_root, tmp_path):
    page = tmp_path / "out.html"
    assert run("--engine", onnx_file, "--data", mvtec_root, "--report", page, "--bootstrap", 20) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "Evaluation of x.onnx" in text
    assert str(page) in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_the_work(capsys, onnx_file, mvtec_root, tmp_path):
    page = tmp_path / "no-such-folder" / "out.html"
    assert run("--engine", onnx_file, "--data", mvtec_root, "--report", page) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(page) in captured.err


def test_classes_can_be_chosen(capsys, onnx_file, mvtec_root):
    assert run("--engine", onnx_file, "--data", mvtec_root, "--classes", "nut", "--json", "--bootstrap", 0) == 0
    assert list(json.loads(capsys.readouterr().out)["classes"]) == ["nut"]


def test_an_unknown_class_is_refused_with_the_known_ones(capsys, onnx_file, mvtec_root):
    message = refused(capsys, "--engine", onnx_file, "--data", mvtec_root, "--classes", "nut,screw")
    assert "'screw'" in message
    assert "cap, nut" in message


def test_images_that_were_trained_on_are_refused(capsys, mvtec_root, tmp_path):
    trained = mvtec_root / "nut" / "test" / "good" / "000.png"
    path = write_checkpoint(tmp_path / "x.pt", [pixel_sha256(read_image(trained))])
    message = refused(capsys, "--ckpt", path, "--data", mvtec_root, "--device", "cpu")
    assert str(trained) in message
    assert "1 of 8" in message


def test_an_unreadable_image_stops_or_is_listed(capsys, onnx_file, mvtec_root):
    broken = mvtec_root / "cap" / "test" / "good" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert str(broken) in refused(capsys, "--engine", onnx_file, "--data", mvtec_root)
    assert run("--engine", onnx_file, "--data", mvtec_root, "--skip-unreadable", "--bootstrap", 0) == 0
    err = capsys.readouterr().err
    assert f"left out: {broken}" in err
    assert "18 images taken, 0 cannot be taken, 0 files left out" in err


def test_data_without_labeled_images_is_refused(capsys, onnx_file, plain_root):
    assert "no labeled test images" in refused(capsys, "--engine", onnx_file, "--data", plain_root)


def test_a_file_that_is_no_checkpoint_is_refused(capsys, tmp_path, mvtec_root):
    path = tmp_path / "x.pt"
    path.write_bytes(b"nothing")
    assert str(path) in refused(capsys, "--ckpt", path, "--data", mvtec_root)


def test_a_backend_for_a_checkpoint_is_refused(capsys, checkpoint_file, mvtec_root):
    assert "--backend" in refused(capsys, "--ckpt", checkpoint_file, "--data", mvtec_root, "--backend", "openvino")


@pytest.mark.parametrize(
    "arguments",
    [["--data", "d"], ["--ckpt", "a", "--engine", "b", "--data", "d"], ["--ckpt", "a", "--data", "d", "--batch-size", "0"], ["--ckpt", "a"]],
)
def test_wrong_options_end_in_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_needs_neither_torch_nor_a_backend():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'onnxruntime', 'openvino', 'cv2']))\n"
    code = blocked + "from snl_train.cli.evaluate import main\nmain(['-h'])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "--report FILE" in finished.stdout
    assert "example:" in finished.stdout


def test_an_engine_is_evaluated_without_torch(onnx_file, mvtec_root):
    command = [sys.executable, "-c", WITHOUT_TORCH, "--engine", str(onnx_file), "--data", str(mvtec_root), "--bootstrap", "20"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "pooled" in finished.stdout


def test_a_checkpoint_without_torch_names_the_extra(checkpoint_file, mvtec_root):
    command = [sys.executable, "-c", WITHOUT_TORCH, "--ckpt", str(checkpoint_file), "--data", str(mvtec_root)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "snl-edge[train]" in finished.stderr
    assert finished.stderr.count("\n") == 1
