"""How a training ended, and what is said of one that was complete before."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.errors import ConfigError, DataError
from snl_train.checkpoint import Checkpoint, load_checkpoint
from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData
from snl_train.metrics_log import metrics_path
from snl_train.resume import check_same_config, resume_path
from snl_train.saving import image_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        checkpoint_path: The trained model.
        metrics_path: Losses, learning rates and speed over the training; no such file for the method ``memory``.
        resume_path: What ``--resume`` continues from; there is no such file once the training is complete.
        steps_done: Optimizer steps behind the checkpoint.
        total_steps: Steps that the training was given; 0 where nothing is trained.
        epochs_done: Whole epochs behind the checkpoint.
        losses: Mean of each loss term over the last logged steps.
        images_per_s: Over this process's part of the training; 0 if there was nothing left to do.
        seconds: The same part's duration, without the last save.
        is_complete: False if it was stopped before the last step.
        stopped_early: Loss and steps of the plateau that ended it before its budget, see :class:`snl_train.budget.Plateau`; None if none did.
    """

    checkpoint_path: Path
    metrics_path: Path
    resume_path: Path
    steps_done: int
    total_steps: int
    epochs_done: int
    losses: dict[str, float]
    images_per_s: float
    seconds: float
    is_complete: bool
    stopped_early: Mapping[str, float] | None = None


def finished_result(stored: Checkpoint, out: Path, *, seconds: float = 0.0, images_per_s: float = 0.0) -> TrainingResult:
    """Return the result of a complete training, read from its checkpoint; by default nothing was done now."""
    steps = int(stored.provenance["steps_done"])
    return TrainingResult(
        checkpoint_path=out,
        metrics_path=metrics_path(out),
        resume_path=resume_path(out),
        steps_done=steps,
        total_steps=int(stored.provenance["total_steps"]),
        epochs_done=stored.epochs_done,
        losses={},
        images_per_s=images_per_s,
        seconds=seconds,
        is_complete=True,
        stopped_early=stored.provenance.get("stopped_early"),
    )


def complete_already(config: TrainConfig, data: TrainingData, out: Path) -> TrainingResult:
    """Return the result of the complete training at ``out``, which is asked to go on.

    Raises:
        ConfigError: If it had other settings.
        DataError: If it had other images.
    """
    stored = load_checkpoint(out)
    check_same_config(stored.config, config)
    if (config.steps, config.epochs) != (stored.config.steps, stored.config.epochs):
        done = stored.provenance["steps_done"]
        raise ConfigError(f"{out} is complete after {done} steps and has no state to continue from; train to another --out")
    if list(stored.training_image_sha256) != image_hashes(data):
        raise DataError(f"cannot resume: {out} is complete, and the training images in {data.root} are not those it was trained on")
    return finished_result(stored, out)
