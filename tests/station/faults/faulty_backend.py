"""ONNX Runtime that does with each call what a file says: ``well``, ``raise``, ``hang`` (until it says otherwise), ``hungry`` (wants memory)."""

import os
import time
from pathlib import Path

import numpy as np

from snl_runtime.backends import open_backend

HUNGRY_BYTES = 1 << 30


class FaultyBackend:
    def __init__(self, path, *, device, threads):
        self._inner = open_backend(path, "onnxruntime", device=device, threads=threads)
        self._file = Path(os.environ["SNL_FAULTY_MODE"])

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def infer(self, image, anomaly_map, anomaly_score):
        mode = self._file.read_text()
        if mode == "raise":
            raise RuntimeError("the driver lost its device")
        while self._file.read_text() == "hang":
            time.sleep(0.01)  # a native call that does not come back
        if mode == "hungry":
            np.ones(HUNGRY_BYTES, np.uint8)
        self._inner.infer(image, anomaly_map, anomaly_score)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def open_faulty(path, *, device=None, threads=None):
    return FaultyBackend(path, device=device, threads=threads)
