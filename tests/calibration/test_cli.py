"""``snl-calibrate`` prints results on stdout, everything else on stderr, and exits with 0, 2 or 3."""

import json
import subprocess
import sys

import pytest

from snl_calibration.cli import build_parser, main

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnxruntime', 'openvino', 'tensorrt', 'cv2'])); "


def _run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_fit_prints_promise_histogram_and_detection(station, capsys):
    station.write_good(count=40)
    status, out, err = _run(capsys, "--engine", station.model, "--good", station.good / "disk", "--max-frr", 0.1)
    assert status == 0
    assert "disk: fitted" in out
    assert f"disk: decision written to {station.model.with_suffix('.json')}" in err
    assert "disk: read: 40/40 images, 100 %" in err
    assert "disk: score good parts: 40/40 images, 100 %" in err
    assert "disk: score defects: " in err
    assert "at most 10 % of good parts score above" in out
    assert "<- pass threshold" in out
    assert "scratch" in out


def test_json_is_one_object_with_decisions_and_refusals(station, capsys):
    station.write_good("disk", count=30)
    station.write_good("ring", count=10, seed=3)
    status, out, err = _run(capsys, "--engine", station.model, "--good", station.good, "--max-frr", 0.1, "--json")
    products = {entry["product"]: entry for entry in json.loads(out)["products"]}
    assert status == 3
    assert products["disk"]["fitted"]
    assert products["disk"]["decision"]["pass_threshold"] == station.manifest().decisions[0].pass_threshold
    assert not products["ring"]["fitted"]
    assert "29 are needed" in products["ring"]["refusal"]
    assert "ring: refused: 10 good parts" in err


def test_too_small_sample_exits_with_3_and_says_what_is_needed(station, capsys):
    station.write_good(count=40)
    status, out, err = _run(capsys, "--engine", station.model, "--good", station.good / "disk", "--max-frr", 0.01, "--confidence", 0.95)
    assert status == 3
    assert "REFUSED, nothing written" in out
    assert "40 good parts cannot carry a false-reject rate of 1 % at 95 % confidence: 299 are needed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-frr", "2"], "--max-frr must be above 0 and below 1, got 2.0"),
        (["--product", "cube"], "no folder 'cube'"),
        (["--held-out"], "train with --hold-out"),
        (["--backend", "abacus"], "abacus"),
    ],
)
def test_user_error_is_one_line_and_exits_with_2(station, capsys, arguments, message):
    station.write_good(count=30)
    status, out, err = _run(capsys, "--engine", station.model, "--good", station.good, *arguments)
    assert status == 2
    assert out == ""
    *counts, error = err.splitlines()
    assert message in error
    assert all("images taken" in line for line in counts)


@pytest.mark.parametrize("roi", ["1,2,3", "a,b,c,d", "1.5,2,3,4"])
def test_malformed_region_is_a_user_error(capsys, roi):
    with pytest.raises(SystemExit) as exit_info:
        build_parser().parse_args(["--engine", "x.onnx", "--good", "good", "--roi", roi])
    assert exit_info.value.code == 2
    assert "expected X0,Y0,X1,Y1" in capsys.readouterr().err


def test_review_band_expiry_region_and_outlier_reach_the_decision(station, tools, capsys):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    flags = ["--review-band", 0.1, "--valid-days", 7, "--roi", "0,0,48,48", "--accept-outlier", "500.png", "--max-frr", 0.1, "--seed", 4]
    status, _, _ = _run(capsys, "--engine", station.model, "--good", station.good, *flags)
    decision = station.manifest().decisions[0]
    assert status == 0
    assert decision.reject_threshold == pytest.approx(1.1 * decision.pass_threshold)
    assert decision.expires_at is not None
    assert decision.roi_xyxy == (0, 0, 48, 48)
    assert decision.accepted_outliers == ["disk/500.png"]


def test_help_works_without_any_extra_and_shows_an_example():
    code = BLOCKED + "from snl_calibration.cli import main; main(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "snl-calibrate --engine line.onnx --good" in done.stdout


def test_missing_opencv_is_one_line_that_names_the_extra(station):
    code = BLOCKED + f"from snl_calibration.cli import main; sys.exit(main(['--engine', {str(station.model)!r}, '--good', '.']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "snl-edge[cpu]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_report_shows_outliers_and_the_hardest_defects_and_loads_nothing(station, tools, capsys, tmp_path):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "<500>.png", tools.bad_frame(0))
    report = tmp_path / "report.html"
    status, _, _ = _run(capsys, "--engine", station.model, "--good", station.good, "--max-frr", 0.1, "--report", report)
    refused = report.read_text(encoding="utf-8")
    assert status == 3
    assert "disk/&lt;500&gt;.png" in refused
    assert "<500>" not in refused
    assert "(beyond median + 6 MAD)" in refused
    flags = ["--accept-outlier", "<500>.png", "--max-frr", 0.1, "--report", report]
    assert _run(capsys, "--engine", station.model, "--good", station.good, *flags)[0] == 0
    accepted = report.read_text(encoding="utf-8")
    assert 'disk: <span class="fitted">fitted' in accepted
    assert "missing_patch: 60 of 60" in accepted
    assert "http" not in accepted
    assert "<script" not in accepted


def test_json_lists_outliers_for_scripts(station, tools, capsys):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    _, out, _ = _run(capsys, "--engine", station.model, "--good", station.good, "--max-frr", 0.1, "--json")
    assert list(json.loads(out)["products"][0]["outliers"]) == ["disk/500.png"]
