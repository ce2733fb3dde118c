"""Memory is what the operating system and the driver state, and a figure that nobody states is None."""

import sys

import pytest

from snl_runtime.bench import memory
from snl_runtime.errors import BackendUnavailableError


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_resident_memory_is_at_most_the_peak():
    found = memory.process_memory()
    assert 0 < found.resident_bytes <= found.peak_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name:\tpython\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\n", memory.ProcessMemory(resident_bytes=204_800, peak_bytes=307_200)),
        ("Name:\tpython\nVmRSS:\t     200 kB\n", None),
        ("", None),
    ],
)
def test_status_of_the_process_is_read_in_units_of_1024_bytes(tmp_path, monkeypatch, text, expected):
    status = tmp_path / "status"
    status.write_text(text, encoding="ascii")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert memory.process_memory() == expected


def test_system_without_a_status_file_states_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert memory.process_memory() is None


class Closing:
    """A detector that holds a buffer on the GPU until it is closed."""

    def __init__(self, cuda, device, byte_count=0):
        self.device, self._cuda, self.closed = device, cuda, 0
        self._address = cuda.allocate(byte_count) if byte_count else None

    def close(self):
        self.closed += 1
        if self._address is not None:
            self._cuda.free(self._address)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:0 (Fake RTX 4070, SM89, driver for CUDA 12.8)"])
def test_bytes_on_the_device_are_those_that_closing_frees(cuda, monkeypatch, device):
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    detector = Closing(cuda, device, 12_345)
    assert memory.close_and_count_device_bytes(detector) == 12_345
    assert detector.closed == 1


def test_detector_on_the_host_is_closed_and_has_no_figure(cuda, monkeypatch):
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    detector = Closing(cuda, "cpu")
    assert memory.close_and_count_device_bytes(detector) is None
    assert (detector.closed, cuda.calls) == (1, [])


def test_detector_is_closed_where_cuda_cannot_be_asked(cuda, monkeypatch):
    def missing():
        raise BackendUnavailableError("no bindings")

    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", missing)
    detector = Closing(cuda, "cuda:0")
    assert memory.close_and_count_device_bytes(detector) is None
    assert detector.closed == 1
