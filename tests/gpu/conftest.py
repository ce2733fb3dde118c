"""What a test on a GPU needs, or the one reason why it is skipped; the checks, as modules, run on a GPU in NumPy as well (tests/runtime/gpu).

``python -m pytest -m gpu`` is everything that a device can show. Without options, a small model is trained, exported and calibrated on generated
products first; ``--gpu-model`` and ``--gpu-images`` take the place of that, on a machine without the packages for it, or for a model of your own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snl_runtime.cuda.api import describe_device, load_cuda
from snl_runtime.errors import BackendUnavailableError

ROOT = Path(__file__).parents[2]
COMMANDS = {"train": "snl_train.cli.train", "export": "snl_export.cli", "calibrate": "snl_calibration.cli"}


def _load(path):
    spec = importlib.util.spec_from_file_location(f"snl_tests_gpu_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kernel_checks():
    return _load(Path(__file__).with_name("kernel_checks.py"))


@pytest.fixture(scope="session")
def detector_checks():
    return _load(Path(__file__).with_name("detector_checks.py"))


@pytest.fixture(scope="session")
def engine_checks():
    return _load(Path(__file__).with_name("engine_checks.py"))


@pytest.fixture(scope="session")
def api():
    """CUDA with a driver and a GPU."""
    try:
        cuda = load_cuda()
        describe_device(api=cuda)
    except BackendUnavailableError as missing:
        pytest.skip(str(missing))
    return cuda


@pytest.fixture(scope="session")
def free_bytes(api):
    """Return the free memory of the first GPU, of all processes together."""
    return api.free_bytes


@pytest.fixture(scope="session")
def onnxruntime_cuda(api):
    """ONNX Runtime with its CUDA provider."""
    reason = "needs onnxruntime-gpu: pip install 'snl-edge[gpu]'"
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def given(pytestconfig):
    """Models and images named on the command line; no model for those made here."""
    models, images = (pytestconfig.getoption(name) for name in ("gpu_model", "gpu_images"))
    if bool(models) != (images is not None):
        raise pytest.UsageError("--gpu-model and --gpu-images go together")
    return models, images


@pytest.fixture(scope="session")
def products(tmp_path_factory):
    """A folder of generated parts: ``images``, ``calibration`` and ``bad``."""
    pytest.importorskip("cv2", reason="needs opencv-python-headless to draw parts")
    generator = _load(ROOT / "examples" / "generate_products.py")
    folder = tmp_path_factory.mktemp("products")
    amounts = generator.Amounts(train=64, test_good=20, per_defect=4, line_good=1, line_per_defect=0)
    generator.write_products(folder, amounts, 7)
    return folder


@pytest.fixture(scope="session")
def checkpoint(products, tmp_path_factory):
    """A small model trained on the generated parts, on the CPU, so that it is the same on every device."""
    for name in ("torch", "torchvision"):
        pytest.importorskip(name, reason=f"needs {name} to train the model of these tests; or give one with --gpu-model")
    path = tmp_path_factory.mktemp("model") / "line.pt"
    size = ("--image-size", "64", "--epochs", "4", "--device", "cpu", "--seed", "7")
    _run("train", "--data", products / "images", "--out", path, "--teacher-weights", "random", *size)
    return path


@pytest.fixture(scope="session", params=["fp32", "fp16"])
def model(request, given, tmp_path_factory):
    """An exported and calibrated model."""
    if given[0]:
        index = ["fp32", "fp16"].index(request.param)
        if index >= len(given[0]):
            pytest.skip(f"{len(given[0])} model was given with --gpu-model")
        return Path(given[0][index]).resolve()
    products, checkpoint = request.getfixturevalue("products"), request.getfixturevalue("checkpoint")
    for name in ("onnx", "onnxscript", "snl_export"):
        pytest.importorskip(name, reason=f"needs {name} to export the model of these tests; or give one with --gpu-model")
    path = tmp_path_factory.mktemp(request.param) / "line.onnx"
    _run("export", "--ckpt", checkpoint, "--out", path, "--engine", "none", *(["--fp16"] if request.param == "fp16" else []))
    _run("calibrate", "--engine", path, "--good", products / "calibration", "--bad", products / "bad")
    return path


@pytest.fixture(scope="session")
def images(given, request, tmp_path_factory):
    """The folder of images that verdicts are compared on, without the masks that lie beside generated ones."""
    if given[0]:
        return Path(given[1]).resolve()
    source, folder = request.getfixturevalue("products") / "images", tmp_path_factory.mktemp("images")
    for product in source.iterdir():
        shutil.copytree(product / "test", folder / product.name)
    return folder


def _run(command, *arguments):
    program = f"import sys; from {COMMANDS[command]} import main; sys.exit(main(sys.argv[1:]))"
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, f"snl-{command} exited with {done.returncode}: {done.stderr[-2000:]}"
