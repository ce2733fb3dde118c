"""TensorRT-RTX builds the SDK's own graphs for every GPU it is meant for, to the same bytes twice, and row tiles save memory.

Built here, run nowhere: TensorRT-RTX builds without a GPU and cannot load without one.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")

from snl_calibration.quantize import PARTS, quantize_backbone  # noqa: E402
from snl_export.graph import Precision, SnlGraph  # noqa: E402
from snl_export.onnx_export import BatchSize, export_onnx  # noqa: E402
from snl_runtime.backends.tensorrt.library import BuildRequest, BuiltPlan, TensorRtLibrary, build_plan, load_library  # noqa: E402
from snl_runtime.files import sha256_bytes  # noqa: E402
from snl_runtime.images.files import write_image  # noqa: E402
from snl_train.config import Preset, load_config  # noqa: E402
from snl_train.models import build_model  # noqa: E402

pytestmark = pytest.mark.slow

SIZE_PX = 64  # the number of positions changes the tiles only; layers, types and operators are those of any size
TILED_SIZE_PX = 256  # 4096 positions at the finest scale: one affinity matrix of 32 MiB in fp16
AMPERE_TO_BLACKWELL = (86, 89, 120)
TURING = (75,)

# Precision -> targets. INT8 is not for Turing: what stays float in it is fp32, and Turing has no fp32 matrix product.
TARGETS = {"fp32": [AMPERE_TO_BLACKWELL], "fp16": [AMPERE_TO_BLACKWELL, TURING], "int8": [AMPERE_TO_BLACKWELL]}
TEACHERS = ("resnet18", "wide_resnet50_2")
CASES = [
    pytest.param(teacher, precision, targets, id=f"{teacher}-{precision}-{'-'.join(map(str, targets))}")
    for teacher in TEACHERS
    for precision, several in TARGETS.items()
    for targets in several
]

Export = Callable[..., bytes]


@pytest.fixture(scope="module")
def library() -> TensorRtLibrary:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export SNL(RD) with random weights once per combination."""
    folder, done = tmp_path_factory.mktemp("graphs"), {}

    def make(teacher: str, precision: str, *, size_px: int = SIZE_PX, tile_rows: int = 256, batch: str = "1", preset: Preset = "paper") -> bytes:
        key = (teacher, precision, size_px, tile_rows, batch, preset)
        if key not in done:
            settings = {"model.method": "snl-rd", "model.teacher": teacher, "model.teacher_weights": "random", "image_size": [size_px, size_px]}
            if preset == "best":
                settings["model.whitening_expectation"] = 0.5  # which best leaves out; its graph holds all that best's does
            config = load_config(None, settings, preset=preset)
            torch.manual_seed(0)
            of_float: Precision = "fp16" if precision == "fp16" else "fp32"  # INT8 pairs go into the fp32 graph
            graph = SnlGraph(
                build_model(config.model), config.score, size_hw=(size_px, size_px), precision=of_float, tile_rows=tile_rows, layout="rows"
            )
            path: Path = folder / "x.onnx"
            export_onnx(graph, path, size_hw=(size_px, size_px), batch=BatchSize.parse(batch), metadata="{}")
            if precision == "int8":
                onnx.save(quantize_backbone(onnx.load(path), [noise_image(folder)], parts=PARTS, threads=1).model, path)
            done[key] = path.read_bytes()
        return done[key]

    return make


@pytest.mark.parametrize(("teacher", "precision", "targets"), CASES)
def test_real_graph_builds_twice_to_the_same_bytes(
    library: TensorRtLibrary, export: Export, teacher: str, precision: str, targets: tuple[int, ...]
) -> None:
    request = BuildRequest(onnx=export(teacher, precision), compute_capabilities=targets)
    first = build_plan(library, request)
    assert first.inputs == (("image", (1, SIZE_PX, SIZE_PX, 3), "UINT8"),)
    assert first.outputs == (("anomaly_map", (1, 1, SIZE_PX, SIZE_PX), "FLOAT"), ("anomaly_score", (1,), "FLOAT"))
    assert sha256_bytes(first.plan) == sha256_bytes(build_plan(library, request).plan)


