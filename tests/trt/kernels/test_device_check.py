"""``benchmarks/device_check`` runs to its end everywhere, sees a wrong kernel or engine, and calls nothing passed that did not run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda.resources import CudaModule
from snl_runtime.gpu.kernels import KERNEL_NAMES

FOLDER = Path(__file__).parents[3] / "benchmarks" / "device_check"
MODULES = ("table", "machine", "kernel_checks", "engine_checks", "run")
DEVICE_PARTS = (
    "GPU",
    "engine build",
    "golden self-test",
    "parity with the ONNX file",
    "CUDA graph against plain enqueue",
    "threads",
    "device memory before and after",
    "times, in turn",
    "CUDA kernels against NumPy",
    "kernel bandwidth",
    "compute-sanitizer",
)


@pytest.fixture
def device_check(monkeypatch):
    """Import a module of the device check, which is a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield __import__
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def fake_gpu(gpu, monkeypatch, kernels):
    """A GPU in NumPy that runs the real kernels, compiled for the CPU; ``broken`` spoils the launches of a kernel."""

    class Gpu(gpu.FakeCuda):
        def __init__(self):
            super().__init__()
            self.kernels = dict.fromkeys(KERNEL_NAMES)
            self.broken = ""

        def launch_kernel(self, kernel, *, grid, block, stream, arguments, shared_bytes=0):
            name = KERNEL_NAMES[kernel]
            copies = [type(argument)(argument.value) for argument in arguments]
            if name != self.broken:
                self.push(stream, lambda: kernels.launch(name, grid=grid, block=block, arguments=copies))

    cuda = Gpu()
    monkeypatch.setattr(cuda_api, "load_cuda", lambda: cuda)
    return cuda


@pytest.fixture
def kernel_checks(device_check, fake_gpu, monkeypatch):
    module = device_check("kernel_checks")
    monkeypatch.setattr(module, "load_cuda", lambda: fake_gpu)
    monkeypatch.setattr(module, "load_kernels", lambda api: CudaModule(api, b"code"))
    monkeypatch.setattr(module, "SIZE_HW", (40, 48))
    monkeypatch.setattr(module, "FRAMES_HW", ((97, 131), (30, 20)))
    return module


