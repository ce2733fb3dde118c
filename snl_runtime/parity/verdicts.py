"""What a gate makes of verdicts: whether the subject would rule otherwise than its reference, and what the guard band costs."""

from collections.abc import Sequence
from typing import NamedTuple

from snl_runtime.model.guard_band import tightened
from snl_runtime.model.manifest import Decision
from snl_runtime.model.normalization_files import Normalizations, normalization_of
from snl_runtime.types import AnomalyMap, Verdict
from snl_runtime.verdict.decision import compare_with_thresholds

_STRICTNESS = (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR)


class Guard(NamedTuple):
    """What a parity report says of the guard band, see :class:`snl_runtime.model.manifest_records.ParityReport`."""

    band: float | None
    more_lenient: int = 0
    passed_by_reference: int = 0
    refused: int = 0


class _Scores(NamedTuple):
    """What the line compares: the graph's score and the peak of its map, or twice the peak of the normalized map."""

    score: float
    peak: float


class VerdictPairs:
    """Verdicts of reference and subject, frame by frame, under each of some decisions.

    Args:
        decisions: Thresholds of the reference; those on tiles are left out, because frames are compared as a whole and no engine inherits them.
        normalizations: Their normalization maps, by hash: a frame is judged under each decision's own, as on the line.

    Raises:
        ManifestError: If the normalization map of a decision is not among ``normalizations``.
    """

    def __init__(self, decisions: Sequence[Decision], normalizations: Normalizations) -> None:
        self._decisions = [(decision, normalization_of(decision, normalizations)) for decision in decisions if decision.tiles is None]
        self._judged: list[list[tuple[_Scores, _Scores]]] = [[] for _ in self._decisions]
        self._guard_band = 0.0

    def add(self, scores: tuple[float, float], maps: tuple[AnomalyMap, AnomalyMap]) -> None:
        """Take a frame into account: score and float32 map of the reference, and those of the subject."""
        reference, subject = (_Scores(score, float(values.max())) for score, values in zip(scores, maps))
        self._guard_band = max(self._guard_band, *(abs(of(reference) - of(subject)) for of in (min, max)))
        for judged, (_, normalization) in zip(self._judged, self._decisions):
            if normalization is None:
                judged.append((reference, subject))
            else:
                before, after = (normalization.peak(values) for values in maps)
                judged.append((_Scores(before, before), _Scores(after, after)))

    def flips(self) -> int:
        """Return how many frames change between PASS and REJECT at the thresholds as they are."""
        flipped: set[int] = set()
        for judged, (decision, _) in zip(self._judged, self._decisions):
            verdicts = ({_verdict(scores, decision) for scores in pair} for pair in judged)
            flipped.update(index for index, both in enumerate(verdicts) if both == {Verdict.PASS, Verdict.REJECT})
        return len(flipped)

    def guard(self, map_max_abs: float) -> Guard:
        """Return what comes of judging both sides as the line will, the subject under tightened thresholds.

        Args:
            map_max_abs: Largest difference of a map value over the frames.
        """
        more_lenient = passed = refused = 0
        for judged, (decision, _) in zip(self._judged, self._decisions):
            inherited = tightened(decision, guard_band=self._guard_band, map_max_abs=map_max_abs)
            for reference, subject in judged:
                expected = _verdict(reference, decision)
                actual = Verdict.ERROR if inherited is None else _verdict(subject, inherited)
                more_lenient += _STRICTNESS.index(actual) < _STRICTNESS.index(expected)
                passed += expected is Verdict.PASS
                refused += expected is Verdict.PASS and actual is not Verdict.PASS
        return Guard(band=self._guard_band, more_lenient=more_lenient, passed_by_reference=passed, refused=refused)


def _verdict(scores: _Scores, decision: Decision) -> Verdict:
    return compare_with_thresholds(scores.score, scores.peak, decision).verdict
