"""A model repository is what Triton's own schema takes, is warmed up with the golden samples, and gets a version as a whole or not at all."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from snl_export.cli import main
from snl_export.triton import write_triton_model
from snl_runtime.errors import ConfigError, ManifestError, SinkError
from snl_runtime.files import sha256_file
from snl_runtime.model.golden import read_golden
from snl_runtime.model.manifest import update_manifest

needs_schema = pytest.mark.station
"""The package with Triton's schema comes with what these tests install."""


@pytest.fixture
def schema() -> Any:
    return pytest.importorskip("tritonclient.grpc.model_config_pb2")


@pytest.fixture
def parse(schema: Any) -> Callable[[Path], Any]:
    """Reads a configuration as Triton does: an unknown field or a wrong type is an error."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    return lambda path: text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


@pytest.fixture
def tiny(runtime_fixtures: ModuleType, tmp_path: Path) -> Path:
    """The bundle of the runtime's tests: 32 by 32 pixels, any batch up to 8."""
    (tmp_path / "bundle").mkdir()
    model: Path = runtime_fixtures.ModelFolder(tmp_path / "bundle").write()
    return model


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@needs_schema
def test_configuration_states_the_tensors_of_the_exported_graph(earlier: Path, tmp_path: Path, parse: Any, schema: Any) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(earlier), providers=["CPUExecutionProvider"])
    assert main(["--onnx", str(earlier), "--triton", str(tmp_path / "models")]) == 0
    config = parse(tmp_path / "models" / "line" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("line", "onnxruntime", 8)
    kinds = {"tensor(uint8)": schema.TYPE_UINT8, "tensor(float)": schema.TYPE_FP32}
    for stated, real in (
        *zip(config.input, session.get_inputs(), strict=True),
        *zip(sorted(config.output, key=lambda one: one.name), sorted(session.get_outputs(), key=lambda one: one.name), strict=True),
    ):
        assert (stated.name, stated.data_type) == (real.name, kinds[real.type])
        behind = list(stated.reshape.shape) if stated.HasField("reshape") else list(stated.dims)
        assert behind == real.shape[1:]
        assert list(stated.dims) != []
    assert config.HasField("dynamic_batching")
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert group.count == 1
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert cuda.parameters["use_tf32"] == "0"
    assert sha256_file(tmp_path / "models" / "line" / "1" / "model.onnx") == sha256_file(earlier)
    assert config.parameters["snl_sha256_of_version_1"].string_value == sha256_file(earlier)


@needs_schema
def test_warm_up_requests_are_the_golden_samples_alone_and_the_first_as_the_largest_batch(tiny: Path, tmp_path: Path, parse: Any) -> None:
    folder = write_triton_model(tiny, tmp_path / "models").folder
    images = read_golden(tiny.with_suffix(".golden.npz")).images
    requests = parse(folder / "config.pbtxt").model_warmup
    assert [request.batch_size for request in requests] == [1, 1, 1, 8]
    for request, image in zip(requests, [*images, images[0]], strict=True):
        raw = (folder / "warmup" / request.inputs["image"].input_data_file).read_bytes()
        assert list(request.inputs["image"].dims) == [32, 32, 3]
        assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(32, 32, 3), image)


@needs_schema
def test_graph_of_a_fixed_batch_is_served_without_batching(runtime_fixtures: ModuleType, tmp_path: Path, parse: Any) -> None:
    model = runtime_fixtures.ModelFolder(tmp_path)
    path = model.write(batch=2, input_changes={"batch": 2, "max_batch": 2})
    outputs = {"anomaly_map": {"dtype": "float32", "shape": [2, 1, 32, 32]}, "anomaly_score": {"dtype": "float32", "shape": [2]}}
    update_manifest(model.manifest, lambda manifest: dataclasses.replace(manifest, outputs=outputs))
    folder = write_triton_model(path, tmp_path / "models").folder
    config = parse(folder / "config.pbtxt")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[2, 32, 32, 3], [2, 1, 32, 32], [2]]
    (request, *_) = config.model_warmup
    assert request.batch_size == 1
    assert (folder / "warmup" / request.inputs["image"].input_data_file).stat().st_size == 2 * 32 * 32 * 3