@pytest.fixture
def engine_checks(device_check, cuda, library, monkeypatch):
    module = device_check("engine_checks")
    monkeypatch.setattr(cuda_api, "load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    monkeypatch.setattr(module, "_RUNS", 20)
    return module


@pytest.fixture
def subject(engine_checks, write_engine, tmp_path):
    engine = write_engine(parity=False)
    (tmp_path / "copies").mkdir()
    return engine_checks.copy_subject(engine.with_suffix(".onnx"), engine, tmp_path / "copies")


def test_parts_that_need_no_model_run_without_one(device_check, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = device_check("run")
    assert run.main(["--only", "device"]) == 4
    parts = [line.strip("| ").split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert parts == ["part", "versions", "GPU", "CUDA kernels against NumPy", "kernel bandwidth"]


def test_machine_without_a_gpu_reaches_the_end_and_runs_no_device_row(model_fixtures, tmp_path):
    model_fixtures.ModelFolder(tmp_path).write()
    out = tmp_path / "tables" / "table.md"
    command = [
        sys.executable,
        str(FOLDER / "run.py"),
        "--onnx",
        str(tmp_path / "line.onnx"),
        "--engine",
        str(tmp_path / "line.trt"),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 4, done.stderr
    assert done.stdout == out.read_text(encoding="utf-8")
    results = dict(line.strip("| ").split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith("| "))
    assert results["versions"].startswith("passed: Python ")
    for part in DEVICE_PARTS:
        assert results[part].startswith("not run: "), results[part]
        assert len(results[part]) > len("not run: ") + 10
    assert "FAILED:" not in done.stdout


def test_missing_model_is_a_row_and_not_a_crash(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--onnx", str(tmp_path / "none.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 4, done.stderr
    assert "none.onnx is missing" in done.stdout


def test_failure_counts_more_than_what_was_not_run(device_check):
    table = device_check("table")

    def raised(error):
        def body():
            raise error

        return body

    passed, failed = table.check("a", lambda: "fine"), table.check("b", raised(ValueError("two | lines\nhere")))
    not_run = table.check("c", raised(table.NotRunError("no tool")))
    assert [table.exit_status(rows) for rows in ([passed], [passed, not_run], [passed, not_run, failed])] == [0, 4, 3]
    assert "| b | FAILED: ValueError: two / lines here |" in table.as_markdown([failed], heading="x")


def test_kernels_that_do_as_numpy_pass(kernel_checks, fake_gpu):
    figures = kernel_checks.compare_with_twins()
    assert figures.startswith("6 frames")
    assert fake_gpu.leaks == {}


# Not label_cells, join_cells and number_regions: the next kernel would follow labels that nobody wrote out of the map.
@pytest.mark.parametrize("name", ["frame_rows", "frame_columns", "input_sums", "map_to_frame", "map_statistics", "measure_regions"])
def test_kernel_that_writes_nothing_is_seen(kernel_checks, fake_gpu, device_check, name):
    fake_gpu.broken = name
    assert device_check("table").check("kernels", kernel_checks.compare_with_twins).outcome == "FAILED"


def test_bandwidth_is_stated_against_the_peak(kernel_checks, fake_gpu, monkeypatch):
    monkeypatch.setattr(kernel_checks, "peak_bytes_per_s", lambda: 1e9)
    monkeypatch.setattr(kernel_checks, "BIG_FRAME_HW", (97, 131))
    figures = kernel_checks.measure_bandwidth()
    assert figures.startswith("frame of 131x97: frame to input ")
    assert figures.count("% of peak bandwidth") == 2
    assert fake_gpu.leaks == {}


def test_sound_engine_passes_every_check(engine_checks, subject, monkeypatch):
    monkeypatch.setattr(engine_checks, "memory_bytes", lambda: (1 << 30, 2 << 30))
    assert "golden samples within" in engine_checks.self_test(subject)
    assert "0 flips" in engine_checks.parity(subject)
    assert "a recorded CUDA graph equal the plain enqueue" in engine_checks.graph_equals_plain(subject)
    assert engine_checks.threads_agree(subject).startswith("4 threads, 5 runs each")
    assert "+0.0 MiB" in engine_checks.memory_returns(subject)
    assert "p99" in engine_checks.times(subject)


def test_files_of_the_user_stay_as_they_are(engine_checks, subject, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    engine_checks.parity(subject)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_leak_is_seen(engine_checks, subject, monkeypatch):
    free = iter((2 << 30, 1 << 30))
    monkeypatch.setattr(engine_checks, "memory_bytes", lambda: (next(free), 4 << 30))
    with pytest.raises(Exception, match=r"\+1024\.0 MiB"):
        engine_checks.memory_returns(subject)


def test_replayed_graph_with_another_answer_is_seen(engine_checks, subject, monkeypatch):
    real, answers = engine_checks._infer, iter(range(1000))

    def drifting(backend, images):
        anomaly_map, score = real(backend, images)
        return anomaly_map + np.float32(next(answers) > 2), score

    monkeypatch.setattr(engine_checks, "_infer", drifting)
    with pytest.raises(Exception, match="differ from the plain enqueue"):
        engine_checks.graph_equals_plain(subject)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as the program")
def test_a_failed_memory_check_says_what_the_checker_said_and_finds_this_checkout(device_check, fake_gpu, monkeypatch, tmp_path):
    machine = device_check("machine")
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "first line" >&2\necho "searched $PYTHONPATH" >&2\nexit 255\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(Exception, match=f"exit status 255, no summary; last line: searched {FOLDER.parents[1]}"):
        machine.sanitize()
