"""The public names of snl_runtime are all there, and importing the package loads none of them."""

import subprocess
import sys

import pytest

import snl_runtime

NAMES = {
    "AnomalyRegion",
    "AnomalyResult",
    "Backend",
    "Decision",
    "Frame",
    "Manifest",
    "ModelBundle",
    "OutputRequest",
    "Scorer",
    "SnlDetector",
    "SnlError",
    "StageTimings",
    "Verdict",
    "available_backends",
    "open_backend",
    "open_bundle",
    "read_image",
    "read_manifest",
    "render_overlay",
}


def test_inventory_of_the_public_api():
    assert set(snl_runtime.__all__) == NAMES == set(dir(snl_runtime))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_can_be_imported(name):
    assert getattr(snl_runtime, name).__module__.startswith("snl_runtime.")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'snl_runtime' has no attribute 'Detector'"):
        _ = snl_runtime.Detector


def test_import_loads_neither_numpy_nor_opencv():
    program = "import sys, snl_runtime; print(sorted({'numpy', 'cv2', 'yaml', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
