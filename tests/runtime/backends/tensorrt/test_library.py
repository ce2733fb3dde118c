"""Two modules drive TensorRT 10.3 to 11.x and TensorRT-RTX: they use only what all of them have, and say why when a build or a load fails."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from snl_runtime.backends.tensorrt import engine as trt_engine
from snl_runtime.backends.tensorrt import library as trt_api
from snl_runtime.backends.tensorrt.engine import open_library
from snl_runtime.backends.tensorrt.library import BuildRequest, TensorRtLibrary, build_plan, load_library
from snl_runtime.cuda.api import describe_device
from snl_runtime.errors import BackendUnavailableError, BuildCanceledError, EngineBuildError, EngineMismatchError

DUMPS = Path(__file__).parents[5] / "shared" / "trt_api"
FULL = ("api_10.3.0.json", "api_10.16.1.11.json", "api_11.4.json")
RTX = ("api_rtx1.7.json",)

MODULES = (trt_api, trt_engine)

# What the modules use, by the class that has it. The second test below fails when one of them uses a name that is missing here.
COMMON = """
ILogger.log
Builder.create_network Builder.create_builder_config Builder.create_optimization_profile Builder.build_serialized_network
NetworkDefinitionCreationFlag.STRONGLY_TYPED
OnnxParser.parse OnnxParser.num_errors OnnxParser.get_error
INetworkDefinition.num_inputs INetworkDefinition.num_outputs INetworkDefinition.get_input INetworkDefinition.get_output
ITensor.name ITensor.shape ITensor.dtype
IBuilderConfig.max_aux_streams IBuilderConfig.builder_optimization_level IBuilderConfig.profiling_verbosity
IBuilderConfig.add_optimization_profile IBuilderConfig.progress_monitor
IBuilderConfig.clear_flag BuilderFlag.TF32
Runtime.deserialize_cuda_engine
ICudaEngine.num_io_tensors ICudaEngine.get_tensor_name ICudaEngine.get_tensor_dtype ICudaEngine.get_tensor_mode ICudaEngine.get_tensor_shape
ICudaEngine.get_tensor_profile_shape ICudaEngine.create_execution_context
TensorIOMode.INPUT ExecutionContextAllocationStrategy.STATIC
IExecutionContext.active_optimization_profile IExecutionContext.set_optimization_profile_async IExecutionContext.set_input_shape
IExecutionContext.infer_shapes IExecutionContext.get_tensor_shape IExecutionContext.set_tensor_address IExecutionContext.execute_async_v3
ProfilingVerbosity.DETAILED
IOptimizationProfile.set_shape
IProgressMonitor.phase_start IProgressMonitor.step_complete IProgressMonitor.phase_finish
""".split()
FULL_ONLY = "IBuilderConfig.create_timing_cache IBuilderConfig.set_timing_cache IBuilderConfig.get_timing_cache ITimingCache.serialize".split()
RTX_ONLY = """
IBuilderConfig.num_compute_capabilities IBuilderConfig.set_compute_capability ComputeCapability.SM86
Runtime.get_engine_validity Runtime.engine_header_size EngineValidity.INVALID EngineValidity.SUBOPTIMAL
EngineInvalidityDiagnostics.MALFORMED_ENGINE EngineInvalidityDiagnostics.VERSION_MISMATCH EngineInvalidityDiagnostics.UNSUPPORTED_CC
EngineInvalidityDiagnostics.OLD_CUDA_DRIVER EngineInvalidityDiagnostics.OLD_CUDA_RUNTIME EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY
EngineInvalidityDiagnostics.CUDA_ERROR
ICudaEngine.create_runtime_config IRuntimeConfig.set_execution_context_allocation_strategy IRuntimeConfig.cuda_graph_strategy
CudaGraphStrategy.WHOLE_GRAPH_CAPTURE IRuntimeConfig.create_runtime_cache IRuntimeConfig.set_runtime_cache
IRuntimeCache.deserialize IRuntimeCache.serialize
""".split()

OWN_OR_PYTHON = set(
    """
    module name version is_rtx onnx compute_capabilities batches max_aux_streams optimization_level timing_cache is_detailed __init__ __version__
    __members__ is_canceled _steps import_module getLogger debug exception log append rsplit strip join split isdigit removeprefix startswith get
    pop Lock ERROR WARNING INFO DEBUG
    info error items close load_engine create_context input_shape batch_range captures_itself set_batch set_addresses enqueue
    _library _runtime _engine _file_name _cache_path _configuration _cache _known_cache _context _size_hw
    _check_tensors _read_batch_range _configure_rtx _save_cache parent read write fromkeys warning
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
    trees = [ast.parse(Path(module.__file__).read_text(encoding="utf-8")) for module in MODULES]
    used = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    listed = {part for name in COMMON + FULL_ONLY + RTX_ONLY for part in name.split(".")}
    assert sorted(used - listed - OWN_OR_PYTHON) == []


def test_no_name_that_eleven_removed_is_used() -> None:
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in MODULES)
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


# ---- loading: TensorRT-RTX starts without a GPU and judges a header, it cannot load ------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(library: TensorRtLibrary, small_graph: bytes) -> bytes:
    return build_plan(library, BuildRequest(onnx=small_graph, compute_capabilities=(86,), batches=(1, 1, 4))).plan


@pytest.mark.parametrize("damage", [lambda plan: b"", lambda plan: plan[:10], lambda plan: b"no engine" * 50, lambda plan: b"\0" * 64 + plan[64:]])
def test_what_is_no_engine_is_refused_with_the_remedy(library: TensorRtLibrary, plan: bytes, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(EngineMismatchError, match="truncated, altered or no engine; rebuild it: snl-run --engine x.trt --rebuild"):
        open_library("tensorrt-rtx").load_engine(damage(plan), file_name="x.trt", cache_path=None)


def test_whole_engine_without_a_usable_gpu_is_a_typed_error(library: TensorRtLibrary, plan: bytes) -> None:
    try:
        describe_device()
    except BackendUnavailableError:
        with pytest.raises(BackendUnavailableError, match="x.trt cannot run here"):
            open_library("tensorrt-rtx").load_engine(plan, file_name="x.trt", cache_path=None)
        return
    pytest.skip("this machine has a GPU")


def test_engine_side_names_an_unknown_library() -> None:
    with pytest.raises(BackendUnavailableError, match="no library called 'tensorrt_rtx'"):
        open_library("tensorrt_rtx")
