"""One ONNX file out of the graph: dynamo exporter, opset 18, no external data, the manifest's hash-independent part inside."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from snl_runtime.errors import ConfigError, ParityRefusedError

OPSET = 18
INPUT_NAME = "image"
OUTPUT_NAMES = ("anomaly_map", "anomaly_score")
METADATA_KEY = "snl.manifest"
_FULL_PRECISION_OPS = frozenset(
    {"AveragePool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "Sqrt", "Pow", "Reciprocal", "Exp", "Softmax", "Abs", "Resize"}
)
"""What the scoring head is made of; none of it may run in half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """How many images one call takes.

    Attributes:
        fixed: Exactly this many; None for any number up to ``largest``.
        largest: Most images per call that engines are built for and the runtime sends.
    """

    fixed: int | None = None
    largest: int = 8

    def __post_init__(self) -> None:
        if self.largest < 1 or (self.fixed is not None and self.fixed < 1):
            raise ConfigError(f"--batch must be at least 1, got {self.fixed or self.largest}")

    @classmethod
    def parse(cls, text: str) -> "BatchSize":
        """Return what ``dynamic``, ``4`` (exactly four) or ``1..8`` (any number up to eight) means.

        Raises:
            ConfigError: If it is none of these.
        """
        first, dots, last = text.partition("..")
        if text == "dynamic":
            return cls()
        if dots and first == "1" and last.isdecimal():
            return cls(largest=int(last))
        if text.isdecimal():
            return cls(fixed=int(text), largest=int(text))
        raise ConfigError(f"--batch must be dynamic, a number, or 1..N, got {text!r}")


def export_onnx(graph: nn.Module, path: Path, *, size_hw: tuple[int, int], batch: BatchSize, metadata: str) -> None:
    """Write the graph as one self-contained ONNX file.

    The bytes depend on the graph, the metadata and the library versions only: names of files and source lines that the exporter notes are removed,
    so that exporting the same checkpoint again gives the same hash and keeps its decisions.

    Args:
        graph: (N, H, W, 3) uint8 RGB -> anomaly_map, anomaly_score.
        path: File to write.
        size_hw: Height and width of the input.
        batch: Fixed or dynamic N.
        metadata: Text stored under ``snl.manifest``.

    Raises:
        ParityRefusedError: If the exporter produced a file that breaks the contract of names, types and shapes.
    """
    example = torch.zeros((batch.fixed or 2, *size_hw, 3), dtype=torch.uint8)  # 2: the exporter would take 1 for a constant
    dynamic = None if batch.fixed else {INPUT_NAME: {0: torch.export.Dim("N", min=1, max=1024)}}
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    _remove_traces(model)
    _read_the_size_behind_the_cast(model)
    write_model(model, path, size_hw=size_hw, batch=batch, metadata=metadata)


def write_model(model: onnx.ModelProto, path: Path, *, size_hw: tuple[int, int], batch: BatchSize, metadata: str) -> None:
    """Write a model with its metadata, after a check of the contract.

    Args:
        model: Gets the metadata.
        path: File to write.
        size_hw: Height and width of the input.
        batch: Fixed or dynamic N.
        metadata: Text stored under ``snl.manifest``.

    Raises:
        ParityRefusedError: If the model breaks the contract of names, types and shapes.
    """
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    check_contract(model, size_hw=size_hw, batch=batch)
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_contract(model: onnx.ModelProto, *, size_hw: tuple[int, int], batch: BatchSize) -> None:
    """Check names, types, shapes and operators of an exported model.

    Raises:
        ParityRefusedError: If one of them is not what the runtime and TensorRT rely on.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityRefusedError(f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:300]}") from error
    n: int | str = batch.fixed or "N"
    expected: dict[str, tuple[int, list[int | str]]] = {
        INPUT_NAME: (onnx.TensorProto.UINT8, [n, *size_hw, 3]),
        OUTPUT_NAMES[0]: (onnx.TensorProto.FLOAT, [n, 1, *size_hw]),
        OUTPUT_NAMES[1]: (onnx.TensorProto.FLOAT, [n]),
    }
    found = {value.name: (value.type.tensor_type.elem_type, _shape(value)) for value in (*model.graph.input, *model.graph.output)}
    if found != expected:
        raise ParityRefusedError(f"the exported graph must have inputs and outputs {_readable(expected)}, got {_readable(found)}")
    for fault in _operator_faults(model):
        raise ParityRefusedError(f"the exported graph {fault}")


def half_precision_head_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that must run in fp32 and read half instead, as ``ReduceSum 'node_7'``; empty for a sound graph.

    ONNX Runtime computes half in fp32 on a CPU, so running the file there does not show this fault.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    types |= {initializer.name: initializer.data_type for initializer in inferred.graph.initializer}
    return [
        f"{node.op_type} '{node.name}'"
        for node in inferred.graph.node
        if node.op_type in _FULL_PRECISION_OPS and any(types.get(name) == onnx.TensorProto.FLOAT16 for name in node.input)
    ]


def _operator_faults(model: onnx.ModelProto) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        yield f"must use opset {OPSET} only, got {opsets}"
    if any(initializer.data_location == onnx.TensorProto.EXTERNAL for initializer in model.graph.initializer):
        yield "must hold its weights, got external data"
    readers = [node.op_type for node in model.graph.node if INPUT_NAME in node.input]
    if readers != ["Cast"]:
        yield f"must cast the pixels first, got {readers}"
    branches = sorted({node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"})
    if branches:
        yield f"must have no branch that depends on data, got {', '.join(branches)}"
    in_half = half_precision_head_nodes(model)
    if in_half:
        yield f"must compute norms, means and scores in fp32, but {in_half[0]} and {len(in_half) - 1} more read half"


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _readable(values: Mapping[str, tuple[int, list[int | str]]]) -> str:
    return ", ".join(f"{name} {onnx.TensorProto.DataType.Name(kind).lower()} {shape}" for name, (kind, shape) in values.items())


def _remove_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they double the size of the graph and hold paths of the machine."""
    model.ClearField("doc_string")
    model.graph.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _read_the_size_behind_the_cast(model: onnx.ModelProto) -> None:
    """Let nodes that only ask how many images there are ask the cast pixels, in place: nothing but the cast reads uint8."""
    cast = next((node for node in model.graph.node if node.op_type == "Cast" and INPUT_NAME in node.input), None)
    asking = [node for node in model.graph.node if node.op_type == "Shape" and INPUT_NAME in node.input]
    if cast is None or not asking:
        return
    for node in asking:
        node.input[0] = cast.output[0]
    made = cast.output[0]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    nodes = sorted(copies, key=lambda node: node.output[0] != made)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)  # the cast first, the others in their order


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress prints off stdout, which belongs to ``--json``, and its notes about itself off stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # torch 2.6 to 2.15 with copyreg and pytree: deprecations inside the exporter that a caller can do nothing about.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
