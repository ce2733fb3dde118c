"""The comparison of an export with its checkpoint; :mod:`snl_runtime.parity` owns it, because engines are held to it too."""

from snl_runtime.parity import LIMITS, ParityLimits, ParityMeter, ScoredFrame, compare, refuse_unless_passed

__all__ = ["LIMITS", "ParityLimits", "ParityMeter", "ScoredFrame", "compare", "refuse_unless_passed"]
