"""The screen remembers the last results within a bound of memory, and forgets images before it forgets what happened."""

import dataclasses
import math

import numpy as np
import pytest

from snl_runtime.station.line_state import LineState
from snl_runtime.station.web.feed import SCORES_KEPT, ResultFeed
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict

IMAGE = np.zeros((10, 10, 3), np.uint8)
MAP = np.zeros((5, 5), np.float32)
BYTES = 300 + 100
"""Of one image with its map."""


def tell(feed, verdict, trigger_id=1, *, camera="top", image=IMAGE, **changes):
    frame = Frame(image=image, color="bgr", index=0, captured_ns=1, captured_at=2.0, source_id="fake", trigger_id=trigger_id)
    result = AnomalyResult(
        verdict=verdict,
        reason_code="x",
        reason="x",
        score=0.5,
        threshold=1.0,
        reject_threshold=1.25,
        product=None,
        anomaly_map=MAP,
        roi_xyxy=None,
        regions=(),
        timings=StageTimings(),
        model_sha256="",
    )
    feed(frame, dataclasses.replace(result, **changes), LineState(camera=camera))


def feed_of(*cameras, max_rejects=4, max_reject_bytes=1 << 20):
    return ResultFeed(cameras or ("top",), max_rejects=max_rejects, max_reject_bytes=max_reject_bytes)


def test_the_latest_result_of_each_camera_is_kept():
    feed = feed_of("top", "side")
    assert feed.latest("top") is None
    tell(feed, Verdict.PASS, 1)
    tell(feed, Verdict.REJECT, 7, camera="side")
    tell(feed, Verdict.REVIEW, 2)
    assert (feed.latest("top").frame.trigger_id, feed.latest("side").frame.trigger_id) == (2, 7)
    assert feed.latest("nowhere") is None


def test_only_parts_that_did_not_pass_are_kept_newest_first_over_all_cameras():
    feed = feed_of("top", "side")
    for trigger_id, (verdict, camera) in enumerate(
        [(Verdict.REVIEW, "top"), (Verdict.PASS, "top"), (Verdict.REJECT, "side"), (Verdict.ERROR, "top")], 1
    ):
        tell(feed, verdict, trigger_id, camera=camera)
    assert [(shot.camera, shot.result.verdict.value) for shot in feed.rejects] == [("top", "ERROR"), ("side", "REJECT"), ("top", "REVIEW")]
    assert feed.reject(feed.rejects[1].number).camera == "side"
    assert feed.reject(10_000) is None


def test_a_camera_keeps_as_many_parts_as_configured():
    feed = feed_of("top", "side", max_rejects=2)
    tell(feed, Verdict.REJECT, 1, camera="side")
    for trigger_id in (2, 3, 4):
        tell(feed, Verdict.REJECT, trigger_id)
    assert [shot.frame.trigger_id for shot in feed.rejects] == [4, 3, 1]


def test_the_oldest_parts_lose_their_images_when_the_memory_is_full():
    feed = feed_of("top", "side", max_reject_bytes=2 * BYTES)
    for trigger_id, camera in enumerate(["top", "side", "top", "side"], 1):
        tell(feed, Verdict.REJECT, trigger_id, camera=camera)
    assert [shot.frame.trigger_id for shot in feed.rejects] == [4, 3, 2, 1]
    assert [shot.frame.image is not None for shot in feed.rejects] == [True, True, False, False]
    assert sum(shot.image_bytes for shot in feed.rejects) == 2 * BYTES
    assert feed.rejects[-1].frame.fault == "its image is no longer in memory"


def test_one_image_larger_than_the_memory_is_not_kept_among_the_parts():
    feed = feed_of(max_reject_bytes=BYTES - 1)
    tell(feed, Verdict.REJECT)
    assert feed.rejects[0].frame.image is None
    assert feed.latest("top").frame.image is not None


def test_large_visualizations_are_not_kept():
    feed = feed_of()
    tell(feed, Verdict.REJECT, overlay=IMAGE, mask=IMAGE[:, :, 0] > 0, frame_map=IMAGE[:, :, 0].astype(np.float32))
    assert feed.rejects[0].image_bytes == BYTES


def test_the_chart_gets_each_point_once():
    feed = feed_of("top", "side")
    tell(feed, Verdict.PASS, 1)
    tell(feed, Verdict.ERROR, 2, score=math.nan)
    first = feed.points_after(0)
    assert [(point.trigger_id, point.verdict) for point in first["top"]] == [(1, Verdict.PASS), (2, Verdict.ERROR)]
    assert first["side"] == []
    tell(feed, Verdict.PASS, 3)
    assert [point.trigger_id for point in feed.points_after(first["top"][-1].number)["top"]] == [3]


def test_the_chart_keeps_a_bounded_number_of_points():
    feed = feed_of()
    for trigger_id in range(1, SCORES_KEPT + 11):
        tell(feed, Verdict.PASS, trigger_id)
    points = feed.points_after(0)["top"]
    assert (len(points), points[0].trigger_id, points[-1].trigger_id) == (SCORES_KEPT, 11, SCORES_KEPT + 10)


def test_a_result_of_a_camera_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        tell(feed_of(), Verdict.PASS, camera="nowhere")
