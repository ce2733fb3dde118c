"""One optimizer step after the other on one device, and everything that must be kept to continue to the bit."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snl_runtime.errors import ConfigError, SnlError
from snl_train.averaging import WeightAverage, estimate_statistics
from snl_train.config import Device, TrainConfig
from snl_train.losses import structural_loss
from snl_train.models import build_model
from snl_train.models.whitening import fit_whitening, normalize_maxima
from snl_train.muon import make_optimizers
from snl_train.schedule import learning_rate
from snl_train.synthetic_anomalies import SyntheticAnomalies


class TrainingDivergedError(SnlError):
    """The loss or a weight is no longer a finite number."""


Augmentation = Callable[[Tensor], Tensor]
"""Changes a batch of training images, (B, H, W, 3) uint8 to the same; draws from torch's global generator only, or a resumed training differs."""


class Trainer:
    """Model, optimizer and averaged weights of one training.

    Args:
        config: The whole configuration.
        total_steps: Optimizer steps of the whole training, which the learning rate and the average depend on.
        augment: Applied to every batch; None for none.
        load_teacher_weights: False where a stored state is loaded next.

    Raises:
        ConfigError: If the device or the teacher's weights cannot be had, or the batches are too small for batch normalization.
    """

    def __init__(self, config: TrainConfig, *, total_steps: int, augment: Augmentation | None = None, load_teacher_weights: bool = True) -> None:
        _check_batch_statistics(config)
        self._config = config
        self._total_steps = total_steps
        self._augment = augment
        self._synthetic_anomalies = SyntheticAnomalies(config.synthetic_anomalies)
        self.steps_done = 0
        self.device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        model = build_model(config.model, load_teacher_weights=load_teacher_weights).train()
        # Channels last takes 15 to 25 % less processor time per step (ResNet-18, 64 and 128 px), and is what tensor cores want.
        self._model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch and return its losses by name, detached and on the device.

        On a CPU a loss that is not finite stops the training before it reaches the weights; on CUDA that would wait for the GPU at every step, so
        there :meth:`weights` finds it.

        Args:
            images: (B, H, W, 3) uint8 RGB.
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
            losses = self._forward(images, labels)
            if self.device.type == "cpu" and not math.isfinite(losses["total"].item()):
                raise TrainingDivergedError(self._diverged("the loss"))
            self._update(losses["total"])
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"the GPU has too little memory for batches of {len(images)}; lower --batch-size or --image-size") from error
        self._average.update(self.steps_done)
        self.steps_done += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        images = self._moved(images)
        altered, has_anomaly = self._synthetic_anomalies(images)
        inputs = self._model.normalize(images)
        with torch.autocast(self.device.type, dtype=self._half) if self._half is not None else contextlib.nullcontext():
            if has_anomaly.any():
                teacher, student = self._restore(inputs, self._model.normalize(altered), self._moved(has_anomaly.nonzero().flatten()))
            else:
                teacher, student = self._model(inputs)
        # Leaves autocast by itself: only the affinities' matrix products are in half precision.
        return structural_loss(teacher, student, self._config.loss, labels=labels, product_dtype=self._half)

    def _moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; from pinned memory, or every copy would wait until the GPU has done all that was asked of it before."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _restore(self, inputs: Tensor, altered: Tensor, numbers: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's features of the good images and the student's answer to the altered ones, which are those with these numbers, (F,)."""
        teacher = self._model.teacher(inputs)
        if self._model.bottleneck is None:
            return teacher, self._model.imitate(altered, teacher)  # a forward student sees the image and not the teacher's features
        seen = self._model.teacher(altered[numbers])  # (F, D_k, H_k, W_k); the others are the same as without a synthetic anomaly
        shown = [good.index_copy(0, numbers, bad.to(good.dtype)) for good, bad in zip(teacher, seen, strict=True)]
        return teacher, self._model.imitate(altered, shown)

    def _update(self, total: Tensor) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        if self._config.optim.gradient_clip:
            for optimizer in self._optimizers:
                self._scaler.unscale_(optimizer)
            parameters = [parameter for group in self._groups() for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._config.optim.gradient_clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def weights(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the weights to ship, on the CPU: the averaged ones where the configuration asks for an average and it has begun.

        Args:
            batches: Training images, (B, H, W, 3) uint8, to measure batch statistics and residuals with where the average and the whitening need
                it; not consumed otherwise.

        Raises:
            TrainingDivergedError: If a weight is not finite.
        """
        state = self._average.averaged(self._model.state_dict()) if self._average.is_started else self._model.state_dict()
        if self._average.needs_statistics or self._model.whitening is not None:
            state = self._measured(state, list(batches))
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise TrainingDivergedError(self._diverged(f"weight {name}"))
        return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}

    def _measured(self, state: Mapping[str, Tensor], batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return a state with what is measured on training images: batch statistics first, residuals with those."""
        reference = copy.deepcopy(self._model)
        reference.load_state_dict(state)

        def inputs() -> Iterator[Tensor]:
            return (reference.normalize(images.to(self.device)) for images in batches)

        if self._average.needs_statistics:
            estimate_statistics(reference, inputs())
        if reference.whitening is not None:
            reference.eval()
            try:
                fit_whitening(reference, reference.whitening, inputs())
                if self._config.model.whitening_normalization == "maximum":
                    normalize_maxima(reference, reference.whitening, inputs())
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
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, the random numbers included."""
        self.steps_done = int(stored["steps_done"])
        self._model.load_state_dict(stored["model"])
        # Training states of versions that had one optimizer hold it under another name.
        for optimizer, state in zip(self._optimizers, stored.get("optimizers") or [stored["optimizer"]], strict=True):
            optimizer.load_state_dict(state)
        self._average.load_state_dict(stored["average"])
        if stored["scaler"]:
            self._scaler.load_state_dict(stored["scaler"])
        torch.set_rng_state(stored["random"])
        if self.device.type == "cuda" and stored["random_cuda"] is not None:
            torch.cuda.set_rng_state(stored["random_cuda"], self.device)

    def _diverged(self, what: str) -> str:
        return f"{what} is no longer finite at step {self.steps_done + 1} of {self._total_steps}; lower --lr or set optim.gradient_clip"


def resolve_device(device: Device) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: If CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch finds no usable GPU; install a CUDA build of PyTorch or take --device cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _check_batch_statistics(config: TrainConfig) -> None:
    """Refuse batches whose smallest feature map has one value per channel: batch normalization has no variance there."""
    height, width = (side // config.model.size_multiple_px for side in config.image_size)
    if config.batch_size * height * width < 2:
        raise ConfigError(
            f"batch_size 1 is too small for images of {config.image_size[0]}x{config.image_size[1]} pixels; take --batch-size 2 or more"
        )


def half_precision(device: torch.device, config: TrainConfig) -> torch.dtype | None:
    """Return the type that backbones and affinities compute in, or None for float32."""
    if device.type == "cpu":
        if not config.mixed_precision_cpu:
            return None
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
        return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else None
    if not config.mixed_precision:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
