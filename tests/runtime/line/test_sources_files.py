"""A folder or a video yields one frame for everything it announced, faults included, and says when something is missing."""

import re
import struct
import threading

import cv2
import numpy as np
import pytest

from snl_runtime.errors import SourceEndedError, SourceOpenError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources import ImageFolderSource, VideoSource
from snl_runtime.line.sources.container import count_missing_bytes


def read_all(source):
    """All frames, and the error after the last one."""
    frames, ended = [], None
    with source:
        try:
            frames.extend(source.frames(threading.Event()))
        except SourceEndedError as error:
            ended = error
    return frames, ended


def test_folder_yields_every_picture_below_it_in_path_order(make_image, tmp_path):
    names = ["b.png", "a.png", "bottle/c.png", "bottle/deep/d.png"]
    pixels = {str(tmp_path / name): make_image(tmp_path / name, seed) for seed, name in enumerate(names)}
    (tmp_path / "notes.txt").write_text("not an image")
    frames, _ = read_all(ImageFolderSource(tmp_path, product="bottle"))
    assert [frame.source_id for frame in frames] == sorted(pixels)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    for frame in frames:
        assert (frame.color, frame.product) == ("rgb", "bottle")
        assert np.array_equal(frame.image, pixels[frame.source_id])


def test_unreadable_and_truncated_pictures_are_frames_with_a_fault(make_image, tmp_path):
    make_image(tmp_path / "a.png")
    make_image(tmp_path / "b.jpg")
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "d.png").write_bytes(b"")
    source = ImageFolderSource(tmp_path)
    frames, _ = read_all(source)
    assert [frame.image is None for frame in frames] == [False, True, True, True]
    assert all(frame.source_id in frame.fault for frame in frames[1:])
    assert source.counters.frames_announced == 4
    assert source.counters.frames_faulty == 3


@pytest.mark.parametrize("name", ["missing", "empty", "notes.txt", "m*.png"])
def test_source_without_pictures_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceOpenError, match=re.escape(name)):
        ImageFolderSource(tmp_path / name).__enter__()


@pytest.mark.parametrize(("suffix", "fourcc"), [("avi", "MJPG"), ("mkv", "MJPG"), ("mp4", "mp4v")])
def test_video_yields_every_frame(make_video, tmp_path, suffix, fourcc):
    path = make_video(tmp_path / f"line.{suffix}", 20, fourcc=fourcc)
    source = VideoSource(path, product="bottle")
    frames, ended = read_all(source)
    assert ended is None
    assert [frame.index for frame in frames] == list(range(20))
    assert {(frame.color, frame.product, frame.source_id, frame.fault) for frame in frames} == {("bgr", "bottle", str(path), None)}
    assert source.counters.frames_announced == 20
    assert source.counters.frames_missing == source.counters.frames_faulty == 0


def test_video_keeps_the_color_order_it_states(tmp_path):
    path = tmp_path / "blue.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(2):
        writer.write(np.full((48, 64, 3), (200, 20, 20), np.uint8))  # blue, as cv2 writes it
    writer.release()
    frames, _ = read_all(VideoSource(path))
    assert frames[0].color == "bgr"
    assert frames[0].image[..., 0].mean() > 150 > frames[0].image[..., 2].mean()


def cut(path, share):
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_video_delivers_what_is_there_and_then_raises(make_video, tmp_path, share):
    source = VideoSource(cut(make_video(tmp_path / "line.avi", 30), share))
    frames, ended = read_all(source)
    assert 0 < len(frames) < 30
    assert str(ended).startswith(f"{tmp_path / 'line.avi'} ended early")
    assert f"gave {len(frames)} of 30" in str(ended)
    assert source.counters.frames_missing == 30 - len(frames)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
def test_last_frame_of_a_truncated_avi_is_a_fault_because_ffmpeg_paints_its_missing_half(make_video, tmp_path, share):
    frames, ended = read_all(VideoSource(cut(make_video(tmp_path / "line.avi", 30), share)))
    assert ended is not None
    assert [frame.fault is None for frame in frames] == [True] * (len(frames) - 1) + [False]


def test_truncated_matroska_raises_although_nothing_in_it_is_damaged(make_video, tmp_path):
    frames, ended = read_all(VideoSource(cut(make_video(tmp_path / "line.mkv", 30), 0.5)))
    assert 0 < len(frames) < 30
    assert "announced frames" in str(ended)


