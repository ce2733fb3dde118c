"""Every command of the built wheel works in a bare environment, or says in one line which extra it needs."""

import json
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

pytestmark = pytest.mark.wheel
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

NEED_TRAINING = {
    "snl-train --data parts --out y.pt": "snl-train needs torch, torchvision, safetensors: pip install 'snl-edge[train]'",
    "snl-train --data parts --out y.pt --resume": "snl-train needs torch, torchvision, safetensors: pip install 'snl-edge[train]'",
    "snl-train --fetch-teacher resnet18 --out r.safetensors": "snl-train needs torch, torchvision, safetensors: pip install 'snl-edge[train]'",
    "snl-eval --ckpt x.pt --data parts": "--ckpt needs torch, torchvision: pip install 'snl-edge[train]'",
    "snl-export --ckpt x.pt": "snl-export needs torch, torchvision, onnx, onnxscript: pip install 'snl-edge[export]'",
}
NEED_SIGNATURES = ["snl-sign --make-key key.pem", "snl-sign --engine line.onnx --key key.pem"]
WORK_ON_A_STATION = [
    "snl-run --engine line.onnx --images parts/bottle/test/good --product bottle --save-rejects r --overlay o",
    "snl-bench --engine line.onnx --runs 3 --batch 2 --cameras 2 --starts 1 --plot cost.svg",
    "snl-eval --engine line.onnx --data parts --bootstrap 0 --report eval.html",
    "snl-calibrate --engine line.onnx --good parts/bottle/test/good --product bottle --max-frr 0.1 --confidence 0.9 --report calibration.html",
]


@pytest.mark.parametrize("line", WORK_ON_A_STATION)
def test_command_of_a_station_works_without_torch(cpu, folder, line):
    done = cpu.run(line, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", NEED_TRAINING)
def test_command_that_needs_torch_says_so_in_one_line(cpu, folder, line):
    done = cpu.run(line, folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{line.split()[0]}: error: {NEED_TRAINING[line]}\n"


@pytest.mark.parametrize("line", NEED_SIGNATURES)
def test_command_that_needs_signatures_says_so_in_one_line(cpu, folder, line):
    done = cpu.run(line, folder)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("snl-sign: error: ")
    assert "pip install 'snl-edge[sign]'" in said


@pytest.mark.parametrize("line", [*NEED_TRAINING, *WORK_ON_A_STATION])
def test_installation_without_extras_names_one_in_one_line(base, folder, line):
    done = base.run(line, folder)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    extra = said.partition("pip install 'snl-edge[")[2].partition("]'")[0]
    assert extra in PROJECT["optional-dependencies"], said
    assert extra == {"snl-train": "train", "snl-export": "export"}.get(line.split()[0], "train" if "--ckpt" in line else "cpu")


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
@pytest.mark.parametrize("environment", ["base", "cpu"])
def test_help_works_everywhere(request, folder, environment, name):
    done = request.getfixturevalue(environment).run(f"{name} -h", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "example:" in done.stdout


def test_every_module_without_torch_imports_from_the_wheel(cpu, folder):
    program = (
        "import importlib, json, pkgutil, snl_runtime, snl_calibration\n"
        "packages = (snl_runtime, snl_calibration)\n"
        "names = [found.name for each in packages for found in pkgutil.walk_packages(each.__path__, each.__name__ + '.')]\n"
        "files = {importlib.import_module(name).__file__ for name in names}\n"
        "print(json.dumps(sorted(files)))"
    )
    done = cpu.run(f'python -c "{program}"', folder)
    assert done.returncode == 0, done.stderr
    assert all("site-packages" in path for path in json.loads(done.stdout))
