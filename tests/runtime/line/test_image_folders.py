"""Saved images are the frames themselves, nothing is overwritten, and what cannot be saved is counted while the line goes on."""

import logging
import os
import shutil

import cv2
import numpy as np
import pytest

from snl_runtime.errors import SinkError
from snl_runtime.line.image_folders import OverlaySaver, RejectSaver
from snl_runtime.types import Verdict


@pytest.mark.parametrize(("verdict", "saved"), [(Verdict.PASS, 0), (Verdict.REVIEW, 1), (Verdict.REJECT, 1), (Verdict.ERROR, 1)])
def test_every_frame_that_did_not_pass_is_saved(fakes, tmp_path, verdict, saved):
    with RejectSaver(tmp_path / "rejects") as sink:
        sink.emit(fakes.frame_of(12, source_id="parts/scratch 03.png"), fakes.result_of(verdict))
    assert [path.name for path in (tmp_path / "rejects").iterdir()] == [f"20231114T221332.000Z_scratch_03_000012_{verdict.value}.png"] * saved


@pytest.mark.parametrize(
    ("color", "shape", "dtype", "stored"),
    [  # stored: what cv2 reads back (BGR order) from the frame's own channels
        ("bgr", (5, 7, 3), np.uint8, [0, 1, 2]),
        ("rgb", (5, 7, 3), np.uint8, [2, 1, 0]),
        ("bgra", (5, 7, 4), np.uint8, [0, 1, 2, 3]),
        ("rgba", (5, 7, 4), np.uint8, [2, 1, 0, 3]),
        ("bgr", (5, 7, 3), np.uint16, [0, 1, 2]),
    ],
)
def test_saved_frame_holds_the_very_pixels(fakes, tmp_path, color, shape, dtype, stored):
    image = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    with RejectSaver(tmp_path) as sink:
        sink.emit(fakes.frame_of(image=image, color=color), fakes.result_of(Verdict.REJECT))
    (path,) = tmp_path.iterdir()
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image[:, :, stored])


def test_gray_frame_of_16_bits_is_saved_as_it_is(fakes, tmp_path):
    image = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    with RejectSaver(tmp_path) as sink:
        sink.emit(fakes.frame_of(image=image, color="gray"), fakes.result_of(Verdict.REJECT))
    (path,) = tmp_path.iterdir()
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image)


def test_frame_that_png_cannot_hold_is_saved_as_array(fakes, tmp_path):
    image = np.linspace(0, 1, 40).reshape(2, 4, 5)
    with RejectSaver(tmp_path) as sink:
        sink.emit(fakes.frame_of(image=image), fakes.result_of(Verdict.ERROR))
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.load(path, allow_pickle=False), image)


def test_frame_without_picture_has_nothing_to_save(fakes, tmp_path):
    frame = fakes.frame_of(image=None, fault="broken buffer")
    result = fakes.result_of(Verdict.ERROR, anomaly_map=None, roi_xyxy=None)
    with RejectSaver(tmp_path / "rejects") as rejects, OverlaySaver(tmp_path / "overlays") as overlays:
        rejects.emit(frame, result)
        overlays.emit(frame, result)
    assert not list((tmp_path / "rejects").iterdir())
    assert not list((tmp_path / "overlays").iterdir())


@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_pictures_of_an_earlier_run_are_kept(fakes, tmp_path, saver):
    frame = fakes.frame_of(3, image=np.full((40, 60, 3), 90, np.uint8), source_id="camera 0")
    for _ in range(3):
        with saver(tmp_path) as sink:
            sink.emit(frame, fakes.result_of(Verdict.REJECT, roi_xyxy=(0, 0, 60, 40)))
    stems = sorted(path.stem for path in tmp_path.iterdir())
    name = "20231114T221323.000Z_camera_0_000003_REJECT"
    assert stems == [name, f"{name}_2", f"{name}_3"]


def test_overlay_has_the_frames_width_and_a_banner_above_it(fakes, tmp_path):
    frame = fakes.frame_of(image=np.full((240, 320, 3), 90, np.uint8))
    with OverlaySaver(tmp_path) as sink:
        sink.emit(frame, fakes.result_of(Verdict.PASS, roi_xyxy=(0, 0, 320, 240)))
    (path,) = tmp_path.iterdir()
    picture = cv2.imread(str(path))
    assert path.suffix == ".jpg"
    assert picture.shape[1] == 320
    assert picture.shape[0] > 240


def test_overlays_are_saved_and_asked_for_of_the_chosen_verdicts_alone(fakes, tmp_path):
    frame = fakes.frame_of(image=np.full((24, 32, 3), 90, np.uint8))
    with OverlaySaver(tmp_path, verdicts=[Verdict.REJECT, Verdict.ERROR]) as sink:
        for verdict in Verdict:
            sink.emit(frame, fakes.result_of(verdict, roi_xyxy=(0, 0, 32, 24)))
    assert sorted(path.stem.split("_")[-1] for path in tmp_path.iterdir()) == ["ERROR", "REJECT"]
    asked = sink.outputs
    assert (asked.overlay, asked.mask, asked.frame_map, asked.device_only) == (True, False, False, True)
    assert [asked.wanted_for(verdict) for verdict in Verdict] == [False, False, True, False]


