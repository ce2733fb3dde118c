"""How long a training lasts, in optimizer steps, and when it may end early. Imports no torch, so that ``-h`` is instant."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from snl_runtime.errors import ConfigError
from snl_train.config_checks import check

DEFAULT_STEPS = 1000
"""Optimizer steps of a training that was given no budget."""
FEWEST_EPOCHS = 2
"""Fewest passes over the images of such a training, however many they are: from 4,000 images on (batches of 8) these are more steps."""
MOST_EPOCHS = 40
"""Most passes of such a training, however few its images are: below 200 images these are fewer steps. A student that has seen 20 images 200 times
knows them by heart, and is less accurate than after 40."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopConfig:
    """When a training ends before its budget: on a plateau of the validation loss, that of good images which it does not learn from."""

    patience: int = 0
    """Measurements in a row without an improvement that end the training; 0 never ends one early. Needs ``optim.schedule=constant`` and no
    ``optim.average_last_share``, because other schedules reach their small learning rates only at the end of the budget."""
    every_steps: int = 50
    """Optimizer steps between two measurements."""
    min_improvement: float = 0.01
    """Share of the lowest loss so far by which a measurement must be below it to count as an improvement."""
    share: float = 0.1
    """Share of each product's training images that the student does not learn from and the loss is measured on; with a memory they are those of
    ``memory.normalization_share`` instead."""

    def __post_init__(self) -> None:
        check("early_stop.patience", self.patience, "0 or more", self.patience >= 0)
        check("early_stop.every_steps", self.every_steps, "1 or more", self.every_steps >= 1)
        check("early_stop.min_improvement", self.min_improvement, "in [0, 1)", 0 <= self.min_improvement < 1)
        check("early_stop.share", self.share, "in (0, 1)", 0 < self.share < 1)


def total_steps(*, steps: int | None, epochs: int | None, batches_per_epoch: int) -> int:
    """Return the optimizer steps of a training; without a budget ``DEFAULT_STEPS``, but ``FEWEST_EPOCHS`` to ``MOST_EPOCHS`` epochs.

    >>> total_steps(steps=None, epochs=8, batches_per_epoch=23)
    184
    >>> [total_steps(steps=None, epochs=None, batches_per_epoch=-(-images // 8)) for images in (20, 1200, 20_000)]
    [120, 1000, 5000]
    """
    if steps is not None:
        return steps
    if epochs is not None:
        return epochs * batches_per_epoch
    return min(max(DEFAULT_STEPS, FEWEST_EPOCHS * batches_per_epoch), MOST_EPOCHS * batches_per_epoch)


def with_one_budget(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return settings that replace others, where a budget in steps also takes back one in epochs, and the reverse."""
    given = dict(overrides)
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if given.get(name) is not None:
            given.setdefault(other, None)
    return given


def check_budget(steps: int | None, epochs: int | None) -> None:
    """Refuse two budgets, or an empty one.

    Raises:
        ConfigError: If both are given, or one is below 1.
    """
    for name, value in (("steps", steps), ("epochs", epochs)):
        check(name, value, "1 or more", value is None or value >= 1)
    if steps is not None and epochs is not None:
        raise ConfigError(f"steps and epochs are two budgets for one training, got {steps} and {epochs}; give one of them")


class Plateau:
    """Watches one loss and says when it has stopped falling.

    Attributes:
        best_loss: Lowest loss that counted as an improvement; infinite before the first.
        best_step: Its step.
        last_loss: Loss of the last measurement.

    Example:
        >>> plateau = Plateau(EarlyStopConfig(patience=2, min_improvement=0.1))
        >>> [plateau.add(step, loss) for step, loss in enumerate([1.0, 0.8, 0.75, 0.7, 0.69, 0.68])]
        [False, False, False, False, False, True]
    """

    def __init__(self, config: EarlyStopConfig) -> None:
        self._config = config
        self.best_loss = self.last_loss = math.inf
        self.best_step = 0
        self._without = 0

    def is_due(self, step: int) -> bool:
        """Return whether the loss is to be measured after this step, counted from 1."""
        return self._config.patience > 0 and step % self._config.every_steps == 0

    def add(self, step: int, loss: float) -> bool:
        """Take in the loss after a step and return whether the training should end."""
        self.last_loss = loss
        if loss < self.best_loss * (1 - self._config.min_improvement):
            self.best_loss, self.best_step, self._without = loss, step, 0
        else:
            self._without += 1
        return self._without >= self._config.patience

    def facts(self, step: int) -> dict[str, float]:
        """Return for a reader why a training ended after this step."""
        return {"step": step, "loss": self.last_loss, "best_step": self.best_step, "best_loss": self.best_loss}

    def state_dict(self) -> dict[str, float]:
        """Return what :meth:`load_state_dict` continues from."""
        return {"best_loss": self.best_loss, "last_loss": self.last_loss, "best_step": self.best_step, "without": self._without}

    def load_state_dict(self, stored: Mapping[str, float]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.best_loss, self.last_loss = float(stored["best_loss"]), float(stored["last_loss"])
        self.best_step, self._without = int(stored["best_step"]), int(stored["without"])
