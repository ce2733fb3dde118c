"""Adding products to a model that is a memory: its centers stay as they are, and centers of the new products are appended.

A distance is that to the nearest center, so with more of them no score can rise. Scores of the products that were there before can fall, of good
parts and of defects that look like a normal feature of a new product; ``snl-export --keep-decisions`` looks for evidence that thresholds still hold.
"""

import dataclasses
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.progress import ProgressReporter, no_progress
from snl_train.checkpoint import Checkpoint, save_checkpoint
from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import choose_golden
from snl_train.device import explaining_full_gpu, resolve_device
from snl_train.memory_fit import new_centers
from snl_train.models import FeatureMemory, TeacherStudent, build_model
from snl_train.output import drop_replaced, replacing
from snl_train.saving import image_facts, image_hashes, now, package_versions
from snl_train.training_result import TrainingResult, finished_result

_GOLDEN_PER_PRODUCT = 2


def add_products(
    base: Checkpoint, base_sha256: str, data: TrainingData, out: Path, *, device: str = "auto", progress: ProgressReporter = no_progress
) -> TrainingResult:
    """Write a checkpoint that knows the products of another one and those of ``data``.

    Each new product gets as many centers per layer as a product has on average in ``base``. Weights, and so the scale of the scores, stay as they
    are. All images of ``data`` are learned from.

    Args:
        base: A model of the method ``memory``.
        base_sha256: Hash of its file, by which an export knows what was extended.
        data: Good images of products that ``base`` does not know, in its input size.
        out: Where the new checkpoint goes.
        device: As ``TrainConfig.device``.
        progress: Told the images and the centers.

    Raises:
        ConfigError: If the model has a student, a product is known already, or a GPU has too little memory.
        DataError: If an image was learned as another product, or can no longer be read.
        CheckpointError: If the weights do not fit the configuration.
        SinkError: If the file cannot be written.
    """
    _require_addable(base, data)
    with replacing(out), explaining_full_gpu(f"batches of {base.config.batch_size}", remedy="take --device cpu"):
        started_s = time.monotonic()
        old = cast(FeatureMemory, base.build_model().memory)
        count = -(-old.center_count // len(base.classes)) * len(data.classes)
        config = _with_centers(base.config, old.center_count + count)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.memory, size_hw=config.image_size, load_teacher_weights=False).eval()
        networks = {name: tensor for name, tensor in base.state_dict.items() if not name.startswith("memory.codebooks")}
        model.load_state_dict(networks, strict=False)
        model.to(resolve_device(device))  # type: ignore[arg-type]  # the config's literal
        memory = cast(FeatureMemory, model.memory)
        added = new_centers(model, data, _with_centers(config, count), progress=progress)
        memory.take_centers([torch.cat([book.centers, centers]) for book, centers in zip(old.books, added, strict=True)])
        for book, before in zip(memory.books, old.books, strict=True):
            book.weight.copy_(before.weight)
        seconds = time.monotonic() - started_s
        checkpoint = _extended(base, base_sha256, data, config, model)
        save_checkpoint(out, checkpoint)
        drop_replaced(out)
    return finished_result(checkpoint, out, seconds=seconds, images_per_s=len(data.samples) / max(seconds, 1e-9))


def _require_addable(base: Checkpoint, data: TrainingData) -> None:
    if base.config.model.has_student:
        raise ConfigError(
            "a product can only be added to a model of the method memory: a student has not learned it and would call all of it anomalous; train one "
            "model for all products"
        )
    known = sorted(set(data.classes) & set(base.classes))
    if known:
        raise ConfigError(f"{', '.join(known)} is known to the model already; leave it out of --add-product, or train one model for all products")
    seen = {*base.training_image_sha256, *(entry["sha256"] for entry in base.held_out)}
    again = [sample.path for sample in data.samples if sample.pixel_sha256 in seen]
    if again:
        raise DataError(f"{again[0]} and {len(again) - 1} more images belong to a product that the model knows already; remove them")


def _with_centers(config: TrainConfig, centers: int) -> TrainConfig:
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, centers=centers))


def _extended(base: Checkpoint, base_sha256: str, data: TrainingData, config: TrainConfig, model: TeacherStudent) -> Checkpoint:
    numbers = choose_golden(data.samples, per_class=_GOLDEN_PER_PRODUCT, at_most=_GOLDEN_PER_PRODUCT * len(data.classes), seed=config.seed)
    golden = [data.samples[number] for number in numbers]
    before, facts = base.provenance, image_facts(data)
    return Checkpoint(
        config=config,
        state_dict={name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        classes=sorted([*base.classes, *data.classes]),
        seed=base.seed,
        epochs_done=base.epochs_done,
        training_image_sha256=sorted({*base.training_image_sha256, *image_hashes(data)}),
        held_out=[*base.held_out, *data.held_out],
        golden_images=np.concatenate([base.golden_images, data.inputs.read(golden)]),
        golden_classes=[*base.golden_classes, *(sample.class_name for sample in golden)],
        provenance={
            **before,
            "versions": package_versions(),
            "image_counts": {**before["image_counts"], **facts["image_counts"]},
            "frame_sizes": {**before["frame_sizes"], **facts["frame_sizes"]},
            "left_out": [*before["left_out"], *facts["left_out"]],
            "saved_at": now(),
            "added": [
                *before.get("added", []),
                {"products": list(data.classes), "to_sha256": base_sha256, "data_root": facts["data_root"], "saved_at": now()},
            ],
        },
    )