@needs_schema
def test_another_export_is_the_next_version_and_the_same_one_is_none(tiny: Path, tmp_path: Path, runtime_fixtures: ModuleType, parse: Any) -> None:
    models = tmp_path / "models"
    first = write_triton_model(tiny, models)
    again = write_triton_model(tiny, models)
    assert [(one.version, one.is_new) for one in (first, again)] == [(1, True), (1, False)]
    before = sha256_file(tiny)
    config = first.folder / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3"), encoding="utf-8")  # a person changed it
    runtime_fixtures.ModelFolder(tiny.parent).write(offset=0.3)
    assert write_triton_model(tiny, models).version == 2
    changed = parse(config)
    assert changed.instance_group[0].count == 3
    stated = {key: value.string_value for key, value in changed.parameters.items()}
    assert stated == {"snl_sha256_of_version_1": before, "snl_sha256_of_version_2": sha256_file(tiny)}
    assert {path.name for path in first.folder.iterdir()} == {"1", "2", "config.pbtxt", "warmup"}


@needs_schema
def test_model_with_other_tensors_is_refused_under_the_same_name(tiny: Path, tmp_path: Path, exported: Any) -> None:
    models = tmp_path / "models"
    write_triton_model(tiny, models)
    before = everything(models)
    with pytest.raises(ConfigError, match=r"share one configuration: export under another file name"):
        write_triton_model(exported.model_path, models)
    assert everything(models) == before


@needs_schema
@pytest.mark.parametrize("limit", [10, 100_000])
@pytest.mark.parametrize("is_first", [True, False])
def test_version_that_finds_no_room_leaves_the_repository_as_it_was(
    exported: Any, tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]], limit: int, is_first: bool, schema: Any
) -> None:
    models = tmp_path / "models"
    if not is_first:
        folder = write_triton_model(exported.model_path, models).folder
        (folder / "1" / "model.onnx").write_bytes(b"an earlier export")
    before = everything(tmp_path)
    with file_size_limit(limit), pytest.raises(SinkError):
        write_triton_model(exported.model_path, models)
    assert everything(tmp_path) == before


@needs_schema
def test_configuration_that_is_none_is_refused_with_its_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_triton_model(tiny, tmp_path / "models").folder
    (folder / "config.pbtxt").write_text('name: "line"\nmax_batch: 8\n')
    assert main(["--onnx", str(tiny), "--triton", str(tmp_path / "models")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.pbtxt is no configuration of a Triton model (2:1" in line


@needs_schema
def test_bundle_that_is_not_whole_is_refused(tiny: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    shutil.copy2(tiny, alone)
    with pytest.raises(ConfigError, match=r"alone\.json is missing"):
        write_triton_model(alone, tmp_path / "models")
    tiny.write_bytes(tiny.read_bytes()[:-1])
    with pytest.raises(ManifestError, match="truncated, altered"):
        write_triton_model(tiny, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@needs_schema
def test_export_of_a_checkpoint_writes_the_model_too(
    checkpoint_path: Path, tmp_path: Path, ready_made: Callable[..., None], capsys: pytest.CaptureFixture[str], schema: Any
) -> None:
    ready_made()
    arguments = ["--ckpt", str(checkpoint_path), "--out", str(tmp_path / "line.onnx"), "--engine", "none", "--triton", str(tmp_path / "models")]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["triton"] == {"folder": str(tmp_path / "models" / "line"), "version": 1, "is_new": True}
    assert sha256_file(tmp_path / "models" / "line" / "1" / "model.onnx") == report["model_sha256"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "x.onnx"], "add --triton DIR"),
        (["--onnx", "x.onnx", "--triton", "models", "--fp16"], "--fp16 belongs to the export of a checkpoint"),
        (["--onnx", "x.onnx", "--triton", "models", "--out", "y.onnx"], "--out belongs to the export of a checkpoint"),
        (["--onnx", "x.onnx", "--triton", "models"], "--triton needs the package tritonclient: pip install 'snl-edge[triton]'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
