"""Announced records are whole lines of strict JSON whatever happens to the process or the disk, before and after a file is rotated."""

import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.line.jsonl import JsonlSink
from snl_runtime.line.records import record_line


def strict(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_each_record_is_in_the_file_before_the_next_is_announced(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        for index in range(3):
            sink.emit(fakes.frame_of(index), fakes.result_of())
            lines = path.read_text().splitlines()
            assert [strict(line)["frame_index"] for line in lines] == list(range(index + 1))


def test_a_second_run_appends(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    for index in range(2):
        with JsonlSink(path) as sink:
            sink.emit(fakes.frame_of(index), fakes.result_of())
    assert [strict(line)["frame_index"] for line in path.read_text().splitlines()] == [0, 1]


def test_half_a_line_left_by_a_power_cut_is_removed_before_appending(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    whole = record_line(fakes.frame_of(0), fakes.result_of()) + "\n"
    path.write_text(whole + whole[:40])
    with JsonlSink(path) as sink:
        sink.emit(fakes.frame_of(1), fakes.result_of())
    assert [strict(line)["frame_index"] for line in path.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize("left", [1, 3, 9, 10, 40])
def test_a_first_record_cut_anywhere_is_removed_before_appending(fakes, tmp_path, left):
    path = tmp_path / "out.jsonl"
    path.write_text(record_line(fakes.frame_of(0), fakes.result_of())[:left])
    with JsonlSink(path) as sink:
        sink.emit(fakes.frame_of(1), fakes.result_of())
    assert [strict(line)["frame_index"] for line in path.read_text().splitlines()] == [1]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"notes of the night shift\n", b'{"other": 1}\n', b'{"rec}', b"{}"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(SinkError, match="does not hold inspection records"):
        JsonlSink(path).__enter__()
    assert path.read_bytes() == content


def test_two_writers_of_one_file_are_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path), pytest.raises(SinkError, match="in use by another writer of records"):
        JsonlSink(path).__enter__()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(SinkError, match="missing/out.jsonl: No such file"):
        JsonlSink(tmp_path / "missing" / "out.jsonl").__enter__()


def test_full_disk_is_a_sink_error(fakes):
    with pytest.raises(SinkError, match="/dev/full: No space left on device"), JsonlSink("/dev/full") as sink:
        sink.emit(fakes.frame_of(), fakes.result_of())


FILL = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
MAX_BYTES, FIRST = None, 0
from snl_runtime.errors import SinkError
from snl_runtime.line.jsonl import JsonlSink
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict
result = AnomalyResult(verdict=Verdict.PASS, reason_code="r", reason="r", score=0.5, threshold=1.0, reject_threshold=1.0, product=None,
                       anomaly_map=None, roi_xyxy=None, regions=(), timings=StageTimings(), model_sha256="ab")
with JsonlSink(sys.argv[1], max_bytes=MAX_BYTES) as sink:
    for index in range(FIRST, 1000):
        frame = Frame(image=np.zeros((1, 1, 3), np.uint8), color="bgr", index=index, captured_ns=0, captured_at=0.0, source_id="x" * 100)
        try:
            sink.emit(frame, result)
        except SinkError as error:
            print(index, "|", error)
            break
"""


def test_disk_that_fills_up_leaves_whole_lines_and_every_announced_record(tmp_path):
    path = tmp_path / "out.jsonl"
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    written, message = done.stdout.split(" | ")
    content = path.read_text()
    assert content.endswith("\n")
    assert [strict(line)["frame_index"] for line in content.splitlines()] == list(range(int(written)))
    assert int(written) > 1
    assert len(content) <= 2000
    assert "File too large" in message


ENDLESS = (
    FILL.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))", "")
    .replace("range(FIRST, 1000)", "range(FIRST, 10**9)")
    .replace("sink.emit(frame, result)", "sink.emit(frame, result); print(index, flush=True)")
)


def test_killed_processes_lose_no_announced_record_and_the_next_one_finds_whole_lines(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    kept = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True)
        announced = [process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        announced += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.stdout.close()
        assert process.wait(30) == -signal.SIGKILL
        whole = path.read_bytes().rpartition(b"\n")[0].decode().splitlines()  # Linux may cut the last write between two pages
        assert [strict(line)["frame_index"] for line in whole[kept:]] == list(range(len(whole) - kept))
        assert len(whole) - kept >= len(announced)
        kept = len(whole)
    with JsonlSink(path) as sink:
        sink.emit(fakes.frame_of(77), fakes.result_of())
    lines = path.read_text().splitlines()
    assert len(lines) == kept + 1
    assert strict(lines[-1])["frame_index"] == 77


def all_lines(folder):
    """Every whole line of all files, oldest file first; the one being written when the process died may end in half a line."""
    *rotated, current = [*sorted(folder.glob("out-*.jsonl")), folder / "out.jsonl"]
    assert all(path.read_bytes().endswith(b"\n") for path in rotated)
    last = current.read_bytes().rpartition(b"\n")[0].decode().splitlines() if current.exists() else []
    return [line for path in rotated for line in path.read_text().splitlines()] + last


def test_full_file_is_renamed_between_two_records_and_the_names_sort_by_age(fakes, tmp_path):
    with JsonlSink(tmp_path / "out.jsonl", max_bytes=1300) as sink:
        for index in range(20):
            sink.emit(fakes.frame_of(index), fakes.result_of())
    assert [strict(line)["frame_index"] for line in all_lines(tmp_path)] == list(range(20))
    rotated = list(tmp_path.glob("out-*.jsonl"))
    assert len(rotated) == 9  # two records of 500 to 650 bytes fit
    assert all(path.stat().st_size <= 1300 for path in rotated)


def test_record_longer_than_the_limit_gets_a_file_of_its_own(fakes, tmp_path):
    with JsonlSink(tmp_path / "out.jsonl", max_bytes=1) as sink:
        for index in range(3):
            sink.emit(fakes.frame_of(index), fakes.result_of())
    assert [len(path.read_text().splitlines()) for path in tmp_path.glob("out*.jsonl")] == [1, 1, 1]


def test_rotated_names_sort_by_age_after_the_clock_was_set_back(fakes, tmp_path):
    later = tmp_path / "out-29991231T235959.000000Z-0007.jsonl"
    later.write_text("kept\n")
    with JsonlSink(tmp_path / "out.jsonl", max_bytes=1) as sink:
        for index in range(3):
            sink.emit(fakes.frame_of(index), fakes.result_of())
    names = sorted(path.name for path in tmp_path.glob("out-*"))
    assert names == [f"out-29991231T235959.000000Z-000{number}.jsonl" for number in (7, 8, 9)]
    assert later.read_text() == "kept\n"


@settings(deadline=None, max_examples=40)
@given(
    max_bytes=st.none() | st.integers(1, 3000),
    steps=st.lists(st.sampled_from(["emit", "emit", "emit", "restart", "power cut", "archive"]), max_size=25),
)
def test_whatever_happens_between_records_each_is_in_one_file_once(fakes, max_bytes, steps):
    with tempfile.TemporaryDirectory() as name:
        folder, archive, written = Path(name), Path(name) / "archive", 0
        archive.mkdir()
        sink = JsonlSink(folder / "out.jsonl", max_bytes=max_bytes).__enter__()
        for step in steps:
            if step == "emit":
                sink.emit(fakes.frame_of(written), fakes.result_of())
                written += 1
            elif step == "archive":
                for path in folder.glob("out-*.jsonl"):
                    assert not (archive / path.name).exists()
                    path.rename(archive / path.name)
            else:
                sink.__exit__(None, None, None)
                if step == "power cut":
                    with (folder / "out.jsonl").open("ab") as file:
                        file.write(b'{"record": 1, "frame_ind')
                sink = JsonlSink(folder / "out.jsonl", max_bytes=max_bytes).__enter__()
        sink.__exit__(None, None, None)
        archived = [line for path in sorted(archive.glob("out-*")) for line in path.read_text().splitlines()]
        assert [strict(line)["frame_index"] for line in archived + all_lines(folder)] == list(range(written))


def test_second_writer_is_refused_after_the_file_was_rotated(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path, max_bytes=1) as sink:
        for index in range(2):
            sink.emit(fakes.frame_of(index), fakes.result_of())
        with pytest.raises(SinkError, match="in use by another writer of records"):
            JsonlSink(path).__enter__()


def test_file_behind_a_link_is_rotated_where_it_lies(fakes, tmp_path):
    (tmp_path / "data").mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "data" / "out.jsonl")
    with JsonlSink(link, max_bytes=1) as sink:
        for index in range(2):
            sink.emit(fakes.frame_of(index), fakes.result_of())
    assert link.is_symlink()
    assert [strict(line)["frame_index"] for line in all_lines(tmp_path / "data")] == [0, 1]


def test_file_that_cannot_be_renamed_grows_on_with_one_warning(fakes, tmp_path, caplog, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with JsonlSink(tmp_path / "out.jsonl", max_bytes=1) as sink:
        for index in range(3):
            sink.emit(fakes.frame_of(index), fakes.result_of())
    assert [strict(line)["frame_index"] for line in all_lines(tmp_path)] == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'out.jsonl'} cannot be rotated and grows on: Permission denied"]


def test_deleted_file_stops_the_line_at_the_first_record_that_is_lost(fakes, tmp_path):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        sink.emit(fakes.frame_of(0), fakes.result_of())
        path.unlink()
        with pytest.raises(SinkError, match="was deleted while records were written"):
            sink.emit(fakes.frame_of(1), fakes.result_of())


def test_device_cannot_be_rotated():
    with pytest.raises(SinkError, match="/dev/null is a device or a pipe, which cannot be rotated"):
        JsonlSink("/dev/null", max_bytes=1).__enter__()


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_size_limit_must_be_positive(tmp_path, max_bytes):
    with pytest.raises(ConfigError, match="max_bytes must be positive"):
        JsonlSink(tmp_path / "out.jsonl", max_bytes=max_bytes)


def rotating(first, extra=""):
    return ENDLESS.replace("MAX_BYTES, FIRST = None, 0", f"MAX_BYTES, FIRST = 1500, {first}\n{extra}")


def killed_process(path, script, *, after=None):
    """Run until killed, by the test after some announced records or by itself, and return the announced indices."""
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    announced = []
    if after is not None:
        announced = [process.stdout.readline() for _ in range(after)]
        process.send_signal(signal.SIGKILL)
    announced += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    return [int(line) for line in announced]


def test_processes_killed_while_they_rotate_lose_and_double_no_announced_record(fakes, tmp_path):
    path, first, chosen = tmp_path / "out.jsonl", 0, random.Random(5)
    for _ in range(5):
        announced = killed_process(path, rotating(first), after=chosen.randrange(20, 120))
        indices = [strict(line)["frame_index"] for line in all_lines(tmp_path)]
        assert indices == list(range(len(indices)))
        assert announced == list(range(first, announced[-1] + 1))
        assert len(indices) in (announced[-1] + 1, announced[-1] + 2)  # one may be written and not announced yet
        first = len(indices)
    assert len(list(tmp_path.glob("out-*.jsonl"))) > 20


DIE_AT = """
import os, signal, sys
renamed = []
def watch(event, arguments):
    if event == "os.rename":
        renamed.append(1)
        if len(renamed) == 3 and WHERE == "before the rename":
            os.kill(os.getpid(), signal.SIGKILL)
    if event == "open" and len(renamed) == 3 and arguments[0] == os.path.realpath(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize("where", ["before the rename", "between the rename and the new file"])
def test_process_killed_in_the_middle_of_a_rotation_loses_and_doubles_nothing(fakes, tmp_path, where):
    path = tmp_path / "out.jsonl"
    announced = killed_process(path, rotating(0, f"WHERE = {where!r}" + DIE_AT))
    assert path.exists() == (where == "before the rename")
    assert [strict(line)["frame_index"] for line in all_lines(tmp_path)] == announced
    with JsonlSink(path, max_bytes=1500) as sink:
        sink.emit(fakes.frame_of(len(announced)), fakes.result_of())
    assert [strict(line)["frame_index"] for line in all_lines(tmp_path)] == list(range(len(announced) + 1))
