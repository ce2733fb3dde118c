"""``benchmarks.speed.gpu_aims`` measures every row that needs no training on a GPU in NumPy, and a row that fails says why and stops no other."""

import csv
import sys
from pathlib import Path

import pytest

from snl_runtime.errors import DataError

plain_kernels = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


@pytest.fixture
def aims(monkeypatch):
    """The command with small frames and few turns."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # benchmarks/ is no installed package
    from benchmarks.speed import gpu_aims

    for name, value in {"CAMERA_HW": (70, 97), "SIZE_PX": 32, "LARGEST_BATCH": 8, "RUNS": 2, "WARM_UP_RUNS": 1}.items():
        monkeypatch.setattr(gpu_aims, name, value)
    return gpu_aims


@pytest.fixture
def tiny_models(aims, write_engine, monkeypatch):
    """The tiny model of the tests in place of every model."""
    path = write_engine().with_suffix(".onnx")
    monkeypatch.setattr(aims, "_model", lambda models, name: path)
    return path


def training_free(aims):
    return [row for row in aims.rows() if not row.what.startswith("training")]


@plain_kernels
def test_every_row_runs_through_on_a_gpu_in_numpy(aims, fake, tiny_models, tmp_path):
    for row in training_free(aims):
        if ", batch 32" in row.what:
            continue  # the fake's memory is found by its size
        measured = row.measure(tmp_path)
        assert measured.p50 > 0, row.what
        assert measured.unit == ("img/s" if "batch_" in row.what or "detect_batch" in row.what else "ms"), row.what
    assert fake.leaks == {}


@plain_kernels
def test_row_without_its_graph_is_no_measurement(aims, fake, tiny_models, tmp_path):
    fake.refuses_capture = True
    captured = next(row for row in aims.rows() if row.what.endswith(", CUDA graph"))
    with pytest.raises(DataError, match="there is no CUDA graph"):
        captured.measure(tmp_path)


def test_rows_have_different_names_and_the_aims_of_the_project(aims):
    rows = aims.rows()
    assert len({row.what for row in rows}) == len(rows)
    found = {row.what: (row.aim, row.late_aim) for row in rows}
    assert found["model, resnet18-fp16, batch 1, CUDA graph"] == (1.0, None)
    assert found["model, resnet18-fp16, batch 32, CUDA graph"] == (9000.0, None)
    assert found["model, wide_resnet50_2-fp16, batch 32, CUDA graph"] == (2700.0, None)
    assert found["training step of best, resnet18, batch 8"] == (600.0, None)
    assert found["training step of best to that of RD, resnet18, batch 8"] == (1.3, None)


def test_failing_rows_say_why_and_stop_no_other(aims, monkeypatch, capsys, tmp_path):
    """Processes of their own on this machine, which has no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    out = tmp_path / "gpu.csv"
    assert aims.main(["--models", str(tmp_path), "--only", "wide_resnet50_2-fp32", "--out", str(out), "--commit", "abc"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not measured: ") == 1
    (line,) = csv.DictReader(out.read_text(encoding="utf-8").splitlines())
    assert line["what"] == "model, wide_resnet50_2-fp32, batch 32, CUDA graph"
    assert (line["p50"], line["percent_of_aim"], line["aim"], line["commit"]) == ("", "", "2700", "abc")
    assert "best-wide_resnet50_2-256-rows.onnx is missing; make it first: " in line["note"]


def test_without_time_left_a_row_says_so_and_is_not_started(aims, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(aims, "run_row", lambda *_, **__: pytest.fail("a row was started"))
    assert aims.main(["--models", str(tmp_path), "--budget-s", "0", "--out", str(tmp_path / "gpu.csv"), "--commit", "abc"]) == 0
    assert capsys.readouterr().out.count("no time was left") == len(aims.rows())


def test_fractions_are_of_the_aim_in_its_own_direction(aims, monkeypatch, capsys, tmp_path):
    measured = {"model, resnet18-fp16, batch 1, CUDA graph": aims.Measured(p50=1.7, p99=2.0)}
    monkeypatch.setattr(aims, "_device_name", lambda: "Fake RTX")
    monkeypatch.setattr(aims, "run_row", lambda row, models, *, timeout_s: (measured[row.what], ""))
    out = tmp_path / "gpu.csv"
    assert aims.main(["--models", str(tmp_path), "--only", "resnet18-fp16, batch 1, CUDA", "--out", str(out), "--commit", "abc"]) == 0
    assert "| model, resnet18-fp16, batch 1, CUDA graph | 1.70 ms | 2.00 | 170 % |" in capsys.readouterr().out
    (line,) = csv.DictReader(out.read_text(encoding="utf-8").splitlines())
    assert (line["p50"], line["unit"], line["percent_of_aim"], line["device"]) == ("1.700", "ms", "170", "Fake RTX")
    assert f"Python {sys.version.split()[0]}" in line["versions"]
