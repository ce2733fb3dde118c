"""The golden samples scored once more on a backend that has been running: does it still compute what was evaluated?"""

import time

from snl_runtime.detector.worker import BackendWorker
from snl_runtime.errors import BackendError, GoldenSampleError
from snl_runtime.scorer import Scorer
from snl_runtime.types import DetectorState, SelfTestResult

_NO_SAMPLES = "the model has no golden samples; export it again with snl-export"


def run_self_test(scorer: Scorer, worker: BackendWorker, timeout_s: float) -> SelfTestResult:
    """Return how the golden samples compare; a failure of any kind makes the scorer distrust its backend.

    Args:
        scorer: What is tested. After an earlier failure its backend is opened again first.
        worker: The thread that owns it.
        timeout_s: How long all samples may take together.
    """
    started_s = time.perf_counter()
    reason, scored = "", True
    try:
        if not worker.call(lambda: _compare(scorer), timeout_s):
            reason, scored = _NO_SAMPLES, False
    except (GoldenSampleError, BackendError) as failure:
        scorer.distrust_backend()
        reason, scored = str(failure), isinstance(failure, GoldenSampleError)
    return SelfTestResult(
        passed=not reason,
        samples=scorer.golden_count,
        largest_difference=scorer.golden_difference if scored else None,
        tolerance=scorer.bundle.golden_tolerance,
        reason=reason,
        elapsed_ms=(time.perf_counter() - started_s) * 1e3,
    )


def _compare(scorer: Scorer) -> bool:
    if scorer.state is not DetectorState.FAILED:
        return scorer.check_golden_samples()
    scorer.recover()
    return scorer.golden_checked
