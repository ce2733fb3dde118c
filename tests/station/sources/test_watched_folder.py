"""A watched folder gives each file once, when its writer is done with it, or as a fault when it never is; writers are real processes."""

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.errors import ConfigError, SourceError, SourceOpenError
from snl_runtime.line.sources.arrivals import Arrivals
from snl_runtime.line.sources.watched_folder import WatchedFolderConfig, WatchedFolderSource

QUICK = {"settle_s": 0.3, "give_up_s": 1.5, "poll_interval_s": 0.02}
WRITER = """
import sys, pathlib
data, target, stop_at = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2]), float(sys.argv[3])
with target.open("wb", buffering=0) as file:
    file.write(data[: int(len(data) * stop_at)])
    print("half", flush=True)
    sys.stdin.readline()
    file.write(data[int(len(data) * stop_at) :])
print("whole", flush=True)
"""


def picture(path, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return image[:, :, ::-1]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "parts"
    path.mkdir()
    return path


@pytest.fixture
def write_half(tmp_path):
    """Start a process that writes half of a file and waits."""
    writers = []

    def start(target, stop_at=0.5):
        whole = tmp_path / f"whole{target.suffix}"
        picture(whole)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(whole), str(target), str(stop_at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        writers.append(writer)
        assert writer.stdout.readline() == "half\n"
        return writer

    yield start
    for writer in writers:
        writer.kill()
        writer.communicate(timeout=10)


def source_of(folder, **values):
    return WatchedFolderSource(WatchedFolderConfig(**({"folder": str(folder)} | QUICK | values)), product="bottle")


def names(frames):
    return [Path(frame.source_id).name for frame in frames]


def test_files_come_once_each_in_the_order_of_their_times_and_are_moved(folder, read):
    pixels = {}
    for number, name in enumerate(["c.png", "a.png", "b.png"]):
        pixels[name] = picture(folder / name, number)
        os.utime(folder / name, (1_700_000_000 + number,) * 2)
    reader = read(source_of(folder))
    frames = [reader.next() for _ in range(3)]
    picture(folder / "d.png", 9)
    frames.append(reader.next())
    assert reader.finish() == frames
    assert names(frames) == ["c.png", "a.png", "b.png", "d.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all((frame.image == pixels[name]).all() for frame, name in zip(frames[:3], names(frames)))
    assert {(frame.color, frame.product, frame.fault) for frame in frames} == {("rgb", "bottle", None)}
    assert sorted(path.name for path in folder.iterdir()) == ["done"]
    assert sorted(path.name for path in (folder / "done").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".ppm"])
def test_half_written_file_is_waited_for_while_others_pass(folder, read, write_half, suffix):
    writer = write_half(folder / f"slow{suffix}")
    reader = read(source_of(folder, give_up_s=60))
    picture(folder / "quick.png", 1)
    assert names([reader.next()]) == ["quick.png"]
    picture(folder / "second.png", 2)
    assert names([reader.next()]) == ["second.png"], "more than settle_s later, the half file was not taken"
    writer.stdin.write("\n")
    writer.stdin.flush()
    frame = reader.next()
    assert names([frame]) == [f"slow{suffix}"]
    assert frame.fault is None
    assert frame.image.shape == (40, 50, 3)


def test_file_of_a_killed_writer_becomes_a_fault_after_the_limit(folder, read, write_half):
    writer = write_half(folder / "part.png")
    reader = read(source_of(folder))
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    frame = reader.next()
    assert frame.image is None
    assert "part.png" in frame.fault
    assert "not whole after 1.5 s without a change" in frame.fault
    assert reader.source.counters.frames_faulty == 1
    picture(folder / "part.png", 3)
    again = reader.next()
    assert again.fault is None, "the same name written whole later is a new file"
    assert len(list((folder / "done").iterdir())) == 2, "and replaces nothing"


def test_empty_file_is_waited_for_and_then_a_fault(folder, read):
    (folder / "empty.png").touch()
    reader = read(source_of(folder))
    frame = reader.next()
    assert frame.image is None
    assert "is empty (0 bytes)" in frame.fault


def test_file_renamed_into_place_is_taken_at_once(folder, read):
    reader = read(source_of(folder, complete="renamed", settle_s=20, give_up_s=40))
    for name in ("first.png", "second.png"):
        picture(folder / f".{name}")
        (folder / f".{name}").rename(folder / name)
        assert names([reader.next(10)]) == [name], "long before a file counts as settled"


def test_names_that_a_writer_uses_meanwhile_are_not_read(folder, read):
    data = folder.parent / "whole.png"
    picture(data)
    for name in ("a.png.tmp", "b.PNG.PART", ".c.png"):
        (folder / name).write_bytes(data.read_bytes())
    reader = read(source_of(folder))
    picture(folder / "real.png")
    assert names([reader.next()]) == ["real.png"]
    (folder / "a.png.tmp").rename(folder / "a.png")
    assert names([reader.next()]) == ["a.png"]
    assert len(reader.finish()) == 2


def test_what_is_no_image_stays_where_it_is(folder, read):
    (folder / "notes.txt").write_text("shift 2")
    (folder / "deeper").mkdir()
    picture(folder / "deeper" / "x.png")
    reader = read(source_of(folder))
    picture(folder / "real.png")
    assert names([reader.next()]) == ["real.png"]
    assert len(reader.finish()) == 1
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("done", ["move", "remember"])
def test_restart_judges_nothing_twice(folder, read, done):
    for number in range(3):
        picture(folder / f"{number}.png", number)
    first = read(source_of(folder, done=done))
    seen = [first.next() for _ in range(3)]
    first.finish()
    picture(folder / "new.png", 9)
    second = read(source_of(folder, done=done))
    assert names([second.next()]) == ["new.png"]
    assert len(second.finish()) == 1
    assert len(seen) == 3


def test_kept_files_are_judged_once_in_a_process_and_again_in_the_next(folder, read):
    picture(folder / "a.png")
    for _ in range(2):
        reader = read(source_of(folder, done="keep"))
        assert names([reader.next()]) == ["a.png"]
        picture(folder / "marker.png", 1)
        assert names([reader.next()]) == ["marker.png"]
        assert len(reader.finish()) == 2
        (folder / "marker.png").unlink()


def test_remembered_file_that_is_written_anew_is_a_new_one(folder, read):
    picture(folder / "a.png", 1)
    reader = read(source_of(folder, done="remember"))
    first = reader.next()
    expected = picture(folder / "a.png", 2)
    second = reader.next()
    assert names([first, second]) == ["a.png", "a.png"]
    assert (second.image == expected).all()


KILLED = """
import sys, threading, os, signal
from snl_runtime.line.sources.watched_folder import WatchedFolderConfig, WatchedFolderSource
config = WatchedFolderConfig(folder=sys.argv[1], done=sys.argv[2], settle_s=0.05, give_up_s=1, poll_interval_s=0.02)
with WatchedFolderSource(config) as source:
    for frame in source.frames(threading.Event()):
        print(frame.source_id, flush=True)
        if frame.index == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        if frame.source_id.endswith("last.png"):
            break
"""


@pytest.mark.parametrize("done", ["move", "remember"])
def test_killed_process_has_judged_no_file_twice_when_it_is_back(folder, done):
    for number in range(12):
        picture(folder / f"{number:02}.png", number)
        os.utime(folder / f"{number:02}.png", (1_700_000_000 + number,) * 2)
    picture(folder / "last.png")
    seen = []
    for kill_at in (3, 0, 4, 99):
        run = subprocess.run([sys.executable, "-c", KILLED, str(folder), done, str(kill_at)], capture_output=True, text=True, timeout=60)
        assert run.returncode == (0 if kill_at == 99 else -signal.SIGKILL), run.stderr
        seen += run.stdout.split()
    assert names_of(seen) == [f"{number:02}.png" for number in range(12)] + ["last.png"]


def names_of(paths):
    return [Path(path).name for path in paths]


def test_half_a_line_in_the_state_file_is_a_file_that_was_not_handed_over(folder, read):
    for name in ("a.png", "b.png"):
        picture(folder / name)
    reader = read(source_of(folder, done="remember"))
    assert sorted(names([reader.next(), reader.next()])) == ["a.png", "b.png"]
    handed_over = names(reader.finish())
    state = folder / ".snl-judged.jsonl"
    state.write_bytes(state.read_bytes()[:-5])
    again = read(source_of(folder, done="remember"))
    assert names([again.next()]) == [handed_over[1]]


def test_damaged_state_file_is_refused(folder):
    (folder / ".snl-judged.jsonl").write_text('["zz"]\n')
    with pytest.raises(SourceOpenError, match=r"line 1 of .*\.snl-judged\.jsonl is damaged; remove the file"):
        source_of(folder, done="remember").__enter__()


def test_two_processes_share_a_folder_without_judging_a_file_twice(folder, read):
    readers = [read(source_of(folder)) for _ in range(2)]
    for number in range(20):
        picture(folder / f"{number:02}.png", number)
    seen = []
    while len(seen) < 20:
        for reader in readers:
            while not reader.arrived.empty():
                seen.append(reader.next())
        assert not readers[0].ended.wait(0.02)
    assert sorted(names([*readers[0].finish(), *readers[1].finish()])) == [f"{number:02}.png" for number in range(20)]


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceOpenError, match="cannot watch .*missing: No such file or directory; make the folder first"):
        source_of(tmp_path / "missing").__enter__()


@pytest.mark.parametrize(("done", "message"), [("move", "cannot move judged files to"), ("remember", r"cannot write .*\.snl-judged\.jsonl")])
def test_folder_that_cannot_be_changed_is_refused_before_the_first_file(folder, read_only, done, message):
    picture(folder / "a.png")
    read_only(folder)
    with pytest.raises(SourceOpenError, match=message):
        source_of(folder, done=done).__enter__()


def test_file_that_cannot_be_moved_ends_the_run_and_is_not_judged(folder, read):
    reader = read(source_of(folder))
    shutil.rmtree(folder / "done")
    picture(folder / "a.png")
    assert reader.ended.wait(10)
    with pytest.raises(SourceError, match="it was not judged"):
        reader.finish()
    assert reader.frames == []
    assert (folder / "a.png").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settle_s": 0}, r"watched_folder\.settle_s must be a positive number of seconds, got 0"),
        ({"settle_s": 5, "give_up_s": 1}, r"watched_folder\.give_up_s must be at least settle_s \(5\), got 1"),
        ({"done": "keep", "done_folder": "x"}, r"watched_folder\.done_folder needs watched_folder\.done move, got keep"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        WatchedFolderConfig(**({"folder": "x"} | values))


def test_memory_goes_with_the_files_that_are_there_and_nothing_stays_of_those_that_are_gone(tmp_path):
    for number in range(5000):
        (tmp_path / f"part-{number:06}.png").touch()
    arrivals = Arrivals(tmp_path, settle_s=60, ignored_suffixes=())
    tracemalloc.start()
    try:
        assert arrivals.look() == []
        held = tracemalloc.get_traced_memory()[0]
        for path in tmp_path.iterdir():
            path.unlink()
        arrivals.look()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 5000 * 1000, "below 1 kB a file: 100,000 files take less than 100 MB"
    assert left < held / 5
