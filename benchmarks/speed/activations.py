"""How much memory the tensors of an ONNX graph take at most, computed from their shapes: a count that no machine changes.

    python -m benchmarks.speed.activations --engine line.onnx

The nodes run in the order of the file. A tensor lives from the node that writes it (an input of the graph from the beginning) to the last node that
reads it (an output of the graph to the end); while a node runs, all it reads and writes lives. Weights and constants do not count. A library that
fuses nodes, works in place or aligns buffers needs somewhat less or more; what it takes beside is its own.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.errors import DataError

PROGRAM = "benchmarks.speed.activations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The node while which most memory is taken.

    Attributes:
        byte_count: All tensors that live then.
        node: Its name, or its first output where it has none.
        kind: Its operator.
    """

    byte_count: int
    node: str
    kind: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the peak and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="FILE", type=Path, required=True, help="graph, x.onnx")
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="images at once, where the graph leaves it open (default: 1)")
    options = parser.parse_args(argv)
    return run_command(lambda: _print(options.engine, options.batch), program=PROGRAM)


def peak_activations(model: onnx.ModelProto, batch: int = 1) -> Peak:
    """Return where the tensors of a graph without branches take most memory.

    Args:
        model: Not changed; its nodes are in an order in which they can run, as ONNX demands.
        batch: Number that stands for every open dimension of the inputs.

    Raises:
        DataError: If the shape of a tensor does not follow from those of the inputs.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = batch
    del fixed.graph.value_info[:]  # written for an open batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return _walk(onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph)


def _walk(graph: onnx.GraphProto) -> Peak:
    bytes_of = {value.name: _byte_count(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    inputs = [value.name for value in graph.input if value.name not in constants]
    last_use = {name: index for index, node in enumerate(graph.node) for name in (*node.output, *node.input)}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    live = {name: _known(bytes_of, name) for name in inputs}
    peak = Peak(byte_count=sum(live.values()), node="", kind="input")
    for index, node in enumerate(graph.node):
        live |= {name: _known(bytes_of, name) for name in node.output if name and name not in constants}
        if (byte_count := sum(live.values())) > peak.byte_count:
            peak = Peak(byte_count=byte_count, node=node.name or node.output[0], kind=node.op_type)
        live = {name: taken for name, taken in live.items() if last_use.get(name, 0) > index}
    return peak


def _byte_count(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
        return None
    item_bytes = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    return item_bytes * math.prod(int(dimension.dim_value) for dimension in tensor.shape.dim)


def _known(bytes_of: Mapping[str, int | None], name: str) -> int:
    taken = bytes_of.get(name)
    if taken is None:
        raise DataError(f"the shape of tensor {name!r} does not follow from those of the inputs, so its memory cannot be counted")
    return taken


def _print(path: Path, batch: int) -> int:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise DataError(f"cannot read the graph {path}: {error}") from error
    peak = peak_activations(model, batch)
    print(f"{path.name}, {batch} images: {peak.byte_count / 1e6:.1f} MB of tensors at most, at {peak.kind} {peak.node}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