def test_damaged_frame_in_the_middle_is_a_fault_at_its_own_index(make_video, tmp_path):
    path = make_video(tmp_path / "line.avi", 30)
    data = bytearray(path.read_bytes())
    chunks, at = [], data.find(b"00dc", data.find(b"movi"))  # the header holds the same four letters
    while at >= 0 and len(chunks) < 30:
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        chunks.append((at + 8, length))
        at = data.find(b"00dc", at + 8 + length)
    start, length = chunks[12]
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    frames, ended = read_all(VideoSource(path))
    assert ended is None
    assert [frame.index for frame in frames if frame.fault] == [12]
    assert len(frames) == 30


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "x.avi").write_bytes(content)
    with pytest.raises(SourceOpenError, match=r"x\.avi is not a video"):
        VideoSource(tmp_path / "x.avi").__enter__()


def test_missing_video_is_named(tmp_path):
    with pytest.raises(SourceOpenError, match=r"missing\.avi: No such file"):
        VideoSource(tmp_path / "missing.avi").__enter__()


def test_truncated_mp4_cannot_be_opened_and_says_why(make_video, tmp_path):
    with pytest.raises(SourceOpenError, match="its end is missing"):
        VideoSource(cut(make_video(tmp_path / "line.mp4", 30, fourcc="mp4v"), 0.5)).__enter__()


@pytest.mark.parametrize(("suffix", "fourcc"), [("avi", "MJPG"), ("mp4", "mp4v")])
@pytest.mark.parametrize("lost_bytes", [0, 1, 100])
def test_bytes_missing_from_a_container_are_counted(make_video, tmp_path, suffix, fourcc, lost_bytes):
    path = make_video(tmp_path / f"line.{suffix}", 10, fourcc=fourcc)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - lost_bytes])
    assert count_missing_bytes(path) == lost_bytes


@pytest.mark.parametrize(
    ("data", "missing"),
    [  # built by hand from the format descriptions
        (b"RIFF" + struct.pack("<I", 4) + b"AVI ", 0),
        (b"RIFF" + struct.pack("<I", 10) + b"AVI ", 6),
        (b"RIFF" + struct.pack("<I", 0) + b"AVI ", 0),  # a recorder that never came back to fill in the size
        (b"RIFF" + struct.pack("<I", 4) + b"AVI " + b"RIFF" + struct.pack("<I", 9) + b"AVIX", 6),  # 9 bytes and one to pad
        (struct.pack(">I", 16) + b"ftypisom0000" + struct.pack(">I", 100) + b"mdat", 92),
        (struct.pack(">I", 16) + b"ftypisom0000" + struct.pack(">I", 0) + b"mdat1234", 0),  # "to the end of the file"
        (struct.pack(">I", 16) + b"ftypisom0000" + struct.pack(">I", 1) + b"mdat" + struct.pack(">Q", 20), 4),
        (b"", 0),
        (b"\x1aE\xdf\xa3 matroska", 0),
    ],
)
def test_declared_length_is_read_as_the_formats_define_it(tmp_path, data, missing):
    (tmp_path / "x").write_bytes(data)
    assert count_missing_bytes(tmp_path / "x") == missing


@pytest.fixture(params=["folder", "video"])
def any_source(request, make_image, make_video, tmp_path):
    if request.param == "video":
        return VideoSource(make_video(tmp_path / "line.avi", 8))
    for index in range(8):
        make_image(tmp_path / f"{index}.png", index)
    return ImageFolderSource(tmp_path)


def test_files_ask_for_every_frame(any_source):
    assert any_source.policy is OverflowPolicy.EVERY


def test_frames_are_numbered_dated_and_read_only(any_source):
    frames, ended = read_all(any_source)
    assert ended is None
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.captured_ns for frame in frames] == sorted(frame.captured_ns for frame in frames)
    assert not any(frame.image.flags.writeable for frame in frames)
    assert any_source.counters.frames_announced == 8


def test_stop_ends_a_file_without_an_error(any_source):
    stop, frames = threading.Event(), []
    with any_source:
        for frame in any_source.frames(stop):
            frames.append(frame)
            if len(frames) == 3:
                stop.set()
    assert len(frames) == 3
