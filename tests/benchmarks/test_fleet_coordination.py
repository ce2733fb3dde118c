"""The simulation of a driver and its workers agrees with what queueing says, and the sleeping worker answers as the real one does."""

import json

import numpy as np
import pytest

from benchmarks.fleet_coordination import QUICK_PARTS, SleepingInspector, _parts, formula, simulate


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("driver_s", [0.001, 0.02])
def test_workers_that_the_driver_can_feed_each_finish_one_part_per_part_and_handing_out(workers, driver_s):
    """Fewer workers than part_s / driver_s + 1: nobody waits, so each cycle takes a part and its handing out (a closed queue with fixed times)."""
    assert simulate(workers, 1.0, driver_s, 40 * workers) == pytest.approx(workers / (1.0 + driver_s), rel=0.05)


@pytest.mark.parametrize("workers", [200, 512])
def test_more_workers_than_the_driver_can_feed_finish_as_fast_as_it_hands_out(workers):
    assert simulate(workers, 1.0, 0.01, 20 * workers) == pytest.approx(100.0, rel=0.02)
    assert formula(workers, 1.0, 0.01) == pytest.approx(100.0)


def test_simulation_never_exceeds_the_formula():
    for workers in (1, 8, 64, 512):
        assert simulate(workers, 2.56, 0.004, 20 * workers) <= formula(workers, 2.56, 0.004) * 1.02


def test_sleeping_worker_answers_one_part_with_the_fields_that_the_driver_reads():
    (part, *_) = _parts(2)
    answer = SleepingInspector(60.0)({"part": np.array([json.dumps(part.to_plain())], object)})  # among the first: no sleep
    assert part.number < QUICK_PARTS
    assert (answer["number"].tolist(), answer["failure"].tolist()) == ([0], [""])
    assert json.loads(answer["counts"][0]) == {"PASS below_threshold": len(part.rows)}
