"""What a training saves: its checkpoint, and its state as long as it is unfinished."""

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snl_train.checkpoint import Checkpoint, save_checkpoint
from snl_train.config import TrainConfig
from snl_train.data.checks import sizes_of
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import choose_golden
from snl_train.output import drop_replaced, drop_state
from snl_train.resume import ResumePoint, save_unfinished

_PACKAGES = ("snl-edge", "torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python")


class Saver:
    """Writes the files of one training.

    Attributes:
        config: All settings.
        data: Images.
        out: Where the checkpoint goes.
        fingerprint: Of the images in their order.
        batches_per_epoch: Batches that together hold as many images as are learned from; 0 where nothing is trained.
        total_steps: Optimizer steps of the whole training; 0 where nothing is trained.
        plateau: Loss on a plateau of which the training ended early, with its steps: plain values; None if it did not.
        started_at: When the training first began, ISO 8601, UTC.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, out: Path, *, batches_per_epoch: int, processes: int = 1) -> None:
        self.config = config
        self.data = data
        self.out = out
        self.fingerprint = data.fingerprint()
        self.total_steps = config.total_steps(batches_per_epoch)
        self.plateau: dict[str, float] | None = None
        self.started_at = now()
        self.batches_per_epoch = batches_per_epoch
        self._processes = processes

    def is_complete(self, steps_done: int) -> bool:
        """Return whether a training of so many steps has nothing left to do."""
        return steps_done >= self.total_steps or self.plateau is not None

    def save(self, weights: dict[str, Tensor], state: Mapping[str, Any], *, steps_done: int, device: torch.device) -> None:
        """Write the checkpoint, and beside it the state; at the end of the training the state is removed.

        Args:
            weights: What the checkpoint ships.
            state: What a stopped training continues from.
            steps_done: Optimizer steps behind both.
            device: Where they were trained.

        Raises:
            SinkError: If a file cannot be written.
        """
        checkpoint = self._checkpoint(weights, steps_done, device)
        if self.is_complete(steps_done):
            save_checkpoint(self.out, checkpoint)
            drop_state(self.out)
        else:
            save_unfinished(self.out, checkpoint, self._resume_point(state))
        drop_replaced(self.out)

    def _resume_point(self, state: Mapping[str, Any]) -> ResumePoint:
        return ResumePoint(
            config=self.config, data_fingerprint=self.fingerprint, image_count=len(self.data.samples), state=state, started_at=self.started_at
        )

    def _checkpoint(self, weights: dict[str, Tensor], steps_done: int, device: torch.device) -> Checkpoint:
        data, config = self.data, self.config
        golden = [data.samples[number] for number in choose_golden(data.samples, at_most=config.golden_samples, seed=config.seed)]
        return Checkpoint(
            config=config,
            state_dict=weights,
            classes=data.classes,
            seed=config.seed,
            epochs_done=steps_done // max(1, self.batches_per_epoch),
            training_image_sha256=image_hashes(data),
            held_out=data.held_out,
            golden_images=data.inputs.read(golden),
            golden_classes=[sample.class_name for sample in golden],
            provenance={
                "versions": package_versions(),
                **image_facts(data),
                "steps_done": steps_done,
                "total_steps": self.total_steps,
                "is_complete": self.is_complete(steps_done),
                "stopped_early": self.plateau,
                "device": str(device),
                "threads": torch.get_num_threads(),
                "processes": self._processes,
                "started_at": self.started_at,
                "saved_at": now(),
            },
        )


def image_hashes(data: TrainingData) -> list[str]:
    """Return the pixel hashes of the training images, sorted."""
    return sorted({sample.pixel_sha256 for sample in data.samples})


def image_facts(data: TrainingData) -> dict[str, Any]:
    """Return what a checkpoint states of its training images: where they lay, how many of each class, their sizes, and which were left out."""
    return {
        "data_root": str(data.root),
        "image_counts": {name: len({sample.path for sample in data.samples if sample.class_name == name}) for name in data.classes},
        "frame_sizes": sizes_of(data.samples),
        "left_out": [{"path": str(path), "reason": reason} for path, reason in data.left_out],
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that training depends on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """Return the time as checkpoints state it, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
