"""Detector, disk, clock, memory and broker that fail under a running station: ERROR or a fault, never a verdict that is not on the disk."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from station_process import REPOSITORY, SHORT_DEADLINE, load_file, until

pytestmark = pytest.mark.station

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
MIB = 1 << 20


def recorded(station):
    return [(one["trigger_id"], one["verdict"], one["reason_code"]) for one in station.rows()]


def test_backend_that_raises(line, network, plugin):
    station, plc = line(network, model={"backend": "faulty"}, environment=plugin.environment)
    assert plc.inspect().accept
    plugin.mode("raise")
    answer = plc.inspect()
    assert (answer.verdict, answer.reason, answer.accept) == ("ERROR", "backend_error", False)
    plugin.mode("well")
    plc.inspect_until_pass()
    assert (answer.trigger_id, "ERROR", "backend_error") in recorded(station)


def test_backend_that_does_not_return(line, network, plugin):
    station, plc = line(network, model={"backend": "faulty"}, environment=plugin.environment, trigger=SHORT_DEADLINE)
    plc.inspect_until_pass()
    plugin.mode("hang")
    answer = plc.inspect()
    assert answer.verdict == "ERROR"
    assert answer.reason in ("deadline_missed", "record_late"), "the latter where a busy disk took longer than the margin"
    assert plc.wait(lambda view: view.fault, "the fault").accept is False
    assert not plc.trigger()
    plugin.mode("well")
    plc.inspect_until_pass()
    assert [verdict for trigger_id, verdict, _ in recorded(station) if trigger_id == answer.trigger_id] == ["ERROR"], "the late result is discarded"


def test_memory_that_runs_out(line, network, plugin):
    """The limit of the process's address space is set while it runs; the next call wants more than is left."""
    station, plc = line(network, model={"backend": "faulty"}, environment=plugin.environment)
    assert plc.inspect().accept
    pages = int(Path(f"/proc/{station.process.pid}/statm").read_text().split()[0])
    before = resource.prlimit(station.process.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + 256 * MIB, resource.RLIM_INFINITY))
    plugin.mode("hungry")
    answer = plc.inspect()
    assert (answer.verdict, answer.accept) == ("ERROR", False)
    resource.prlimit(station.process.pid, resource.RLIMIT_AS, before)
    plugin.mode("well")
    plc.inspect_until_pass()
    assert [verdict for trigger_id, verdict, _ in recorded(station) if trigger_id == answer.trigger_id] == ["ERROR"]


def assert_full_disk_is_survived(station, plc, fill, empty):
    assert plc.inspect().accept
    fill()
    answers = []
    while not plc.look().fault:  # SQLite may still have room in its log
        assert len(answers) < 5000
        answers.append(plc.inspect())
    lost = plc.look()
    assert not lost.accept
    # A PASS that was told is on the disk already; what failed then is the mark that it was told.
    assert (lost.verdict, lost.reason) == ("ERROR", "record_failed") or (lost.trigger_id, "PASS", lost.reason) in recorded(station)
    assert not plc.trigger()
    empty()
    plc.inspect_until_pass()
    written = recorded(station)
    for answer in (*answers, lost):
        assert [verdict for trigger_id, verdict, _ in written if trigger_id == answer.trigger_id] == [answer.verdict]
    until(lambda: all(one["answered"] for one in station.rows()), "every row to be marked, so that brokers get it")


