"""What is given where it does not belong is named, with the option or command that takes it, by every command."""

import importlib
import os
from pathlib import Path

import pytest

from snl_runtime.errors import ManifestError
from snl_runtime.mixups import HINTS, Kind, find_mix_up, kind_of

MODULES = {
    "snl-train": "snl_train.cli.train",
    "snl-eval": "snl_train.cli.evaluate",
    "snl-export": "snl_export.cli",
    "snl-calibrate": "snl_calibration.cli",
    "snl-run": "snl_runtime.cli.run",
    "snl-bench": "snl_runtime.cli.bench",
    "snl-sign": "snl_runtime.cli.sign",
    "snl-replay": "snl_runtime.cli.replay",
    "snl-inspect": "snl_runtime.cli.inspect",
    "snl-compare": "snl_runtime.cli.compare",
    "snl-serve": "snl_runtime.cli.serve",
}
FILES = ["x.pt", "x.resume.pt", "w.safetensors", "x.onnx", "x.trt", "x.json", "x.golden.npz", "part.PNG", "line.avi", "verdicts.jsonl"]

TABLE = [
    ("snl-run --engine x.pt --images parts", "x.pt is a checkpoint of snl-train; export it first: snl-export --ckpt x.pt"),
    ("snl-bench --engine x.pt", "export it first: snl-export --ckpt x.pt"),
    ("snl-bench --engine x.onnx --compare x.pt", "--compare: x.pt is a checkpoint"),
    ("snl-calibrate --engine x.pt --good parts", "export it first: snl-export --ckpt x.pt"),
    ("snl-eval --engine x.pt --data parts", "x.pt is a checkpoint of snl-train; name it with --ckpt"),
    ("snl-run --engine x.resume.pt --images parts", "x.resume.pt is the state of a training; finish the training with snl-train --resume"),
    ("snl-run --engine w.safetensors --images parts", "train with them: snl-train --teacher-weights w.safetensors"),
    ("snl-run --engine x.json --images parts", "x.json is a manifest; name the model beside it, e.g. x.onnx"),
    ("snl-run --engine x.golden.npz --images parts", "a file of golden samples; name the model beside it, e.g. x.onnx"),
    ("snl-calibrate --engine x.json --good parts", "name the model beside it, e.g. x.onnx"),
    ("snl-run --engine parts --images parts", "parts is a folder; name the model in it, x.onnx or x.trt"),
    ("snl-run --engine part.PNG --images parts", "part.PNG is an image; name the model with --engine and images with --images"),
    ("snl-run --engine line.avi --images parts", "line.avi is a video; name the model with --engine and a video with --video"),
    ("snl-run --engine rtsp://host/x --images parts", "an address; name the model with --engine and an address with --camera"),
    ("snl-bench --engine part.PNG", "part.PNG is an image; name an exported model, x.onnx or x.trt"),
    ("snl-sign --engine x.pt --key key.pem", "x.pt is a checkpoint of snl-train; export it first: snl-export --ckpt x.pt"),
    ("snl-sign --engine x.json --public-key key.pub.pem", "x.json is a manifest; name the model beside it, e.g. x.onnx"),
    ("snl-replay --engine x.pt --archive parts", "x.pt is a checkpoint of snl-train; export it first: snl-export --ckpt x.pt"),
    ("snl-export --ckpt x.onnx", "it is exported already and runs as it is: snl-run --engine x.onnx"),
    ("snl-export --ckpt x.trt", "x.trt is an engine; it is exported already"),
    ("snl-eval --ckpt x.onnx --data parts", "x.onnx is an exported model; name it with --engine"),
    ("snl-export --ckpt x.resume.pt", "name the checkpoint beside it, x.pt"),
    ("snl-export --ckpt x.json", "x.json is a manifest; name a checkpoint of snl-train, x.pt"),
    ("snl-eval --ckpt parts --data parts", "parts is a folder; name a checkpoint of snl-train, x.pt"),
    ("snl-export --ckpt w.safetensors", "train with them: snl-train --teacher-weights w.safetensors"),
    ("snl-run --engine x.onnx --video rtsp://user:secret@host/x?token=secret", "rtsp://***@host/x?token=*** is an address; name it with --camera"),
    ("snl-run --engine x.onnx --images http://host/x", "http://host/x is an address; name it with --camera"),
    ("snl-run --engine x.onnx --camera line.avi", "line.avi is a video; name it with --video"),
    ("snl-run --engine x.onnx --images line.avi", "line.avi is a video; name it with --video"),
    ("snl-run --engine x.onnx --video parts", "parts is a folder; name it with --images"),
    ("snl-run --engine x.onnx --video part.PNG", "part.PNG is an image; name it with --images"),
    ("snl-run --engine x.onnx --camera parts", "parts is a folder; name it with --images"),
    ("snl-run --engine x.onnx --images x.onnx", "x.onnx is an exported model; name it with --engine"),
    ("snl-run --engine x.onnx --images x.pt", "export it first: snl-export --ckpt x.pt, and name the model with --engine"),
    ("snl-train --out y.pt --data line.avi", "line.avi is a video; save its frames as images and name their folder"),
    ("snl-calibrate --engine x.onnx --good rtsp://host/x", "an address; name a folder of images"),
    ("snl-calibrate --engine x.onnx --good parts --bad line.avi", "--bad: line.avi is a video"),
    ("snl-bench --engine x.onnx --frames x.onnx", "name a folder of images, and the model with --engine"),
    ("snl-export --ckpt x.pt --calib-data x.pt", "name a folder of images, and the checkpoint with --ckpt"),
    ("snl-export --ckpt x.pt --frames line.avi", "--frames: line.avi is a video"),
    ("snl-export --onnx x.pt --triton models", "x.pt is a checkpoint of snl-train; name it with --ckpt"),
    ("snl-export --onnx x.trt --triton models", "x.trt is an engine; name an exported model, x.onnx"),
    ("snl-export --onnx x.onnx --triton s3://bucket/models", "s3://bucket/models is an address; name a place in the file system"),
    ("snl-inspect --engine x.onnx --data parts --out s3://bucket/x", "--out: s3://bucket/x is an address; name a place in the file system"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).write_bytes(b"anything")
    Path("parts").mkdir()


@pytest.mark.parametrize(("line", "expected"), TABLE, ids=[line for line, _ in TABLE])
def test_mix_up_is_one_line_with_the_right_command(folder, capsys, line, expected):
    command, *arguments = line.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(MODULES[command]).main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{command}: error: --")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert "secret" not in captured.err


def test_every_row_of_hints_is_in_the_table():
    said = " ".join(expected for _, expected in TABLE)
    for hint in HINTS:
        assert hint.advice.split("{")[0].split(":")[0][:30] in said, hint


PROPER = [
    ("snl-run", "--engine", "x.onnx"),
    ("snl-run", "--engine", "x.trt"),
    ("snl-run", "--engine", "missing.pt"),  # says that it is not there
    ("snl-eval", "--ckpt", "x.pt"),
    ("snl-run", "--images", "parts"),
    ("snl-run", "--images", "part.PNG"),
    ("snl-run", "--video", "line.avi"),
    ("snl-run", "--camera", "rtsp://host/x"),
    ("snl-run", "--camera", "/dev/video0"),
    ("snl-run", "--jsonl", "verdicts.jsonl"),
    ("snl-run", "--camera", "rtsp:/host/x"),
    ("snl-calibrate", "--good", "C:/parts"),
    ("snl-run", "--engine", "\0"),
    ("snl-run", "--engine", "x" * 5000),
]


@pytest.mark.parametrize(("command", "option", "value"), PROPER)
def test_what_belongs_there_is_no_mix_up(folder, command, option, value):
    assert find_mix_up(command, option, value) is None


def test_number_of_a_camera_is_no_folder_of_that_name(folder):
    Path("0").mkdir()
    assert find_mix_up("snl-run", "--camera", "0") is None


@pytest.mark.parametrize(("content", "kind"), [(b"\x89PNG\r\n", Kind.IMAGE), (b"RIFF....AVI ", Kind.VIDEO), (b"PK\3\4", None), (b"", None)])
def test_file_without_a_known_ending_is_known_by_its_first_bytes(tmp_path, content, kind):
    path = tmp_path / "noname.zip"
    path.write_bytes(content)
    assert kind_of(str(path)) is kind


def test_name_that_is_not_utf_8_is_no_fault(folder):
    name = os.fsdecode(b"\xff.pt")
    Path(name).write_bytes(b"")
    assert "snl-export" in find_mix_up("snl-run", "--engine", name)


def test_host_program_that_opens_a_checkpoint_is_told_to_export_it(folder):
    from snl_runtime import SnlDetector

    with pytest.raises(ManifestError, match=r"x\.pt is a checkpoint of snl-train; export it first: snl-export --ckpt x\.pt"):
        SnlDetector("x.pt")
