"""Each extra installs everything that the code it is for imports, so that the one line of an error is enough."""

import ast
import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"snl_runtime", "snl_train", "snl_export", "snl_calibration"}
DISTRIBUTIONS = {"yaml": "pyyaml", "cv2": "opencv-python-headless"}
NEEDED = {"train": ["snl_train"], "export": ["export", "calibration", "snl_train"], "cpu": []}
"""Folders whose imports an extra must bring; the runtime's libraries are optional one by one, and each backend names its own."""
ALWAYS = {"cv2"}
"""What the runtime cannot do without as soon as an image is read."""
OPTIONAL = {"tensorrt", "tensorrt_rtx", "timm"}


def imported(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OWN - OPTIONAL


@pytest.mark.parametrize("extra", NEEDED)
def test_extra_brings_every_package_that_its_code_imports(extra: str) -> None:
    needed = ALWAYS.union(*(imported(ROOT / folder) for folder in NEEDED[extra]))
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    brought = {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in requirements}
    assert {DISTRIBUTIONS.get(name, name) for name in needed} <= brought


def extras_named_by_errors() -> list[str]:
    sources = [path for folder in ("snl_runtime", "snl_train", "export", "calibration") for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in sources for name in re.findall(r"snl-edge\[([a-z,-]+)\]", path.read_text(encoding="utf-8"))}
    assert found
    return sorted(found)


@pytest.mark.parametrize("names", extras_named_by_errors())
def test_extra_that_an_error_names_exists(names: str) -> None:
    assert set(names.split(",")) <= set(PROJECT["optional-dependencies"])


def test_gpu_extra_brings_the_libraries_of_cuda_and_a_release_that_can_preload_them() -> None:
    """A machine with a driver alone has neither CUDA nor cuDNN; ``onnxruntime.preload_dlls`` exists from 1.21 on."""
    (requirement,) = [text for text in PROJECT["optional-dependencies"]["gpu"] if text.startswith("onnxruntime-gpu")]
    found = re.fullmatch(r"onnxruntime-gpu\[([a-z,]+)\]>=(\d+)\.(\d+)", requirement)
    assert found is not None
    assert set(found[1].split(",")) == {"cuda", "cudnn"}
    assert (int(found[2]), int(found[3])) >= (1, 21)
