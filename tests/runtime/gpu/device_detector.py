"""The engines behind detectors on a GPU in NumPy, the frames they see, and what it means that two verdicts are alike."""

import collections

import numpy as np
import onnxruntime
import pytest

from snl_runtime.images.preprocess import resize
from snl_runtime.verdict.regions import find_regions
from tolerances import GRAY_LEVEL_ABS

RUNS_BEFORE_RECORDING = 2
# The input may differ by a gray level where a value lies on a tie, and the stub network passes on at most two of them.


class Session:
    """ONNX Runtime on the CPU, run when the stream gets there; ``spoil`` gets the scores and the maps that it wrote.

    With ``capture`` it records what the third run of a graph's number does and replays that, whatever binding it is given; ``replay`` is called with
    a function that does what was recorded, and the number of images.
    """

    spoil = staticmethod(lambda score, anomaly_map: None)
    replay = staticmethod(lambda work, count: work())

    def __init__(self, cuda, path, stream, *, capture=False):
        self._cuda, self._stream, self._capture = cuda, stream, capture
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._runs, self._recorded = collections.Counter(), {}

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self):
        binding = self._session.io_binding()
        binding.outputs = {}
        bind_output = binding.bind_output

        def remember(name, device_type, device_id, element_type, shape, address):
            binding.outputs[name] = (shape, address)
            bind_output(name, device_type, device_id, element_type, shape, address)

        binding.bind_output = remember
        return binding

    def run_with_iobinding(self, binding, options=None):
        graph = "-1" if options is None else options.get_run_config_entry("gpu_graph_id")
        assert self._capture or options is None, "a session that does not capture takes no graph's number"
        assert graph != "0", "the library keeps this number for itself"

        def work():
            self._cuda.ran.append("engine")
            self._session.run_with_iobinding(binding)
            self.spoil(*(self._view(binding, name) for name in ("anomaly_score", "anomaly_map")))

        if graph == "-1":
            self._cuda.push(self._stream, work)
            return
        self._runs[graph] += 1
        count = binding.outputs["anomaly_score"][0][0]
        if self._runs[graph] == RUNS_BEFORE_RECORDING + 1:
            self._recorded[graph] = work
        recorded = self._recorded.get(graph)
        self._cuda.push(self._stream, work if recorded is None else lambda: self._replay(recorded, count))

    def _replay(self, recorded, count):
        self._cuda.ran.append("graph")
        self.replay(recorded, count)

    def _view(self, binding, name):
        shape, address = binding.outputs[name]
        return self._cuda.view(address, 4 * int(np.prod(shape)), "device").view(np.float32).reshape(shape)


class CudaSession(onnxruntime.InferenceSession):
    """Says that it runs on a GPU."""

    def __init__(self, path, sess_options):
        super().__init__(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def make_frames(model_fixtures):
    """Return name -> (image, color): usable frames, then unusable ones."""
    good, bad = model_fixtures.good_frame(120), model_fixtures.bad_frame(120)
    odd_good, odd_bad = (resize(image, (77, 91)) for image in (good, bad))
    half = odd_good.copy()
    half[:, :45] = 0
    noise = np.random.default_rng(7).integers(0, 256, (33, 97, 3)).astype(np.uint8)
    return {
        "good": (good, "bgr"),
        "bad": (bad, "bgr"),
        "odd good": (odd_good, "bgr"),
        "odd bad": (odd_bad, "bgr"),
        "large": (np.kron(odd_bad, np.ones((3, 3, 1), np.uint8)), "bgr"),
        "rgb": (odd_good[:, :, ::-1], "rgb"),
        "gray": (odd_bad[:, :, 1], "gray"),
        "gray with an axis": (np.ascontiguousarray(odd_good[:, :, 1:2]), "gray"),
        "16 bits": (odd_bad.astype(np.uint16) * 257, "bgr"),
        "bgra": (np.dstack([odd_good, np.full((77, 91), 9, np.uint8)]), "bgra"),
        "rgba": (np.dstack([odd_bad[:, :, ::-1], np.full((77, 91), 9, np.uint8)]), "rgba"),
        "not contiguous": (np.asfortranarray(odd_good), "bgr"),
        "black": (np.zeros((77, 91, 3), np.uint8), "bgr"),
        "white": (np.full((77, 91, 3), 255, np.uint8), "bgr"),
        "half black": (half, "bgr"),
        "noise": (noise, "bgr"),
        "one pixel": (np.full((1, 1, 3), 99, np.uint8), "bgr"),
        "none": (None, "bgr"),
        "text": ("frame.png", "bgr"),
        "float": (odd_good.astype(np.float32), "bgr"),
        "empty": (np.zeros((0, 91, 3), np.uint8), "bgr"),
        "gray called color": (odd_good[:, :, 0], "bgr"),
        "unknown color": (odd_good, "yuv"),
    }


def decisions_of_every_kind(**changes):
    """Return decisions under which every usable frame is judged: as product ``deep`` those of 16 bits."""
    return [changes, {**changes, "product": "deep", "bit_depth": 16}]


def product_of(image):
    """Return as which of these products a frame is inspected."""
    return "deep" if getattr(image, "dtype", None) == np.uint16 else "bottle"


def cause(result):
    return result.verdict, result.reason_code, result.product


def assert_alike(result, expected):
    """The same verdict with the same evidence, as far as a gray level allows."""
    assert cause(result) == cause(expected)
    assert result.score == pytest.approx(expected.score, abs=GRAY_LEVEL_ABS, nan_ok=True)
    assert (result.threshold, result.reject_threshold, result.roi_xyxy) == (expected.threshold, expected.reject_threshold, expected.roi_xyxy)
    assert (result.anomaly_map is None) == (expected.anomaly_map is None)
    if expected.anomaly_map is not None:
        np.testing.assert_allclose(result.anomaly_map, expected.anomaly_map, atol=GRAY_LEVEL_ABS)
        assert result.regions == find_regions(result.anomaly_map, result.threshold, result.roi_xyxy)
    assert bool(result.regions) == bool(expected.regions)
