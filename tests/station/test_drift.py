"""Drift of scores, brightness, sharpness and rejects raises an alarm at a stated rate; it never touches a verdict."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest

from snl_runtime.errors import ConfigError
from snl_runtime.images.frame_look import FrameLook
from snl_runtime.model.frame_range import FrameRange, FrameSizes
from snl_runtime.model.manifest import Decision, Evidence, ReferenceSample
from snl_runtime.station.drift import DriftConfig, DriftMonitor
from snl_runtime.station.drift_watch import FRAMES_BETWEEN_SAVES, DriftWatch
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict

RANGES = dict.fromkeys(("mean", "deviation"), (0.0, 255.0)) | dict.fromkeys(("red_blue", "green"), (-255.0, 255.0))
SHARES = dict.fromkeys(("white_share", "black_share", "reddish_share", "bluish_share", "red_share", "blue_share"), (0.0, 1.0))


def decision(count=299, **changes):
    rng = np.random.default_rng(0)
    reference = ReferenceSample(
        scores=sorted(rng.normal(10, 1, count).tolist()),
        brightness=sorted(rng.normal(100, 2, count).tolist()),
        sharpness=sorted(rng.normal(0.1, 0.005, count).tolist()),
    )
    values = {
        "product": "bottle",
        "model_sha256": "a" * 64,
        "pass_threshold": 13.0,
        "reject_threshold": 13.0,
        "floor": 1.0,
        "frame_sizes": FrameSizes(seen_hw=[(64, 64)], any_size=False),
        "bit_depth": 8,
        "frame_range": FrameRange(**RANGES, **SHARES),
        "roi_xyxy": None,
        "sample_count": count,
        "sample_sha256": "b" * 64,
        "max_frr": 0.01,
        "confidence": 0.95,
        "bound": "",
        "evidence": Evidence(source="bad images", counts={}, detection_rate=1.0, min_detection=0.5),
        "accepted_outliers": [],
        "backend": "onnxruntime",
        "fitted_at": "2026-05-01T12:00:00+00:00",
        "expires_at": None,
        "tool_version": "1",
        "reference": reference,
    }
    return Decision(**{**values, **changes})


def result(score, *, product="bottle", verdict=None):
    verdict = verdict or (Verdict.PASS if score <= 13 else Verdict.REJECT)
    return AnomalyResult(
        verdict=verdict,
        reason_code="below_threshold",
        reason="",
        score=score,
        threshold=13.0,
        reject_threshold=13.0,
        product=product,
        anomaly_map=None,
        roi_xyxy=None,
        regions=(),
        timings=StageTimings(),
        model_sha256="a" * 64,
        bit_depth=8,
    )


class _Line:
    """Feeds a monitor with parts like those of the calibration, changed as told."""

    def __init__(self, seed=1, made=None, **config):
        self.monitor = DriftMonitor(DriftConfig(**config), made or decision())
        self.rng = np.random.default_rng(seed)

    def run(self, frames, *, score=0.0, brightness=0.0, sharpness=0.0, rejects=0.0):
        """Return the alarms as {(signal, direction): frame}."""
        alarms = {}
        for frame in range(1, frames + 1):
            look = FrameLook(brightness=self.rng.normal(100 + brightness, 2), sharpness=self.rng.normal(0.1 + sharpness, 0.005))
            value = 20.0 if self.rng.random() < rejects else self.rng.normal(10 + score, 1)
            for trend in self.monitor.update(look, result(value), captured_at=float(frame)).alarms:
                alarms.setdefault((trend.signal, trend.direction), frame)
        return alarms


def test_parts_like_those_of_the_calibration_raise_no_alarm():
    # 7 runs of 1,000 frames may raise one with a probability of 7 x 1,000 / 1,000,000, plus 0.01 for each reference
    assert [_Line(seed).run(1000, rejects=0.02) for seed in range(7)] == [{}] * 7


@pytest.mark.parametrize(
    ("changes", "expected", "within"),
    [
        ({"score": 1.0}, ("score", "higher"), 150),
        ({"score": -1.0}, ("score", "lower"), 150),
        ({"brightness": -10.0}, ("brightness", "lower"), 40),
        ({"brightness": 10.0}, ("brightness", "higher"), 40),
        ({"sharpness": -0.01}, ("sharpness", "lower"), 60),
        ({"sharpness": 0.01}, ("sharpness", "higher"), 60),
    ],
)
def test_each_drift_raises_its_own_alarm(changes, expected, within):
    line = _Line()
    line.run(500)
    assert line.run(within, **changes).keys() == {expected}


def test_a_share_of_rejects_above_the_allowed_one_raises_an_alarm():
    line = _Line()
    line.run(500)
    assert ("rejects", "higher") in line.run(100, rejects=0.3)


def test_an_alarm_says_what_changed_and_what_to_do():
    line = _Line()
    line.run(100, brightness=-10.0)
    (trend,) = line.monitor.state.alarms
    assert "product 'bottle': the brightness is lower than at calibration (lately 8" in trend.alarm
    assert "check lamp" in trend.alarm
    assert 1 <= trend.since <= 100


def test_a_row_of_rejects_asks_for_the_product():
    line = _Line()
    line.run(7, rejects=1.0)
    (trend,) = line.monitor.state.alarms
    assert trend.signal == "rejects"
    assert "another product" in trend.alarm
    assert line.monitor.state.not_passed_in_a_row == 7


def test_an_alarm_stays_until_it_is_acknowledged_and_comes_again_if_the_cause_stays():
    line = _Line()
    line.run(100, brightness=-10.0)
    line.run(500)
    assert line.monitor.state.alarms
    line.monitor.acknowledge()
    assert not line.monitor.state.alarms
    assert line.monitor.state.frames == 0
    assert line.run(100, brightness=-10.0)


def test_errors_without_a_score_are_no_rejects_but_show_their_light():
    line = _Line()
    look = FrameLook(brightness=20.0, sharpness=0.1)
    for _ in range(40):
        state = line.monitor.update(look, result(math.nan, verdict=Verdict.ERROR), captured_at=0.0)
    assert [(trend.signal, trend.direction) for trend in state.alarms] == [("brightness", "lower")]
    assert state.not_passed_in_a_row == 0


def test_without_a_reference_rejects_are_still_watched_and_a_note_says_what_to_do():
    line = _Line(made=decision(reference=None))
    assert line.run(60, score=5.0, brightness=-50.0, rejects=1.0).keys() == {("rejects", "higher")}
    assert "calibrate again" in line.monitor.state.notes[0]


def test_a_reference_without_scores_watches_brightness_only_and_says_so():
    made = decision()
    made = dataclasses.replace(made, reference=dataclasses.replace(made.reference, scores=[]))
    line = _Line(made=made)
    assert {trend.signal for trend in line.monitor.state.trends} == {"brightness", "sharpness", "rejects"}
    assert "calibrate the engine itself" in line.monitor.state.notes[0]


def test_a_reference_of_too_few_parts_is_not_used_and_a_note_says_so():
    line = _Line(made=decision(count=19))
    assert {trend.signal for trend in line.monitor.state.trends} == {"rejects"}
    assert "19 good parts, expected at least 20" in line.monitor.state.notes[0]


def test_the_state_for_a_screen_is_plain_json():
    line = _Line()
    line.run(100, brightness=-10.0)
    plain = json.loads(json.dumps(line.monitor.state.as_plain()))
    assert plain["product"] == "bottle"
    assert plain["frames"] == 100
    lower = next(trend for trend in plain["trends"] if (trend["signal"], trend["direction"]) == ("brightness", "lower"))
    assert lower["evidence"] == 1.0
    assert lower["reference"] == pytest.approx([97.4, 100, 102.6], abs=0.7)


def test_evidence_of_another_calibration_or_rate_is_not_taken_over():
    kept = _Line()
    kept.run(100, brightness=-10.0)
    for other in (_Line(made=decision(fitted_at="2026-06-01T12:00:00+00:00")), _Line(max_reject_rate=0.2)):
        assert not other.monitor.restore(kept.monitor.to_plain())
        assert other.monitor.state.frames == 0
    same = _Line()
    assert same.monitor.restore(json.loads(json.dumps(kept.monitor.to_plain())))
    assert same.monitor.state == kept.monitor.state


@pytest.mark.parametrize(("field", "value"), [("average_run_length", 99), ("max_reject_rate", 0.0), ("reference_confidence", 1.0)])
def test_an_impossible_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"drift\.{field}"):
        DriftConfig(**{field: value})


# --- the watch over all products of a camera ------------------------------------------------------------------------------------------------------


def frame(level=100, index=0):
    image = np.full((64, 64, 3), level, np.uint8)
    image[::2, ::2] += np.uint8(index % 20)
    return Frame(image=image, color="bgr", index=index, captured_ns=index, captured_at=1000.0 + index, source_id="cam")


def watch(folder=None, *, products=("bottle", "pill"), **config):
    alarms = []
    decisions = {product: decision(product=product) for product in products}
    made = DriftWatch(DriftConfig(folder=None if folder is None else str(folder), **config), decisions, camera="cam1", on_alarm=alarms.append)
    return made, alarms


def feed(watched, frames, *, score=10.0, level=100, product="bottle"):
    for index in range(frames):
        watched.emit(frame(level, index), result(score, product=product))


def test_each_product_is_watched_by_itself():
    with watch()[0] as watched:
        feed(watched, 30, score=20.0)
        feed(watched, 30, product="pill")
        states = watched.states()
    assert {trend.signal for trend in states["bottle"].alarms} >= {"rejects", "score"}
    assert not any(trend.signal == "rejects" for trend in states["pill"].alarms)


def test_a_frame_of_no_single_or_an_unknown_product_counts_for_none():
    with watch()[0] as watched:
        feed(watched, 5, product=None)
        feed(watched, 5, product="other")
        assert [state.frames for state in watched.states().values()] == [0, 0]


def test_brightness_is_measured_on_the_frame():
    with watch()[0] as watched:
        feed(watched, 60, level=50)
        alarms = {(trend.signal, trend.direction) for trend in watched.states()["bottle"].alarms}
    assert ("brightness", "lower") in alarms


def test_an_alarm_is_told_once():
    watched, alarms = watch()
    with watched:
        feed(watched, 60, score=20.0)
    assert sorted({(trend.signal, trend.direction) for trend in alarms}) == sorted((trend.signal, trend.direction) for trend in alarms)
    assert watched.faults == ()


def test_an_alarm_is_a_fault_where_that_is_wanted_until_it_is_acknowledged():
    watched, _ = watch(on_alarm="fault")
    with watched:
        feed(watched, 10, score=20.0)
        assert any("another product" in fault for fault in watched.faults)
        watched.acknowledge("bottle")
        assert watched.faults == ()
        with pytest.raises(ConfigError, match="bottle, pill"):
            watched.acknowledge("can")


def test_a_restart_forgets_no_evidence(tmp_path):
    with watch(tmp_path)[0] as whole:
        feed(whole, 6, score=20.0)
        assert not [trend for trend in whole.states()["bottle"].alarms if trend.signal == "rejects"]
    with watch(tmp_path)[0] as again:
        assert again.states() == whole.states()
        feed(again, 1, score=20.0)
        assert [trend.signal for trend in again.states()["bottle"].alarms if trend.signal == "rejects"]


def test_a_killed_process_forgets_only_the_frames_since_the_last_save(tmp_path):
    killed, _ = watch(tmp_path)
    killed.__enter__()  # never left
    feed(killed, FRAMES_BETWEEN_SAVES + 7)
    with watch(tmp_path)[0] as again:
        assert FRAMES_BETWEEN_SAVES + 7 - again.states()["bottle"].frames < FRAMES_BETWEEN_SAVES


def test_an_alarm_is_on_the_disk_before_it_is_told(tmp_path):
    seen = []
    path = tmp_path / "cam1.drift.json"
    watched = DriftWatch(
        DriftConfig(folder=str(tmp_path)), {"bottle": decision()}, camera="cam1", on_alarm=lambda trend: seen.append((trend.alarm, path.read_text()))
    )
    with watched:
        feed(watched, 7, score=20.0)
    assert seen
    assert all(json.dumps(alarm)[1:-1] in text for alarm, text in seen)


@pytest.mark.parametrize("text", ["", "{", '{"products": 3}', '{"products": {"bottle": {"key": 1}}}', '{"products": {"bottle": []}}'])
def test_a_damaged_file_begins_anew_with_a_line_that_says_so(tmp_path, text, caplog):
    (tmp_path / "cam1.drift.json").write_text(text)
    with watch(tmp_path)[0] as watched:
        assert watched.states()["bottle"].frames == 0
    assert "cannot be read" in caplog.text or text.endswith('{"key": 1}}}')


def test_a_folder_that_cannot_be_written_does_not_stop_the_line(tmp_path, read_only, caplog):
    read_only(tmp_path)
    with watch(tmp_path)[0] as watched:
        feed(watched, FRAMES_BETWEEN_SAVES)
        assert watched.states()["bottle"].frames == FRAMES_BETWEEN_SAVES
    assert "was not kept" in caplog.text


def test_states_may_be_read_while_frames_come():
    watched, _ = watch()
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(watched.states()["bottle"].frames)

    reader = threading.Thread(target=read)
    with watched:
        reader.start()
        feed(watched, 200)
        stop.set()
        reader.join(10)
    assert seen == sorted(seen)


@pytest.mark.parametrize("camera", ["", "a/b"])
def test_a_camera_that_no_file_can_be_named_after_is_refused(camera):
    with pytest.raises(ConfigError, match="name"):
        DriftWatch(DriftConfig(), {}, camera=camera)


def test_disabled_drift_watches_nothing():
    with watch(enabled=False)[0] as watched:
        feed(watched, 30, score=20.0)
        assert watched.states()["bottle"].frames == 0
