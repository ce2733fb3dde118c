"""INT8 for the backbone: value ranges on good images in, quantize/dequantize pairs in the graph out.

What every target accepts (TensorRT 10 and 11, TensorRT-RTX, ONNX Runtime, OpenVINO): signed values, zero point 0, weights per output channel, one
scale for an activation, biases left in float, and pairs at the inputs of convolutions only. CRAM, the last residual block of each student stage,
transposed convolutions and the scoring head stay in float: a distance between two nearly equal features is no larger than the noise of eight bits.

``onnxruntime.quantization.quantize_static`` of 1.32 finds the same ranges, but, given a list of nodes, hands the rounded tensor to every reader of an
activation: residual sums and the scoring head would read eight bits too.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from snl_runtime.backends.onnxruntime.session import load_onnxruntime
from snl_runtime.errors import BackendUnavailableError, ConfigError, DataError
from snl_runtime.images.files import pixel_sha256, read_image
from snl_runtime.images.labels import is_good_name, is_ground_truth
from snl_runtime.images.listing import list_images
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.progress import ProgressReporter, no_progress

if TYPE_CHECKING:
    import onnx

BackbonePart: TypeAlias = Literal["early", "teacher", "bottleneck", "student"]

PARTS: tuple[BackbonePart, ...] = ("early", "teacher", "bottleneck", "student")
"""``early`` is stem and layer1 of every network that sees the image; the other names mean the rest of that network."""
DEFAULT_PARTS: tuple[BackbonePart, ...] = ("teacher", "bottleneck", "student")
"""Without ``early``: on real images with an ImageNet ResNet-18 those five convolutions alone cause nearly all of the loss."""
LARGEST = 127
"""Values run from -127 to 127: zero point 0 leaves -128 without a counterpart."""
DEFAULT_IMAGES = 64
"""Good images that ranges are collected on, spread evenly over the folder."""
_EARLY = re.compile(r"^model\.(?:teacher|student\.backbone)\.(?:conv1|layer1)\.")
_CRAM = re.compile(r"^model\.student\.crams\.")
_STAGE = re.compile(r"^model\.student\.(?P<stage>(?:backbone\.layer|stages\.)\d+)\.(?P<block>\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution of the backbone that may run in INT8.

    Attributes:
        node: Name of its node.
        part: Where it belongs.
        activation: Name of the tensor it reads.
        weight: Name of its weights.
    """

    node: str
    part: BackbonePart
    activation: str
    weight: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class QuantizedBackbone:
    """A graph with INT8 convolutions and where its ranges come from.

    Attributes:
        model: The graph.
        convolution_count: How many convolutions read INT8.
        image_count: Images that ranges were collected on.
        images_sha256: sha256 over the sorted pixel hashes of these images, one per line.
    """

    model: "onnx.ModelProto"
    convolution_count: int
    image_count: int
    images_sha256: str


def quantize_backbone(
    model: "onnx.ModelProto",
    images: Sequence[Path],
    *,
    parts: Sequence[BackbonePart] = DEFAULT_PARTS,
    threads: int | None = None,
    bit_depth: int | None = None,
    progress: ProgressReporter = no_progress,
) -> QuantizedBackbone:
    """Return an fp32 graph with the convolutions of its backbone in INT8; the same graph and images give the same bytes.

    Args:
        model: A graph of ``snl-export`` in fp32; not changed.
        images: Good images.
        parts: Networks whose convolutions are quantized.
        threads: CPU threads of ONNX Runtime; None for its default.
        bit_depth: Bits that a value of the files uses, as for ``read_image``.
        progress: Told on how many images ranges were collected.

    Raises:
        ConfigError: If there is no such convolution.
        DataError: If an image cannot be read or gives values that are not finite.
    """
    convolutions = find_convolutions(model, parts)
    names = list(dict.fromkeys(convolution.activation for convolution in convolutions))
    ranges = collect_activation_ranges(model, names, images, threads=threads, bit_depth=bit_depth, progress=progress)
    # No clipping: least squares would cut the rarest, largest activations, and those are what an anomaly score is made of.
    scales = {name: largest / LARGEST if largest > 0 else 1.0 for name, largest in ranges.items()}
    hashes = sorted(pixel_sha256(read_image(path, bit_depth)) for path in images)
    return QuantizedBackbone(
        model=insert_pairs(model, convolutions, scales),
        convolution_count=len(convolutions),
        image_count=len(images),
        images_sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    )


def find_convolutions(model: "onnx.ModelProto", parts: Sequence[BackbonePart] = DEFAULT_PARTS) -> list[Convolution]:
    """Return the convolutions that may run in INT8, in the order of the graph.

    Args:
        model: A graph of ``snl-export`` in fp32; its weights carry the names of the networks they come from.
        parts: Networks whose convolutions are wanted.

    Raises:
        ConfigError: If there is none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [
        Convolution(node=node.name, part=part, activation=node.input[0], weight=node.input[1])
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and (part := _part_of(node.input[1])) is not None
    ]
    last = _last_blocks(conv.weight for conv in found)
    kept = [conv for conv in found if conv.part in parts and _block_of(conv.weight) not in last]
    if not kept:
        raise ConfigError(f"the graph has no convolution of {', '.join(parts)} to quantize; export the checkpoint again in fp32")
    return kept


def calibration_images(folder: Path, *, most: int = DEFAULT_IMAGES) -> list[Path]:
    """Return good images below a folder, spread evenly over the sorted names.

    If some lie in a folder called ``good`` (or ``ok``, ``normal``, ...), only those are taken, so that a data set's root does not bring its defects
    along.

    Raises:
        DataError: If there is none, or one cannot be taken.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; --calib-data needs a folder of good images")
    paths = [path for path in list_images(folder).require_all().taken if not is_ground_truth(path.relative_to(folder))]
    good = [path for path in paths if any(is_good_name(part) for part in path.relative_to(folder).parts[:-1])]
    paths = good or paths
    if not paths:
        raise DataError(f"{folder} holds no image; --calib-data needs a folder of good images")
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int))
    return [paths[i] for i in chosen]


