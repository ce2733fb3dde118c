"""What the tests of the sources share: reading a source on a thread of its own, with every wait bounded."""

import queue
import threading
import time

import pytest

WAIT_S = 20.0


class Reader:
    """Enters a source, reads its frames and leaves it, all on one thread, as the pipeline does."""

    def __init__(self, source):
        self.source = source
        self.frames = []
        self.failure = None
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.entered = threading.Event()
        self.arrived = queue.Queue()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self):
        try:
            with self.source as source:
                self.entered.set()
                for frame in source.frames(self.stop):
                    self.frames.append(frame)
                    self.arrived.put(frame)
        except BaseException as failure:  # noqa: BLE001 - the test raises it in its own thread
            self.failure = failure
        finally:
            self.entered.set()
            self.ended.set()

    def next(self, wait_s=WAIT_S):
        """The next frame; raises queue.Empty if none comes."""
        return self.arrived.get(timeout=wait_s)

    def until(self, condition, wait_s=WAIT_S):
        """The first frame from now on for which the condition holds."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            frame = self.next(wait_s)
            if condition(frame):
                return frame
        raise AssertionError(f"no such frame came within {wait_s:g} s")

    def finish(self, wait_s=WAIT_S):
        """Stop, wait until the source is left, and return all frames."""
        self.stop.set()
        assert self.ended.wait(wait_s), "the source did not notice stop in time"
        if self.failure is not None:
            raise self.failure
        return self.frames


@pytest.fixture
def read():
    """Start reading a source; whatever still reads at the end of the test is stopped."""
    readers = []

    def start(source):
        reader = Reader(source)
        readers.append(reader)
        reader.thread.start()
        assert reader.entered.wait(WAIT_S)
        return reader

    yield start
    for reader in readers:
        reader.stop.set()
    for reader in readers:
        assert reader.ended.wait(WAIT_S)
