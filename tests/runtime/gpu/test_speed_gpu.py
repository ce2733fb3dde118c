"""``benchmarks.speed.gpu`` states every time beside the machine it was taken on and as a ratio, and leaks nothing."""

import csv
import sys
from pathlib import Path

import pytest

from snl_runtime.cuda.resources import CudaModule
from snl_runtime.scorer import Scorer

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


@pytest.fixture
def speed(monkeypatch):
    """The command with small frames and few turns."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # benchmarks/ is no installed package
    from benchmarks.speed import gpu

    for name, value in {"CAMERA_HW": (97, 131), "NETWORK_HW": (40, 48), "TURNS": 2, "QUEUED": 1, "INSPECTIONS": 3}.items():
        monkeypatch.setattr(gpu, name, value)
    return gpu


def test_table_states_device_versions_and_a_ratio_for_every_time(speed, fake, write_engine, monkeypatch, capsys, tmp_path):
    engine, out = write_engine(), tmp_path / "latency.csv"
    monkeypatch.setattr(speed, "load_cuda", lambda: fake)
    monkeypatch.setattr(speed, "load_kernels", lambda api: CudaModule(api, b"code"))
    monkeypatch.setattr(speed.machine, "peak_bytes_per_s", lambda: 2e9)
    assert speed.main(["--engine", str(engine.with_suffix(".onnx")), "--engine", str(engine), "--out", str(out), "--commit", "abc"]) == 0
    device, *table, _, written = capsys.readouterr().out.splitlines()
    assert device.startswith("Fake RTX 4070, SM89, driver for CUDA 12.8; Python ")
    assert f"Python {sys.version.split()[0]}" in device
    rows = [line.strip("| ").split(" | ") for line in table[3:]]
    assert [row[0].split(",")[0] for row in rows] == [
        "131x97 to network input",
        "map to 131x97",
        *["line.onnx on onnxruntime"] * 2,
        *["line.trt on tensorrt"] * 2,
    ]
    assert all(row[2].endswith(" % of 2 GB/s") for row in rows[:2])
    assert all("prepared on the GPU" in row[0] and row[2].endswith("of the network's size") for row in rows[2:])
    with out.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert written == f"{out}: 2 rows, 0 in place of other figures"
    assert [(line["stage"], line["frame"], line["megabytes"], line["device"], line["commit"]) for line in lines] == [
        ("frame to network input", "131x97", "0", "Fake RTX 4070", "abc"),
        ("map to frame, mask, overlay and their downloads", "131x97", "0", "Fake RTX 4070", "abc"),
    ]
    assert [line["milliseconds"] for line in lines] == [row[1] for row in rows[:2]]
    assert fake.leaks == {}


def test_bytes_are_those_that_each_stage_must_move(speed, fake, monkeypatch):
    """By hand for 131x97 and a network of 48x40: 3 bytes a pixel and rows of 40 x 131 x 3 floats twice; 4 + 1/8 + 6 bytes a pixel."""
    monkeypatch.setattr(speed, "load_kernels", lambda api: CudaModule(api, b"code"))
    counted = []
    monkeypatch.setattr(speed, "_against_peak", lambda what, enqueue, stream, byte_count, peak: counted.append(byte_count))
    speed.time_kernels(fake, 1.0)
    assert counted == [38_121 + 2 * 62_880, 50_828 + 1_588 + 76_242]


def test_model_that_is_prepared_on_the_host_is_called_so(speed, fake, write_engine, monkeypatch):
    monkeypatch.setattr(Scorer, "is_on_device", property(lambda self: False))
    assert all("prepared on the host" in figure.what for figure in speed.time_inspections(write_engine().with_suffix(".onnx")))


def test_without_a_gpu_one_line_says_so(speed, kernels, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert speed.main([]) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("benchmarks.speed.gpu: ")
