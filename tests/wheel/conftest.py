"""The environments that ``make test-wheel`` makes of the built wheel, and small files to try its commands on."""

import importlib.util
import os
import subprocess
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]


class Environment:
    """A virtual environment that holds the wheel with one extra, or with none."""

    def __init__(self, name: str) -> None:
        self.bin = ROOT / ".venv-wheel" / name / "bin"
        assert self.bin.is_dir(), f"{self.bin} is missing; run: make test-wheel"

    def run(self, line: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a command line of this environment in a folder from which the checkout cannot be imported."""
        environment = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
        return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def base():
    return Environment("base")


@pytest.fixture(scope="session")
def cpu():
    return Environment("cpu")


def load_model():
    path = ROOT / "tests" / "runtime" / "detector_fixtures.py"
    spec = importlib.util.spec_from_file_location("snl_tests_wheel_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model with its bundle, a checkpoint by name, and images in MVTec AD layout."""
    model, folder = load_model(), tmp_path_factory.mktemp("station")
    model.ModelFolder(folder).write()
    (folder / "x.pt").write_bytes(b"PK\3\4 a checkpoint")
    for kind, count in (("good", 40), ("scratch", 3)):
        (folder / "parts" / "bottle" / "test" / kind).mkdir(parents=True)
        for seed in range(count):
            picture = model.good_frame(seed) if kind == "good" else model.bad_frame(seed)
            cv2.imwrite(str(folder / "parts" / "bottle" / "test" / kind / f"{seed:03d}.png"), picture)
    return folder
