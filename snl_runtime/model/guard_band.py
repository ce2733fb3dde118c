"""The guard band: an engine that inherits a decision from its model never passes what the model would not.

A parity report measures how far an engine's scores lie from its model's. Thresholds are lowered by that much and the floor is raised by it, so that
a score of the engine on the one side of a tightened threshold has a score of the model on the same side of the original one.
"""

import dataclasses
import enum
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snl_runtime.model.manifest import Decision
    from snl_runtime.model.manifest_records import ParityReport

_NORMALIZATION_ROUNDING = 2.0**-22
"""Bound, relative to the score, on what the two products of a normalized score round off: 2^-24 each in float32, doubled to be safe."""


class NotInherited(enum.Enum):
    """Why an engine inherits neither what its model judges a product by, nor any decision from before that."""

    NO_ROOM = enum.auto()
    ON_TILES = enum.auto()


def inherited(decision: "Decision", *, guard_band: float, map_max_abs: float, engine_sha256: str) -> "Decision | NotInherited":
    """Return a decision on a model as it holds for the engine of this hash, see :func:`tightened`; none on tiles, which no parity report looks at."""
    if decision.tiles is not None:
        return NotInherited.ON_TILES
    own = tightened(decision, guard_band=guard_band, map_max_abs=map_max_abs)
    return NotInherited.NO_ROOM if own is None else dataclasses.replace(own, model_sha256=engine_sha256)


def tightened(decision: "Decision", *, guard_band: float, map_max_abs: float) -> "Decision | None":
    """Return a decision on a model as it holds for an engine of it; None if its thresholds leave no room for the difference.

    Without a normalization map or ignore mask the score may differ by ``guard_band``. With one, the score is the largest value of map x factors, so
    it differs by no more than the largest factor times ``map_max_abs``, whatever the factors and whenever they were fitted; a mask's is 1.

    Args:
        decision: Fitted on the model.
        guard_band: Largest difference of a score between engine and model.
        map_max_abs: Largest difference of a map value.
    """
    band = guard_band
    if decision.map_files:
        band = (1.0 if decision.normalization is None else decision.normalization.highest) * map_max_abs
        band += _NORMALIZATION_ROUNDING * decision.reject_threshold if band else 0.0
    is_usable = decision.floor > 0 and decision.reject_threshold < math.inf
    if band == 0 or not is_usable:  # to raise a floor of 0 would make a decision valid that is not
        return decision
    # One step further each: the differences that were measured and the sums here are rounded too.
    band = math.nextafter(band, math.inf)
    floor = math.nextafter(decision.floor + band, math.inf)
    pass_threshold, reject_threshold = (math.nextafter(value - band, -math.inf) for value in (decision.pass_threshold, decision.reject_threshold))
    if not floor <= pass_threshold:
        return None
    # The engine's scores are not those of the sample: a test against them would find the engine, not a drift.
    reference = None if decision.reference is None else dataclasses.replace(decision.reference, scores=[])
    return dataclasses.replace(decision, floor=floor, pass_threshold=pass_threshold, reject_threshold=reject_threshold, reference=reference)


def guard_text(report: "ParityReport") -> str:
    """Return what the guard band is and costs, as the end of a sentence; empty for a file that inherits no decision."""
    if report.guard_band is None:
        return ""
    cost = f"{report.refused_by_guard_band} of {report.passed_by_reference} verdicts PASS of the model are not PASS under it"
    return f", the guard band is {report.guard_band:.3g}, {cost if report.passed_by_reference else 'no frame passes on the model'}"
