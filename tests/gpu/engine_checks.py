"""What only an engine of TensorRT has: its build, its gate, and CUDA graphs."""

import shutil

import numpy as np

from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.backends.tensorrt.builder import EngineOptions, build_engine, local_target
from snl_runtime.model.golden import golden_path, read_golden
from snl_runtime.model.manifest import manifest_path, read_manifest, update_manifest
from snl_runtime.parity.engine import verify_engine
from snl_runtime.parity.meter import figures


def build_for_this_gpu(onnx_path, folder, library):
    """Copy a model into ``folder``, build its engine there without a cache of other builds, list it, and return its path.

    Raises:
        BackendUnavailableError: If the library is missing or cannot build for this GPU.
    """
    target = local_target(library)
    for path in onnx_path.parent.glob(f"{onnx_path.stem}.*"):
        if path.suffix in (".onnx", ".json", ".npz"):
            shutil.copy2(path, folder / path.name)
    copy = folder / onnx_path.name
    manifest = read_manifest(manifest_path(copy))
    options = EngineOptions(batches=(1, 1, int(manifest.input["max_batch"])), precision=str(manifest.graph["precision"]))
    built = build_engine(copy, copy.with_suffix(".trt"), target, options, cache_folder=folder / "cache")
    update_manifest(manifest_path(copy), lambda listed: listed.with_engine(built.entry))
    return built.path


def check_gate(engine_path):
    """Compare an engine with its ONNX file on the CPU by the limits that decide about its thresholds, and record it."""
    report = verify_engine(engine_path)
    assert report.passed, f"{figures(report)}; {report.failures}"


def check_graph_equals_plain(engine_path, *, runs=20):
    """Compare the first run, a plain enqueue, with later ones, which replay a captured graph; return whether there was one."""
    image = read_golden(golden_path(engine_path)).images[:1]
    with TensorRtBackend(engine_path) as backend:
        plain = infer(backend, image)
        for run in range(runs):
            for expected, actual in zip(plain, infer(backend, image)):
                np.testing.assert_array_equal(actual, expected, err_msg=f"run {run} differs from the plain enqueue")
        with backend.execution_context() as context:
            return context.has_graph


def infer(backend, images):
    """Return map and score; what the engine did not write is NaN, and no answer."""
    count, height, width, _ = images.shape
    anomaly_map, score = np.full((count, 1, height, width), np.nan, np.float32), np.full(count, np.nan, np.float32)
    backend.infer(np.ascontiguousarray(images), anomaly_map, score)
    assert np.isfinite(anomaly_map).all()
    assert np.isfinite(score).all()
    return anomaly_map, score
