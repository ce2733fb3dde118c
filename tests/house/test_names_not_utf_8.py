"""Names that are not UTF-8, of products, images, folders and models, work in every command, and every output is UTF-8."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_calibration.cli import main as calibrate
from snl_export.cli import main as export
from snl_runtime.cli.bench import main as bench
from snl_runtime.cli.run import main as run
from snl_runtime.model.manifest import manifest_path, read_manifest
from snl_train.cli.evaluate import main as evaluate
from snl_train.cli.train import main as train

PRODUCT, DEFECT, MODEL = os.fsdecode(b"wash\xe9r"), os.fsdecode(b"scr\xe9tch"), os.fsdecode(b"m\xe9d")
SHOWN = r"wash\xe9r"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(MODEL).mkdir()
    return tmp_path


def write_parts(draw, count, *kinds):
    for kind in kinds:
        target = Path("data", PRODUCT, kind)
        target.mkdir(parents=True)
        for seed in range(count):
            encoded = cv2.imencode(".png", draw(seed, kind))[1].tobytes()
            (target / os.fsdecode(b"%03d\xff.png" % seed)).write_bytes(encoded)
    return Path("data")


def load_stub():
    path = Path(__file__).parents[1] / "runtime" / "detector_fixtures.py"
    spec = importlib.util.spec_from_file_location("snl_tests_names_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def station(folder):
    """A calibrated model and parts of its product."""
    stub = load_stub()
    engine = stub.ModelFolder(folder / MODEL).write(decisions=[{"product": PRODUCT}])
    data = write_parts(lambda seed, kind: stub.good_frame(seed) if kind.endswith("good") else stub.bad_frame(seed), 40, "test/good", f"test/{DEFECT}")
    return engine, data


def all_text_is_utf_8(*paths):
    for path in paths:
        path.read_bytes().decode("utf-8")
    return True


def test_line_calibration_evaluation_and_benchmark(station, capsys):
    engine, data = (str(path) for path in station)
    good = f"{data}/{PRODUCT}/test/good"
    limits = ["--max-frr", "0.1", "--confidence", "0.9"]
    out = Path(MODEL)
    assert calibrate(["--engine", engine, "--good", good, "--product", PRODUCT, "--report", f"{MODEL}/c.html", *limits]) == 0
    assert f"{SHOWN}: decision written" in capsys.readouterr().err
    assert calibrate(["--engine", engine, "--good", good, "--bad", f"{data}/{PRODUCT}/test", "--product", PRODUCT, "--json", *limits]) == 0
    assert json.loads(capsys.readouterr().out)["products"][0]["product"] == SHOWN
    assert evaluate(["--engine", engine, "--data", data, "--bootstrap", "0", "--report", f"{MODEL}/e.html", "--json"]) == 0
    assert SHOWN in capsys.readouterr().out.replace("\\\\", "\\")
    assert bench(["--engine", engine, "--frames", good, "--product", PRODUCT, "--runs", "2"]) == 0
    assert SHOWN in capsys.readouterr().out
    flags = ["--jsonl", f"{MODEL}/r.jsonl", "--save-rejects", f"{MODEL}/r", "--overlay", f"{MODEL}/o", "--json"]
    assert run(["--engine", engine, "--images", data, "--product", PRODUCT, *flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["product"], summary["inspected"] + summary["failed"]) == (SHOWN, 80)
    records = [json.loads(line) for line in (out / "r.jsonl").read_text(encoding="ascii").splitlines()]
    assert {record["product"] for record in records} == {SHOWN}
    assert rf"data/{SHOWN}/test/good/000\xff.png" in {record["source_id"] for record in records}
    assert all_text_is_utf_8(manifest_path(engine), out / "c.html", out / "e.html")
    assert PRODUCT in {decision.product for decision in read_manifest(manifest_path(engine)).decisions}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_open_a_model_of_such_a_name(station, capsys, backend):
    engine, data = station
    assert run(["--engine", str(engine), "--images", str(data), "--product", PRODUCT, "--backend", backend, "--max-frames", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_video_of_such_a_name(station, capsys):
    writer = cv2.VideoWriter("line.avi", cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 32))
    for _ in range(3):
        writer.write(np.full((32, 32, 3), 90, np.uint8))
    writer.release()
    shutil.move("line.avi", f"{MODEL}/line.avi")
    assert run(["--engine", str(station[0]), "--video", f"{MODEL}/line.avi", "--product", PRODUCT]) == 0
    assert [json.loads(line)["source_id"] for line in capsys.readouterr().out.splitlines()] == [r"m\xe9d/line.avi"] * 3


def test_wrong_product_is_named_with_escapes(station, capsys):
    assert run(["--engine", str(station[0]), "--images", str(station[1]), "--product", f"{PRODUCT}s"]) == 2
    assert (
        capsys.readouterr().err
        == rf"snl-run: error: no decision for product '{SHOWN}s' in this model, it has {SHOWN}; did you mean '{SHOWN}'?" + "\n"
    )


def noise(seed, kind):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.slow
def test_training_and_export(folder, capsys):
    data = str(write_parts(noise, 8, "train/good"))
    small = ["--image-size", "32", "--epochs", "1", "--teacher", "resnet18", "--teacher-weights", "random", "--hold-out", "0.3", "--device", "cpu"]
    assert train(["--data", data, "--out", f"{MODEL}/x.pt", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [SHOWN]
    assert export(["--ckpt", f"{MODEL}/x.pt", "--json", "--engine", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == r"m\xe9d/x.onnx"
    manifest = read_manifest(Path(MODEL, "x.json"))
    assert manifest.classes == [PRODUCT]
    assert all((Path(data) / entry["path"]).is_file() for entry in manifest.held_out)
    assert len(manifest.held_out) == 2
    assert all_text_is_utf_8(Path(MODEL, "x.json"), Path(MODEL, "x.metrics.jsonl"))
