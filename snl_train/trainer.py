"""What is trained: model, optimizer and averaged weights, one step at a time."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from snl_runtime.errors import TrainingDivergedError
from snl_runtime.progress import ProgressReporter
from snl_train.averaging import WeightAverage, check_batch_statistics, estimate_statistics
from snl_train.checkpoint import Checkpoint
from snl_train.config import TrainConfig
from snl_train.continuing import take_memory
from snl_train.data.dataset import TrainingData
from snl_train.device import half_precision, resolve_device
from snl_train.early_stopping import validation_loss
from snl_train.losses import structural_loss
from snl_train.memory_fit import fit_memory, weigh_student
from snl_train.models import build_model
from snl_train.models.whitening import fit_own_whitening
from snl_train.muon import make_optimizers
from snl_train.ranks import ALONE, Ranks
from snl_train.schedule import learning_rate
from snl_train.synthetic_anomalies import SyntheticAnomalies

Augmentation = Callable[[Tensor], Tensor]
"""Changes a batch of training images, (B, H, W, 3) uint8 to the same; draws from torch's global generator only, or a resumed training differs."""


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
        self._own_config = dataclasses.replace(config, batch_size=config.batch_size // ranks.world_size)  # a device has room for its part of a batch
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

    def validation_loss(self, data: TrainingData) -> float:
        """Return the loss of good images with the last weights, averaged or not, see :func:`snl_train.early_stopping.validation_loss`.

        All processes measure it and get the mean, so that they agree to the bit.

        Raises:
            TrainingDivergedError: If it is not finite.
            DataError: If an image can no longer be read.
        """
        loss = self._ranks.average(validation_loss(self._model, data, self._own_config))
        if not math.isfinite(loss):
            raise TrainingDivergedError(self._diverged("the validation loss"))
        return loss

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch and return its losses by name, detached, on the device and averaged over the processes.

        On a CPU a loss that is not finite stops the training before it reaches the weights; on CUDA that would wait for the GPU at every step, so
        there :meth:`weights` finds it.

        Args:
            images: (B, H, W, 3) uint8 RGB: this process's part of the batch.
            labels: (B,) class numbers.

        Raises:
            TrainingDivergedError: If the loss is not finite.
        """
        for group in self._groups():
            group["lr"] = self.learning_rate
        if self._augment is not None:
            images = self._augment(images)
        losses = self._compute_losses(images, labels)
        means = self._ranks.mean(losses)
        if self.device.type == "cpu" and not math.isfinite(means["total"].item()):
            raise TrainingDivergedError(self._diverged("the loss"))
        self._update(losses["total"])
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
                weigh_student(reference, peaks, self._own_config)
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
