"""snl-bench times what a line does, on frames that are really scored, and compares two engines in turn."""

import json
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.bench.loads import Cameras
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


@pytest.mark.parametrize("flags", [("--compare-backend", "openvino"), ("--backend", "openvino", "--compare-backend", "onnxruntime")])
def test_one_engine_is_compared_on_two_backends(flags, engine, capsys):
    pytest.importorskip("openvino")
    assert run("--engine", engine, "--runs", 3, "--json", *flags) == 0
    report = json.loads(capsys.readouterr().out)
    expected = ["onnxruntime", "openvino"] if flags[0] == "--compare-backend" else ["openvino", "onnxruntime"]
    assert [one["backend"] for one in report["engines"]] == expected  # the model was calibrated on ONNX Runtime
    assert {one["engine"] for one in report["engines"]} == {str(engine)}
    assert report["ratio_of_medians"]["infer"] > 0


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


def test_batches_cameras_and_starts_are_measured_for_every_engine(engine, capsys):
    flags = ["--batch", 1, 9, "--cameras", 1, 3, "--starts", 1, "--runs", 4, "--threads", 1, "--json"]
    assert run("--engine", engine, "--compare", engine, *flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["engines"]) == 2
    for measured in report["engines"]:
        assert [(batch["batch"], batch["backend_calls"]) for batch in measured["batches"]] == [(1, 1), (9, 2)]
        assert [cameras["cameras"] for cameras in measured["cameras"]] == [1, 3]
        for load in (*measured["batches"], *measured["cameras"]):
            assert load["frames_per_s"] > 0
        for values in (*(batch["call_ms"] for batch in measured["batches"]), *(cameras["verdict_ms"] for cameras in measured["cameras"])):
            assert 0 < values["p50"] <= values["p95"] <= values["p99"] <= values["max"]
        assert measured["model_bytes"] == Path(engine).stat().st_size
        assert measured["device_bytes"] is None
        assert measured["start"]["processes"] == 1
        assert measured["start"]["first_verdict_s"]["p50"] > 0
    if report["memory"] is not None:
        assert 0 < report["memory"]["resident_bytes"] <= report["memory"]["peak_bytes"]


def test_what_is_not_asked_for_is_empty(engine, capsys):
    assert run("--engine", engine, "--runs", 1, "--json") == 0
    (measured,) = json.loads(capsys.readouterr().out)["engines"]
    assert (measured["batches"], measured["cameras"], measured["start"]) == ([], [], None)


def test_table_and_plot_show_what_was_measured(engine, tmp_path, capsys):
    plot = tmp_path / "cost.svg"
    assert run("--engine", engine, "--batch", 4, 1, "--cameras", 2, "--starts", 1, "--runs", 3, "--plot", plot) == 0
    captured = capsys.readouterr()
    for words in ("batch 4", "cameras 2", "first verdict", "memory of this process"):
        assert words in captured.out
    assert f"{plot} is written" in captured.err
    root = ElementTree.fromstring(plot.read_text(encoding="utf-8"))
    assert len([group for group in root if group.get("class") == "plot"]) == 3
    titles = [element.text.split(":")[0] for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[-4:] == ["1", "4", "2", "2"]  # batches in the order of their size, then p50 and p99 of the cameras


@pytest.mark.parametrize("flags", [["--plot", "x.onnx"], ["--plot", "no/folder/x.svg"], ["--batch", "0"], ["--cameras", "0"], ["--starts", "-1"]])
def test_wrong_flags_are_one_line_and_nothing_is_written(engine, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    try:
        status = run("--engine", engine, "--runs", 1, *flags)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_ends_the_threads_of_the_cameras(engine, monkeypatch, capsys):
    def interrupt(self, index, *, keep=True):
        self._call(range(self.frames_per_call))
        raise KeyboardInterrupt

    monkeypatch.setattr(Cameras, "run", interrupt)
    assert run("--engine", engine, "--cameras", 3, "--runs", 2) == 130
    assert capsys.readouterr().out == ""
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snl-bench-camera")]
