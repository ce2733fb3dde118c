"""A model repository for a Triton server out of an exported bundle, written with Triton's own schema of ``config.pbtxt``.

    DIR/line/config.pbtxt           inputs, outputs, batching, versions, warm-up requests
    DIR/line/warmup/golden-...      raw bytes of the golden samples
    DIR/line/2/model.onnx           the newest version, which the server answers with; earlier ones lie beside it

The folder of a version is renamed into its place last: a server that looks meanwhile finds the old version or the whole new one.
"""

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snl_runtime.backends.onnxruntime.session import cuda_options
from snl_runtime.errors import BackendUnavailableError, ConfigError, ManifestError
from snl_runtime.files import atomic_write_bytes, atomic_write_text, check_writable, exclusive_lock, sha256_bytes, sha256_file
from snl_runtime.model.bundle import ModelBundle, open_bundle
from snl_runtime.model.golden import GoldenSamples
from snl_runtime.model.manifest import Manifest

from .publishing import made_folder

CONFIG, MODEL, WARMUP = "config.pbtxt", "model.onnx", "warmup"
SHA256_PARAMETER = "snl_sha256_of_version_{}"
"""Parameter of the configuration that says which file a version is: the decisions of a manifest belong to one hash."""
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_STAGING = ".staging"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One model in a repository.

    Attributes:
        folder: ``DIR/line``.
        version: Number of the version that the bundle is there.
        is_new: Whether this call added it; the newest version may have been this file before.
    """

    folder: Path
    version: int
    is_new: bool


def check_repository(repository: Path, model_path: Path) -> None:
    """Refuse what :func:`write_triton_model` could not write, before the work whose result goes there.

    Raises:
        BackendUnavailableError: If Triton's schema is not installed.
        ConfigError: If the model's name is none for a server.
        SinkError: If the folder cannot be written.
    """
    _schema()
    _model_folder(repository, model_path)
    existing = next(parent for parent in (repository.absolute(), *repository.absolute().parents) if parent.exists())
    check_writable(existing / f".{model_path.stem}.probe")


def write_triton_model(model_path: Path, repository: Path) -> TritonModel:
    """Add a bundle to a model repository as the next version of the model that is called like the file.

    A configuration that lies there keeps what a person changed in it; warm-up requests and hashes are written anew.

    Args:
        model_path: ``x.onnx`` with its manifest and golden samples beside it.
        repository: Folder of models, made if it is not there.

    Raises:
        BackendUnavailableError: If Triton's schema is not installed.
        ConfigError: If the bundle has no manifest or golden samples, or the configuration there cannot be read or is for other inputs or outputs.
        ManifestError: If a file of the bundle is missing or altered.
        SinkError: If the repository cannot be written, or another export writes there; the repository is then as it was.
    """
    bundle, manifest, golden = _whole_bundle(model_path)
    folder = _model_folder(repository, model_path)
    with made_folder(folder), exclusive_lock(folder / CONFIG, what="snl-export --triton", blocking=False), _undone_on_failure(folder):
        newest = max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
        is_new = not newest or _sha256_there(folder / str(newest) / MODEL) != bundle.sha256
        version = newest + is_new
        fresh = _new_config(manifest, folder.name)
        config = _read_config(folder / CONFIG) or fresh
        _require_same_tensors(config, fresh, folder)
        _set_warmup(config, manifest, golden, folder)
        config.parameters[SHA256_PARAMETER.format(version)].string_value = bundle.sha256
        atomic_write_text(folder / CONFIG, _text_format().MessageToString(config))
        if is_new:
            _add_version(bundle, folder, version)
    return TritonModel(folder=folder, version=version, is_new=is_new)


def _schema() -> Any:
    """Return Triton's schema as its client package ships it."""
    try:
        return importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError as error:
        raise BackendUnavailableError("--triton needs the package tritonclient: pip install 'snl-edge[triton]'") from error


def _text_format() -> Any:
    return importlib.import_module("google.protobuf.text_format")


def _model_folder(repository: Path, model_path: Path) -> Path:
    if not model_path.stem.isprintable():
        raise ConfigError(f"--triton names the model {model_path.stem!r} like its file, which UTF-8 must hold; rename the file")
    return repository / model_path.stem


def _whole_bundle(model_path: Path) -> tuple[ModelBundle, Manifest, GoldenSamples]:
    if model_path.suffix.lower() != ".onnx":
        raise ConfigError(f"--triton needs an exported x.onnx, got {model_path.name}; Triton runs it with ONNX Runtime")
    bundle = open_bundle(model_path)
    if bundle.manifest is None or bundle.golden is None:
        missing = ".json" if bundle.manifest is None else ".golden.npz"
        raise ConfigError(f"{model_path.with_suffix(missing)} is missing, which warm-up and checks need; copy it beside {model_path.name}")
    return bundle, bundle.manifest, bundle.golden


