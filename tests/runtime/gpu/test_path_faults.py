"""No failure of any call on the device, no spoiled output and no silent kernel makes the detector pass a part, and the line recovers.

The GPU is one in NumPy; its kernels are the real ones, compiled for the CPU.
"""

import numpy as np
import pytest

from snl_runtime.errors import BackendError
from snl_runtime.gpu.kernels import KERNEL_NAMES
from snl_runtime.types import Verdict

pytestmark = pytest.mark.parametrize("kernels", ["separate"], indirect=True)

ENGINES = ("onnxruntime", "tensorrt")


def stale(score, anomaly_map):
    anomaly_map[...] = score[...] = np.frombuffer(b"\xff" * 4, np.float32)[0]  # what the context filled in before the run


def one_nan(score, anomaly_map):
    anomaly_map[0, 0, 5, 5] = np.nan


def infinite(score, anomaly_map):
    anomaly_map[0, 0, 5, 5] = score[0] = np.inf


def nan_score(score, anomaly_map):
    score[0] = np.nan


def lower_score(score, anomaly_map):
    score[0] -= 0.5


def zero(score, anomaly_map):
    anomaly_map[...] = score[...] = 0


SPOILERS = {
    stale: "output_not_finite",
    one_nan: "output_not_finite",
    infinite: "output_not_finite",
    nan_score: "output_not_finite",
    lower_score: "output_inconsistent",
    zero: "below_floor",
}


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_unusable_output_on_the_device_is_an_error(open_on, frames, spoil, keep_maps, device_detector):
    detector = open_on("onnxruntime", keep_maps=keep_maps)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    device_detector.Session.spoil = staticmethod(spoil)
    for _ in range(2):
        result = detector.detect(frames["odd good"][0])
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, SPOILERS[spoil])
    device_detector.Session.spoil = staticmethod(lambda score, anomaly_map: None)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS


@pytest.mark.parametrize("keep_maps", [True, False])
def test_engine_that_writes_nothing_gives_no_earlier_answer(open_on, fake, frames, keep_maps):
    detector = open_on("tensorrt", keep_maps=keep_maps)
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    fake.library.stale = True
    for _ in range(3):
        result = detector.detect(frames["odd good"][0])
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "output_not_finite")
        assert np.isnan(result.score)


@pytest.mark.parametrize("engine", ENGINES)
def test_device_that_takes_work_and_does_none_of_it_is_an_error(open_on, fake, frames, engine, device_detector):
    """As after a sticky fault that no call reports."""
    detector = open_on(engine)
    good = frames["odd good"][0]
    assert detector.detect(good).verdict is Verdict.PASS
    fake.broken.update(KERNEL_NAMES)
    assert device_detector.cause(detector.detect(good))[:2] == (Verdict.ERROR, "backend_error")
    fake.broken.clear()
    assert detector.detect(good).verdict is Verdict.PASS


@pytest.mark.parametrize("name", ["input_sums", "map_statistics"])
def test_kernel_that_stops_counting_is_an_error(open_on, fake, frames, name, device_detector):
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    fake.broken.add(name)
    assert device_detector.cause(detector.detect(frames["odd good"][0]))[:2] == (Verdict.ERROR, "backend_error")


def test_map_that_arrives_other_than_it_was_counted_is_an_error(open_on, fake, frames, monkeypatch):
    detector = open_on("tensorrt")
    assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
    copy = fake.copy_async
    map_bytes = 4 * 32 * 32

    def lossy(destination, source, byte_count, kind, stream):
        copy(destination, source, byte_count // 2 if (kind, byte_count) == ("device_to_host", map_bytes) else byte_count, kind, stream)

    monkeypatch.setattr(fake, "copy_async", lossy)
    result = detector.detect(frames["odd bad"][0])
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, "backend_error")
    assert "what arrived is" in result.reason


RUNNING_CALLS = [
    *(("copy_async", after) for after in range(6)),
    *(("fill_async", after) for after in range(5)),
    *(("launch_kernel", after) for after in range(9)),
    ("synchronize_stream", 0),
    ("synchronize_stream", 1),
    *(("allocate", after) for after in range(3)),
    ("allocate_pinned", 0),
    ("launch_graph", 0),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("failing", RUNNING_CALLS, ids=lambda value: f"{value[0]}-{value[1]}")
def test_failing_call_never_passes_a_part_and_the_line_recovers(open_on, fake, frames, engine, failing):
    detector = open_on(engine)
    good, bad, large = (frames[name][0] for name in ("odd good", "odd bad", "large"))
    assert [detector.detect(good).verdict for _ in range(3)] == [Verdict.PASS] * 3
    name, after = failing
    fake.calls.clear()
    fake.failing[name] = after
    during = [detector.detect(image) for image in (large, bad, large, bad)]
    if fake.failing[name] < 0:
        assert Verdict.ERROR in [result.verdict for result in during]
    for result in during:
        assert result.verdict in (Verdict.ERROR, Verdict.REJECT)
        assert result.reason_code in ("backend_error", "above_reject_threshold")
    fake.failing.clear()
    assert detector.detect(good).verdict is Verdict.PASS
    assert detector.detect(bad).verdict is Verdict.REJECT
    detector.close()
    assert fake.leaks == {}


OPENING_CALLS = ("load_module", "find_kernel", "create_stream", "allocate", "allocate_pinned", "copy_async", "launch_kernel", "synchronize_stream")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "failing", [(name, after) for name in OPENING_CALLS for after in (0, 1, 3, 6, 12)], ids=lambda value: f"{value[0]}-{value[1]}"
)
def test_call_that_fails_while_opening_is_an_error_or_leaves_the_host_path(open_on, fake, frames, engine, failing):
    fake.failing[failing[0]] = failing[1]
    try:
        detector = open_on(engine)
    except BackendError:
        fake.failing.clear()
    else:
        fake.failing.clear()
        assert detector.detect(frames["odd good"][0]).verdict is Verdict.PASS
        assert detector.detect(frames["odd bad"][0]).verdict is Verdict.REJECT
        detector.close()
    assert fake.leaks == {}
