"""The soak sees growth of memory, threads and open files, and a station that stands still; small waves are no growth."""

import math

import pytest

from benchmarks.soak import SAMPLES, Sample, grown


def run(**growth):
    """Samples of a run in which each named value rises evenly by that much from start to end, on waves."""
    samples = []
    for number in range(SAMPLES):
        share = number / (SAMPLES - 1)
        values = {"memory_kib": 200_000 + 500 * math.sin(number), "threads": 32 + 2 * (number % 2), "files": 35 + number % 2, "rows": 10 * number}
        values |= {name: values[name] + round(total * share) for name, total in growth.items()}
        samples.append(Sample(at_s=number * 1.5, **{name: int(value) for name, value in values.items()}))
    return samples


def test_waves_are_no_growth():
    assert grown(run()) == []


@pytest.mark.parametrize(("name", "total"), [("memory_kib", 30_000), ("threads", 20), ("files", 20)])
def test_steady_growth_is_seen(name, total):
    (found,) = grown(run(**{name: total}))
    assert found.startswith(f"{name} grew from")


def test_station_that_stands_still_is_seen():
    still = [Sample(at_s=one.at_s, memory_kib=one.memory_kib, threads=one.threads, files=one.files, rows=7) for one in run()]
    assert grown(still) == ["no records were added: the station stood still"]
