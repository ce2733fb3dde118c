"""A GenICam camera gives each frame once or a fault, on pylon's own camera emulator: real driver, real buffers, no hardware."""

import importlib.util
import threading

import numpy as np
import pytest

from snl_runtime.errors import SourceError, SourceOpenError, SourceStalledError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import TriggerableSource
from snl_runtime.line.sources.genicam import GenicamConfig, GenicamSource
from snl_runtime.line.sources.genicam_device import load_pylon

pytestmark = [
    pytest.mark.station,
    pytest.mark.skipif(importlib.util.find_spec("pypylon") is None, reason="needs pypylon: pip install 'snl-edge[genicam]'"),
]

FIRST, SECOND = "0815-0000", "0815-0001"
SMALL = {"Width": 64, "Height": 48, "AcquisitionFrameRateEnable": True, "AcquisitionFrameRate": 200.0}


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    monkeypatch.setenv("PYLON_CAMEMU", "2")


def config_of(**values):
    return GenicamConfig(**({"serial": FIRST, "features": SMALL, "frame_timeout_s": 2.0} | values))


def camera_of(source):
    """pylon's object inside, to make the emulator misbehave."""
    return source._opened.camera


def node(source, name):
    return camera_of(source).GetNodeMap().GetNode(name)


def take(source, count):
    stop = threading.Event()
    frames = []
    for frame in source.frames(stop):
        frames.append(frame)
        if len(frames) == count:
            stop.set()
    return frames


def steal(source, count):
    """Take buffers out of the driver behind the source's back: what it sees is a gap in the camera's own numbers."""
    for _ in range(count):
        result = camera_of(source).RetrieveResult(2000)
        assert result.GrabSucceeded()
        result.Release()


def test_frames_carry_the_cameras_own_numbers_and_its_serial():
    with GenicamSource(config_of(policy="every"), product="bottle") as source:
        frames = take(source, 5)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.device_frame_id for frame in frames] == [0, 1, 2, 3, 4]
    assert {(frame.source_id, frame.color, frame.image.shape, frame.image.dtype.name, frame.product) for frame in frames} == {
        (f"genicam {FIRST}", "gray", (48, 64), "uint8", "bottle")
    }
    assert len({frame.image.tobytes() for frame in frames}) == 5, "each image outlives the driver's buffer, which is used again"


def test_gap_in_the_cameras_numbers_is_a_fault_frame_for_each_lost_part():
    with GenicamSource(config_of(policy="every")) as source:
        frames = source.frames(threading.Event())
        first = next(frames)
        steal(source, 3)
        then = [next(frames) for _ in range(5)]
    assert first.device_frame_id == 0
    assert [frame.device_frame_id for frame in then] == [1, 2, 3, 4, 5]
    assert [frame.fault is not None for frame in then] == [True, True, True, False, False]
    assert then[0].fault == f"genicam {FIRST} lost frame 1; it never came"
    assert source.counters.frames_missing == source.counters.frames_faulty == 3


def test_long_gap_is_one_fault_frame_and_fully_counted():
    with GenicamSource(config_of(policy="every", features=SMALL | {"AcquisitionFrameRate": 1000.0})) as source:
        frames = source.frames(threading.Event())
        next(frames)
        steal(source, 101)
        lost, after = next(frames), next(frames)
    assert "lost 101 frames before frame 102" in lost.fault
    assert after.device_frame_id == 102
    assert source.counters.frames_missing == 101


def test_latest_skips_what_was_not_fetched_and_counts_it_as_skipped_not_as_missing():
    with GenicamSource(config_of()) as source:
        assert source.policy is OverflowPolicy.LATEST
        frames = source.frames(threading.Event())
        first = next(frames)
        camera = camera_of(source)
        waited = load_pylon().WaitObject.Sleep  # the driver's own clock: let the emulator run on for 200 ms
        waited(200)
        second = next(frames)
        assert camera.IsGrabbing()
    skipped = second.device_frame_id - first.device_frame_id - 1
    assert skipped > 0
    assert source.counters.frames_skipped == skipped
    assert source.counters.frames_missing == source.counters.frames_faulty == 0
    assert [first.index, second.index] == [0, 1]


def test_damaged_buffer_is_a_fault_frame_and_never_an_image():
    with GenicamSource(config_of(policy="every")) as source:
        frames = source.frames(threading.Event())
        next(frames)
        node(source, "ForceFailedBufferCount").Value = 2
        node(source, "ForceFailedBuffer").Execute()
        seen = []
        while len([frame for frame in seen if frame.fault]) < 2 or seen[-1].fault:
            seen.append(next(frames))
            assert len(seen) < 100
    faults = [frame for frame in seen if frame.fault]
    assert len(faults) == 2
    assert all(frame.image is None and "sent a damaged frame: The buffer was incompletely grabbed" in frame.fault for frame in faults)
    assert source.counters.frames_faulty == 2
    assert [frame.device_frame_id for frame in seen] == list(range(1, len(seen) + 1)), "none skipped, none replaced"


