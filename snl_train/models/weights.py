"""Teacher weights: reading a file, torchvision's download, writing a file for machines without internet."""

import http.client
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from snl_runtime.errors import ConfigError
from snl_runtime.files import atomic_write_bytes
from snl_train.models.resnet import spec_of

_UNUSED = ("layer4.", "fc.")
_COUNTER = ".num_batches_tracked"


def read_state(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors in a .safetensors file or a state-dict .pth file.

    Raises:
        ConfigError: If the file is missing, damaged or holds anything but named tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"teacher weights must be imagenet, random or a file, and there is no file {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ConfigError(f"teacher weights {path} must hold a state dict of named tensors; save model.state_dict()")
    return dict(state)


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a torchvision state dict into the stem to layer3.

    layer4 and fc are ignored; counters of seen batches may be missing.

    Raises:
        ConfigError: If another key is missing, left over, of another shape or not finite; names the first.
    """
    wanted = module.state_dict()
    fit = f"{source} do not fit {getattr(module, 'architecture', 'the teacher')}"
    for key, value in state.items():
        if key.startswith(_UNUSED):
            continue
        if key not in wanted:
            raise ConfigError(f"{fit}: key '{key}' is not part of it; give the file of the same architecture")
        if value.shape != wanted[key].shape:
            raise ConfigError(f"{fit}: key '{key}' has shape {tuple(value.shape)}, expected {tuple(wanted[key].shape)}")
        if not torch.isfinite(value).all():
            raise ConfigError(f"{source} are damaged: key '{key}' has values that are not finite")
    missing = [key for key in wanted if key not in state and not key.endswith(_COUNTER)]
    if missing:
        raise ConfigError(f"{fit}: key '{missing[0]}' is missing ({len(missing)} in all); give the file of the same architecture")
    module.load_state_dict({key: state.get(key, value) for key, value in wanted.items()})


def imagenet_state(architecture: str) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights (IMAGENET1K_V1), from its cache or its download.

    Raises:
        ConfigError: If they are not cached and cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    spec_of(architecture)
    try:
        state: dict[str, Tensor] = get_model_weights(architecture)["IMAGENET1K_V1"].get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        fetch = f"snl-train --fetch-teacher {architecture} --out {architecture}.safetensors"
        raise ConfigError(
            f"cannot download the ImageNet weights of {architecture} ({_one_line(error)}); run '{fetch}' on a connected PC, "
            f"bring the file here and give it with --teacher-weights {architecture}.safetensors"
        ) from error
    return state


def fetch_teacher(architecture: str, out: Path) -> None:
    """Download ImageNet weights and write the part a teacher needs as a .safetensors file, whole or not at all.

    Raises:
        ConfigError: If the architecture is unknown, ``out`` does not end in .safetensors, or the download fails.
        SinkError: If the file cannot be written.
    """
    from safetensors.torch import save

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out must name a .safetensors file, got {out}")
    state = {key: value.contiguous() for key, value in imagenet_state(architecture).items() if not key.startswith(_UNUSED)}
    atomic_write_bytes(out, save(state, metadata={"architecture": architecture, "weights": "IMAGENET1K_V1"}))


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"teacher weights {path} are not a whole .safetensors file: {_one_line(error)}") from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"teacher weights {path} are not a whole state-dict file of tensors ({type(error).__name__})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
