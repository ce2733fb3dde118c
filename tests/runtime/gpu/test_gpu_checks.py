"""The checks of ``tests/gpu`` pass a sound GPU and see every fault: here on a GPU in NumPy with the real kernels, compiled for the CPU."""

import functools
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.cuda.resources import CudaModule
from snl_runtime.errors import BackendError
from snl_runtime.scorer import Scorer
from snl_runtime.types import Verdict
from tolerances import GRAY_LEVEL_ABS

GPU_TESTS = Path(__file__).parents[2] / "gpu"
SIZE_HW = (40, 48)
plain_kernels = pytest.mark.parametrize("kernels", ["separate"], indirect=True)
needs_a_shell = pytest.mark.skipif(os.name == "nt", reason="needs a shell script as the program")


def _load(name):
    spec = importlib.util.spec_from_file_location(f"snl_tests_gpu_twin_{name}", GPU_TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernel_checks(monkeypatch):
    module = _load("kernel_checks")
    monkeypatch.setattr(module, "load_kernels", lambda api: CudaModule(api, b"code"))
    return module


@pytest.fixture(scope="session")
def detector_checks():
    return _load("detector_checks")


@pytest.fixture(scope="session")
def engine_checks():
    return _load("engine_checks")


@pytest.fixture
def check(kernels, make_gpu, kernel_checks):
    """Run the kernel check on a GPU whose named kernels do nothing."""

    def run(*broken):
        cuda = make_gpu(kernels)
        cuda.broken.update(broken)
        frames = [((97, 131), "bgr", np.uint8, None), ((30, 20), "gray", np.uint16, None), ((61, 50), "rgba", np.uint8, (3, 5, 41, 60))]
        made = [(kernel_checks.make_frame(size_hw, color, dtype=dtype), color, roi_xyxy) for size_hw, color, dtype, roi_xyxy in frames]
        try:
            kernel_checks.check_kernels(cuda, SIZE_HW, made)
        finally:
            assert cuda.leaks == {}

    return run


def test_kernels_that_do_as_numpy_pass(check):
    check()


# Not label_cells, join_cells and number_regions: the next kernel would follow labels that nobody wrote out of the map.
@plain_kernels
@pytest.mark.parametrize("name", ["frame_rows", "frame_columns", "cut_views", "input_sums", "map_to_frame", "map_statistics", "measure_regions"])
def test_kernel_that_writes_nothing_is_seen(check, name):
    with pytest.raises(BackendError, match=r"^(its|it|an image|the device|\d+ of) "):
        check(name)


@pytest.fixture
def shots(frames, detector_checks):
    usable = ("good", "bad", "odd good", "odd bad", "large", "rgb", "gray", "black", "none", "float")
    return [detector_checks.Shot(*frames[name], "bottle") for name in usable]


@pytest.fixture
def sound(open_on):
    return open_on("onnxruntime")


class Wrong:
    """A detector that answers as another one, but for one frame of each product."""

    def __init__(self, detector, change):
        self._detector, self._change, self._calls = detector, change, 0

    def detect(self, image, **options):
        self._calls += 1
        result = self._detector.detect(image, **options)
        return self._change(result) if self._calls % 2 == 0 else result


def changed(**values):
    """Return what replaces fields of a result, by a function of it or a value."""

    def change(result):
        fields = {name: getattr(result, name) for name in type(result).__dataclass_fields__}
        return SimpleNamespace(**{**fields, **{name: value(result) if callable(value) else value for name, value in values.items()}})

    return change


@plain_kernels
@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_sound_detector_has_the_verdicts_of_the_cpu(open_on, shots, detector_checks, engine):
    verdicts = detector_checks.check_verdicts(open_on("host"), open_on(engine), shots, allowed=GRAY_LEVEL_ABS)
    assert verdicts == {Verdict.PASS: 3, Verdict.REJECT: 4, Verdict.ERROR: 3}


WRONG = {
    "a part passed": changed(verdict=Verdict.PASS),
    "another cause": changed(reason_code="frame_unusable"),
    "another product": changed(product="screw"),
    "a higher score": changed(score=lambda result: result.score * 1.3 + 3),
    "no score": changed(score=float("nan")),
}


@plain_kernels
@pytest.mark.parametrize("fault", WRONG)
def test_wrong_verdict_is_seen(sound, shots, detector_checks, fault):
    wrong = Wrong(sound, WRONG[fault])
    with pytest.raises(AssertionError, match=r"frame \d \(bottle\): "):
        detector_checks.check_verdicts(sound, wrong, shots, allowed=1e-3)


@plain_kernels
def test_tolerance_that_covers_the_thresholds_is_no_check(sound, shots, detector_checks):
    with pytest.raises(AssertionError, match="too near a threshold to tell anything"):
        detector_checks.check_verdicts(sound, sound, shots, allowed=1e6)


@plain_kernels
def test_kernel_that_does_nothing_leaves_the_line_that_the_tests_look_for(open_on, fake, detector_checks, caplog):
    fake.broken.add("frame_rows")
    open_on("onnxruntime")
    assert detector_checks.HOST_LINE in caplog.text


@plain_kernels
def test_threads_that_agree_pass_and_one_that_does_not_is_seen(open_on, sound, shots, detector_checks):
    other = open_on("onnxruntime")
    detector_checks.check_threads([sound, other], shots, rounds=1)
    for change in (changed(score=lambda result: result.score + 1e-3), changed(anomaly_map=lambda result: result.anomaly_map + np.float32(1e-3))):
        with pytest.raises(AssertionError, match=r"AssertionError: thread 1, frame \d"):
            detector_checks.check_threads([sound, Wrong(other, change)], shots[:7], rounds=1)


@plain_kernels
def test_thread_that_raises_is_seen(sound, shots, detector_checks):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        detector_checks.check_threads([sound, Wrong(sound, lambda result: 1 // 0)], shots[:2], rounds=1)


def test_memory_that_comes_back_passes_and_a_lost_map_per_frame_is_seen(detector_checks):
    free = [1 << 30]

    def lose(byte_count):
        free[0] -= byte_count

    detector_checks.check_memory(lambda: free[0], lambda: lose(0), rounds=200)
    with pytest.raises(AssertionError, match=r"\+3\.1 MiB of device memory are gone after 200 times \(allowed 2\)"):
        detector_checks.check_memory(lambda: free[0], lambda: lose(64 * 64 * 4), rounds=200)


@plain_kernels
def test_model_with_the_maps_of_the_cpu_passes_the_gate_and_another_does_not(open_on, write_engine, device_detector, detector_checks):
    path = write_engine().with_suffix(".onnx")
    open_on("onnxruntime")  # puts the fakes in
    with Scorer(path, device="cuda", golden_check=False) as subject, Scorer(path, device="cuda", golden_check=False) as reference:
        detector_checks.check_parity(reference, subject)

        def moved(score, anomaly_map):
            anomaly_map *= 1.01
            score *= 1.01

        device_detector.Session.spoil = staticmethod(moved)
        moved_reference = SimpleNamespace(size_hw=reference.size_hw, score_inputs=functools.partial(unmoved, reference))
        with pytest.raises(AssertionError, match="map"):
            detector_checks.check_parity(moved_reference, subject)


def unmoved(reference, images):
    """Undo what was planted, so that only the subject is wrong."""
    scores, maps = reference.score_inputs(images)
    return scores / np.float32(1.01), maps / np.float32(1.01)


@pytest.fixture
def engine(fake, write_engine):
    return write_engine(parity=False)


@plain_kernels
def test_sound_engine_passes_its_gate_and_replays_a_graph(engine, engine_checks):
    engine_checks.check_gate(engine)
    assert engine_checks.check_graph_equals_plain(engine) is True


@plain_kernels
def test_engine_with_other_maps_fails_its_gate(engine, engine_checks, fake):
    fake.library.answer = lambda images, honest=fake.library.answer: honest(images) * 1.1
    with pytest.raises(AssertionError, match="golden sample"):
        engine_checks.check_gate(engine)


@plain_kernels
def test_replayed_graph_with_another_answer_is_seen(engine, engine_checks, monkeypatch):
    real, answers = TensorRtBackend.infer, iter(range(1000))

    def drifting(self, image, anomaly_map, score):
        real(self, image, anomaly_map, score)
        anomaly_map += np.float32(next(answers) > 2)

    monkeypatch.setattr(TensorRtBackend, "infer", drifting)
    with pytest.raises(AssertionError, match="run 2 differs from the plain enqueue"):
        engine_checks.check_graph_equals_plain(engine)


@pytest.fixture
def sanitizer(tmp_path):
    """Write a program in place of ``compute-sanitizer`` that prints, and ends with a status."""

    def write(*lines, status=0):
        program = tmp_path / "compute-sanitizer"
        program.write_text("\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), f"exit {status}\n"]))
        program.chmod(0o755)
        return str(program)

    return write


SUMMARY = "========= ERROR SUMMARY: {} errors"


@needs_a_shell
def test_memory_checker_without_errors_passes(kernel_checks, sanitizer, tmp_path):
    kernel_checks.sanitize(sanitizer("1 passed in 3 s", SUMMARY.format(0)), tmp_path)


@needs_a_shell
@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        (["1 passed in 3 s", SUMMARY.format(2)], 86, "exit status 86, ERROR SUMMARY: 2 errors"),
        (["1 passed in 3 s", SUMMARY.format(2)], 0, "2 errors"),
        (["1 skipped in 3 s", SUMMARY.format(0)], 0, "no test ran"),
        (["1 passed in 3 s"], 0, "no summary"),
        (["cannot attach"], 255, "exit status 255, no summary; last line: cannot attach"),
    ],
)
def test_memory_checker_that_saw_an_error_or_did_not_run_is_seen(kernel_checks, sanitizer, tmp_path, lines, status, said):
    with pytest.raises(AssertionError, match=said):
        kernel_checks.sanitize(sanitizer(*lines, status=status), tmp_path)
