"""A student that continues from a memory: the memory is kept, and the student is trained beside it on the same images."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snl_runtime import config as generic
from snl_runtime.errors import ConfigError, DataError
from snl_train.budget import with_one_budget
from snl_train.checkpoint import Checkpoint
from snl_train.config import TrainConfig, load_config, to_plain
from snl_train.data.dataset import TrainingData
from snl_train.memory_fit import normalize_memory
from snl_train.models import TeacherStudent
from snl_train.saving import image_hashes

_KEPT = ("model.teacher", "model.teacher_weights", "model.teacher_seed", "image_size", "seed", "memory", "data")
"""Settings that the memory depends on."""


def student_config(base: Checkpoint, overrides: Mapping[str, object], path: Path | None = None) -> TrainConfig:
    """Return the settings of a student beside the memory of another model.

    Teacher, input size, seed, images and memory are that model's; the rest comes from its preset, the file and the overrides, the later ones winning.

    Raises:
        ConfigError: If the model has a student already, or file or overrides change what the memory depends on.
    """
    if base.config.model.has_student:
        raise ConfigError("--from needs a model of the method memory, and this one has a student already; train to another --out without --from")
    if base.provenance.get("added"):
        raise ConfigError("--from needs a memory that was fitted at once, and products were added to this one; fit it anew with --method memory")
    kept = {name: _value(base.config, name) for name in _KEPT}
    start = load_config(None, kept, preset=base.config.preset or "best")
    config = generic.load_config(TrainConfig, path, with_one_budget(overrides), base=start)
    changed = [name for name in _KEPT if _value(config, name) != kept[name]]
    if changed or not config.model.has_student:
        what = ", ".join(changed) or "method memory"
        raise ConfigError(f"--from keeps the memory, which does not go with another {what}; leave it out, or train without --from")
    return config


def check_same_images(base: Checkpoint, data: TrainingData) -> None:
    """Refuse to train a student on other images than the memory was fitted on: what was kept from the memory must be kept from the student.

    Raises:
        DataError: If they differ.
    """
    if list(base.training_image_sha256) != image_hashes(data):
        raise DataError(
            f"--from: the training images in {data.root} are not those of the memory ({len(data.samples)} images now); give the same --data, or fit "
            "the memory anew with --method memory"
        )


def take_memory(model: TeacherStudent, base: Checkpoint, peaks: TrainingData, config: TrainConfig) -> None:
    """Give a model the teacher and the centers of another one, and normalize the memory's maps for these settings of the score, in place.

    Args:
        model: With student and memory; on the device where it runs.
        base: The other model.
        peaks: Good images that the centers were not chosen from.
        config: All settings.

    Raises:
        DataError: If an image can no longer be read.
    """
    model.load_state_dict({name: tensor for name, tensor in base.state_dict.items() if name.startswith(("teacher.", "memory."))}, strict=False)
    normalize_memory(model, peaks, config)


def _value(config: TrainConfig, name: str) -> Any:
    return functools.reduce(lambda plain, key: plain[key], name.split("."), to_plain(config))
