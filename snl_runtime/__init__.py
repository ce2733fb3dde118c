"""What runs on the line: a model file, a frame, a fail-safe verdict. Needs numpy, OpenCV and yaml; imports the rest on first use.

Example:
    with SnlDetector("x.onnx") as detector:
        result = detector.detect(frame, color="bgr", product="bottle")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snl_runtime.backends import available_backends, open_backend
    from snl_runtime.backends.base import Backend
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.errors import SnlError
    from snl_runtime.images.files import read_image
    from snl_runtime.images.overlay import render_overlay
    from snl_runtime.model.bundle import ModelBundle, open_bundle
    from snl_runtime.model.manifest import Decision, Manifest, read_manifest
    from snl_runtime.scorer import Scorer
    from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, OutputRequest, StageTimings, Verdict

__all__ = [
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
]

_MODULES = {
    "AnomalyRegion": "types",
    "AnomalyResult": "types",
    "Backend": "backends.base",
    "Decision": "model.manifest",
    "Frame": "types",
    "Manifest": "model.manifest",
    "ModelBundle": "model.bundle",
    "OutputRequest": "types",
    "Scorer": "scorer",
    "SnlDetector": "detector.detector",
    "SnlError": "errors",
    "StageTimings": "types",
    "Verdict": "types",
    "available_backends": "backends",
    "open_backend": "backends",
    "open_bundle": "model.bundle",
    "read_image": "images.files",
    "read_manifest": "model.manifest",
    "render_overlay": "images.overlay",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import snl_runtime`` and every ``-h`` stay fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'snl_runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(f"snl_runtime.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