def test_real_graph_with_any_batch_builds_within_its_range(library: TensorRtLibrary, export: Export) -> None:
    """The bytes are not compared: with an open N, TensorRT-RTX 1.7.1 numbers and places the host scalars of its shape program anew each time."""
    request = BuildRequest(onnx=export("resnet18", "fp16", batch="1..4"), compute_capabilities=AMPERE_TO_BLACKWELL, batches=(1, 1, 4))
    built = build_plan(library, request)
    assert built.inputs == (("image", (-1, SIZE_PX, SIZE_PX, 3), "UINT8"),)
    assert built.outputs == (("anomaly_map", (-1, 1, SIZE_PX, SIZE_PX), "FLOAT"), ("anomaly_score", (-1,), "FLOAT"))


@pytest.mark.parametrize(("precision", "targets"), [("fp16", AMPERE_TO_BLACKWELL), ("fp16", TURING), ("fp32", AMPERE_TO_BLACKWELL)])
def test_graph_of_the_preset_best_builds_for_every_target(library: TensorRtLibrary, export: Export, precision: str, targets: tuple[int, ...]) -> None:
    """Whitened residuals and their expectation are 1x1 convolutions in fp32, which Turing must take beside half-precision backbones."""
    request = BuildRequest(onnx=export("resnet18", precision, preset="best"), compute_capabilities=targets)
    built = build_plan(library, request)
    assert built.outputs == (("anomaly_map", (1, 1, SIZE_PX, SIZE_PX), "FLOAT"), ("anomaly_score", (1,), "FLOAT"))
    assert sha256_bytes(built.plan) == sha256_bytes(build_plan(library, request).plan)


def test_row_tiles_without_hidden_streams_need_a_fraction_of_the_activation_memory(library: TensorRtLibrary, export: Export) -> None:
    """Untiled, the finest scale alone holds a matrix of 4096 x 4096 halves: 33.6 MB."""

    def activation_bytes(tile_rows: int, max_aux_streams: int) -> int:
        request = BuildRequest(
            onnx=export("resnet18", "fp16", size_px=TILED_SIZE_PX, tile_rows=tile_rows),
            compute_capabilities=(86,),
            max_aux_streams=max_aux_streams,
            is_detailed=True,
        )
        return reported_activation_bytes(build_plan(library, request))

    tiled, untiled, tiled_side_by_side = activation_bytes(256, 0), activation_bytes(4096, 0), activation_bytes(256, 7)
    print(f"activation memory: tiled {tiled}, untiled {untiled}, tiled with hidden streams {tiled_side_by_side} bytes")
    assert untiled > 4096 * 4096 * 2
    assert tiled < untiled / 2
    assert tiled <= tiled_side_by_side


def test_every_quantized_convolution_runs_in_int8(library: TensorRtLibrary, export: Export) -> None:
    """A builder that folds the pairs away builds too, and would run the convolutions in float."""
    request = BuildRequest(onnx=export("resnet18", "int8"), compute_capabilities=(86,), is_detailed=True)
    lines = "\n".join(message for _, message in build_plan(library, request).log).splitlines()
    layers = [line for line in lines if "LayerType: correlation" in line]
    in_int8 = [layer for layer in layers if re.search(r"Inputs: \[ \{[^}]*Datatype: Int8", layer)]
    # stem 1, layer1 4, layer2 and layer3 5 each, bottleneck 8, the 3x3 convolution of the first block of 3 decoder stages
    assert len(in_int8) == 1 + 4 + 5 + 5 + 8 + 3


def noise_image(folder: Path) -> Path:
    path = folder / "noise.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8))
    return path


def reported_activation_bytes(built: BuiltPlan) -> int:
    (reported,) = re.findall(r"Total Activation Memory: (\d+)", "\n".join(message for _, message in built.log))
    return int(reported)
