"""What batches bring on a CPU: a convolution network of the size of a ResNet's middle, one thread, time per image by batch.

python -m benchmarks.batching_cpu
"""

import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS, LAYERS, SIDE = 128, 8, 32
BATCHES = (1, 2, 4, 8)
REPEATS = 15


def main() -> None:
    """Measure and print the medians; batches take turns, so that other work on the machine falls on all of them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_network(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    images = {batch: random.normal(size=(batch, CHANNELS, SIDE, SIDE)).astype(np.float32) for batch in BATCHES}
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(REPEATS):
        for batch in BATCHES:
            started_s = time.perf_counter()
            session.run(None, {"x0": images[batch]})
            times[batch].append((time.perf_counter() - started_s) / batch)
    for batch in BATCHES:
        print(f"batch {batch}: {statistics.median(times[batch]) * 1e3:.2f} ms per image")


def _network() -> bytes:
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(LAYERS):
        kernel = random.normal(0, 0.03, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    shape: list[str | int | None] = ["N", CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{LAYERS}")]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], weights)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
