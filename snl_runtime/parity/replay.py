"""Archived frames judged again: which verdicts and scores are the ones on record."""

import collections
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from snl_runtime.line.archived_frames import ArchivedFrame
from snl_runtime.types import AnomalyResult, ColorOrder, Verdict

NOT_OF_THE_FRAME = frozenset(
    {"timeout", "backend_busy", "backend_error", "internal_error", "golden_mismatch", "frame_fault", "deadline_missed", "record_late"}
)
"""Reason codes of ERRORs that came from the moment, not from the frame: another run need not repeat them."""

_STRICTNESS = [Verdict.PASS.value, Verdict.REVIEW.value, Verdict.REJECT.value, Verdict.ERROR.value]


class Outcome(enum.Enum):
    """What became of one archived frame."""

    EQUAL = "equal"
    """The same verdict."""
    WITHIN_GUARD_BAND = "within_guard_band"
    """A stricter verdict than the record's, as the guard band of an engine makes it for scores this close below a threshold."""
    DIFFERENT = "different"
    """Another verdict."""
    NOT_COMPARED = "not_compared"
    """The record's ERROR came from the moment, not from the frame."""


class Detector(Protocol):
    """What a replay needs of an ``SnlDetector``."""

    def detect(self, image: object, *, color: ColorOrder = "bgr", product: str | None = None, bit_depth: int | None = None) -> AnomalyResult:
        """Return the verdict on one frame."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One archived frame, before and now.

    Attributes:
        name: Name of the file.
        outcome: How the verdicts compare.
        product: Product that it was judged as.
        verdict_before: Verdict on record.
        verdict: Verdict now.
        reason_code_before: Reason on record; None if only the file's name told of it.
        reason_code: Reason now.
        score_before: Score on record; None if there is none.
        score: Score now; None if there is none.
        is_score_equal: Whether both are the same number, bit for bit, or both missing; None if the score on record is not known.
    """

    name: str
    outcome: Outcome
    product: str | None
    verdict_before: str
    verdict: str
    reason_code_before: str | None
    reason_code: str
    score_before: float | None
    score: float | None
    is_score_equal: bool | None


def replay_frame(detector: Detector, archived: ArchivedFrame, record: Mapping[str, Any], *, guard_band: float = 0.0) -> Replayed:
    """Judge one archived frame again and compare.

    Args:
        detector: Judges.
        archived: The frame.
        record: Its record, or what the file itself says of it.
        guard_band: Of the engine that judges, where the record is of the model that it was built from; 0 otherwise.
    """
    product = archived.product if archived.is_labeled else record.get("product")
    # A depth that the array itself shows need not be said, and a frame that was an ERROR because of it would be one for another reason.
    bit_depth = archived.bit_depth if archived.bit_depth in (10, 12, 14) else None
    result = detector.detect(archived.image, color=archived.color, product=product, bit_depth=bit_depth)
    score = float(result.score) if math.isfinite(result.score) else None
    return Replayed(
        name=archived.path.name,
        outcome=_outcome(record, result, guard_band),
        product=product,
        verdict_before=record["verdict"],
        verdict=result.verdict.value,
        reason_code_before=record.get("reason_code"),
        reason_code=result.reason_code,
        score_before=record.get("score"),
        score=score,
        is_score_equal=record["score"] == score if "score" in record else None,
    )


def counts_of(replayed: list[Replayed]) -> dict[str, int]:
    """Return how many frames there were, of each outcome, and how their scores compare.

    Only frames that were compared count for the scores.
    """
    outcomes = collections.Counter(each.outcome for each in replayed)
    compared = [each for each in replayed if each.outcome is not Outcome.NOT_COMPARED]
    scores = collections.Counter(each.is_score_equal for each in compared)
    return {
        "replayed": len(replayed),
        **{outcome.value: outcomes[outcome] for outcome in Outcome},
        "scores_equal": scores[True],
        "scores_different": scores[False],
        "scores_unknown": scores[None],
    }


def _outcome(record: Mapping[str, Any], result: AnomalyResult, guard_band: float) -> Outcome:
    if record.get("reason_code") in NOT_OF_THE_FRAME:
        return Outcome.NOT_COMPARED
    before, now = record["verdict"], result.verdict.value
    if before == now:
        return Outcome.EQUAL
    score = record.get("score")
    is_stricter = _STRICTNESS.index(now) > _STRICTNESS.index(before) and result.verdict is not Verdict.ERROR
    if guard_band > 0 and is_stricter and score is not None:
        # The score may lie a guard band higher here, and the threshold lies one lower.
        limits = [limit for limit in (record.get("threshold"), record.get("reject_threshold")) if limit is not None]
        if any(0 <= limit - score <= 2 * guard_band for limit in limits):
            return Outcome.WITHIN_GUARD_BAND
    return Outcome.DIFFERENT
