"""Verdicts with their causes: the codes that a result can carry."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from snl_runtime.types import Verdict

REASON_CODES: Mapping[str, str] = MappingProxyType(
    {
        "below_threshold": "the score is at most the pass threshold and every check passed",
        "above_pass_threshold": "the score is above the pass threshold and at most the reject threshold",
        "above_reject_threshold": "the score is above the reject threshold",
        "frame_unusable": "the frame is missing or has the wrong type, shape or channels",
        "frame_flat": "the frame shows nothing: deviation below 2 gray levels",
        "frame_size": "the frame has another size than the product was calibrated on",
        "frame_bit_depth": "the frame has another bit depth than the product was calibrated on, or a value above it",
        "frame_color_order": "the frame's red and blue look swapped",
        "frame_out_of_range": "the frame is outside the qualified input range",
        "no_manifest": "the model has no manifest",
        "no_golden_check": "no golden sample was scored in this process",
        "golden_mismatch": "the golden samples scored differently in a self-test, or after a failure of the backend",
        "no_decision": "the model was never calibrated",
        "no_threshold_for_engine": "the calibration belongs to another file",
        "guard_band_too_wide": "the engine differs from its model by more than the thresholds of the decision leave room for",
        "unknown_product": "no decision exists for the product",
        "ambiguous_product": "no frame can be read for all calibrated products alike, and none was named",
        "decision_invalid": "the thresholds or dates of the decision make no sense",
        "decision_expired": "the decision is no longer valid",
        "clock_before_fit": "the clock is earlier than the calibration",
        "output_not_finite": "the score or the map is missing, NaN or infinite",
        "output_inconsistent": "the score is not the maximum of the map",
        "no_normalization_map": "the decision needs a normalization map or an ignore mask that was not applied",
        "below_floor": "the score is lower than any good part can give",
        "backend_error": "the backend failed",
        "timeout": "the backend did not answer in time",
        "backend_busy": "an earlier call has not come back from the backend",
        "internal_error": "a bug in this package; the log has the traceback",
    }
)
"""Every ``reason_code`` that a result can carry, with its meaning; codes are stable across releases."""

NAME_THE_PRODUCT = "name the product (--product, or product= of detect)"
"""What to do where several products are calibrated and a frame names none."""


class Ruling(NamedTuple):
    """A verdict with its cause; compares equal to the plain tuple."""

    verdict: Verdict
    reason_code: str
    reason: str


def error(reason_code: str, reason: str) -> Ruling:
    """Return an ERROR ruling."""
    return Ruling(Verdict.ERROR, reason_code, reason)
