"""The trained model in one file: tensors and plain values only, nothing that executes when loaded.

``x.pt`` holds everything that export, evaluation and calibration need, the teacher included; none of them downloads anything or looks for the images.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from snl_runtime.errors import CheckpointError, SnlError
from snl_runtime.files import atomic_path
from snl_train.config import TrainConfig, from_plain, to_plain

if TYPE_CHECKING:
    from snl_train.models import TeacherStudent

SCHEMA = 1
_KIND = "snl-edge checkpoint"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Checkpoint:
    """A trained teacher-student pair and where it comes from.

    Attributes:
        config: Resolved settings of the training.
        state_dict: Weights and buffers of the whole ``TeacherStudent``, on the CPU; what the averaging option chose, if it was on.
        classes: Names of the products, sorted.
        seed: Seed of the training.
        epochs_done: Whole epochs behind these weights.
        training_image_sha256: Hashes of the decoded pixels of every image trained on, sorted.
        held_out: Good images kept out of training, one ``{"path", "sha256", "class_name"}`` each, the path relative to the data folder.
        golden_images: Network inputs, (n, H, W, 3) uint8 RGB, taken from the training images.
        golden_classes: Product of each golden image.
        provenance: Package versions, data folder, steps, times: plain values for a reader.
    """

    config: TrainConfig
    state_dict: Mapping[str, Tensor]
    classes: Sequence[str]
    seed: int
    epochs_done: int
    training_image_sha256: Sequence[str]
    golden_images: npt.NDArray[np.uint8]
    golden_classes: Sequence[str]
    held_out: Sequence[Mapping[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unfinished(self) -> str | None:
        """One sentence if the training was stopped before its last step: figures of such a model belong to no schedule; None if it ended."""
        if self.provenance.get("is_complete", True):
            return None
        done, total = self.provenance.get("steps_done"), self.provenance.get("total_steps")
        return f"the training is not finished (step {done} of {total}); continue it with snl-train --resume"

    def build_model(self) -> "TeacherStudent":
        """Return the model with these weights, on the CPU and in eval mode.

        Raises:
            CheckpointError: If the weights do not fit the configured networks.
        """
        from snl_train.models import build_model  # torchvision loads slowly, and reading a checkpoint does not need it

        config = self.config
        try:
            with torch.random.fork_rng(devices=[]):
                model = build_model(config.model, config.memory, size_hw=config.image_size, load_teacher_weights=False)
            model.load_state_dict(dict(self.state_dict), strict=True)
        except (RuntimeError, ValueError, SnlError) as error:
            raise CheckpointError(f"the weights in the checkpoint do not fit its configuration: {_first_line(error)}") from error
        return model.eval()


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write the checkpoint atomically: a reader sees the old file or the new one, never half of it.

    Raises:
        SinkError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        dump_checkpoint(temporary, checkpoint)


def dump_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint to a file that nobody reads yet.

    Raises:
        OSError: If the file cannot be written.
    """
    dump_tensors(
        path,
        {
            "kind": _KIND,
            "schema": SCHEMA,
            "config": to_plain(checkpoint.config),
            "state_dict": {name: tensor.detach().cpu() for name, tensor in checkpoint.state_dict.items()},
            "classes": list(checkpoint.classes),
            "seed": checkpoint.seed,
            "epochs_done": checkpoint.epochs_done,
            "training_image_sha256": list(checkpoint.training_image_sha256),
            "held_out": [dict(entry) for entry in checkpoint.held_out],
            "golden_images": torch.from_numpy(np.array(checkpoint.golden_images)),
            "golden_classes": list(checkpoint.golden_classes),
            "provenance": dict(checkpoint.provenance),
        },
    )


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Return what ``save_checkpoint`` wrote; executes nothing that the file contains.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, from another schema, or no checkpoint of this package.
    """
    path = Path(path)
    stored = read_tensors(path, kind=_KIND, schema=SCHEMA)
    try:
        return _from_stored(stored)
    except (KeyError, TypeError, ValueError, AttributeError, SnlError) as error:
        raise CheckpointError(f"{path} does not hold a whole checkpoint ({_first_line(error)}); train again or use another copy") from error


def dump_tensors(path: Path, stored: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file that nobody reads yet.

    Raises:
        OSError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(stored), buffer)  # into memory first: PyTorch's own writer turns a full disk into a RuntimeError without a reason
    path.write_bytes(buffer.getbuffer())


def read_tensors(path: Path, *, kind: str, schema: int) -> dict[str, Any]:
    """Return what ``dump_tensors`` wrote, after checking checksums, kind and schema.

    Raises:
        CheckpointError: If the file is missing, damaged or something else.
    """
    expected = f"expected a {kind.removeprefix('snl-edge ')} written by snl-train"
    try:
        if not zipfile.is_zipfile(path):
            what = "is truncated or something else" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}; {expected}")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch itself does not look at the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} differs; use another copy")
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged archives raise nearly anything, from struct.error to UnpicklingError
        raise CheckpointError(f"{path} cannot be loaded ({_first_line(error)}); {expected}") from error
    if not isinstance(stored, dict) or stored.get("kind") != kind:
        raise CheckpointError(f"{path} is not a file of this package; {expected}")
    if stored.get("schema") != schema:
        raise CheckpointError(f"{path} has schema {stored.get('schema')!r}, expected {schema}; use the version of this package that wrote it")
    return stored


def _from_stored(stored: Mapping[str, Any]) -> Checkpoint:
    state_dict = stored["state_dict"]
    golden_images = stored["golden_images"].numpy()
    checkpoint = Checkpoint(
        config=from_plain(stored["config"]),
        state_dict={str(name): tensor for name, tensor in state_dict.items()},
        classes=[str(name) for name in stored["classes"]],
        seed=int(stored["seed"]),
        epochs_done=int(stored["epochs_done"]),
        training_image_sha256=[str(sha256) for sha256 in stored["training_image_sha256"]],
        held_out=[{str(key): str(value) for key, value in entry.items()} for entry in stored["held_out"]],
        golden_images=golden_images,
        golden_classes=[str(name) for name in stored["golden_classes"]],
        provenance=dict(stored["provenance"]),
    )
    if not all(isinstance(tensor, Tensor) for tensor in checkpoint.state_dict.values()):
        raise ValueError("state_dict holds something that is no tensor")
    if golden_images.dtype != np.uint8 or golden_images.ndim != 4 or golden_images.shape[3] != 3:
        raise ValueError(f"golden_images must be (n, H, W, 3) uint8, got {golden_images.shape} {golden_images.dtype}")
    if len(golden_images) != len(checkpoint.golden_classes):
        raise ValueError(f"{len(golden_images)} golden images have {len(checkpoint.golden_classes)} classes")
    return checkpoint


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
