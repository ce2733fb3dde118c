"""Images are deleted by age only where that was asked for: the oldest first, a few with each verdict, and never a file of somebody else."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from snl_runtime.errors import ConfigError
from snl_runtime.line.image_folders import MOST_DELETED_AT_ONCE, OverlaySaver, RejectSaver
from snl_runtime.types import Verdict

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of = fixtures.frame_of, fixtures.result_of

DAY_S = 86_400.0
START_S = 1_700_000_000.0


@pytest.fixture
def day(monkeypatch):
    """Set the clock of the image folders, in days after the start."""

    def set_day(number):
        monkeypatch.setattr("snl_runtime.line.image_folders.time.time", lambda: START_S + DAY_S * number)

    set_day(0)
    return set_day


def save(sink, index, day, verdict=Verdict.REJECT):
    frame = frame_of(index, image=np.full((24, 32, 3), 90, np.uint8), captured_at=START_S + DAY_S * day)
    sink.emit(frame, result_of(verdict, roi_xyxy=(0, 0, 32, 24)))


def indices(folder):
    return sorted(int(path.stem.split("_")[-2]) for path in folder.iterdir())


@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_images_older_than_the_limit_go_and_younger_stay(tmp_path, day, saver):
    with saver(tmp_path, max_age_days=3) as sink:
        for number in range(6):
            day(number)
            save(sink, number, number)
        assert indices(tmp_path) == [2, 3, 4, 5]  # day 2 is three days old, not older
        assert (sink.counts.saved, sink.counts.deleted, sink.counts.lost) == (6, 2, 0)


def test_nothing_is_deleted_unless_asked_for(tmp_path, day):
    for number in (0, 1000):
        day(number)
        with RejectSaver(tmp_path) as sink:
            save(sink, number, number)
    assert indices(tmp_path) == [0, 1000]


def test_a_verdict_that_saves_nothing_deletes_a_few_of_the_oldest(tmp_path, day):
    with RejectSaver(tmp_path) as sink:
        for index in range(10):
            save(sink, index, index / 100)
    day(30)
    with RejectSaver(tmp_path, max_age_days=1) as sink:
        save(sink, 10, 30, Verdict.PASS)
        assert indices(tmp_path) == list(range(MOST_DELETED_AT_ONCE, 10))
        for index in range(3):
            save(sink, index, 30, Verdict.PASS)
    assert not list(tmp_path.iterdir())


STRANGERS = [
    "notes.txt",
    "20200101T000000.000Z_part.png",
    "20200101T000000.000Z_000001_GOOD.png",
    "part_000001_REJECT.png",
    ".20200101T000000.000Z.png",
]


def test_files_with_other_names_stay_whatever_their_age(tmp_path, day):
    for name in STRANGERS:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "20200101T000000.000Z_folder_000001_REJECT.png").mkdir()
    day(3000)
    with RejectSaver(tmp_path, max_age_days=1) as sink:
        save(sink, 1, 3000, Verdict.PASS)
    assert len(list(tmp_path.iterdir())) == len(STRANGERS) + 1


def test_room_that_was_made_is_used(tmp_path, day):
    with RejectSaver(tmp_path) as sink:
        save(sink, 0, 0)
        size_bytes = next(tmp_path.iterdir()).stat().st_size
    with RejectSaver(tmp_path, max_age_days=1, max_bytes=size_bytes + 50) as sink:
        save(sink, 1, 0)
        assert sink.counts.lost == 1
        day(2)
        save(sink, 2, 2)
    assert indices(tmp_path) == [2]


def test_image_that_somebody_moved_away_is_no_fault(tmp_path, day):
    with RejectSaver(tmp_path, max_age_days=1) as sink:
        save(sink, 0, 0)
        next(tmp_path.iterdir()).unlink()
        day(2)
        save(sink, 1, 2)
        assert (sink.counts.saved, sink.counts.deleted, sink.counts.lost) == (2, 0, 0)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_age_that_makes_no_sense_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="max_age_days must be positive"):
        RejectSaver(tmp_path, max_age_days=value)
