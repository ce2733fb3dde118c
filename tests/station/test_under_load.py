"""What the line was told is what the record says, once per trigger, while detector and store are as slow as the deadline."""

import random
import threading
from collections import defaultdict

import cv2
import pytest

from snl_runtime import ImageFolderSource, JsonlSink, SnlDetector
from snl_runtime.errors import SinkError, TriggerRefusedError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit import UnitConfig
from snl_runtime.types import Verdict

DEADLINE_MS = 30.0


class Hazards:
    """Random delays up to and beyond the deadline, and random failures; seeded, so that a plan can be run again."""

    def __init__(self, seed):
        self.random, self.lock, self.pause = random.Random(seed), threading.Lock(), threading.Event()

    def draw(self, *values):
        with self.lock:
            return self.random.choice(values)

    def delay(self, *_):
        self.pause.wait(self.draw(0, 0, 0, 0.005, 0.02, 0.028, 0.03, 0.04) if self.draw(True, False) else 0)

    def delay_or_fail(self, *_):
        self.delay()
        if self.draw(*[False] * 15, True):
            raise SinkError("disk full")


def told(states):
    """Return the answers that the line was told for each trigger, in order, without repeats."""
    answers = defaultdict(list)
    for state in states:
        answer = (state.verdict, state.reason_code)
        if state.result_valid and answer not in answers[state.trigger_id]:
            answers[state.trigger_id].append(answer)
    return answers


def assert_line_and_record_agree(bench, camera, triggered):
    rows = [row for row in bench.store.rows if row.camera == camera]
    states = bench.output.of(camera)
    assert sorted(row.trigger_id for row in rows) == list(range(1, triggered + 1)), "one record per trigger"
    assert all(row.answered for row in rows)
    final = {row.trigger_id: (row.result.verdict, row.result.reason_code) for row in rows}
    for trigger_id, answers in told(states).items():
        assert answers == [final[trigger_id]], "told once, and what the record says"
    for state in states:
        assert not (state.ready and state.busy)
        assert not state.accept or (state.result_valid and state.verdict is Verdict.PASS and not state.fault)


@pytest.mark.parametrize("seed", range(4))
def test_commands_under_hazards(bench, fakes, seed):
    hazards = Hazards(seed)
    bench.detector.before, bench.store.before = hazards.delay, hazards.delay_or_fail
    config = UnitConfig(
        deadline_ms=DEADLINE_MS, record_margin_ms=5.0, missed_before_fault=2, trigger=TriggerConfig(mode=TriggerMode.COMMAND, frame_timeout_ms=15.0)
    )
    cameras = {name: fakes.software_camera() for name in ("left", "right")}
    for camera in cameras.values():
        camera.on_trigger = lambda camera=camera: camera.take(hazards.draw(fakes.GOOD, fakes.BAD)) if hazards.draw(*[True] * 9, False) else None
    station = bench.start_cameras({name: (camera, config) for name, camera in cameras.items()})
    triggered = dict.fromkeys(cameras, 0)

    def drive(name):
        commands, pause = station.commands[name], threading.Event()
        while triggered[name] < 40:
            try:
                triggered[name] = commands.trigger()
            except TriggerRefusedError:
                commands.reset()
                pause.wait(0.001)

    drivers = [threading.Thread(target=drive, args=(name,), daemon=True) for name in cameras]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
        assert not driver.is_alive()
    bench.store.before = lambda *_: None
    station.stop()
    for name in cameras:
        assert_line_and_record_agree(bench, name, triggered[name])
        counts = station.snapshot().cameras[name]
        assert counts.triggers.answered == counts.triggers.triggered == triggered[name]
        frames = counts.frames
        assert (frames.captured, frames.waiting) == (frames.inspected + frames.dropped + frames.failed, 0)
        assert sum(counts.verdicts.values()) == triggered[name]
    assert any(state.accept for state in bench.output.states)
    assert any(state.fault for state in bench.output.states)


@pytest.mark.parametrize("policy", OverflowPolicy)
def test_frames_under_hazards(bench, fakes, policy):
    hazards = Hazards(policy.value)
    bench.detector.before, bench.store.before = hazards.delay, hazards.delay_or_fail
    camera = fakes.camera(policy=policy)
    config = UnitConfig(deadline_ms=DEADLINE_MS, record_margin_ms=5.0, missed_before_fault=3)
    station = bench.start(camera, config)
    for _ in range(120):
        camera.send(hazards.draw(fakes.GOOD, fakes.BAD))
        hazards.pause.wait(0.004)
        bench.top.reset()
    bench.store.before = lambda *_: None
    station.stop()
    triggers = station.snapshot().cameras["top"].triggers
    assert triggers.answered == triggers.triggered > 0
    assert_line_and_record_agree(bench, "top", triggers.triggered)


def test_a_folder_through_the_real_detector(bench, model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "parts").mkdir()
    engine = model.ModelFolder(tmp_path / "model").write()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / "parts" / f"a_good{seed}.png"), model.good_frame(seed))
        cv2.imwrite(str(tmp_path / "parts" / f"b_bad{seed}.png"), model.bad_frame(seed))
    (tmp_path / "parts" / "c_cut.png").write_bytes((tmp_path / "parts" / "a_good0.png").read_bytes()[:300])
    records = tmp_path / "verdicts.jsonl"
    with SnlDetector(engine) as detector:
        source, config = ImageFolderSource(tmp_path / "parts", product="bottle"), UnitConfig(deadline_ms=30_000.0)
        station = bench.start(source, config, detector=detector, sinks=[JsonlSink(records)])
        assert station.wait(30)
        station.stop()
    expected = ["PASS"] * 3 + ["REJECT"] * 3 + ["ERROR"]
    assert [row.result.verdict.value for row in bench.store.rows] == expected
    assert [row.result.product for row in bench.store.rows] == ["bottle"] * 7
    assert [bench.output.answer_to(n).accept for n in range(1, 8)] == [True] * 3 + [False] * 4
    assert len(records.read_text(encoding="utf-8").splitlines()) == 7
    assert not any(state.fault for state in bench.output.states)


def test_two_cameras_share_the_real_detector(bench, fakes, model, tmp_path):
    engine = model.ModelFolder(tmp_path).write()
    frames = {"left": model.good_frame(1), "right": model.bad_frame(1)}
    cameras = {name: fakes.software_camera() for name in frames}
    for name, camera in cameras.items():
        camera.on_trigger = lambda name=name, camera=camera: camera.send(image=frames[name])
    with SnlDetector(engine, product="bottle") as detector:
        config = fakes.command_config()
        station = bench.start_cameras({name: (camera, config) for name, camera in cameras.items()}, detector=detector)
        for _ in range(5):
            ids = {name: commands.trigger(product="bottle") for name, commands in station.commands.items()}
            answers = {name: bench.output.answer_to(trigger_id, name).verdict.value for name, trigger_id in ids.items()}
            assert answers == {"left": "PASS", "right": "REJECT"}
        station.stop()
    assert len(bench.store.rows) == 10
