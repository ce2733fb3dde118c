"""A camera that fails, in each of its ways, under a running station: every trigger is answered in time, no answer is PASS for what was not seen."""

import signal
import threading

import pytest

from station_process import SHORT_FRAME_TIMEOUT

pytestmark = pytest.mark.station


def told_is_recorded(station, answers):
    """What the line was told about each trigger is what the record says, once."""
    recorded = [(one["trigger_id"], one["verdict"]) for one in station.rows()]
    for answer in answers:
        assert recorded.count((answer.trigger_id, answer.verdict)) == 1
    assert len({trigger_id for trigger_id, _ in recorded}) == len(recorded)


def inspect_until_fault(plc, most=8):
    """Trigger until the station faults; return the answers."""
    answers = []
    while not plc.look().fault:
        assert len(answers) < most, "no fault came"
        if plc.trigger():
            answers.append(plc.answer())
    return answers


def test_camera_unplugged(line, camera, network):
    station, plc = line(network, trigger=SHORT_FRAME_TIMEOUT)
    plc.inspect_until_pass()
    camera.kill()
    answers = inspect_until_fault(plc)
    # The first triggers may still see images that were on their way when the camera went.
    assert all(answer.verdict in ("PASS", "ERROR") for answer in answers)
    plc.wait(lambda view: view.fault and not view.accept and not view.busy, "the fault without an accept")
    assert not plc.trigger(), "no trigger is taken in a fault"
    assert [one.verdict for one in answers].count("ERROR") >= 1
    camera.start()
    plc.inspect_until_pass()
    told_is_recorded(station, answers)


def test_camera_stalled(line, camera, network):
    station, plc = line(network, trigger=SHORT_FRAME_TIMEOUT)
    plc.inspect_until_pass()
    camera.pause()
    answers = inspect_until_fault(plc)
    assert answers[-1].verdict == "ERROR"
    camera.resume()
    plc.inspect_until_pass()
    told_is_recorded(station, answers)


def test_camera_slow(line, camera, network):
    network["camera"] |= {"read_timeout_s": 15.0, "stall_timeout_s": 30.0}
    station, plc = line(network, trigger=SHORT_FRAME_TIMEOUT)
    plc.inspect_until_pass()
    camera.tell("every 8")
    answers = inspect_until_fault(plc, most=20)
    late = [answer for answer in answers if answer.verdict == "ERROR"]
    assert len(late) >= 5, "five frames in a row that did not come in time are a fault"
    assert {one["reason_code"] for one in station.rows() if one["verdict"] == "ERROR"} == {"frame_fault"}
    camera.tell("every 0.02")
    plc.inspect_until_pass()
    told_is_recorded(station, answers)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_camera_corrupt(line, camera, network, damage):
    station, plc = line(network)
    assert plc.inspect().accept
    camera.tell(damage)
    answers = [plc.inspect()]
    while answers[-1].verdict == "PASS":  # images from before that were on their way
        assert len(answers) < 50
        answers.append(plc.inspect())
    for _ in range(3):
        if plc.look().fault:
            break
        answers.append(plc.inspect())
        assert answers[-1].verdict in ("ERROR", "REJECT")
        assert not answers[-1].accept
    camera.tell("good")
    plc.inspect_until_pass()
    told_is_recorded(station, answers)


def test_camera_of_another_size_mid_stream(line, camera, network):
    pytest.importorskip("av", reason="needs PyAV: pip install av")
    station, plc = line(network)
    assert plc.inspect().accept
    camera.tell("size 24 24")
    answers = [plc.inspect() for _ in range(12)]
    assert {answer.verdict for answer in answers[4:]} == {"ERROR"}
    assert {answer.reason for answer in answers[4:]} == {"frame_size"}
    camera.tell("good")
    plc.inspect_until_pass()
    told_is_recorded(station, answers)


def test_defects_are_still_seen_after_a_camera_came_back(line, camera, network):
    _, plc = line(network, trigger=SHORT_FRAME_TIMEOUT)
    plc.inspect_until_pass()
    camera.kill()
    inspect_until_fault(plc)
    camera.start()
    plc.inspect_until_pass()
    camera.tell("bad")
    answers = [plc.inspect() for _ in range(12)]
    assert "REJECT" in {answer.verdict for answer in answers[6:]}
    assert not any(answer.accept for answer in answers[6:]), "the first may be of images that were on their way"


def test_process_that_stood_still_never_judges_a_part_by_a_frame_from_before(line, camera, network):
    """The network keeps what the camera sent meanwhile: good parts first, then the bad one that lies there when the station goes on."""
    station, plc = line(network)
    for _ in range(20):
        assert plc.inspect().verdict == "PASS"
    station.process.send_signal(signal.SIGSTOP)
    pause = threading.Event()
    pause.wait(1.5)
    camera.tell("bad")
    pause.wait(1.5)
    station.process.send_signal(signal.SIGCONT)
    answers = [plc.answer() for _ in range(20) if plc.trigger()]
    assert answers
    assert "PASS" not in {answer.verdict for answer in answers}
    camera.tell("good")
    plc.inspect_until_pass()
    told_is_recorded(station, answers)
