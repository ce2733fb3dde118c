"""What OpenVINO does to the process that imports it, and what the backend keeps of that."""

import importlib.util
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.skipif(os.name != "posix", reason="needs the signals of a POSIX system")
@pytest.mark.parametrize("is_first_on_a_thread", [False, True], ids=["main thread", "first on a thread that ends"])
def test_signal_is_heard_after_a_model_was_changed(name, model_folder, is_first_on_a_thread):
    """As a line does it: the new model is open before the old one is closed. OpenVINO's core leaves its thread a stack for signals of its own."""
    pytest.importorskip(name)
    model = model_folder.write()
    program = f"""
import gc, signal, threading
from snl_runtime import open_backend

def change(old=None):
    for _ in range(4):
        new = open_backend({str(model)!r}, {name!r})
        if old is not None:
            old.close()
        old = new
        gc.collect()
    old.close()

if {is_first_on_a_thread}:
    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
change()
gc.collect()
heard = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: heard.append(number.real))
    signal.raise_signal(number)
print(*heard)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "15 2\n"), done.stderr


def test_package_that_openvino_reports_with_is_hidden_for_the_time_of_the_import_only(model_folder):
    pytest.importorskip("openvino")
    model = model_folder.write()
    program = f"""
import importlib.util, sys
from snl_runtime import open_backend
open_backend({str(model)!r}, "openvino").close()
print("openvino_telemetry" in sys.modules, importlib.util.find_spec("openvino_telemetry") is None)
import openvino_telemetry
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if importlib.util.find_spec("openvino_telemetry") is None:
        pytest.skip("openvino-telemetry is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]
