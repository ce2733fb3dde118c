"""A training, from top to bottom: load the data, build the model, step over the batches, fit what is fitted last, save a checkpoint."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.profiler import record_function

from snl_runtime.errors import ConfigError, TrainingDivergedError
from snl_runtime.progress import ProgressReporter, no_progress
from snl_train.averaging import WeightAverage, check_batch_statistics, estimate_statistics
from snl_train.budget import Plateau
from snl_train.checkpoint import Checkpoint
from snl_train.config import TrainConfig
from snl_train.continuing import check_same_images, take_memory
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import BalancedBatches
from snl_train.device import half_precision, resolve_device
from snl_train.early_stopping import held_out_loss, split_for_early_stop
from snl_train.losses import structural_loss
from snl_train.memory_fit import fit_memory, split_for_normalization, weigh_student
from snl_train.memory_training import train_memory
from snl_train.metrics_log import MetricsLog, metrics_path
from snl_train.models import build_model
from snl_train.models.whitening import fit_own_whitening
from snl_train.muon import make_optimizers
from snl_train.output import is_finished, replacing
from snl_train.ranks import ALONE, Ranks
from snl_train.resume import check_same_budget, check_same_config, check_same_data, read_resume_point, resume_path
from snl_train.saving import Saver
from snl_train.schedule import learning_rate
from snl_train.synthetic_anomalies import SyntheticAnomalies
from snl_train.training_result import TrainingResult, complete_already

LOG_EVERY_STEPS = 10
SAVE_EVERY_S = 60.0
"""Shortest time between two saves."""
MAX_SAVE_SHARE = 0.05
"""Most of the time that is spent saving: measuring statistics and whitening for a checkpoint may take longer than many steps."""
STATISTICS_BATCHES = 64
"""First batches of a training, on which batch statistics and whitening are measured at its end."""

Augmentation = Callable[[Tensor], Tensor]
"""Changes a batch of training images, (B, H, W, 3) uint8 to the same; draws from torch's global generator only, or a resumed training differs."""


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
        ConfigError: If the device or the teacher's weights cannot be had, or a resumed training has other settings.
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
    with contextlib.nullcontext() if resume or not ranks.is_writer else replacing(out), _naming_last_good(out):
        learned, kept = _split(data, config)
        peaks = kept if config.memory.centers else None
        batches = BalancedBatches(learned.labels, config.batch_size, seed=config.seed)
        per_epoch = batches.batches_per_epoch
        saver = Saver(config, data, out, batches_per_epoch=per_epoch, processes=ranks.world_size)
        ranks.require_same("training images", saver.fingerprint)
        state = _read_state(saver, per_epoch) if resume else None
        plateau = Plateau(config.early_stop)
        is_taught = state is None and memory is None
        trainer = Trainer(config, total_steps=saver.total_steps, augment=augment, load_teacher_weights=is_taught, ranks=ranks)
        if state is not None:
            trainer.load_state_dict(state)
            plateau.load_state_dict(state["plateau"])
        elif peaks is not None:
            trainer.fit_memory(learned, peaks, progress, memory)

        def save() -> None:
            first = map(ranks.share, islice(batches, STATISTICS_BATCHES))
            weights = trainer.weights((_read(learned, numbers) for numbers in first), peaks)
            state = {**trainer.state_dict(), "plateau": plateau.state_dict()}
            if ranks.is_writer:
                saver.save(weights, state, steps_done=trainer.steps_done, device=trainer.device)
            ranks.barrier()

        first_step, saved_step = trainer.steps_done, -1
        started_s = saved_s = time.monotonic()
        pause_s = save_every_s
        with (
            MetricsLog(metrics_path(out) if ranks.is_writer else None, steps_done=first_step, steps_per_epoch=per_epoch) as log,
            progress(saver.total_steps * config.batch_size, unit="images", label="train", done=first_step * config.batch_size) as counter,
        ):
            for numbers, images in _read_ahead(learned, map(ranks.share, islice(batches, first_step, saver.total_steps))):
                rate = trainer.learning_rate
                log.add(trainer.step(images, torch.from_numpy(batches.labels[numbers])), config.batch_size)
                step = trainer.steps_done
                loss = ranks.average(trainer.held_out_loss(kept)) if kept is not None and plateau.is_due(step) else None
                if loss is not None and plateau.add(step, loss):
                    saver.plateau = plateau.facts(step)
                is_stopping = ranks.any(should_stop() or saver.is_complete(step))
                if step % LOG_EVERY_STEPS == 0 or loss is not None or is_stopping:
                    log.write(step, rate, held_out_loss=loss)
                notes = {"loss": log.last_losses["total"]} if log.last_losses else {}
                counter.advance(config.batch_size, step=f"{step}/{saver.total_steps}", **notes)
                if is_stopping:
                    break
                if step % LOG_EVERY_STEPS == 0 and ranks.any(time.monotonic() - saved_s >= pause_s):
                    began_s = time.monotonic()
                    save()
                    saved_s, saved_step = time.monotonic(), step
                    pause_s = max(save_every_s, (saved_s - began_s) / MAX_SAVE_SHARE)
        seconds = time.monotonic() - started_s
        if trainer.steps_done != saved_step:
            save()
    steps = trainer.steps_done - first_step
    return TrainingResult(
        checkpoint_path=out,
        metrics_path=metrics_path(out),
        resume_path=resume_path(out),
        steps_done=trainer.steps_done,
        total_steps=saver.total_steps,
        epochs_done=trainer.steps_done // per_epoch,
        losses=log.last_losses,
        images_per_s=steps * config.batch_size / seconds if steps else 0.0,
        seconds=seconds,
        is_complete=saver.is_complete(trainer.steps_done),
        stopped_early=saver.plateau,
    )


