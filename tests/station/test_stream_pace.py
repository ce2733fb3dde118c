"""A gap that does not fit the usual intervals of a stream is a pause; a slow camera has none."""

import pytest

from snl_runtime.station.stream_pace import StreamPace


def pauses(gaps_s):
    """Which of the frames after these gaps come after a pause, by number; the camera is opened again after each, as its reader does."""
    pace, now_s, found = StreamPace(), 100.0, []
    pace.is_pause(round(now_s * 1e9))
    for number, gap_s in enumerate(gaps_s):
        now_s += gap_s
        if pace.is_pause(round(now_s * 1e9)):
            found.append(number)
            pace.restart()
    return found


@pytest.mark.parametrize(
    ("gaps_s", "expected"),
    [
        ([0.04] * 50, []),
        ([0.04] * 50 + [3.0] + [0.04] * 50, [50]),
        ([0.04] * 50 + [0.4] + [0.04] * 50, []),  # shorter than the least pause
        ([8.0] * 20, []),  # slow by nature
        ([0.5, 0.7, 0.6, 0.5, 1.9, 0.5], []),
        ([0.5, 0.5, 0.5, 0.5, 2.5], [4]),
        ([0.001] * 4 + [1.0] * 20, [4]),  # a burst after opening, then one frame a second
        (([0.001] * 4 + [1.0]) * 3, [4]),  # and so after each opening: it is not opened again and again
        ([0.04] * 50 + [3.0] + [0.04] * 50 + [3.0], [50, 101]),
        ([0.04, 0.04, 3.0], []),  # nothing usual is known yet
    ],
)
def test_pause_is_a_gap_that_does_not_fit(gaps_s, expected):
    assert pauses(gaps_s) == expected