def test_software_trigger_gives_one_frame_each_dated_after_its_trigger(read):
    source = GenicamSource(config_of(trigger="software"))
    assert isinstance(source, TriggerableSource)
    assert source.policy is OverflowPolicy.EVERY
    reader = read(source)
    pairs = [(source.trigger(), reader.next()) for _ in range(3)]
    frames = reader.finish()
    assert len(frames) == 3, "no frame without a trigger"
    assert all(frame.fault is None and frame.captured_ns >= answers_from_ns for answers_from_ns, frame in pairs)
    assert source.counters.frames_faulty == 0


def test_trigger_without_an_image_in_time_is_a_fault_frame_and_the_next_one_works():
    with GenicamSource(config_of(trigger="software", frame_timeout_s=0.3)) as source:
        frames = source.frames(threading.Event())
        source.trigger()
        steal(source, 1)
        missed = next(frames)
        answers_from_ns = source.trigger()
        frame = next(frames)
    assert missed.image is None
    assert "no image" in missed.fault
    assert "within 0.3 s of the software trigger" in missed.fault
    assert frame.fault is None
    assert frame.captured_ns >= answers_from_ns > missed.captured_ns
    assert source.counters.frames_missing == source.counters.frames_faulty == 1


def test_image_that_is_late_never_answers_the_next_trigger():
    with GenicamSource(config_of(trigger="software")) as source:
        frames = source.frames(threading.Event())
        source.trigger()
        assert next(frames).device_frame_id == 0
        source.trigger()
        assert camera_of(source).GetGrabResultWaitObject().Wait(2000), "the driver holds the image of this trigger"
        answers_from_ns = source.trigger()
        frame = next(frames)
        source.trigger()
        after = next(frames)
    assert frame.fault is None
    assert frame.captured_ns >= answers_from_ns
    assert frame.device_frame_id == 0, "acquisition was restarted, so that the camera counts anew; the late image would be number 1"
    assert after.device_frame_id == 1
    assert source.counters.frames_missing == 1


def test_camera_that_is_not_ready_refuses_the_trigger_and_takes_the_next(read):
    source = GenicamSource(config_of(trigger="software", frame_timeout_s=0.3))
    reader = read(source)
    node(source, "AcquisitionStop").Execute()
    with pytest.raises(SourceError, match="was not ready for a trigger within 0.3 s"):
        source.trigger()
    source.trigger()
    assert reader.next().fault is None


def test_image_that_nobody_triggered_is_a_fault(read):
    source = GenicamSource(config_of(trigger="software"))
    reader = read(source)
    assert camera_of(source).WaitForFrameTriggerReady(2000, load_pylon().TimeoutHandling_Return)
    camera_of(source).ExecuteSoftwareTrigger()
    frame = reader.next()
    assert frame.image is None
    assert "sent an image without a trigger" in frame.fault


def test_hardware_trigger_waits_in_silence_and_stop_ends_it(read):
    source = GenicamSource(config_of(trigger="hardware", trigger_line="Line1", frame_timeout_s=0.1, stall_timeout_s=0.3))
    reader = read(source)
    assert not reader.ended.wait(1.0), "silence is no fault: no part came"
    assert node(source, "TriggerSource").Value == "Line1"
    assert node(source, "TriggerActivation").Value == "RisingEdge"
    with pytest.raises(SourceError, match="takes no software trigger"):
        source.trigger()
    assert reader.finish(2.0) == []
    assert source.counters.reconnects == 0


def test_hardware_triggered_frames_are_each_a_part(read):
    """The emulator has no wires, so its software trigger stands for the line."""
    source = GenicamSource(config_of(trigger="hardware", trigger_line="Software"))
    reader = read(source)
    for number in range(3):
        assert camera_of(source).WaitForFrameTriggerReady(2000, load_pylon().TimeoutHandling_Return)
        camera_of(source).ExecuteSoftwareTrigger()
        assert reader.next().device_frame_id == number


