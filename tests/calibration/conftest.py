"""A tiny station: good frames of two products on disk, and ONNX graphs that see defects, see nothing, or answer noise."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from snl_calibration.calibrate import CalibrationOptions, calibrate
from snl_runtime.model.golden import GoldenSamples, write_golden
from snl_runtime.model.manifest import Manifest, read_manifest, write_manifest

SIDE = 48
BASE = 0.02  # what the graph answers where a frame equals the template: a score of 0 is no evidence


def template():
    """Return the frame of a perfect part: a textured disk on a plain background."""
    image = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    part = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.circle(part, (24, 24), 18, 1, -1)
    texture = np.random.default_rng(1).integers(60, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    image[part > 0] = texture[part > 0]
    return image


def good_frame(index, seed=0):
    """Return the perfect part with one pixel 1 to 12 levels off and its own mark in the background, so that no two are equal."""
    rng = np.random.default_rng([seed, index])
    image = template()
    image[24, 24] += np.uint8(rng.integers(1, 13))
    row, column = rng.integers(0, 6, 2)
    image[row, column] -= rng.integers(0, 2, 3, dtype=np.uint8)
    image[47, index % 48] -= np.uint8(1)
    image[46, index // 48] -= np.uint8(1)
    return image


def bad_frame(index, level=180):
    """Return a part with a hole of 6 x 6 px; at 255 it also leaves the qualified input range of the white share."""
    image = good_frame(index, seed=9)
    image[20 + index % 6 : 26 + index % 6, 18:24] = level
    return image


def expected_score(image):
    """Return what the sighted graph must answer: largest absolute difference from the template, of any pixel and channel."""
    return float(np.float32(np.abs(image.astype(np.float32) - template()).max()) / np.float32(255) + np.float32(BASE))


def sha256_of_pixels(image):
    return hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}x3\0".encode() + image.tobytes()).hexdigest()


def save(path, image_rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image_rgb[..., ::-1])


def _constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def _sighted():
    initializers = [
        _constant("template", template()[None].astype(np.float32)),
        _constant("full", np.float32(255)),
        _constant("base", np.float32(BASE)),
    ]
    initializers.append(_constant("last", np.array([3], dtype=np.int64)))
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "template"], ["signed"]),
        helper.make_node("Abs", ["signed"], ["off"]),
        helper.make_node("ReduceMax", ["off", "last"], ["worst"], keepdims=1),
        helper.make_node("Div", ["worst", "full"], ["share"]),
        helper.make_node("Add", ["share", "base"], ["nhwc"]),
        helper.make_node("Transpose", ["nhwc"], ["anomaly_map"], perm=[0, 3, 1, 2]),
    ]
    return nodes, initializers


def _blind(noisy):
    """One value for the whole map: always the same, or a hash of the pixels, which is as random on good frames as on bad ones."""
    weights = np.random.default_rng(0).integers(1, 1_000_000, (1, SIDE, SIDE, 3))
    initializers = [_constant("axes", np.array([1, 2, 3], dtype=np.int64)), _constant("modulus", np.int64(997)), _constant("one", np.float32(1))]
    initializers += [
        _constant("weights", weights),
        _constant("scale", np.float32(1 / 997 if noisy else 0)),
        _constant("ones", np.ones((1, 1, SIDE, SIDE), dtype=np.float32)),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mod", ["sum", "modulus"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["noise"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["noise", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "one"], ["value"]),
        helper.make_node("Mul", ["value", "ones"], ["anomaly_map"]),
    ]
    return nodes, initializers


GRAPHS = {"sighted": _sighted, "constant": lambda: _blind(noisy=False), "random": lambda: _blind(noisy=True)}


def onnx_bytes(kind):
    nodes, initializers = GRAPHS[kind]()
    initializers.append(_constant("map_axes", np.array([1, 2, 3], dtype=np.int64)))
    nodes.append(helper.make_node("ReduceMax", ["anomaly_map", "map_axes"], ["anomaly_score"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", 1, SIDE, SIDE]),
            helper.make_tensor_value_info("anomaly_score", TensorProto.FLOAT, ["N"]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclass
class Station:
    """A model with its manifest, and a folder of good frames per product."""

    root: Path

    @property
    def model(self):
        return self.root / "line.onnx"

    @property
    def good(self):
        return self.root / "good"

    def manifest(self):
        return read_manifest(self.root / "line.json")

    def fit_all(self, good=None, *, on_listed=lambda _: None, **changes):
        """Calibrate with a promise that 29 good parts carry."""
        return calibrate(self.model, good or self.good, CalibrationOptions(**{"max_frr": 0.1, **changes}), on_listed=on_listed)

    def fit_one(self, good=None, **changes):
        (fit,) = self.fit_all(good, **changes)
        return fit

    def write_model(self, kind, *, classes=("disk", "ring"), training=(), held_out=()):
        """Write model, golden samples and manifest; an earlier manifest is replaced."""
        data = onnx_bytes(kind)
        self.model.write_bytes(data)
        files = {}
        (self.root / "line.golden.npz").unlink(missing_ok=True)
        if kind == "sighted":
            image = good_frame(0)
            anomaly_map = np.abs(image.astype(np.float32) - template()).max(axis=2) / np.float32(255) + np.float32(BASE)
            golden = GoldenSamples(images=image[None], scores=anomaly_map.max()[None], maps=anomaly_map[None])
            write_golden(self.root / "line.golden.npz", golden)
            files["line.golden.npz"] = hashlib.sha256((self.root / "line.golden.npz").read_bytes()).hexdigest()
        size = {"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "rgb", "size_hw": [SIDE, SIDE], "batch": "dynamic", "max_batch": 8}
        manifest = Manifest(
            model_file="line.onnx",
            model_sha256=hashlib.sha256(data).hexdigest(),
            files=files,
            input=size,
            outputs={
                "anomaly_map": {"dtype": "float32", "shape": ["N", 1, SIDE, SIDE]},
                "anomaly_score": {"dtype": "float32", "shape": ["N"]},
            },
            graph={"opset": 18, "precision": "fp32"},
            classes=list(classes),
            training={},
            training_image_sha256=list(training),
            held_out=list(held_out),
            created_at="2026-01-02T03:04:05+00:00",
        )
        write_manifest(self.root / "line.json", manifest)

    def write_good(self, product="disk", count=60, seed=0, folder=None):
        """Write good frames and return them by file name."""
        frames = {f"{index:03d}.png": good_frame(index, seed) for index in range(count)}
        for name, image in frames.items():
            save((folder or self.good / product) / name, image)
        return frames


class Tools:
    """The helpers above, for tests: with import-mode importlib a test cannot import its neighbor."""

    template = staticmethod(template)
    good_frame = staticmethod(good_frame)
    bad_frame = staticmethod(bad_frame)
    expected_score = staticmethod(expected_score)
    sha256_of_pixels = staticmethod(sha256_of_pixels)
    save = staticmethod(save)

    @staticmethod
    def noise_map():
        """Return values for a normalization map that do not compress."""
        return np.random.default_rng(0).uniform(0.5, 2.0, (SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def tools():
    return Tools


@pytest.fixture
def station(tmp_path):
    """A model that sees, and no frames yet."""
    new = Station(tmp_path)
    new.write_model("sighted")
    return new
