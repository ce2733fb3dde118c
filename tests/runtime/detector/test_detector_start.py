"""A start loads what a verdict needs and nothing else, and reads the model's file no more often than it must."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import numpy as np
from snl_runtime import SnlDetector
with SnlDetector(sys.argv[1], backend=sys.argv[2]) as detector:
    assert detector.detect(np.full((32, 32, 3), 120, np.uint8)).reason_code != "internal_error"
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "onnx", "onnxruntime", "openvino", "pydantic", "ray", "sqlite3", "asyncio", "cryptography", "tensorrt", "cuda"}))
own = {name.split(".")[1] for name in sys.modules if name.startswith("snl_runtime.")}
print(sorted(own & {"line", "station", "fleet", "cli", "parity", "progress"}))
print(sum(name.endswith("line.onnx") for name in opened), sum(name.endswith("line.golden.npz") for name in opened))
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_start_loads_one_inference_library_and_no_line_station_or_command(model_folder, backend):
    pytest.importorskip(backend)
    model = model_folder.write()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(model), backend], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    libraries, packages, opened = done.stdout.splitlines()
    if backend == "onnxruntime":  # OpenVINO's package loads more of Python by itself
        assert libraries == str([backend])
    assert packages == "[]"
    assert opened == "1 2", "the model once for its hash, beside the library's own reading; the golden samples for their hash and for use"


FORK = """
import os, sys
import numpy as np
from snl_runtime import SnlDetector
from snl_runtime.errors import BackendUnavailableError, DetectorClosedError
frame = np.full((32, 32, 3), 120, np.uint8)
SnlDetector(sys.argv[1], backend=sys.argv[2]).close()
detector = SnlDetector(sys.argv[1], backend=sys.argv[2])
if child := os.fork():
    _, status = os.waitpid(child, 0)
    print("parent", detector.detect(frame).reason_code != "internal_error", os.waitstatus_to_exitcode(status))
    detector.close()
else:
    try:
        detector.detect(frame)
    except DetectorClosedError as error:
        print(error, flush=True)
    detector.close()
    try:
        with SnlDetector(sys.argv[1], backend=sys.argv[2]) as own:
            print("child", own.detect(frame).reason_code != "internal_error", flush=True)
    except BackendUnavailableError as error:
        print("child", error, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("backend", "in_child"), [("onnxruntime", "child True"), ("openvino", "'spawn'")])
def test_fork_is_told_at_once_what_does_not_work_in_it(model_folder, backend, in_child):
    """Threads and devices are not inherited: each frame would wait for its whole time, and OpenVINO would compile for ever."""
    pytest.importorskip(backend)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(model_folder.write()), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    refused, child, parent = done.stdout.splitlines()
    assert "opened before this process was forked" in refused
    assert in_child in child
    assert parent == "parent True 0"