def test_free_running_camera_that_falls_silent_is_opened_again_and_then_given_up(read):
    silent = SMALL | {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Line1"}
    source = GenicamSource(config_of(features=silent, frame_timeout_s=0.2, stall_timeout_s=2.5))
    reader = read(source)
    assert reader.ended.wait(20)
    with pytest.raises(SourceStalledError, match=rf"no frame from genicam {FIRST} for 2.5 s"):
        reader.finish()
    assert source.counters.reconnects >= 1


def test_removed_camera_is_found_again_by_its_serial_number(read, monkeypatch):
    """The emulator's plug-and-play callback tells pylon that the device is gone; while none is emulated, opening fails as without a cable."""
    source = GenicamSource(GenicamConfig(index=1, features=SMALL, policy="every"))
    reader = read(source)
    assert reader.next().fault is None
    monkeypatch.setenv("PYLON_CAMEMU", "0")
    node(source, "FirePnPCallback").Execute()
    lost = reader.until(lambda frame: frame.fault)
    assert lost.image is None
    assert f"lost the connection to genicam {SECOND}" in lost.fault
    while source.counters.reconnects < 2:
        assert not reader.ended.wait(0.02)
    monkeypatch.setenv("PYLON_CAMEMU", "2")
    back = reader.next()
    frames = reader.finish()
    assert back.source_id == f"genicam {SECOND}"
    assert [frame.index for frame in frames] == list(range(len(frames))), "numbers go on"
    assert source.counters.frames_faulty == 1


def test_camera_that_stays_away_is_given_up_in_time(read, monkeypatch):
    source = GenicamSource(config_of(trigger="software", stall_timeout_s=1.0))
    reader = read(source)
    monkeypatch.setenv("PYLON_CAMEMU", "0")
    node(source, "FirePnPCallback").Execute()
    assert reader.until(lambda frame: frame.fault).image is None
    with pytest.raises(SourceError, match="is not connected"):
        source.trigger()
    assert reader.ended.wait(15)
    with pytest.raises(SourceStalledError, match="for 1 s"):
        reader.finish()


def test_frozen_camera_is_a_fault(read):
    still = SMALL | {"TestImageSelector": "Testimage1"}
    source = GenicamSource(config_of(features=still, policy="every", frozen_after=3))
    reader = read(source)
    frames = [reader.next() for _ in range(5)]
    assert [frame.fault is not None for frame in frames] == [False, False, True, True, True]
    assert frames[2].fault.startswith("frozen camera:")


@pytest.mark.parametrize(
    ("name", "color", "shape", "dtype"),
    [
        ("Mono8", "gray", (48, 64), "uint8"),
        ("Mono12", "gray", (48, 64), "uint16"),
        ("Mono16", "gray", (48, 64), "uint16"),
        ("BayerRG8", "bgr", (48, 64, 3), "uint8"),
        ("BayerGB12", "bgr", (48, 64, 3), "uint16"),
        ("BayerBG16", "bgr", (48, 64, 3), "uint16"),
        ("RGB8Packed", "rgb", (48, 64, 3), "uint8"),
        ("BGR8Packed", "bgr", (48, 64, 3), "uint8"),
    ],
)
def test_pixel_format_of_the_camera_decides_color_and_depth(name, color, shape, dtype):
    with GenicamSource(config_of(pixel_format=name)) as source:
        (frame,) = take(source, 1)
    assert (frame.fault, frame.color, frame.image.shape, frame.image.dtype.name) == (None, color, shape, dtype)


def test_twelve_bit_values_are_not_scaled():
    with GenicamSource(config_of(pixel_format="Mono12", features=SMALL | {"TestImageSelector": "Testimage1"})) as source:
        (frame,) = take(source, 1)
    assert 255 < frame.image.max() < 4096


@pytest.mark.parametrize(("values", "message"), [
    ({"serial": "1234"}, r"cannot find genicam 1234; check power, cable and network; found: Emulation 0815-0000, Emulation 0815-0001"),
    ({"serial": None, "index": 7}, "cannot find genicam 7"),
    ({"serial": None, "user_name": "left"}, "cannot find genicam left"),
    ({"serial": None}, "can be each of 2 cameras; name the serial number of one"),
    ({"exposure_us": 1e9}, r"refuses ExposureTime = 1000000000\.0: Value 1000000000\.000000 must be smaller"),
    ({"features": {"Nope": 1}}, "has no feature Nope"),
    ({"features": {"Width": "wide"}}, "refuses Width = wide"),
    ({"pixel_format": "Mono12p"}, "refuses PixelFormat = Mono12p"),
])  # fmt: skip
def test_camera_that_cannot_be_opened_as_asked_says_why(values, message):
    with pytest.raises(SourceOpenError, match=message):
        GenicamSource(config_of(**values)).__enter__()


def test_settings_reach_the_camera():
    with GenicamSource(config_of(exposure_us=1500.0, gain=2.0, pixel_format="Mono12", buffers=4)) as source:
        assert node(source, "ExposureTime").Value == 1500.0
        assert node(source, "Gain").Value == pytest.approx(2.0, abs=0.1)
        assert node(source, "PixelFormat").Value == "Mono12"
        assert camera_of(source).MaxNumBuffer.Value == 4


def test_leaving_closes_the_camera_also_when_it_is_gone():
    with GenicamSource(config_of()) as source:
        camera = camera_of(source)
        node(source, "FirePnPCallback").Execute()
    assert not camera.IsOpen()
    assert not camera.IsPylonDeviceAttached()


def test_packed_buffers_are_unpacked_by_pylon_and_colored_as_it_colors_them():
    """The emulator sends no packed formats, so a buffer is packed here by hand: 12 bits per value, low bits first (PFNC's Mono12p)."""
    from snl_runtime.line.sources.pixel_formats import decode, find_pixel_format

    pylon = load_pylon()
    values = np.arange(32, dtype=np.uint16).reshape(4, 8) * 131
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] & 255, pairs[:, 0] >> 8 | (pairs[:, 1] & 15) << 4, pairs[:, 1] >> 4], axis=1).astype(np.uint8).tobytes()
    image = pylon.PylonImage()
    image.AttachMemoryView(memoryview(packed), pylon.PixelType_Mono12p, 8, 4, 0)
    assert (decode(image.GetArray(), find_pixel_format("Mono12p")) == values).all()