def collect_activation_ranges(
    model: "onnx.ModelProto",
    names: Sequence[str],
    images: Sequence[Path],
    *,
    threads: int | None = None,
    bit_depth: int | None = None,
    progress: ProgressReporter = no_progress,
) -> dict[str, float]:
    """Return the largest absolute value of each named tensor over good images, one image at a time.

    Args:
        model: A graph of ``snl-export``.
        names: Tensors inside it.
        images: Files, which pass the preprocessing of the line.
        threads: CPU threads of ONNX Runtime; None for its default.
        bit_depth: Bits that a value of the files uses, as for ``read_image``.
        progress: Told how many images are done.

    Raises:
        DataError: If an image cannot be read or gives values that are not finite.
    """
    onnx, onnxruntime = _load_packages()
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.ClearField("output")
    observed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(observed.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])
    height, width = (int(side) for side in session.get_inputs()[0].shape[1:3])
    batch = session.get_inputs()[0].shape[0]
    largest = dict.fromkeys(names, 0.0)
    spec = InputSpec(size_hw=(height, width))
    with progress(len(images), unit="images", label="activation ranges") as steps:
        for path in images:
            pixels = prepare(read_image(path, bit_depth), "rgb", spec)[None]
            pixels = pixels.repeat(batch, axis=0) if isinstance(batch, int) else pixels
            for name, values in zip(names, session.run(list(names), {session.get_inputs()[0].name: pixels})):
                magnitude = float(np.abs(values).max())  # NaN if there is one
                if not np.isfinite(magnitude):
                    raise DataError(f"{path}: the network gives values that are not finite in {name}; check the checkpoint")
                largest[name] = max(largest[name], magnitude)
            steps.advance()
    return largest


def insert_pairs(model: "onnx.ModelProto", convolutions: Sequence[Convolution], scales: Mapping[str, float]) -> "onnx.ModelProto":
    """Return a copy in which the convolutions read quantized activations and weights; everything else is untouched.

    Args:
        model: The fp32 graph.
        convolutions: Which of its convolutions.
        scales: Step of each activation that they read.
    """
    package, _ = _load_packages()
    by_node = {convolution.node: convolution for convolution in convolutions}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    has_pair: set[str] = set()
    made: list[Any] = []  # initializers
    nodes: list[Any] = []
    for original in model.graph.node:
        node = package.NodeProto.FromString(original.SerializeToString())
        convolution = by_node.get(node.name)
        if convolution is not None:
            name = convolution.activation
            if name not in has_pair:
                nodes += _activation_pair(package, name, scales[name], made)
                has_pair.add(name)
            nodes.append(_quantize_weights(package, weights[convolution.weight], made))
            node.input[0], node.input[1] = f"{name}_dequantized", f"{convolution.weight}_dequantized"
        nodes.append(node)
    still_read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in still_read]
    result: onnx.ModelProto = package.ModelProto()
    result.CopyFrom(model)
    for field, values in (("node", nodes), ("initializer", [*kept, *made])):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(values)
    return result


def _activation_pair(onnx: Any, name: str, scale: float, made: list[Any]) -> list[Any]:
    made += [
        onnx.numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"),
        onnx.numpy_helper.from_array(np.array(0, np.int8), f"{name}_zero_point"),
    ]
    constants = [f"{name}_scale", f"{name}_zero_point"]
    return [
        onnx.helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_quantized"], name=f"{name}_QuantizeLinear"),
        onnx.helper.make_node("DequantizeLinear", [f"{name}_quantized", *constants], [f"{name}_dequantized"], name=f"{name}_DequantizeLinear"),
    ]


def _quantize_weights(onnx: Any, tensor: Any, made: list[Any]) -> Any:
    values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    largest = np.abs(values).reshape(len(values), -1).max(1)
    scales = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)
    steps = np.rint(values / scales.astype(np.float64).reshape(-1, *[1] * (values.ndim - 1))).clip(-LARGEST, LARGEST).astype(np.int8)
    name = tensor.name
    made += [
        onnx.numpy_helper.from_array(steps, f"{name}_quantized"),
        onnx.numpy_helper.from_array(scales, f"{name}_scale"),
        onnx.numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}_zero_point"),
    ]
    inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    return onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], name=f"{name}_DequantizeLinear", axis=0)


def _part_of(weight: str) -> BackbonePart | None:
    if _CRAM.match(weight):
        return None
    if _EARLY.match(weight):
        return "early"
    return next((part for part in PARTS if weight.startswith(f"model.{part}.")), None)


def _block_of(weight: str) -> tuple[str, int] | None:
    match = _STAGE.match(weight)
    return None if match is None else (match["stage"], int(match["block"]))


def _last_blocks(weights: Iterable[str]) -> set[tuple[str, int]]:
    last: dict[str, int] = {}
    for weight in weights:
        block = _block_of(weight)
        if block is not None:
            last[block[0]] = max(block[1], last.get(block[0], 0))
    return set(last.items())


def _load_packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise BackendUnavailableError(f"--int8 needs the package onnx ({error}): pip install 'snl-edge[export]'") from error
    return onnx, load_onnxruntime()
