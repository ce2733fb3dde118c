"""Learning rate of the optimizer as a function of the step alone, so that a resumed training needs no state for it."""

import math

from snl_train.config import OptimConfig

_FIRST_SHARE = 1 / 25
_LAST_SHARE = 1e-4


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of optimizer step ``step`` of ``total_steps``, counted from 0.

    ``one-cycle`` rises from 1/25 of the peak along half a cosine over ``warmup_share`` of the steps, then falls likewise to 1/10000 of the peak;
    ``cosine`` only falls; ``constant`` stays.

    Example:
        >>> config = OptimConfig(learning_rate=1.0, schedule="one-cycle", warmup_share=0.5)
        >>> [round(learning_rate(step, 5, config), 3) for step in range(5)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if config.schedule == "constant":
        return config.learning_rate
    last = max(total_steps - 1, 1)
    peak = config.warmup_share * last if config.schedule == "one-cycle" else 0.0
    if step < peak:
        return config.learning_rate * _ease(_FIRST_SHARE, 1.0, step / peak)
    return config.learning_rate * _ease(1.0, _LAST_SHARE, min((step - peak) / (last - peak), 1.0))


def _ease(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
