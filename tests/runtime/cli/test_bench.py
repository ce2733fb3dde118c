"""snl-bench times what a line does, on frames that are really scored, and compares two engines in turn."""

import json

import cv2
import numpy as np
import pytest

from snl_runtime.cli.bench import main
from snl_runtime.files import sha256_file

STAGES = {"preprocess", "infer", "decide", "total"}


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_golden_samples_are_timed_when_no_frames_are_given(engine, capsys):
    assert run("--engine", engine, "--runs", 20, "--threads", 1, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (measured,) = report["engines"]
    assert report["frames"]["source"] == "golden samples"
    assert (report["runs"], report["threads"]) == (20, 1)
    assert measured["model_sha256"] == sha256_file(engine)
    assert (measured["backend"], measured["device"]) == ("onnxruntime", "cpu")
    assert measured["frames_per_s"] > 0
    assert set(measured["stage_ms"]) == STAGES
    for values in measured["stage_ms"].values():
        assert 0 < values["p50"] <= values["p95"] <= values["p99"] <= values["max"]
    total = measured["stage_ms"]["total"]["p50"]
    assert all(measured["stage_ms"][stage]["p50"] < total for stage in ("preprocess", "infer", "decide"))


def test_two_engines_are_compared_by_the_ratio_of_their_medians(engine, parts, capsys):
    (parts / "c_cut.png").unlink()
    assert run("--engine", engine, "--compare", engine, "--frames", parts, "--runs", 20, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    first, second = (measured["stage_ms"] for measured in report["engines"])
    assert report["frames"]["count"] == 8
    for stage in STAGES:
        assert report["ratio_of_medians"][stage] == pytest.approx(first[stage]["p50"] / second[stage]["p50"], rel=1e-3)


def test_table_names_device_backend_and_versions(engine, capsys):
    assert run("--engine", engine, "--runs", 5) == 0
    table = capsys.readouterr().out
    for words in ("onnxruntime on cpu", "frames/s", "p50 ms", "golden samples", "numpy"):
        assert words in table


def test_frames_that_cannot_be_scored_are_refused_not_timed(model, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    folder = model.ModelFolder(tmp_path / "model")
    broken = folder.write(golden=False, score_normalization=2.0)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert run("--engine", broken, "--frames", tmp_path) == 2
    assert "its times mean nothing" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--frames", "nowhere"], ["--frames", "{empty}"]])
def test_missing_frames_are_a_user_error(engine, tmp_path, capsys, flags):
    (tmp_path / "empty").mkdir()
    assert run("--engine", engine, *(flag.format(empty=tmp_path / "empty") for flag in flags)) == 2
    assert capsys.readouterr().err.count("\n") == 1