def test_file_size_limit_reached(line, network):
    """As a full disk, for the store's files alone: the limit is set while the station runs."""
    station, plc = line(network)

    def limit(size):
        resource.prlimit(station.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    assert_full_disk_is_survived(station, plc, lambda: limit(64 << 10), lambda: limit(resource.RLIM_INFINITY))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk (tmpfs)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(line, network, small_disk):
    station, plc = line(network, records={"store": {"path": "disk/records.sqlite"}})
    junk = small_disk / "junk"

    def fill():
        with contextlib.suppress(OSError), junk.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    original = station.rows
    station.rows = lambda: original("disk/records.sqlite")
    assert_full_disk_is_survived(station, plc, fill, junk.unlink)


@pytest.mark.skipif(LIBFAKETIME is None, reason="needs libfaketime: apt-get install faketime")
def test_clock_that_jumps(line, network, tmp_path):
    """Only the wall clock jumps, as when somebody sets it: deadlines and triggers do not see it, records are dated by it."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": str(LIBFAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    station, plc = line(network, environment=environment)
    assert plc.inspect().accept
    jumps = [("+400d", "PASS"), ("-400d", "PASS"), ("-6000d", "ERROR"), ("+0", "PASS")]
    for offset, verdict in jumps:
        clock.write_text(offset)
        assert plc.inspect().verdict == verdict
        assert not plc.look().fault
    rows = station.rows()
    assert [one["verdict"] for one in rows] == ["PASS", *(verdict for _, verdict in jumps)]
    assert rows[3]["reason_code"] == "clock_before_fit"
    assert [one["row"] for one in rows] == [1, 2, 3, 4, 5]
    years = [int(one["captured_at"][:4]) for one in rows]
    assert years[1] > years[0] > years[2] > years[3], "the clock really jumped"


@pytest.fixture
def mqtt():
    pytest.importorskip("paho.mqtt.client", reason="needs pip install 'snl-edge[mqtt]'")
    return load_file(REPOSITORY / "tests" / "station" / "outputs" / "broker.py", "snl_faults_broker")


def test_broker_down(line, network, mqtt, tmp_path):
    from station_process import free_port

    broker_folder = tmp_path / "broker"
    broker_folder.mkdir()
    port = free_port()
    outbox = {"max_backlog_rows": 20, "first_retry_s": 0.1, "longest_retry_s": 0.5}
    with mqtt.Broker(broker_folder, port) as broker, mqtt.Subscriber(port, "snl/site/station/+/result") as plant:
        station, plc = line(network, outputs={"mqtt": {"host": "127.0.0.1", "port": port, "timeout_s": 1.0}, "outbox": outbox})
        assert plc.inspect().accept
        plant.wait(lambda messages: len(messages) == 1)
        broker.save_sessions()
        broker.kill()
        answers = [plc.inspect() for _ in range(10)]
        assert all(answer.accept for answer in answers), "a dead broker does not hold the line"
        while not plc.look().fault:  # past the limit the plant would lose too much
            assert len(answers) < 60
            if plc.trigger():
                answers.append(plc.answer())
        assert plc.wait(lambda view: view.fault and not view.busy, "the fault").accept is False
        assert not plc.trigger()
        broker.start()
        plc.inspect_until_pass()
        rows = {one["row"]: one for one in station.rows()}
        plant.wait(lambda messages: len({payload["row"] for _, payload, _ in messages}) >= len(rows))
        for _, payload, _ in plant.messages:
            assert {key: payload[key] for key in ("trigger_id", "verdict", "reason_code")} == {
                key: rows[payload["row"]][key] for key in ("trigger_id", "verdict", "reason_code")
            }


def test_sigterm_while_a_trigger_waits(line, network, plugin):
    station, plc = line(network, model={"backend": "faulty"}, environment=plugin.environment)
    assert plc.inspect().accept
    plugin.mode("hang")
    plc.wait(lambda view: view.ready, "ready")
    assert plc.trigger()
    until(lambda: plc.look().busy, "the trigger to be under way")
    station.process.send_signal(signal.SIGTERM)
    threading.Timer(0.3, plugin.mode, ["well"]).start()
    assert station.process.wait(60) == 0, station.text
    rows = station.rows()
    assert [one["trigger_id"] for one in rows] == [1, 2]
    assert all(one["answered"] for one in rows), "what was under way is answered and marked"


def test_process_that_is_stopped_answers_no_trigger_with_accept_afterwards(line, network):
    """SIGSTOP, as a laptop's lid or a debugger: the deadlines passed meanwhile."""
    station, plc = line(network, trigger=SHORT_DEADLINE)
    plc.inspect_until_pass()
    plc.wait(lambda view: view.ready, "ready")
    assert plc.trigger()
    os.kill(station.process.pid, signal.SIGSTOP)
    threading.Event().wait(2.5)  # longer than the deadline; the process cannot say anything meanwhile
    os.kill(station.process.pid, signal.SIGCONT)
    answer = plc.answer()

    def verdicts():  # an ERROR at the deadline does not wait for its record
        return [one["verdict"] for one in station.rows() if one["trigger_id"] == answer.trigger_id]

    until(verdicts, "the record of the answer")
    plc.inspect_until_pass()
    assert verdicts() == [answer.verdict]


def test_watched_folder_with_a_half_written_file(line, tmp_path):
    from station_process import model_fixtures

    cv2 = pytest.importorskip("cv2")
    folder, made = tmp_path / "parts", model_fixtures()
    folder.mkdir()
    watch = {"watch": {"folder": str(folder), "settle_s": 0.2, "give_up_s": 0.6, "poll_interval_s": 0.05}}
    whole = cv2.imencode(".png", made.good_frame(1))[1].tobytes()
    station, plc = line(watch, trigger={"mode": "each_frame", "frame_timeout_ms": 500.0})
    (folder / "a.png").write_bytes(whole)
    plc.wait(lambda view: view.trigger_id == 1 and view.accept, "the whole file to pass")
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    plc.wait(lambda view: view.trigger_id == 2 and view.verdict == "ERROR", "the half file to be an ERROR")
    shutil.copy(folder / "done" / "a.png", folder / "c.png")
    plc.wait(lambda view: view.trigger_id == 3 and view.accept, "the next whole file to pass")
    assert [one["verdict"] for one in station.rows()] == ["PASS", "ERROR", "PASS"]
