"""A GPU holds the model once: the session that takes arrays of the host is there only where frames are prepared on the host."""

import gc

import pytest

from snl_runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from snl_runtime.backends.onnxruntime.session import open_session
from snl_runtime.errors import BackendUnavailableError
from snl_runtime.types import Verdict

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)


@pytest.fixture
def count_sessions(device_detector):
    def count():
        gc.collect()
        living = [type(found) for found in gc.get_objects()]  # not isinstance: it asks other packages' objects for their class, and torch's warn
        return living.count(device_detector.CudaSession), living.count(device_detector.Session)

    return count


def test_device_path_leaves_one_session(open_on, frames, count_sessions):
    detector = open_on("onnxruntime")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert count_sessions() == (0, 1)


def test_host_path_opens_its_session_again(open_on, frames, device_detector, count_sessions):
    def moved(score, anomaly_map):
        anomaly_map *= 1.1
        score *= 1.1

    device_detector.Session.spoil = staticmethod(moved)
    detector = open_on("onnxruntime")  # golden samples differ on the device, so the host prepares
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
    assert count_sessions()[0] == 1


def test_context_that_cannot_be_opened_leaves_the_host_path(open_on, frames, count_sessions, monkeypatch):
    def refuse(path, *, stream=None, **options):
        if stream is not None:
            raise BackendUnavailableError("onnxruntime could not start device 'cuda'")
        return open_session(path, stream=stream, **options)

    monkeypatch.setattr("snl_runtime.backends.onnxruntime.backend.open_session", refuse)
    detector = open_on("onnxruntime")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    assert count_sessions() == (1, 0)


def test_close_releases_both(fake, write_engine, count_sessions):
    backend = OnnxRuntimeBackend(write_engine().with_suffix(".onnx"), device="cuda")
    with backend.execution_context():
        pass
    assert count_sessions() == (0, 1)
    backend.close()
    assert count_sessions() == (0, 0)
    assert fake.leaks == {}
