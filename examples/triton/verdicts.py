"""Verdicts from a model that a Triton server runs: the server answers maps and scores, this program knows the decision and judges.

    python examples/triton/verdicts.py localhost:8001 line.onnx washer parts/*.png

It needs the bundle (line.onnx, line.json, line.golden.npz) and `pip install 'snl-edge[cpu,triton]'`. At the start the server scores the golden
samples; where it computes something else than was evaluated, nothing passes.
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from snl_runtime import InferenceError, SnlDetector, Verdict


class TritonBackend:
    """A backend of :class:`snl_runtime.SnlDetector` whose computer is a server.

    Args:
        address: ``host:port`` of the server's gRPC service.
        model_path: The exported file; the server's model is called like it.
        deadline_s: Longest that one answer may take, in seconds.
    """

    name = "triton"

    def __init__(self, address: str, model_path: str, *, deadline_s: float = 1.0) -> None:
        self.device = address
        self._deadline_s = deadline_s
        self._model = Path(model_path).stem
        self._client = triton.InferenceServerClient(address)
        with _as_inference_errors():
            config = self._client.get_model_config(self._model, client_timeout=10.0).config
        self._version = _version_of(config, hashlib.sha256(Path(model_path).read_bytes()).hexdigest())
        batched = [None] if config.max_batch_size else []
        count, height, width, channels = [*batched, *config.input[0].dims]
        self.input_shape = (count, height, width, channels)

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write the server's maps and scores into the caller's arrays."""
        tensor = triton.InferInput("image", list(image.shape), "UINT8")
        tensor.set_data_from_numpy(image)
        with _as_inference_errors():
            answer = self._client.infer(self._model, [tensor], model_version=self._version, client_timeout=self._deadline_s)
            for name, target in (("anomaly_map", anomaly_map), ("anomaly_score", anomaly_score)):
                values = answer.as_numpy(name)
                if values is None or values.size != target.size:  # NumPy would spread one answer over all frames
                    raise ValueError(f"{name} is {None if values is None else values.shape}, expected {target.shape}")
                target[...] = values.reshape(target.shape)  # a score is (N, 1) on the wire

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> "TritonBackend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def _as_inference_errors() -> Iterator[None]:
    """Turn what the client raises into the error that a detector answers with ERROR."""
    try:
        yield
    except (triton.InferenceServerException, ValueError) as error:
        raise InferenceError(f"the Triton server gave no answer: {error}") from error


def _version_of(config: Any, sha256: str) -> str:
    """Return the version that is this very file: a decision belongs to one hash."""
    for key, value in config.parameters.items():
        if value.string_value == sha256:
            return str(key.rpartition("_")[2])
    raise InferenceError(f"the server has no version of sha256 {sha256[:12]}; write it there: snl-export --onnx x.onnx --triton DIR")


def main(address: str, model: str, product: str, paths: list[str]) -> int:
    """Print one line per image and return how many parts were stopped."""
    stopped = 0
    with SnlDetector(model, backend=TritonBackend(address, model)) as detector:
        for path in paths:
            started_s = time.perf_counter()
            result = detector.detect(cv2.imread(path), color="bgr", product=product)
            stopped += result.verdict is not Verdict.PASS
            elapsed_ms = (time.perf_counter() - started_s) * 1e3
            print(f"{Path(path).name}: {result.verdict.value} score {result.score:.3f} ({result.reason}), {elapsed_ms:.0f} ms")
    return stopped


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit("usage: python examples/triton/verdicts.py HOST:PORT MODEL PRODUCT IMAGE [IMAGE ...]")
    sys.exit(0 if main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]) == 0 else 4)
