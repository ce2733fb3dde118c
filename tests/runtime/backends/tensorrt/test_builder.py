"""An engine is built once per graph, library, target and options, written whole or not at all, and listed without a claim it did not earn."""

import threading
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from snl_runtime.backends.tensorrt import builder as engine_builder
from snl_runtime.backends.tensorrt.builder import EngineOptions, EngineTarget, build_engine, cache_key, choose_target
from snl_runtime.backends.tensorrt.library import TensorRtLibrary, load_library
from snl_runtime.errors import BackendUnavailableError, BuildCanceledError, ConfigError, EngineBuildError
from snl_runtime.files import sha256_file


@pytest.fixture(scope="module")
def library() -> TensorRtLibrary:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")
    return load_library("tensorrt-rtx")


@pytest.fixture
def target(library: TensorRtLibrary) -> EngineTarget:
    return EngineTarget(library=library, compute_capabilities=(86,))


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["anomaly_map"], to=TensorProto.FLOAT)],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", 8, 8, 3])],
    )
    path = tmp_path / "x.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path


def test_second_build_of_the_same_graph_comes_from_the_cache(onnx_path: Path, target: EngineTarget, tmp_path: Path) -> None:
    first = build_engine(onnx_path, tmp_path / "a.trt", target, cache_folder=tmp_path / "cache")
    second = build_engine(onnx_path, tmp_path / "b.trt", target, cache_folder=tmp_path / "cache")
    assert (first.from_cache, second.from_cache) == (False, True)
    assert (tmp_path / "a.trt").read_bytes() == (tmp_path / "b.trt").read_bytes()


def test_entry_names_library_target_and_hash_and_claims_no_verification(onnx_path: Path, target: EngineTarget, tmp_path: Path) -> None:
    entry = build_engine(onnx_path, tmp_path / "x.trt", target, EngineOptions(precision="fp16"), cache_folder=tmp_path / "cache").entry
    assert (entry.file, entry.library, entry.compute_capability, entry.precision) == ("x.trt", "tensorrt-rtx", ["8.6"], "fp16")
    assert entry.sha256 == sha256_file(tmp_path / "x.trt")
    assert entry.onnx_sha256 == sha256_file(onnx_path)
    assert entry.parity is None
    assert entry.options["verified_on"] == "not verified on a device"


def test_damaged_cache_entry_is_built_anew(onnx_path: Path, target: EngineTarget, tmp_path: Path) -> None:
    first = build_engine(onnx_path, tmp_path / "x.trt", target, cache_folder=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("*.trt")
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(bytes(content))
    again = build_engine(onnx_path, tmp_path / "x.trt", target, cache_folder=tmp_path / "cache")
    assert not again.from_cache
    assert again.entry.sha256 == first.entry.sha256


def test_key_changes_with_everything_that_changes_the_engine(library: TensorRtLibrary) -> None:
    base = EngineTarget(library=library, compute_capabilities=(86,))
    keys = {
        cache_key(b"graph", base, EngineOptions()),
        cache_key(b"other", base, EngineOptions()),
        cache_key(b"graph", EngineTarget(library=library, compute_capabilities=(89,)), EngineOptions()),
        cache_key(b"graph", EngineTarget(library=library, compute_capabilities=(86,), device="another driver"), EngineOptions()),
        cache_key(b"graph", EngineTarget(library=TensorRtLibrary("tensorrt-rtx", "9.9", None), compute_capabilities=(86,)), EngineOptions()),
        cache_key(b"graph", base, EngineOptions(batches=(1, 1, 1))),
        cache_key(b"graph", base, EngineOptions(max_aux_streams=2)),
        cache_key(b"graph", base, EngineOptions(optimization_level=1)),
    }
    assert len(keys) == 8


def test_key_changes_when_this_release_builds_otherwise(library: TensorRtLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    target = EngineTarget(library=library, compute_capabilities=(86,))
    before = cache_key(b"graph", target, EngineOptions())
    monkeypatch.setattr(engine_builder, "BUILD_RECIPE", engine_builder.BUILD_RECIPE + 1)
    assert cache_key(b"graph", target, EngineOptions()) != before


def test_cache_drops_the_oldest_engines_beyond_its_limit(
    onnx_path: Path, target: EngineTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_builder, "CACHE_LIMIT_BYTES", 1)
    for largest in (1, 2, 3):
        build_engine(onnx_path, tmp_path / "x.trt", target, EngineOptions(batches=(1, 1, largest)), cache_folder=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.trt"))) == 1


def test_failed_or_canceled_build_leaves_an_earlier_engine_untouched(onnx_path: Path, target: EngineTarget, tmp_path: Path) -> None:
    engine = tmp_path / "x.trt"
    engine.write_bytes(b"earlier")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(BuildCanceledError):
        build_engine(onnx_path, engine, target, cache_folder=tmp_path / "cache", cancel=cancel)
    onnx_path.write_bytes(b"not a graph")
    with pytest.raises(EngineBuildError):
        build_engine(onnx_path, engine, target, cache_folder=tmp_path / "cache")
    onnx_path.unlink()
    with pytest.raises(EngineBuildError, match="export the checkpoint first"):
        build_engine(onnx_path, engine, target, cache_folder=tmp_path / "cache")
    assert engine.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["x.trt"]


def test_without_a_choice_rtx_is_taken_where_there_is_no_gpu(library: TensorRtLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "installed_libraries", lambda: [library])
    assert choose_target(None).compute_capabilities == (86, 89, 120)
    assert choose_target(None, (75,)).compute_capabilities == (75,)


def test_without_any_library_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "installed_libraries", list)
    with pytest.raises(BackendUnavailableError, match="tensorrt or tensorrt-rtx"):
        choose_target(None)


@pytest.mark.parametrize("batches", [(0, 1, 1), (2, 1, 4), (1, 8, 4)])
def test_batches_out_of_order_are_refused(batches: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        EngineOptions(batches=batches)
