"""Averages of the student's weights over the training: they swing less from seed to seed than the last weights do."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snl_runtime.errors import ConfigError
from snl_train.config import OptimConfig, TrainConfig

_MOVING_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """Average of a model's weights, updated after every optimizer step.

    Two kinds: exponential with ``average_decay``, over the whole training (a young average forgets faster: its decay is at most
    ``(1 + n) / (10 + n)`` after n updates); or the plain mean over the last ``average_last_share`` of the steps.

    The running statistics of batch normalization are averaged like the weights, which is right for weights that lie close together. The plain
    mean spans weights further apart: there ``needs_statistics`` is true and the trainer measures them again with :func:`estimate_statistics`.

    Args:
        model: Whose trainable parameters and floating-point buffers are averaged; frozen parameters are left alone.
        config: Which average; none if both settings are 0.
        total_steps: Optimizer steps of the whole training.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, *, total_steps: int) -> None:
        self._decay = config.average_decay
        self._first_step = 0 if self._decay else total_steps - round(config.average_last_share * total_steps)
        self._is_on = bool(self._decay or config.average_last_share)
        self._followed = _averaged_tensors(model) if self._is_on else {}
        self._mean: dict[str, Tensor] = {}
        self._updates = 0

    @property
    def is_started(self) -> bool:
        """Whether there is an average to use."""
        return self._updates > 0

    @property
    def needs_statistics(self) -> bool:
        """Whether the running statistics of batch normalization must be measured again with the averaged weights."""
        return self.is_started and not self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, counted from 0."""
        if not self._is_on or step < self._first_step:
            return
        if not self._mean:
            self._mean = {name: tensor.detach().clone() for name, tensor in self._followed.items()}
        self._updates += 1
        share = 1 / self._updates
        if self._decay:
            share = 1 - min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, tensor in self._followed.items():
            self._mean[name].lerp_(tensor.detach(), share)

    def averaged(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of ``state_dict`` with the averaged tensors in it; unchanged values where there is no average yet."""
        return {name: self._mean.get(name, tensor).detach().clone() for name, tensor in state_dict.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to continue to the bit."""
        return {"updates": self._updates, "mean": dict(self._mean)}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Continue the average that ``state_dict`` described."""
        self._updates = int(stored["updates"])
        self._mean = {name: tensor.to(self._followed[name].device).clone() for name, tensor in stored["mean"].items()}


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    named = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = dict(model.named_modules())
    for name, buffer in model.named_buffers():
        owner, _, kind = name.rpartition(".")
        is_trained = any(parameter.requires_grad for parameter in modules[owner].parameters(recurse=False))
        if kind in _MOVING_STATISTICS and is_trained:
            named[name] = buffer
    return named


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch normalization in training mode to their plain mean over ``batches``.

    Args:
        model: Called with each batch, in training mode.
        batches: Inputs of ``model``.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to say: cumulative mean
    for batch in batches:
        model(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def check_batch_statistics(config: TrainConfig, size_multiple_px: int) -> None:
    """Refuse batches whose smallest feature map has one value per channel: batch normalization has no variance there.

    Args:
        config: All settings.
        size_multiple_px: Of the model: that map has a cell for each such square.

    Raises:
        ConfigError: If they are too small.
    """
    height, width = (side // size_multiple_px for side in config.image_size)
    if config.batch_size * height * width < 2:
        raise ConfigError(
            f"batch_size 1 is too small for images of {config.image_size[0]}x{config.image_size[1]} pixels; take --batch-size 2 or more"
        )
