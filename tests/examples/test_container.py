"""The steps of the Dockerfile's CPU image without Docker: it installs without torch, inspects, and its health check finds a bad model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

pytestmark = [pytest.mark.slow]  # installs packages
ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder that becomes /opt/snl-edge in the image."""
    folder = tmp_path_factory.mktemp("container")
    for name in ("pyproject.toml", "README.md", "LICENSE", "snl_runtime", "snl_train", "export", "calibration"):
        source, copy = ROOT / name, folder / "source" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, copy)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(folder / "source")]
    assert subprocess.run(wheel, timeout=300).returncode == 0
    (built,) = folder.glob("snl_edge-*.whl")
    (extras,) = re.findall(r"/usr/local/bin/python3 /wheels/snl_edge-\*\.whl (\S+) /opt/snl-edge", DOCKERFILE)
    install = ["sh", str(ROOT / "deploy" / "install-runtime.sh"), sys.executable, str(built), extras, str(folder / "environment")]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr  # the script itself refuses an environment with torch
    return folder / "environment"


def run(environment, engine, *command):
    """Run a command with nothing of this process's environment, as in the image."""
    variables = {"PATH": f"{environment / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "SNL_ENGINE": str(engine), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(command, env=variables, cwd=engine.parent, capture_output=True, text=True, timeout=120)


def test_image_inspects(environment, model, engine, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), model.good_frame(0))
    cv2.imwrite(str(tmp_path / "b.png"), model.bad_frame(0))
    (entry_point,) = re.findall(r'AS cpu\n(?:.|\n)*?ENTRYPOINT \["(\S+)"\]', DOCKERFILE)
    done = run(environment, engine, entry_point, "--engine", str(engine), "--images", str(tmp_path), "--product", "bottle")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["PASS", "REJECT"]


def test_health_check_tells_a_good_model_from_a_damaged_and_a_missing_one(environment, engine, tmp_path):
    (check,) = (json.loads(command) for command in re.findall(r"CMD (\[.*--threads 1.*\])", DOCKERFILE))
    assert run(environment, engine, *check).returncode == 0
    damaged = Path(shutil.copytree(engine.parent, tmp_path / "model")) / engine.name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run(environment, damaged, *check).returncode != 0
    damaged.unlink()
    assert run(environment, damaged, *check).returncode != 0
