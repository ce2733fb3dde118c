"""A tiny calibrated model in a folder, its NumPy reference, and backends that misbehave in one way each."""

import dataclasses
import functools
import threading
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snl_runtime.files import sha256_file
from snl_runtime.model.frame_range import FrameRange, FrameSizes
from snl_runtime.model.golden import GoldenSamples, golden_path, write_golden
from snl_runtime.model.ignore_mask import ignore_mask_of
from snl_runtime.model.manifest import (
    Decision,
    EngineEntry,
    Evidence,
    Manifest,
    ParityReport,
    manifest_path,
    read_manifest,
    update_manifest,
    write_manifest,
)
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_ignore_mask, encode_normalization, write_map_file
from snl_runtime.verdict.frame_checks import FrameFormat, FrameStatistics, fit_frame_range, frame_statistics

SIZE = 32
KERNEL = 5
PRODUCTS = ("bottle",)
GOOD_SEEDS = range(100, 140)


def good_frame(seed, size=SIZE):
    """A lit, textured part with natural variation: BGR uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    gray = 110 + 50 * x + 15 * y + rng.uniform(-4, 4) + 6 * np.sin(10 * x + rng.uniform(0, 6)) + rng.normal(0, 2, (size, size))
    return np.clip(gray[:, :, None] + [-8, 0, 8], 0, 255).astype(np.uint8)


def bad_frame(seed, size=SIZE):
    """A good part with a short dark scratch in rows 10 and 11 (at 32 pixels); its statistics stay inside the qualified input range."""
    frame = good_frame(seed, size)
    frame[size // 3 : size // 3 + 2, size // 4 : size // 4 + size // 5] -= 45
    return frame


def reference_map(image_rgb):
    """What the stub network computes, by loops: |gray - mean over a 5x5 window| + 0.25, edges replicated."""
    gray = image_rgb.astype(np.float64).mean(axis=2)
    padded = np.pad(gray, KERNEL // 2, mode="edge")
    result = np.empty_like(gray)
    for row in range(gray.shape[0]):
        for column in range(gray.shape[1]):
            result[row, column] = abs(gray[row, column] - padded[row : row + KERNEL, column : column + KERNEL].mean()) + 0.25
    return result.astype(np.float32)


def write_stub_onnx(path, *, kernel_value=1 / KERNEL**2, offset=0.25, score_normalization=1.0, score_offset=0.0, map_normalization=1.0, batch="N"):
    """The stub network; each argument breaks it in one way."""
    kernel = np.full((1, 1, KERNEL, KERNEL), kernel_value, np.float32)
    constants = {
        "kernel": kernel,
        "offset": np.array(offset, np.float32),
        "score_normalization": np.array(score_normalization, np.float32),
        "score_offset": np.array(score_offset, np.float32),
        "map_normalization": np.array(map_normalization, np.float32),
        "pads": np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "channel_axis": np.array([3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "channel_axis"], ["gray_nhwc"], keepdims=1),
        helper.make_node("Transpose", ["gray_nhwc"], ["gray"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["gray", "pads"], ["padded"], mode="edge"),
        helper.make_node("Conv", ["padded", "kernel"], ["blurred"]),
        helper.make_node("Sub", ["gray", "blurred"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["absolute"]),
        helper.make_node("Add", ["absolute", "offset"], ["raised"]),
        helper.make_node("Mul", ["raised", "map_normalization"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "axes"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "score_normalization"], ["scaled"]),
        helper.make_node("Add", ["scaled", "score_offset"], ["anomaly_score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stub",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch, 1, SIZE, SIZE]),
            helper.make_tensor_value_info("anomaly_score", TensorProto.FLOAT, [batch]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


ANY_FRAME = FrameRange(
    **dict.fromkeys(("mean", "deviation"), (0.0, 255.0)),
    **dict.fromkeys(("red_blue", "green"), (-255.0, 255.0)),
    **dict.fromkeys(("white_share", "black_share", "reddish_share", "bluish_share", "red_share", "blue_share"), (0.0, 1.0)),
)
ANY_SIZE = FrameSizes(seen_hw=[(1, 1 << 16), (1 << 16, 1)], any_size=True)
FORMAT = FrameFormat(size_hw=(SIZE, SIZE), bit_depth=8)
GRAY = FrameStatistics(
    mean=100.0,
    deviation=20.0,
    white_share=0.1,
    black_share=0.1,
    red_blue=0.0,
    green=0.0,
    reddish_share=0.0,
    bluish_share=0.0,
    red_share=0.0,
    blue_share=0.0,
)
"""A gray frame of medium light."""
INPUT = {"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "rgb", "size_hw": [SIZE, SIZE], "batch": "dynamic", "max_batch": 8}
EVIDENCE = Evidence(source="synthetic defects", counts={"scratch": (9, 10), "spot": (10, 10)}, detection_rate=0.95, min_detection=0.5)


def make_decision(**changes):
    """A valid decision; every field can be replaced, also by values that the manifest itself would refuse."""
    values = {
        "product": "bottle",
        "model_sha256": "a" * 64,
        "pass_threshold": 10.0,
        "reject_threshold": 11.0,
        "floor": 2.0,
        "frame_sizes": ANY_SIZE,
        "bit_depth": 8,
        "frame_range": ANY_FRAME,
        "roi_xyxy": None,
        "sample_count": 299,
        "sample_sha256": "b" * 64,
        "max_frr": 0.01,
        "confidence": 0.95,
        "bound": "at most 1 % of good parts do not pass, with 95 % confidence",
        "evidence": EVIDENCE,
        "accepted_outliers": [],
        "backend": "onnxruntime",
        "fitted_at": "2024-05-01T12:00:00+00:00",
        "expires_at": None,
        "tool_version": "0.1.0",
    }
    decision = Decision(**values)
    for name, value in changes.items():
        object.__setattr__(decision, name, value)
    return decision


def make_report(**changes):
    """The report of an engine that passed its comparison; every field can be replaced."""
    values = {
        "subject_file": "line.trt",
        "subject_sha256": "e" * 64,
        "reference": "line.onnx",
        "frames_source": "by hand",
        "frame_count": 3,
        "score_max_abs": 0.0,
        "score_p99_abs": 0.0,
        "map_max_abs": 0.0,
        "map_p99_abs": 0.0,
        "map_scale": 1.0,
        "tolerance": 0.02,
        "auroc_drift": None,
        "flips": 0,
        "guard_band": 0.0,
        "more_lenient": 0,
        "passed_by_reference": 3,
        "refused_by_guard_band": 0,
        "passed": True,
        "failures": [],
        "verified_on": "a fake",
        "created_at": "2024-05-01T12:00:00+00:00",
    }
    return ParityReport(**{**values, **changes})


@functools.cache
def _good_sample():
    inputs = [good_frame(seed)[:, :, ::-1] for seed in GOOD_SEEDS]
    return inputs, [float(reference_map(image).max()) for image in inputs]


@functools.cache
def reference_maps(image_bytes):
    images = np.frombuffer(image_bytes, np.uint8).reshape(-1, SIZE, SIZE, 3)
    return np.stack([reference_map(image) for image in images])


class ModelFolder:
    """A model bundle on disk, calibrated by hand: goldens and thresholds come from the NumPy reference, never from the runtime.

    ``decisions``, ``golden`` and the arguments of the network can be changed before :meth:`write`.
    """

    def __init__(self, folder: Path) -> None:
        self.model = folder / "line.onnx"
        self.manifest = manifest_path(self.model)
        self.golden = golden_path(self.model)
        inputs, peaks = _good_sample()
        self.decision_values = {
            "pass_threshold": max(peaks) * 1.05,
            "reject_threshold": max(peaks) * 1.5,
            "floor": min(peaks) / 2,
            "frame_range": fit_frame_range([frame_statistics(np.ascontiguousarray(image)) for image in inputs]),
        }
        self.golden_images = np.stack(inputs[:3])

    def decision(self, **changes):
        return make_decision(**{**self.decision_values, "model_sha256": sha256_file(self.model), **changes})

    def write(self, *, decisions=None, golden=True, golden_shift=0.0, input_changes=None, **network):
        """Write the bundle and return the path of the model. ``decisions``: list of changes per decision, None for one valid decision."""
        write_stub_onnx(self.model, **network)
        files = {}
        if golden:
            maps = reference_maps(self.golden_images.tobytes()) + np.float32(golden_shift)
            write_golden(self.golden, GoldenSamples(images=self.golden_images, scores=maps.max(axis=(1, 2)), maps=maps))
            files[self.golden.name] = sha256_file(self.golden)
        manifest = Manifest(
            model_file=self.model.name,
            model_sha256=sha256_file(self.model),
            files=files,
            input={**INPUT, **(input_changes or {})},
            outputs={
                "anomaly_map": {"dtype": "float32", "shape": ["N", 1, SIZE, SIZE]},
                "anomaly_score": {"dtype": "float32", "shape": ["N"]},
            },
            graph={"precision": "fp32", "opset": 18, "method": "stub"},
            classes=list(PRODUCTS),
            training={},
            training_image_sha256=[],
            held_out=[],
            decisions=[self.decision(**changes) for changes in ([{}] if decisions is None else decisions)],
            created_at="2024-05-01T12:00:00+00:00",
        )
        write_manifest(self.manifest, manifest)
        return self.model

    def give_engine(self, report=None, *, content=b"a plan", **entry):
        """List an engine in the manifest, with what its report of a passed comparison says otherwise, or none; return its path."""
        engine = self.model.with_suffix(".trt")
        engine.write_bytes(content)
        values = {
            "file": engine.name,
            "sha256": sha256_file(engine),
            "library": "tensorrt",
            "library_version": "10.3.0",
            "compute_capability": ["8.9"],
            "precision": "fp16",
            "built_at": "2024-05-01T12:00:00+00:00",
            "parity": None if report is None else make_report(**{"subject_sha256": sha256_file(engine), **report}),
        }
        update_manifest(self.manifest, lambda manifest: manifest.with_engine(EngineEntry(**{**values, **entry})))
        return engine

    def give_normalization(self, values, product="bottle"):
        """Give the newest decision of a product a normalization map and return its file."""
        file, data = encode_normalization(self.model, product, NormalizationMap(values))
        return self._give_file(product, "normalization", file, data)

    def give_ignore_mask(self, ignored, product="bottle"):
        """Give the newest decision of a product an ignore mask, (SIZE, SIZE) bool, and return its file."""
        file, data = encode_ignore_mask(self.model, product, ignore_mask_of(ignored))
        return self._give_file(product, "ignore_mask", file, data)

    def _give_file(self, product, kind, file, data):
        write_map_file(self.model, file, data)
        manifest = read_manifest(self.manifest)
        decisions = [dataclasses.replace(each, **{kind: file}) if each.product == product else each for each in manifest.decisions]
        write_manifest(self.manifest, dataclasses.replace(manifest, decisions=decisions))
        return self.model.with_name(file.file)


class FakeBackend:
    """A backend that computes the reference's map and breaks one promise, chosen by ``fault``.

    ``fault`` is called with the image, map and score arrays in place of writing the answer; it may call ``answer`` itself.
    """

    name = "fake"
    device = "cpu"
    input_shape = (None, SIZE, SIZE, 3)

    def __init__(self, fault=None, *, healthy_calls=0):
        self.fault = fault
        self.healthy_calls = healthy_calls
        self.calls = 0
        self.threads = set()
        self.closed = threading.Event()

    def infer(self, image, anomaly_map, anomaly_score):
        self.calls += 1
        self.threads.add(threading.get_ident())
        if self.fault is None or self.calls <= self.healthy_calls:
            answer(image, anomaly_map, anomaly_score)
        else:
            self.fault(image, anomaly_map, anomaly_score)

    def close(self):
        self.closed.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def answer(image, anomaly_map, anomaly_score):
    """Write the reference's answer."""
    for index, picture in enumerate(image):
        anomaly_map[index, 0] = reference_map(picture)
    anomaly_score[:] = anomaly_map.max(axis=(1, 2, 3))
