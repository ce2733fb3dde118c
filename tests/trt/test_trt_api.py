"""One module drives TensorRT 10.3 to 11.x and TensorRT-RTX: it uses only what all of them have, and says why when a build fails."""

import ast
import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from snl_runtime import trt_api
from snl_runtime.errors import BackendUnavailableError, EngineBuildError
from snl_runtime.trt_api import BuildCanceledError, BuildRequest, TensorRtLibrary, build_plan, load_library

DUMPS = Path(__file__).parents[3] / "shared" / "trt_api"
FULL = ("api_10.3.0.json", "api_10.16.1.11.json", "api_11.4.json")
RTX = ("api_rtx1.7.json",)

# What the module uses, by the class that has it. The second test below fails when the module uses a name that is missing here.
COMMON = """
ILogger.log
Builder.create_network Builder.create_builder_config Builder.create_optimization_profile Builder.build_serialized_network
NetworkDefinitionCreationFlag.STRONGLY_TYPED
OnnxParser.parse OnnxParser.num_errors OnnxParser.get_error
INetworkDefinition.num_inputs INetworkDefinition.num_outputs INetworkDefinition.get_input INetworkDefinition.get_output
ITensor.name ITensor.shape ITensor.dtype
IBuilderConfig.max_aux_streams IBuilderConfig.builder_optimization_level IBuilderConfig.profiling_verbosity
IBuilderConfig.add_optimization_profile IBuilderConfig.progress_monitor
ProfilingVerbosity.DETAILED
IOptimizationProfile.set_shape
IProgressMonitor.phase_start IProgressMonitor.step_complete IProgressMonitor.phase_finish
""".split()
FULL_ONLY = "IBuilderConfig.create_timing_cache IBuilderConfig.set_timing_cache IBuilderConfig.get_timing_cache ITimingCache.serialize".split()
RTX_ONLY = "IBuilderConfig.num_compute_capabilities IBuilderConfig.set_compute_capability ComputeCapability.SM86".split()

OWN_OR_PYTHON = set(
    """
    module name version is_rtx onnx compute_capabilities batches max_aux_streams optimization_level timing_cache is_detailed __init__ __version__
    __members__ is_canceled _steps import_module getLogger debug exception log append rsplit strip join split isdigit removeprefix startswith get
    pop Lock ERROR WARNING INFO DEBUG
    """.split()
)


def dumped_names(file: str) -> set[str]:
    if not DUMPS.exists():
        pytest.skip(f"the dumped TensorRT interfaces are not there: {DUMPS.parent.name}/{DUMPS.name}")
    classes = json.loads((DUMPS / file).read_text())["classes"]
    return {f"{owner}.{member}" for owner, members in classes.items() for member in members}


@pytest.mark.shared
@pytest.mark.parametrize(("file", "names"), [(f, COMMON + FULL_ONLY) for f in FULL] + [(f, COMMON + RTX_ONLY) for f in RTX])
def test_every_attribute_exists_in_the_dumped_interface(file: str, names: list[str]) -> None:
    assert sorted(set(names) - dumped_names(file)) == []


def test_the_table_of_used_attributes_is_complete() -> None:
    tree = ast.parse(Path(trt_api.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    listed = {part for name in COMMON + FULL_ONLY + RTX_ONLY for part in name.split(".")}
    assert sorted(used - listed - OWN_OR_PYTHON) == []


def test_no_name_that_eleven_removed_is_used() -> None:
    source = Path(trt_api.__file__).read_text(encoding="utf-8")
    for removed in ("EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8", "int8_calibrator", "device_memory_size\n", "platform_has_fast"):
        assert removed not in source


@pytest.fixture(scope="module")
def library() -> TensorRtLibrary:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def small_graph() -> bytes:
    """uint8 (N, 32, 32, 3) -> map and score."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planes"], ["anomaly_map"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["anomaly_map"], ["anomaly_score"], axes=[1, 2, 3], keepdims=0),
    ]
    outputs = [("anomaly_map", ["N", 1, 32, 32]), ("anomaly_score", ["N"])]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_rtx_builds_a_strongly_typed_engine_twice_to_the_same_bytes(library: TensorRtLibrary, small_graph: bytes) -> None:
    request = BuildRequest(onnx=small_graph, compute_capabilities=(86, 89, 120), batches=(1, 1, 4))
    first, second = build_plan(library, request), build_plan(library, request)
    assert first.plan == second.plan
    assert first.inputs == (("image", (-1, 32, 32, 3), "UINT8"),)
    assert first.outputs == (("anomaly_map", (-1, 1, 32, 32), "FLOAT"), ("anomaly_score", (-1,), "FLOAT"))
    assert first.timing_cache is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"onnx": b""}, "ONNX"),
        ({"onnx": b"not a graph"}, "ONNX"),
        ({"compute_capabilities": (87,)}, "cannot build for SM87; it knows 75, 80, 86, 89, 120, 121"),
        ({"batches": None}, "no optimization profile"),
        ({"batches": (4, 2, 1)}, "refused batches"),
    ],
)
def test_a_build_that_fails_says_why(library: TensorRtLibrary, small_graph: bytes, change: dict[str, object], words: str) -> None:
    request = BuildRequest(**{"onnx": small_graph, "compute_capabilities": (86,), "batches": (1, 1, 4), **change})  # type: ignore[arg-type]
    with pytest.raises(EngineBuildError, match=words):
        build_plan(library, request)


def test_every_truncation_of_the_graph_is_one_typed_error(library: TensorRtLibrary, small_graph: bytes) -> None:
    for end in range(0, len(small_graph), 37):
        with pytest.raises(EngineBuildError):
            build_plan(library, BuildRequest(onnx=small_graph[:end], compute_capabilities=(86,), batches=(1, 1, 1)))


def test_progress_counts_up_and_can_cancel(library: TensorRtLibrary, small_graph: bytes) -> None:
    request = BuildRequest(onnx=small_graph, compute_capabilities=(86,), batches=(1, 1, 1))
    seen: list[tuple[str, int, int]] = []

    def note(phase: str, done: int, total: int) -> bool:
        seen.append((phase, done, total))
        return True

    build_plan(library, request, on_progress=note)
    assert seen
    assert all(1 <= done <= total for _, done, total in seen)
    with pytest.raises(BuildCanceledError):
        build_plan(library, request, on_progress=lambda *_: False)


def test_a_broken_progress_callback_does_not_cost_the_build(library: TensorRtLibrary, small_graph: bytes) -> None:
    def fail(phase: str, done: int, total: int) -> bool:
        raise RuntimeError("no terminal")

    assert build_plan(library, BuildRequest(onnx=small_graph, compute_capabilities=(86,), batches=(1, 1, 1)), on_progress=fail).plan


def test_a_missing_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)  # how Python marks a module that cannot be imported
    with pytest.raises(BackendUnavailableError, match="snl-edge\\[tensorrt\\]"):
        load_library("tensorrt")
