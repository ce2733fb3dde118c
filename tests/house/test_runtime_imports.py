"""Every module of the runtime imports without torch, without any extra and without side effects."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "snl_runtime").rglob("*.py"))

BLOCKED = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "cupy",
    "cryptography",
    "ray",
    "pyarrow",
)
PROGRAM = """
import importlib, sys, threading
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Block())
before = threading.active_count()
for module in {modules!r}:
    importlib.import_module(module)
assert threading.active_count() == before, "importing started a thread"
siblings = [name for name in sys.modules if name.split(".")[0] in ("snl_train", "snl_export", "snl_calibration")]
assert not siblings, siblings
print("imported", len({modules!r}))
"""


def test_every_runtime_module_imports_without_torch_or_extras() -> None:
    program = PROGRAM.format(blocked=BLOCKED, modules=MODULES)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {len(MODULES)}\n", "an import printed something"
    assert done.stderr == ""


COMMANDS = {
    "snl-train": "snl_train.cli.train",
    "snl-eval": "snl_train.cli.evaluate",
    "snl-export": "snl_export.cli",
    "snl-calibrate": "snl_calibration.cli",
    "snl-run": "snl_runtime.cli.run",
    "snl-bench": "snl_runtime.cli.bench",
    "snl-sign": "snl_runtime.cli.sign",
    "snl-records": "snl_runtime.cli.records",
    "snl-replay": "snl_runtime.cli.replay",
    "snl-inspect": "snl_runtime.cli.inspect",
    "snl-compare": "snl_runtime.cli.compare",
    "snl-serve": "snl_runtime.cli.serve",
}


@pytest.mark.parametrize(("command", "module"), COMMANDS.items())
def test_help_works_without_torch_engine_libraries_or_camera(command: str, module: str) -> None:
    program = PROGRAM.format(blocked=BLOCKED, modules=[]) + f"\nfrom {module} import main\nsys.argv = [{command!r}, '-h']\nmain()\n"
    program = program.replace("assert not siblings, siblings", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
    assert "example" in done.stdout.lower(), "every command ends its help with a worked example"
