"""Checks of single settings, shared by the modules that declare them."""

import math

from snl_runtime.errors import ConfigError


def is_positive(value: float) -> bool:
    """Return whether a number is finite and above 0."""
    return math.isfinite(value) and value > 0


def check(name: str, value: object, expected: str, is_met: bool) -> None:  # the condition reads best last
    """Raise unless a setting is as expected.

    Raises:
        ConfigError: If it is not.
    """
    if not is_met:
        raise ConfigError(f"{name} must be {expected}, got {value}")
