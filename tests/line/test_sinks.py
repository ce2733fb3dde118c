"""Announced records are whole lines of strict JSON whatever happens to the process or the disk, and pictures are the frames themselves."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.errors import SinkError
from snl_runtime.sinks import JsonlSink, OverlaySaver, RejectSaver, StreamSink, record_line
from snl_runtime.types import Verdict

RECORD_KEYS = [
    "record",
    "frame_index",
    "source_id",
    "device_frame_id",
    "captured_at",
    "product",
    "score",
    "threshold",
    "reject_threshold",
    "verdict",
    "reason_code",
    "reason",
    "regions",
    "stage_ms",
    "latency_ms",
    "model_sha256",
]


def strict(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_record_holds_what_the_readme_promises(fakes):
    region = fakes.region(box_xyxy=(np.int64(1), 2, 3, 4), score=0.75, area_px=np.int64(9))
    line = record_line(fakes.frame_of(7, device_frame_id=70), fakes.result_of(Verdict.REJECT, regions=(region,)))
    record = strict(line)
    assert "\n" not in line
    assert list(record) == RECORD_KEYS
    assert record["record"] == 1
    assert record["frame_index"] == 7
    assert record["device_frame_id"] == 70
    assert record["captured_at"] == "2023-11-14T22:13:27.000Z"  # 1 700 000 007 s after the epoch
    assert record["verdict"] == "REJECT"
    assert record["regions"] == [{"box_xyxy": [1, 2, 3, 4], "score": 0.75, "area_px": 9}]
    assert record["stage_ms"] == {"preprocess": 1.0, "infer": 2.0, "decide": 0.5, "total": 3.5}
    assert record["latency_ms"] >= 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_become_null(fakes, number):
    record = strict(record_line(fakes.frame_of(), fakes.result_of(Verdict.ERROR, score=number, threshold=number, reject_threshold=number)))
    assert record["score"] is record["threshold"] is record["reject_threshold"] is None


def test_file_name_of_another_encoding_is_recorded_with_escapes(fakes):
    name = os.fsdecode(b"part_\xff.png")
    line = record_line(fakes.frame_of(source_id=name), fakes.result_of())
    assert strict(line.encode("utf-8"))["source_id"] == "part_\\udcff.png"


def test_line_breaks_in_a_reason_stay_inside_the_record(fakes):
    line = record_line(fakes.frame_of(), fakes.result_of(reason="first\nsecond\u2028third"))
    assert len(line.split("\n")) == 1
    assert strict(line)["reason"] == "first\nsecond\u2028third"


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
    with JsonlSink(path), pytest.raises(SinkError, match="written by another process"):
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
from snl_runtime.errors import SinkError
from snl_runtime.sinks import JsonlSink
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict
result = AnomalyResult(verdict=Verdict.PASS, reason_code="r", reason="r", score=0.5, threshold=1.0, reject_threshold=1.0, product=None,
                       anomaly_map=None, roi_xyxy=None, regions=(), timings=StageTimings(), model_sha256="ab")
with JsonlSink(sys.argv[1]) as sink:
    for index in range(1000):
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
    .replace("range(1000)", "range(10**9)")
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


def test_stream_sink_writes_one_line_per_verdict(fakes):
    stream = io.StringIO()
    with StreamSink(stream) as sink:
        sink.emit(fakes.frame_of(0), fakes.result_of())
        sink.emit(fakes.frame_of(1), fakes.result_of())
    assert [strict(line)["frame_index"] for line in stream.getvalue().splitlines()] == [0, 1]


@pytest.mark.parametrize(("verdict", "saved"), [(Verdict.PASS, 0), (Verdict.REVIEW, 1), (Verdict.REJECT, 1), (Verdict.ERROR, 1)])
def test_every_frame_that_did_not_pass_is_saved(fakes, tmp_path, verdict, saved):
    with RejectSaver(tmp_path / "rejects") as sink:
        sink.emit(fakes.frame_of(12, source_id="parts/scratch 03.png"), fakes.result_of(verdict))
    assert [path.name for path in (tmp_path / "rejects").iterdir()] == [f"000012_{verdict.value}_scratch_03.png"] * saved


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


def test_grey_frame_of_16_bits_is_saved_as_it_is(fakes, tmp_path):
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
    assert stems == ["000003_REJECT_camera_0", "000003_REJECT_camera_0_2", "000003_REJECT_camera_0_3"]


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
    assert [path.name.split("_")[1] for path in sorted(tmp_path.iterdir())] == ["ERROR", "REJECT"]
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


CONTRACT_SINKS = {
    "jsonl": lambda folder: JsonlSink(folder / "out.jsonl"),
    "stream": lambda folder: StreamSink(io.StringIO()),
    "rejects": lambda folder: RejectSaver(folder / "rejects"),
    "overlays": lambda folder: OverlaySaver(folder / "overlays"),
}


@pytest.mark.parametrize("name", CONTRACT_SINKS)
def test_every_sink_takes_every_verdict_and_any_frame(fakes, tmp_path, name):
    images = [None, np.zeros((1, 1, 3), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 5), np.float32), np.zeros((0, 3, 3), np.uint8)]
    with CONTRACT_SINKS[name](Path(tmp_path)) as sink:
        for verdict in Verdict:
            for index, image in enumerate(images):
                usable = isinstance(image, np.ndarray) and image.shape == (1, 1, 3)
                changes = {"roi_xyxy": (0, 0, 1, 1)} if usable else {"anomaly_map": None, "roi_xyxy": None, "score": math.nan}
                sink.emit(fakes.frame_of(index, image=image), fakes.result_of(verdict, **changes))