class Trainer:
    """Model, optimizer and averaged weights of one training.

    Args:
        config: The whole configuration.
        total_steps: Optimizer steps of the whole training, which the learning rate and the average depend on.
        augment: Applied to every batch; None for none.
        load_teacher_weights: False where a stored state or another model's teacher is loaded next.
        ranks: The processes that train together.

    Raises:
        ConfigError: If the device or the teacher's weights cannot be had, or the batches are too small for batch normalization.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        total_steps: int,
        augment: Augmentation | None = None,
        load_teacher_weights: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._total_steps = total_steps
        self._augment = augment
        self._synthetic_anomalies = SyntheticAnomalies(config.synthetic_anomalies)
        self.steps_done = 0
        self.device = ranks.place(resolve_device(config.device))
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.memory, size_hw=config.image_size, load_teacher_weights=load_teacher_weights).train()
        check_batch_statistics(config, model.size_multiple_px)
        # Channels last takes 15 to 25 % less processor time per step (ResNet-18, 64 and 128 px), and is what tensor cores want.
        self._model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ranks.synchronize_batch_norm(self._model)
        ranks.seed_apart()
        self._compute_losses = ranks.parallel(self._model, self._forward)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._half = half_precision(self.device, config)
        self._optimizers = make_optimizers(trained, config.optim)
        self._average = WeightAverage(self._model, config.optim, total_steps=total_steps)
        # bfloat16 has float32's range: only float16 gradients vanish without scaling.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._half is torch.float16)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        return learning_rate(self.steps_done, self._total_steps, self._config.optim)

    def fit_memory(self, learned: TrainingData, peaks: TrainingData, progress: ProgressReporter, memory: Checkpoint | None = None) -> None:
        """Fit the memory beside the student, see :func:`snl_train.memory_fit.fit_memory`; or take that of another model."""
        if memory is None:
            fit_memory(self._model, learned, peaks, self._config, progress=progress)
        else:
            take_memory(self._model, memory, peaks, self._config)
        self._ranks.copy_from_writer(self._model)

    def held_out_loss(self, data: TrainingData) -> float:
        """Return the loss of good images with the last weights, averaged or not, see :func:`snl_train.early_stopping.held_out_loss`."""
        return held_out_loss(self._model, data, self._config)

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch and return its losses by name, detached, on the device and averaged over the processes.

        On a CPU a loss that is not finite stops the training before it reaches the weights; on CUDA that would wait for the GPU at every step, so
        there :meth:`weights` finds it.

        Args:
            images: (B, H, W, 3) uint8 RGB: this process's part of the batch.
            labels: (B,) class numbers.

        Raises:
            TrainingDivergedError: If the loss is not finite.
            ConfigError: If the GPU has too little memory.
        """
        for group in self._groups():
            group["lr"] = self.learning_rate
        if self._augment is not None:
            images = self._augment(images)
        try:
            losses = self._compute_losses(images, labels)
            means = self._ranks.mean(losses)
            if self.device.type == "cpu" and not math.isfinite(means["total"].item()):
                raise TrainingDivergedError(self._diverged("the loss"))
            self._update(losses["total"])
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"the GPU has too little memory for batches of {len(images)}; lower --batch-size or --image-size") from error
        self._average.update(self.steps_done)
        self.steps_done += 1
        return means

    def _forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        images = self._moved(images)
        with record_function("synthetic anomalies"):
            altered, has_anomaly = self._synthetic_anomalies(images)
        inputs = self._model.normalize(images)
        with torch.autocast(self.device.type, dtype=self._half) if self._half is not None else contextlib.nullcontext():
            if has_anomaly.any():
                teacher, student = self._restore(inputs, self._model.normalize(altered), self._moved(has_anomaly.nonzero().flatten()))
            else:
                teacher = self._taught(inputs)
                student = self._imitated(inputs, teacher)
        with record_function("losses"):
            # Leaves autocast by itself: only the affinities' matrix products are in half precision.
            return structural_loss(teacher, student, self._config.loss, labels=labels, product_dtype=self._half)

    def _taught(self, inputs: Tensor) -> list[Tensor]:
        with record_function("teacher"):
            features: list[Tensor] = self._model.teacher(inputs)
            return features

    def _imitated(self, inputs: Tensor, teacher: list[Tensor]) -> list[Tensor]:
        with record_function("student"):
            features: list[Tensor] = self._model.imitate(inputs, teacher)
            return features

    def _moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; from pinned memory, or every copy would wait until the GPU has done all that was asked of it before."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _restore(self, inputs: Tensor, altered: Tensor, numbers: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's features of the good images and the student's answer to the altered ones, which are those with these numbers, (F,)."""
        teacher = self._taught(inputs)
        if self._model.bottleneck is None:
            return teacher, self._imitated(altered, teacher)  # a forward student sees the image and not the teacher's features
        seen = self._taught(altered[numbers])  # (F, D_k, H_k, W_k); the others are the same as without a synthetic anomaly
        shown = [good.index_copy(0, numbers, bad.to(good.dtype)) for good, bad in zip(teacher, seen, strict=True)]
        return teacher, self._imitated(altered, shown)

    def _update(self, total: Tensor) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        if self._config.optim.gradient_clip:
            for optimizer in self._optimizers:
                self._scaler.unscale_(optimizer)
            parameters = [parameter for group in self._groups() for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._config.optim.gradient_clip)
        with record_function("optimizer"):
            for optimizer in self._optimizers:
                self._scaler.step(optimizer)
            self._scaler.update()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def weights(self, batches: Iterable[Tensor], peaks: TrainingData | None = None) -> dict[str, Tensor]:
        """Return the weights to ship, on the CPU: the averaged ones where the configuration asks for an average and it has begun.

        Args:
            batches: Training images, (B, H, W, 3) uint8, to measure batch statistics and residuals with where the average and the whitening need
                it; not consumed otherwise.
            peaks: Good images that weigh the student's map beside the memory's; None without a memory.

        Raises:
            TrainingDivergedError: If a weight is not finite.
        """
        state = self._average.averaged(self._model.state_dict()) if self._average.is_started else self._model.state_dict()
        if self._average.needs_statistics or self._model.whitening is not None or peaks is not None:
            state = self._measured(state, list(batches), peaks)
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise TrainingDivergedError(self._diverged(f"weight {name}"))
        return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}

    def _measured(self, state: Mapping[str, Tensor], batches: Sequence[Tensor], peaks: TrainingData | None) -> dict[str, Tensor]:
        """Return a state with what is measured on training images: batch statistics first, residuals with those, then the student's peaks."""
        reference = copy.deepcopy(self._model)
        reference.load_state_dict(state)

        def inputs() -> Iterator[Tensor]:
            return (reference.normalize(images.to(self.device)) for images in batches)

        if self._average.needs_statistics:
            estimate_statistics(reference, inputs())
        reference.eval()
        try:
            if reference.whitening is not None:
                fit_own_whitening(reference, inputs, self._config.model.whitening_normalization, self._ranks)
            if peaks is not None:
                weigh_student(reference, peaks, self._config)
        except ValueError as error:
            raise TrainingDivergedError(f"{error} (step {self.steps_done} of {self._total_steps})") from error
        measured: dict[str, Tensor] = reference.state_dict()
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which :meth:`load_state_dict` continues to the bit on a CPU."""
        return {
            "steps_done": self.steps_done,
            "model": self._model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self._average.state_dict(),
            "scaler": self._scaler.state_dict(),
            **self._ranks.random_state(self.device),
        }

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, the random numbers included.

        Raises:
            ConfigError: If it was taken of a training on another number of processes.
        """
        self._ranks.set_random_state(stored, self.device)
        self.steps_done = int(stored["steps_done"])
        self._model.load_state_dict(stored["model"])
        # Training states of versions that had one optimizer hold it under another name.
        for optimizer, state in zip(self._optimizers, stored.get("optimizers") or [stored["optimizer"]], strict=True):
            optimizer.load_state_dict(state)
        self._average.load_state_dict(stored["average"])
        if stored["scaler"]:
            self._scaler.load_state_dict(stored["scaler"])

    def _diverged(self, what: str) -> str:
        return f"{what} is no longer finite at step {self.steps_done + 1} of {self._total_steps}; lower --lr or set optim.gradient_clip"


@contextlib.contextmanager
def _naming_last_good(out: Path) -> Iterator[None]:
    """Say what is left if a training diverges."""
    try:
        yield
    except TrainingDivergedError as error:
        kept = f"{out} keeps the last good weights" if resume_path(out).exists() else "nothing was saved yet"
        raise TrainingDivergedError(f"{error}; {kept}") from error


def _split(data: TrainingData, config: TrainConfig) -> tuple[TrainingData, TrainingData | None]:
    """Return the images that are learned from, and those that are not because a memory or early stopping measures something on them."""
    if config.memory.centers:
        return split_for_normalization(data, config)
    return split_for_early_stop(data, config) if config.early_stop.patience else (data, None)


def _read_state(saver: Saver, batches_per_epoch: int) -> Mapping[str, Any]:
    """Return the state that a training continues from; its files go on saying when it first began."""
    point = read_resume_point(resume_path(saver.out))
    check_same_config(point.config, saver.config)
    check_same_budget(point.config, saver.config, batches_per_epoch=batches_per_epoch)
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