def _new_config(manifest: Manifest, name: str) -> Any:
    """Return the configuration of a model without warm-up requests."""
    schema = _schema()
    fixed = _fixed_batch(manifest)
    config = schema.ModelConfig(name=name, backend="onnxruntime", max_batch_size=0 if fixed else int(manifest.input["max_batch"]))
    leading = [fixed] if fixed else []
    config.input.add(name=str(manifest.input["name"]), data_type=_type(manifest.input["dtype"]), dims=[*leading, *manifest.size_hw, 3])
    for output, entry in manifest.outputs.items():
        dims = [*leading, *(int(dim) for dim in entry["shape"][1:])]
        added = config.output.add(name=output, data_type=_type(entry["dtype"]), dims=dims or [1])
        if not dims:  # Triton knows no tensor without dimensions beside that of the batch
            added.reshape.SetInParent()
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(count=1, kind=schema.ModelInstanceGroup.KIND_AUTO)
    if not fixed:
        config.dynamic_batching.SetInParent()
    # As the runtime opens a session on a GPU: with TF32 the scores are not those that were evaluated.
    cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    cuda.parameters.update({key: value for key, value in cuda_options(0).items() if key != "device_id"})
    return config


def _type(dtype: str) -> int:
    return int(getattr(_schema(), _TYPES[dtype]))


def _fixed_batch(manifest: Manifest) -> int | None:
    batch = manifest.input["batch"]
    return None if batch == "dynamic" else int(batch)


def _set_warmup(config: Any, manifest: Manifest, golden: GoldenSamples, folder: Path) -> None:
    """Write the golden samples as raw tensors and name them in the configuration: each alone, and the first as the largest batch."""
    fixed = _fixed_batch(manifest)
    (folder / WARMUP).mkdir(exist_ok=True)
    del config.model_warmup[:]
    sizes = [1] * len(golden.images) + ([config.max_batch_size] if config.max_batch_size > 1 else [])
    for number, size in enumerate(sizes):
        index = number % len(golden.images)
        data = np.ascontiguousarray(golden.images[index]).tobytes() * (fixed or 1)
        file = folder / WARMUP / f"golden-{sha256_bytes(data)[:16]}"  # named by its content: never changed under a server that reads it
        if not file.exists():
            atomic_write_bytes(file, data)
        request = config.model_warmup.add(name=f"golden sample {index}, batch of {fixed or size}", batch_size=size)
        tensor = config.input[0]
        request.inputs[tensor.name].MergeFrom(
            _schema().ModelWarmup.Input(data_type=tensor.data_type, dims=tensor.dims, input_data_file=file.name),
        )


def _read_config(path: Path) -> Any | None:
    if not path.exists():
        return None
    try:
        return _text_format().Parse(path.read_text(encoding="utf-8"), _schema().ModelConfig())
    except (ValueError, _text_format().ParseError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{path} is no configuration of a Triton model ({words}); correct it or move the folder away") from error


def _require_same_tensors(there: Any, new: Any, folder: Path) -> None:
    """Refuse to put versions with other inputs, outputs or batches under one configuration."""
    for field in ("name", "input", "output"):
        before, now = (" ".join(str(getattr(config, field)).split()) for config in (there, new))
        if before != now:
            raise ConfigError(
                f"{folder / CONFIG} says {field} {before}, this model has {now}; all versions of a Triton model share one configuration: "
                "export under another file name"
            )
    if there.max_batch_size > new.max_batch_size:
        raise ConfigError(f"{folder / CONFIG} says max_batch_size {there.max_batch_size}, this model takes {new.max_batch_size}; correct it there")


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[None]:
    """If the block fails, Ctrl-C included, put the earlier configuration back and remove what was added."""
    there = {*folder.rglob("*")}
    config = (folder / CONFIG).read_bytes() if (folder / CONFIG) in there else None
    try:
        yield
    except BaseException:
        if config is not None and (folder / CONFIG).read_bytes() != config:
            atomic_write_bytes(folder / CONFIG, config)
        for path in sorted({*folder.rglob("*")} - there, reverse=True):  # what lies in a folder before the folder
            path.rmdir() if path.is_dir() else path.unlink()
        raise


def _add_version(bundle: ModelBundle, folder: Path, version: int) -> None:
    staging = folder / _STAGING  # Triton passes over folders that are not numbers
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        atomic_write_bytes(staging / MODEL, bundle.path.read_bytes())
        if sha256_file(staging / MODEL) != bundle.sha256:
            raise ManifestError(f"{bundle.path} changed while it was copied; run the same command again")
        staging.rename(folder / str(version))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sha256_there(path: Path) -> str | None:
    return sha256_file(path) if path.exists() else None
