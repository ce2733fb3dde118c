"""One thread owns the device; a call that hangs costs its own timeout and nothing else."""

import signal
import threading

import pytest

from snl_runtime.detector.worker import BackendWorker
from snl_runtime.errors import BackendTimeoutError, DetectorClosedError

BOUND_S = 10.0


@pytest.fixture
def worker():
    worker = BackendWorker("test-backend")
    yield worker
    worker.stop(lambda: None, BOUND_S)


@pytest.fixture
def release():
    event = threading.Event()
    yield event
    event.set()


def test_every_call_runs_on_the_same_other_thread(worker):
    idents = {worker.call(threading.get_ident) for _ in range(3)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_values_and_errors_come_back_to_the_caller(worker):
    def fail():
        raise KeyError("lens")

    assert worker.call(lambda: 7, BOUND_S) == 7
    with pytest.raises(KeyError, match="lens"):
        worker.call(fail, BOUND_S)
    assert worker.call(lambda: 8, BOUND_S) == 8


def test_a_hung_call_times_out_and_the_worker_is_busy_until_it_returns(worker, release):
    with pytest.raises(BackendTimeoutError, match=r"within 0\.01 s"):
        worker.call(lambda: release.wait(BOUND_S), 0.01)
    assert worker.busy
    release.set()
    assert worker.call(lambda: "next", BOUND_S) == "next"
    assert not worker.busy


def test_stop_gives_up_on_a_hung_call_and_the_last_job_runs_when_it_returns(release, caplog):
    worker, closed = BackendWorker("test-backend"), threading.Event()
    with pytest.raises(BackendTimeoutError):
        worker.call(lambda: release.wait(BOUND_S), 0.01)
    assert not worker.stop(closed.set, 0.01)
    assert "stuck" in caplog.text
    assert not closed.is_set()
    release.set()
    assert closed.wait(BOUND_S)


def test_stop_runs_the_last_job_on_the_thread_once():
    worker, idents = BackendWorker("test-backend"), []
    owner = worker.call(threading.get_ident)
    assert worker.stop(lambda: idents.append(threading.get_ident()), BOUND_S)
    assert worker.stop(lambda: idents.append(0), BOUND_S)
    assert idents == [owner]


def test_call_after_the_stop_is_refused_and_waits_for_nothing():
    worker = BackendWorker("test-backend")
    worker.stop(lambda: None, BOUND_S)
    with pytest.raises(DetectorClosedError):
        worker.call(lambda: 1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the timers of a POSIX system")
def test_handler_that_calls_within_a_call_never_waits_for_what_its_own_thread_holds(worker):
    """Many moments of one call; each is answered as the one before it, the call of the handler within it included."""
    inner = []
    before = signal.signal(signal.SIGALRM, lambda *_: inner.append(worker.call(lambda: 2, BOUND_S)))
    try:
        for number in range(400):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + number * 5e-7)
            assert worker.call(lambda: 1, BOUND_S) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(inner) == {2}


def test_an_error_of_the_last_job_reaches_the_caller():
    def fail():
        raise OSError("device lost")

    with pytest.raises(OSError, match="device lost"):
        BackendWorker("test-backend").stop(fail, BOUND_S)