@pytest.mark.parametrize("roi", [(0, 0, 96, 64), (16, 16, 80, 48)])
def test_overlay_of_the_detector_is_saved_instead_of_one_drawn_here(fakes, tmp_path, roi):
    left, top, right, bottom = roi
    overlay = np.full((bottom - top, right - left, 3), (10, 200, 30), np.uint8)
    frame = fakes.frame_of(image=np.full((64, 96, 3), 90, np.uint8))
    with OverlaySaver(tmp_path) as sink:
        sink.emit(frame, fakes.result_of(Verdict.PASS, roi_xyxy=roi, overlay=overlay, anomaly_map=np.full((2, 3), 9, np.float32)))
    (path,) = tmp_path.iterdir()
    picture = cv2.imread(str(path))[-64:, :, ::-1].astype(int)
    assert np.abs(picture[32, 48] - [10, 200, 30]).max() <= 4  # JPEG
    assert np.abs(picture[2, 2] - ([10, 200, 30] if left == 0 else [90, 90, 90])).max() <= 4


@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_folder_that_cannot_be_made_is_named(tmp_path, saver):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file"):
        saver(tmp_path / "file").__enter__()


@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_folder_that_cannot_be_written_is_an_error_when_it_is_entered(saver):
    with pytest.raises(SinkError, match="cannot write images to /proc/self"):
        saver("/proc/self").__enter__()


def bad_part(fakes, index, **changes):
    """A frame of a capture time, and its verdict."""
    frame = fakes.frame_of(index, image=np.full((24, 32, 3), 90, np.uint8), **changes)
    return frame, fakes.result_of(Verdict.REJECT, roi_xyxy=(0, 0, 32, 24))


@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_names_sort_by_capture_time_over_restarts(fakes, tmp_path, saver):
    for hour in (2, 0, 1):  # restarted twice: the index begins again
        with saver(tmp_path) as sink:
            for index in range(2):
                sink.emit(*bad_part(fakes, index, captured_at=1_700_000_000.25 + 3600 * hour + index))
    stamps = [path.name.split("_")[0] for path in sorted(tmp_path.iterdir())]
    assert stamps == [f"20231114T{hour}132{second}.250Z" for hour in (22, 23) for second in (0, 1)] + [
        "20231115T001320.250Z",
        "20231115T001321.250Z",
    ]


def disk_is_full(folder):
    return {"least_free_bytes": shutil.disk_usage(folder).total}


LOSSES = {
    "quota": (lambda folder: {"max_bytes": 1}, lambda folder: None, "it holds 0 MiB of at most 0; move images away"),
    "disk": (disk_is_full, lambda folder: None, "stay free for records"),
    "deleted": (lambda folder: {}, lambda folder: folder.rmdir(), "No such file or directory"),
    "replaced": (lambda folder: {}, lambda folder: (folder.rmdir(), folder.write_text("")), "Not a directory"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("saver", [RejectSaver, OverlaySaver])
def test_pictures_that_cannot_be_saved_are_counted_with_one_warning(fakes, tmp_path, caplog, saver, name):
    options, damage, why = LOSSES[name]
    folder = tmp_path / "saved_images"
    with caplog.at_level(logging.WARNING), saver(folder, **options(tmp_path)) as sink:
        damage(folder)
        for index in range(3):
            sink.emit(*bad_part(fakes, index))
    assert (sink.counts.saved, sink.counts.lost) == (0, 3)
    assert why in sink.counts.why_lost
    assert len(caplog.records) == 1
    assert not folder.is_dir() or not list(folder.iterdir())


def test_pictures_of_earlier_runs_count_towards_the_quota_and_none_is_deleted(fakes, tmp_path):
    (tmp_path / "earlier.png").write_bytes(bytes(5000))
    with RejectSaver(tmp_path, max_bytes=5050) as sink:
        for index in range(3):
            sink.emit(*bad_part(fakes, index))
    assert sink.counts.lost == 3
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.png"]


def test_full_folder_takes_pictures_again_once_somebody_made_room(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("snl_runtime.line.image_folders.RECOUNT_INTERVAL_S", 0.0)
    (tmp_path / "earlier.png").write_bytes(bytes(5000))
    with RejectSaver(tmp_path, max_bytes=5050) as sink:
        sink.emit(*bad_part(fakes, 0))
        (tmp_path / "earlier.png").unlink()
        sink.emit(*bad_part(fakes, 1))
    assert (sink.counts.saved, sink.counts.lost) == (1, 1)


def test_two_runs_that_share_a_folder_never_overwrite_each_other(fakes, tmp_path):
    with RejectSaver(tmp_path) as first, RejectSaver(tmp_path) as second:
        for index in range(3):
            first.emit(*bad_part(fakes, index))
            second.emit(*bad_part(fakes, index))
    assert len(list(tmp_path.iterdir())) == 6


def test_name_of_a_source_that_is_not_text_makes_a_plain_file_name(fakes, tmp_path):
    with RejectSaver(tmp_path) as sink:
        sink.emit(*bad_part(fakes, 0, source_id=os.fsdecode("parts/螺丝 7\xe9".encode() + b"\xff.png")))
    assert [path.name for path in tmp_path.iterdir()] == ["20231114T221320.000Z_7_000000_REJECT.png"]
