"""Progress is a redrawn bar on a terminal and plain lines every few seconds elsewhere, and never stops the work."""

import io

from snl_runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def test_log_gets_a_plain_line_every_five_seconds_and_one_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, unit="images", label="score", stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.now_s += 0.125
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines == [  # 8 images/s: the first line after 5 s = 40 images, then 80, then the end
        "score: 40/100 images, 40 %, 8 images/s, 0:08 left",
        "score: 80/100 images, 80 %, 8 images/s, 0:02 left",
        "score: 100/100 images, 100 %, 8 images/s",
    ]


def test_terminal_gets_one_redrawn_line_that_covers_the_longer_one_before():
    clock, stream = Clock(), Terminal()
    with Progress(2, unit="images", stream=stream, clock=clock) as progress:
        clock.now_s += 1
        progress.advance(loss=0.123456)
        clock.now_s += 1
        progress.advance(loss=1.0)
    first, second, last = stream.getvalue().split("\r")[1:]
    assert first == "[############............] 1/2 images, 50 %, 1 images/s, 0:01 left, loss 0.1235"
    assert len(second) == len(first)
    assert last.endswith("\n")
    assert "\n" not in first + second


def test_resumed_work_counts_only_new_items_for_the_rate():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, done=50, stream=stream, clock=clock) as progress:
        clock.now_s += 10
        progress.advance(20)
    assert "70/100 images, 70 %, 2 images/s" in stream.getvalue()


def test_unknown_total_shows_no_percentage():
    clock, stream = Clock(), io.StringIO()
    with Progress(None, unit="frames", stream=stream, clock=clock) as progress:
        clock.now_s += 2
        progress.advance(4)
    assert stream.getvalue() == "4 frames, 2 frames/s\n"


def test_closed_stderr_does_not_stop_the_work():
    clock, stream = Clock(), io.StringIO()
    with Progress(10, stream=stream, clock=clock) as progress:
        stream.close()
        clock.now_s += 10
        progress.advance(10)
    assert progress.done == 10
