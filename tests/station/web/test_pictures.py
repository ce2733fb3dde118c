"""Pictures are drawn small, once for all who look, at a bounded rate; a frame without image is never replaced by an older one."""

import asyncio
import threading

import cv2
import numpy as np
import pytest

from snl_runtime.errors import FrameError
from snl_runtime.images.overlay import render_overlay
from snl_runtime.station.web.feed import Shot
from snl_runtime.station.web.pictures import PictureMaker, draw_picture
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict


def shot_of(image, *, number=1, color="rgb", fault=None, **changes):
    frame = Frame(image=image, color=color, index=0, captured_ns=1, captured_at=2.0, source_id="fake", fault=fault)
    values = {
        "verdict": Verdict.REJECT,
        "reason_code": "x",
        "reason": "x",
        "score": 2.0,
        "threshold": 1.0,
        "reject_threshold": 1.0,
        "product": None,
        "anomaly_map": None,
        "roi_xyxy": None,
        "regions": (),
        "timings": StageTimings(),
        "model_sha256": "",
    }
    return Shot(number=number, camera="top", frame=frame, result=AnomalyResult(**(values | changes)))


def gray_image(height=60, width=80, value=100):
    return np.full((height, width, 3), value, np.uint8)


def decoded(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)


@pytest.mark.parametrize(("width", "expected_hw"), [(80, (60, 80)), (200, (60, 80)), (40, (30, 40)), (1, (1, 1))])
def test_a_picture_is_at_most_as_wide_as_asked_and_keeps_its_shape(width, expected_hw):
    assert decoded(draw_picture(shot_of(gray_image()), width_px=width, overlay=True)).shape[:2] == expected_hw


@pytest.mark.parametrize(
    ("image", "color", "expected_rgb"),
    [
        (np.full((20, 20, 3), (200, 100, 50), np.uint8), "rgb", (200, 100, 50)),
        (np.full((20, 20, 3), (50, 100, 200), np.uint8), "bgr", (200, 100, 50)),
        (np.full((20, 20), 90, np.uint8), "gray", (90, 90, 90)),
        (np.full((20, 20, 1), 90, np.uint8), "gray", (90, 90, 90)),
        (np.full((20, 20), 90 * 257, np.uint16), "gray", (90, 90, 90)),
    ],
)
@pytest.mark.parametrize("width", [20, 10])
def test_colors_are_read_as_declared(image, color, expected_rgb, width):
    picture = decoded(draw_picture(shot_of(image, color=color), width_px=width, overlay=False))
    assert np.abs(picture - np.array(expected_rgb)).max() <= 6  # JPEG


def test_the_overlay_agrees_with_the_one_of_saved_images():
    anomaly_map = np.zeros((6, 8), np.float32)
    anomaly_map[2:4, 2:5] = 2.0
    region = AnomalyRegion(box_xyxy=(20, 20, 50, 40), score=2.0, area_px=600)
    shot = shot_of(gray_image(), anomaly_map=anomaly_map, roi_xyxy=(0, 0, 80, 60), regions=(region,))
    reference = render_overlay(gray_image(), shot.result)[-60:]
    assert np.abs(decoded(draw_picture(shot, width_px=80, overlay=True)) - reference).mean() < 4
    plain = decoded(draw_picture(shot, width_px=80, overlay=False))
    assert np.abs(plain - 100).max() <= 3
    assert shot.frame.image.max() == 100, "the frame itself is untouched"


def test_a_reduced_overlay_lies_where_the_region_is():
    anomaly_map = np.zeros((60, 80), np.float32)
    anomaly_map[30:60, 40:80] = 3.0
    shot = shot_of(gray_image(600, 800), anomaly_map=anomaly_map, roi_xyxy=(0, 0, 800, 600))
    picture = decoded(draw_picture(shot, width_px=80, overlay=True))
    assert picture[45, 60, 0] > 150 > picture[15, 20, 0]


