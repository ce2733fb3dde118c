"""A training, from top to bottom: load the data, build the model, step over the batches, fit what is fitted last, save a checkpoint."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from snl_runtime.errors import TrainingDivergedError
from snl_runtime.progress import ProgressReporter, no_progress
from snl_train.budget import Plateau
from snl_train.checkpoint import Checkpoint
from snl_train.config import TrainConfig
from snl_train.continuing import check_same_images
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import BalancedBatches
from snl_train.device import explaining_full_gpu
from snl_train.early_stopping import split_for_early_stop
from snl_train.memory_fit import split_for_normalization
from snl_train.memory_training import train_memory
from snl_train.metrics_log import MetricsLog, metrics_path
from snl_train.output import is_finished, replacing
from snl_train.ranks import ALONE, Ranks
from snl_train.resume import check_same_budget, check_same_config, check_same_data, read_resume_point, resume_path
from snl_train.saving import Saver
from snl_train.trainer import Augmentation, Trainer
from snl_train.training_result import TrainingResult, complete_already

LOG_EVERY_STEPS = 10
SAVE_EVERY_S = 60.0
"""Shortest time between two saves."""
MAX_SAVE_SHARE = 0.05
"""Most of the time that is spent saving: measuring statistics and whitening for a checkpoint may take longer than many steps."""
STATISTICS_BATCHES = 64
"""First batches of a training, on which batch statistics and whitening are measured at its end."""


def train(  # noqa: PLR0913  # what a caller may ask or be told while it runs
    config: TrainConfig,
    data: TrainingData,
    out: Path,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    augment: Augmentation | None = None,
    memory: Checkpoint | None = None,
    save_every_s: float = SAVE_EVERY_S,
    progress: ProgressReporter = no_progress,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train and write the checkpoint, its log and its training state.

    Checkpoint and training state are written every few steps (at most once in ``save_every_s``, and for at most ``MAX_SAVE_SHARE`` of the time) and
    when stopped; at the end of the training, which may be in the middle of an epoch, the checkpoint is written and the state removed. A resumed
    training gives the same weights to the bit as one that was never stopped, on the same CPU with as many threads.

    Args:
        config: All settings.
        data: Images.
        out: Where the checkpoint goes. A training that lies there is replaced at the first save, and is as it was if there is none; hold
            :func:`snl_train.output.claim_output` meanwhile, which asks whether it may be replaced.
        resume: Continue from the training state beside ``out``; changes nothing if that training is complete.
        should_stop: Asked after every step; True saves and returns.
        augment: Changes each batch of training images; None for none.
        memory: Model whose memory, of the same images, stands beside the student, see :func:`snl_train.continuing.take_memory`; None fits one where
            the configuration has one.
        save_every_s: Shortest time between two saves.
        progress: Told images, step and loss after every step.
        ranks: The processes that train together, see :func:`snl_train.ranks.join_ranks`. Each calls this with the same arguments; the writer alone
            writes, and a stop that one of them asks for stops all.

    Raises:
        ConfigError: If the device or the teacher's weights cannot be had, a GPU has too little memory, or a resumed training has other settings.
        CheckpointError: If there is nothing to resume.
        DataError: If a resumed training has other images, or an image can no longer be read.
        SinkError: If a file cannot be written.
        TrainingDivergedError: If the loss is no longer finite; the files of the last save are left as they are.
    """
    ranks.check(config)
    if not config.model.has_student:
        return train_memory(config, data, out, resume=resume, progress=progress)
    if resume and is_finished(out):
        return complete_already(config, data, out)
    if memory is not None:
        check_same_images(memory, data)
    with contextlib.nullcontext() if resume or not ranks.is_writer else replacing(out), _explaining(out, config.batch_size // ranks.world_size):
        learned, kept = _split(data, config)
        batches = BalancedBatches(learned.labels, config.batch_size, seed=config.seed)
        saver = Saver(config, data, out, batches_per_epoch=batches.batches_per_epoch, processes=ranks.world_size)
        ranks.require_same("training images", saver.fingerprint)
        state = _read_state(saver) if resume else None
        is_taught = state is None and memory is None
        trainer = Trainer(config, total_steps=saver.total_steps, augment=augment, load_teacher_weights=is_taught, ranks=ranks)
        plateau = Plateau(config.early_stop)
        peaks = kept if config.memory.centers else None
        if state is not None:
            trainer.load_state_dict(state)
            plateau.load_state_dict(state.get("plateau", plateau.state_dict()))  # versions without early stopping stored none
            ranks.require_same("stored step to go on from", str(trainer.steps_done))  # a shared drive may show an older file to one of them
        elif peaks is not None:
            trainer.fit_memory(learned, peaks, progress, memory)

        def save() -> None:
            first = map(ranks.share, islice(batches, STATISTICS_BATCHES))
            weights = trainer.weights((_read(learned, numbers) for numbers in first), peaks)
            state = {**trainer.state_dict(), "plateau": plateau.state_dict()}
            if ranks.is_writer:
                saver.save(weights, state, steps_done=trainer.steps_done, device=trainer.device)
            ranks.barrier()

        first_step, started_s, clock = trainer.steps_done, time.monotonic(), _SaveClock(save_every_s)
        with (
            MetricsLog(metrics_path(out) if ranks.is_writer else None, steps_done=first_step, steps_per_epoch=batches.batches_per_epoch) as log,
            progress(saver.total_steps * config.batch_size, unit="images", label="train", done=first_step * config.batch_size) as counter,
        ):
            for numbers, images in _read_ahead(learned, map(ranks.share, islice(batches, first_step, saver.total_steps))):
                rate = trainer.learning_rate
                log.add(trainer.step(images, torch.from_numpy(batches.labels[numbers])), config.batch_size)
                step = trainer.steps_done
                loss = trainer.validation_loss(kept) if kept is not None and plateau.is_due(step) else None
                if loss is not None and plateau.add(step, loss):
                    saver.plateau = plateau.facts(step)
                is_stopping = ranks.any(should_stop() or saver.is_complete(step))
                if step % LOG_EVERY_STEPS == 0 or loss is not None or is_stopping:
                    log.write(step, rate, validation_loss=loss)
                notes = {"loss": log.last_losses["total"]} if log.last_losses else {}
                counter.advance(config.batch_size, step=f"{step}/{saver.total_steps}", **notes)
                if is_stopping:
                    break
                if step % LOG_EVERY_STEPS == 0 and ranks.any(clock.is_due()):
                    clock.time(save)
        seconds = time.monotonic() - started_s
        save()
    return _result(saver, trainer, log, seconds=seconds, steps=trainer.steps_done - first_step)


class _SaveClock:
    """Says when the next save is due.

    Args:
        every_s: Shortest time between two saves; it is longer where a save takes more than ``MAX_SAVE_SHARE`` of that.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = self._pause_s = every_s
        self._saved_s = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._saved_s >= self._pause_s

    def time(self, save: Callable[[], None]) -> None:
        began_s = time.monotonic()
        save()
        self._saved_s = time.monotonic()
        self._pause_s = max(self._every_s, (self._saved_s - began_s) / MAX_SAVE_SHARE)


def _result(saver: Saver, trainer: Trainer, log: MetricsLog, *, seconds: float, steps: int) -> TrainingResult:
    return TrainingResult(
        checkpoint_path=saver.out,
        metrics_path=metrics_path(saver.out),
        resume_path=resume_path(saver.out),
        steps_done=trainer.steps_done,
        total_steps=saver.total_steps,
        epochs_done=trainer.steps_done // saver.batches_per_epoch,
        losses=log.last_losses,
        images_per_s=steps * saver.config.batch_size / seconds if steps else 0.0,
        seconds=seconds,
        is_complete=saver.is_complete(trainer.steps_done),
        stopped_early=saver.plateau,
    )


@contextlib.contextmanager
def _explaining(out: Path, images_at_once: int) -> Iterator[None]:
    """Say what is left if a training diverges, and what to do if a GPU is full."""
    try:
        with explaining_full_gpu(f"batches of {images_at_once}"):
            yield
    except TrainingDivergedError as error:
        kept = f"{out} keeps the last good weights" if resume_path(out).exists() else "nothing was saved yet"
        raise TrainingDivergedError(f"{error}; {kept}") from error


def _split(data: TrainingData, config: TrainConfig) -> tuple[TrainingData, TrainingData | None]:
    """Return the images that are learned from, and those that are not because a memory or early stopping measures something on them."""
    if config.memory.centers:
        return split_for_normalization(data, config)
    return split_for_early_stop(data, config) if config.early_stop.patience else (data, None)


def _read_state(saver: Saver) -> Mapping[str, Any]:
    """Return the state that a training continues from; its files go on saying when it first began."""
    point = read_resume_point(resume_path(saver.out))
    check_same_config(point.config, saver.config)
    check_same_budget(point.config, saver.config, batches_per_epoch=saver.batches_per_epoch)
    check_same_data(point, fingerprint=saver.fingerprint, image_count=len(saver.data.samples), root=saver.data.root)
    saver.started_at = point.started_at
    return point.state


def _read_ahead(data: TrainingData, batches: Iterator[npt.NDArray[np.int64]]) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield batches with their images, reading the next one while the last one trains."""
    with ThreadPoolExecutor(1) as reader:
        pending = None
        for numbers in batches:
            upcoming = numbers, reader.submit(_read, data, numbers)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = upcoming
        if pending is not None:
            yield pending[0], pending[1].result()


def _read(data: TrainingData, numbers: Iterable[int]) -> Tensor:
    return torch.from_numpy(data.inputs.read([data.samples[number] for number in numbers]))
