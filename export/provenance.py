"""What the manifest says about an export before any file is hashed."""

import platform
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import torch

from snl_runtime.backends.onnxruntime.session import load_onnxruntime
from snl_runtime.model.golden import TOLERANCES
from snl_runtime.model.manifest import SCHEMA
from snl_train.checkpoint import Checkpoint
from snl_train.config import to_plain

from .graph import AffinityLayout
from .onnx_export import INPUT_NAME, OPSET, OUTPUT_NAMES, BatchSize

ExportPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]


def portable_part(
    checkpoint: Checkpoint, *, checkpoint_sha256: str, precision: ExportPrecision, batch: BatchSize, tile_rows: int, layout: AffinityLayout
) -> dict[str, Any]:
    """Return the part of the manifest that depends on no hash of an exported file; it also travels inside the ONNX file."""
    config = checkpoint.config
    height, width = config.image_size
    count: int | str = batch.fixed or "N"
    has_affinity = config.score.affinity_weight > 0
    return {
        "schema": SCHEMA,
        "input": {
            "name": INPUT_NAME,
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "rgb",
            "size_hw": [height, width],
            "batch": batch.fixed or "dynamic",
            "max_batch": batch.largest,
        },
        "outputs": {
            OUTPUT_NAMES[0]: {"dtype": "float32", "shape": [count, 1, height, width]},
            OUTPUT_NAMES[1]: {"dtype": "float32", "shape": [count]},
        },
        "graph": {
            "opset": OPSET,
            "precision": precision,
            "method": config.model.method,
            "teacher": config.model.teacher,
            "affinity_kind": "exact" if has_affinity else "none",
            "affinity_layout": layout if has_affinity else "none",
            "affinity_tile_rows": tile_rows if has_affinity else 0,
            "affinity_weight": config.score.affinity_weight,
            "whitening": config.model.whitening,
            "whitening_expectation": config.model.whitening_expectation if config.model.whitening else 0.0,
            "alignment": config.score.alignment,
            "smoothing_sigma": config.score.smoothing_sigma,
            "golden_tolerance": TOLERANCES[precision],
        },
        "classes": list(checkpoint.classes),
        "training": {
            "config": to_plain(config),
            "seed": checkpoint.seed,
            "epochs_done": checkpoint.epochs_done,
            "checkpoint_sha256": checkpoint_sha256,
            "provenance": dict(checkpoint.provenance),
            "exporter": {"torch": torch.__version__, "onnx": onnx.__version__},
        },
        "training_image_sha256": list(checkpoint.training_image_sha256),
        "held_out": [dict(entry) for entry in checkpoint.held_out],
    }


def verified_on(backend_name: str, backend_device: str) -> str:
    """Return backend, device and versions for a parity report."""
    return f"{backend_name} {load_onnxruntime().__version__} on {backend_device}, {platform.machine()} {platform.system()}, numpy {np.__version__}"


def torch_half() -> str:
    """Return the same for the evaluation in PyTorch."""
    return f"torch {torch.__version__}, half storage with fp32 sums, cpu; not verified on a device"