def test_a_part_outside_of_the_inspected_one_stays_as_it_is():
    shot = shot_of(gray_image(), anomaly_map=np.full((3, 4), 3.0, np.float32), roi_xyxy=(40, 0, 80, 60))
    picture = decoded(draw_picture(shot, width_px=80, overlay=True))
    assert abs(picture[30, 10] - 100).max() <= 6
    assert picture[30, 60, 0] > 150


def test_a_box_thinner_than_a_pixel_of_the_picture_is_drawn():
    region = AnomalyRegion(box_xyxy=(799, 599, 800, 600), score=2.0, area_px=1)
    assert decoded(draw_picture(shot_of(gray_image(600, 800), regions=(region,)), width_px=8, overlay=True)).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("image", "color", "fault", "said"),
    [
        (None, "rgb", "broken buffer", "broken buffer"),
        (None, "rgb", None, "no image"),
        (np.zeros((0, 5, 3), np.uint8), "rgb", None, "cannot be drawn"),
        (np.zeros((5, 5, 3), np.float32), "rgb", None, "float32"),
    ],
)
def test_a_frame_that_cannot_be_drawn_says_why(image, color, fault, said):
    with pytest.raises(FrameError, match=said):
        draw_picture(shot_of(image, color=color, fault=fault), width_px=80, overlay=True)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Looker:
    """A picture maker, its clock and the newest result."""

    def __init__(self, per_second=4.0):
        self.clock, self.newest = Clock(), None
        self.maker = PictureMaker(lambda camera: self.newest, width_px=80, per_second=per_second, clock_s=self.clock)

    async def look(self):
        picture = await self.maker.live("top", overlay=True)
        return None if picture is None else picture.shot.number


def run(scenario, **options):
    looker = Looker(**options)
    try:
        return asyncio.run(scenario(looker))
    finally:
        looker.maker.close()


def test_between_two_pictures_everybody_gets_the_last_one():
    async def scenario(looker):
        numbers = [await looker.look()]
        for now_s, number in [(0.0, 1), (0.1, 2), (0.2, 3), (0.26, 4), (0.3, 5), (0.52, 6)]:
            looker.clock.now_s, looker.newest = now_s, shot_of(gray_image(), number=number)
            numbers.append(await looker.look())
        return numbers

    assert run(scenario) == [None, 1, 1, 1, 4, 4, 6]


def test_a_result_without_image_is_said_at_once_and_hides_the_picture_before():
    async def scenario(looker):
        looker.newest = shot_of(gray_image(), number=1)
        assert await looker.look() == 1
        looker.newest = shot_of(None, number=2, fault="unplugged")
        with pytest.raises(FrameError, match="unplugged"):
            await looker.look()
        looker.newest = shot_of(gray_image(), number=3)
        assert await looker.look() == 3

    run(scenario)


def test_one_picture_is_drawn_once_however_many_look(monkeypatch):
    drawn = []

    def drawing(shot, *, width_px, overlay):
        drawn.append((shot.number, width_px, overlay, threading.current_thread().name))
        return draw_picture(shot, width_px=width_px, overlay=overlay)

    monkeypatch.setattr("snl_runtime.station.web.pictures.draw_picture", drawing)

    async def scenario(looker):
        looker.newest = shot_of(gray_image())
        pictures = await asyncio.gather(*[looker.maker.live("top", overlay=True) for _ in range(5)])
        await looker.maker.of(looker.newest, overlay=False)
        return {picture.jpeg for picture in pictures}

    assert len(run(scenario)) == 1
    assert [each[:3] for each in drawn] == [(1, 80, True), (1, 80, False)]
    assert all("snl-web-pictures" in each[3] for each in drawn)


def test_a_client_that_goes_away_does_not_spoil_the_picture_of_others():
    async def scenario(looker):
        looker.newest = shot_of(gray_image(600, 800))
        impatient = asyncio.create_task(looker.look())
        patient = asyncio.create_task(looker.look())
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    assert run(scenario) == 1
