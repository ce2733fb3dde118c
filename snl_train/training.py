"""A training from start or from where it was stopped, to a checkpoint."""

import contextlib
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.progress import Progress
from snl_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snl_train.config import TrainConfig
from snl_train.data.checks import sizes_of
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import BalancedBatches, choose_golden
from snl_train.metrics_log import MetricsLog, metrics_path
from snl_train.output import drop_replaced, drop_state, is_finished, replacing
from snl_train.resume import ResumePoint, check_same_config, check_same_data, read_resume_point, resume_path, save_unfinished
from snl_train.trainer import Augmentation, Trainer, TrainingDivergedError

LOG_EVERY_STEPS = 10
SAVE_EVERY_S = 60.0
"""Epochs that end sooner after the last save are not saved: small datasets have epochs of seconds."""
STATISTICS_BATCHES = 64
"""First batches of a training, on which batch statistics and whitening are measured at its end."""
_PACKAGES = ("snl-edge", "torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        checkpoint_path: The trained model.
        metrics_path: Losses, learning rates and speed over the training.
        resume_path: What ``--resume`` continues from; there is no such file once the training is complete.
        steps_done: Optimizer steps behind the checkpoint.
        total_steps: Steps of the whole training.
        epochs_done: Whole epochs behind the checkpoint.
        losses: Mean of each loss term over the last logged steps.
        images_per_s: Over this process's part of the training; 0 if there was nothing left to do.
        seconds: The same part's duration, without the last save.
        is_complete: False if it was stopped before the last step.
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


def train(
    config: TrainConfig,
    data: TrainingData,
    out: Path,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    augment: Augmentation | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> TrainingResult:
    """Train and write the checkpoint, its log and its training state.

    Checkpoint and training state are written at the end of the epochs (at most once in ``save_every_s``) and when stopped; at the end of the
    training the checkpoint is written and the state removed. A resumed training gives the same weights to the bit as one that was never stopped, on
    the same CPU with as many threads.

    Args:
        config: All settings.
        data: Images.
        out: Where the checkpoint goes. A training that lies there is replaced at the first save, and is as it was if there is none; hold
            :func:`snl_train.output.claim_output` meanwhile, which asks whether it may be replaced.
        resume: Continue from the training state beside ``out``; changes nothing if that training is complete.
        should_stop: Asked after every step; True saves and returns.
        augment: Changes each batch of training images; None for none.
        save_every_s: Shortest time between two saves at epoch ends.

    Raises:
        ConfigError: If the device or the teacher's weights cannot be had, or a resumed training has other settings.
        CheckpointError: If there is nothing to resume.
        DataError: If a resumed training has other images, or an image can no longer be read.
        SinkError: If a file cannot be written.
        TrainingDivergedError: If the loss is no longer finite; the files of the last save are left as they are.
    """
    if resume and is_finished(out):
        return _complete_already(config, data, out)
    with contextlib.nullcontext() if resume else replacing(out):
        run = _Run(config, data, out, resume=resume, augment=augment)
        first_step = run.trainer.steps_done
        losses = run.loop(should_stop, save_every_s)
    steps = run.trainer.steps_done - first_step
    return TrainingResult(
        checkpoint_path=out,
        metrics_path=metrics_path(out),
        resume_path=resume_path(out),
        steps_done=run.trainer.steps_done,
        total_steps=run.total_steps,
        epochs_done=run.epochs_done,
        losses=losses,
        images_per_s=steps * config.batch_size / run.seconds if steps else 0.0,
        seconds=run.seconds,
        is_complete=run.trainer.steps_done >= run.total_steps,
    )


def _complete_already(config: TrainConfig, data: TrainingData, out: Path) -> TrainingResult:
    stored = load_checkpoint(out)
    check_same_config(stored.config, config)
    if config.epochs != stored.config.epochs:
        raise ConfigError(f"{out} is complete after {stored.config.epochs} epochs and has no state to continue from; train to another --out")
    if list(stored.training_image_sha256) != _image_hashes(data):
        raise DataError(f"cannot resume: {out} is complete, and the training images in {data.root} are not those it was trained on")
    steps = int(stored.provenance["steps_done"])
    return TrainingResult(
        checkpoint_path=out,
        metrics_path=metrics_path(out),
        resume_path=resume_path(out),
        steps_done=steps,
        total_steps=steps,
        epochs_done=stored.epochs_done,
        losses={},
        images_per_s=0.0,
        seconds=0.0,
        is_complete=True,
    )


class _Run:
    """A training under way: what to draw, what to keep, where to write."""

    def __init__(self, config: TrainConfig, data: TrainingData, out: Path, *, resume: bool, augment: Augmentation | None) -> None:
        self._config = config
        self._data = data
        self._out = out
        self._batches = BalancedBatches(data.labels, config.batch_size, seed=config.seed)
        self._labels = torch.from_numpy(self._batches.labels)
        self.total_steps = self._batches.batches_per_epoch * config.epochs
        self._fingerprint = data.fingerprint()
        self._started_at = _now()
        self.seconds = 0.0
        point = self._read_point() if resume else None
        self.trainer = Trainer(config, total_steps=self.total_steps, augment=augment, load_teacher_weights=point is None)
        if point is not None:
            self.trainer.load_state_dict(point.state)
            self._started_at = point.started_at

    @property
    def epochs_done(self) -> int:
        return self.trainer.steps_done // self._batches.batches_per_epoch

    def loop(self, should_stop: Callable[[], bool], save_every_s: float) -> dict[str, float]:
        """Run the remaining steps and return the last losses."""
        started_s = saved_s = time.monotonic()
        saved_step = -1
        per_epoch = self._batches.batches_per_epoch
        total_images = self.total_steps * self._config.batch_size
        done = self.trainer.steps_done * self._config.batch_size
        with (
            MetricsLog(metrics_path(self._out), steps_done=self.trainer.steps_done, steps_per_epoch=per_epoch) as log,
            Progress(total_images, unit="images", label="train", done=done) as progress,
        ):
            for numbers, images in self._remaining():
                learning_rate = self.trainer.learning_rate
                log.add(self._step(images, numbers), len(numbers))
                step = self.trainer.steps_done
                is_epoch_end = step % per_epoch == 0
                stopping = should_stop()
                if step % LOG_EVERY_STEPS == 0 or is_epoch_end or stopping:
                    log.write(step, learning_rate)
                notes = {"loss": log.last_losses["total"]} if log.last_losses else {}
                progress.advance(len(numbers), epoch=f"{-(-step // per_epoch)}/{self._config.epochs}", **notes)
                if stopping:
                    break
                if is_epoch_end and time.monotonic() - saved_s >= save_every_s:
                    self._save()
                    saved_s, saved_step = time.monotonic(), step
        self.seconds = time.monotonic() - started_s
        if self.trainer.steps_done != saved_step:
            self._save()
        return log.last_losses

    def _step(self, images: Tensor, numbers: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        try:
            return self.trainer.step(images, self._labels[torch.from_numpy(numbers)])
        except TrainingDivergedError as error:
            raise self._with_last_good(error) from error

    def _with_last_good(self, error: TrainingDivergedError) -> TrainingDivergedError:
        kept = f"{self._out} keeps the last good weights" if resume_path(self._out).exists() else "nothing was saved yet"
        return TrainingDivergedError(f"{error}; {kept}")

    def _remaining(self) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield the batches that are left, reading the next one while the last one trains."""
        numbers = islice(self._batches, self.trainer.steps_done, self.total_steps)
        with ThreadPoolExecutor(1) as reader:
            upcoming = next(numbers, None)
            pending = None if upcoming is None else reader.submit(self._read, upcoming)
            while upcoming is not None and pending is not None:
                current, images = upcoming, pending.result()
                upcoming = next(numbers, None)
                pending = None if upcoming is None else reader.submit(self._read, upcoming)
                yield current, images

    def _read(self, numbers: Iterable[int]) -> Tensor:
        return torch.from_numpy(self._data.inputs.read([self._data.samples[number] for number in numbers]))

    def _read_point(self) -> ResumePoint:
        point = read_resume_point(resume_path(self._out))
        check_same_config(point.config, self._config)
        check_same_data(point, fingerprint=self._fingerprint, image_count=len(self._data.samples), root=self._data.root)
        return point

    def _save(self) -> None:
        try:
            weights = self.trainer.weights(self._read(numbers) for numbers in islice(self._batches, STATISTICS_BATCHES))
        except TrainingDivergedError as error:
            raise self._with_last_good(error) from error
        checkpoint = self._checkpoint(weights)
        if self.trainer.steps_done >= self.total_steps:
            save_checkpoint(self._out, checkpoint)
            drop_state(self._out)
        else:
            save_unfinished(self._out, checkpoint, self._resume_point())
        drop_replaced(self._out)

    def _resume_point(self) -> ResumePoint:
        return ResumePoint(
            config=self._config,
            data_fingerprint=self._fingerprint,
            image_count=len(self._data.samples),
            state=self.trainer.state_dict(),
            started_at=self._started_at,
        )

    def _checkpoint(self, weights: dict[str, Tensor]) -> Checkpoint:
        data = self._data
        golden = [data.samples[number] for number in choose_golden(data.samples, at_most=self._config.golden_samples, seed=self._config.seed)]
        return Checkpoint(
            config=self._config,
            state_dict=weights,
            classes=data.classes,
            seed=self._config.seed,
            epochs_done=self.epochs_done,
            training_image_sha256=_image_hashes(data),
            held_out=data.held_out,
            golden_images=data.inputs.read(golden),
            golden_classes=[sample.class_name for sample in golden],
            provenance={
                "versions": package_versions(),
                "data_root": str(data.root),
                "image_counts": {name: sum(sample.class_name == name for sample in data.samples) for name in data.classes},
                "frame_sizes": sizes_of(data.samples),
                "left_out": [{"path": str(path), "reason": reason} for path, reason in data.left_out],
                "steps_done": self.trainer.steps_done,
                "total_steps": self.total_steps,
                "is_complete": self.trainer.steps_done >= self.total_steps,
                "device": str(self.trainer.device),
                "threads": torch.get_num_threads(),
                "started_at": self._started_at,
                "saved_at": _now(),
            },
        )


def _image_hashes(data: TrainingData) -> list[str]:
    return sorted({sample.pixel_sha256 for sample in data.samples})


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that training depends on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
