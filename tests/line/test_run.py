"""snl-run gives one record per frame, a summary, and the documented exit status, whatever the source and the outputs do."""

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import pytest

from snl_runtime.cli.run import main

EXPECTED = ["PASS"] * 6 + ["REJECT"] * 2 + ["ERROR"]


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def summary_of(captured):
    (line,) = captured.out.splitlines()
    return json.loads(line)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_records_go_to_standard_output_and_the_summary_to_stderr(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts) == 0
    captured = capsys.readouterr()
    records = lines_of(captured.out)
    assert [record["verdict"] for record in records] == EXPECTED
    assert [Path(record["source_id"]).name for record in records] == sorted(path.name for path in parts.iterdir())
    assert "frames: 9 captured, 8 inspected, 0 dropped, 1 failed" in captured.err
    assert "verdicts: PASS 6, REVIEW 0, REJECT 2, ERROR 1" in captured.err
    assert "frame_fault 1" in captured.err
    assert "p50" in captured.err
    assert "p99" in captured.err


def test_json_prints_exactly_one_object_that_agrees_with_the_records(engine, parts, tmp_path, capsys):
    records_path = tmp_path / "out.jsonl"
    assert run("--engine", engine, "--images", parts, "--jsonl", records_path, "--product", "bottle", "--json") == 0
    summary = summary_of(capsys.readouterr())
    records = lines_of(records_path.read_text())
    assert {name: count for name, count in summary["verdicts"].items() if count} == Counter(record["verdict"] for record in records)
    assert summary["reasons"] == Counter(record["reason_code"] for record in records)
    assert summary["captured"] == summary["inspected"] + summary["dropped"] + summary["failed"] == 9
    assert summary["waiting"] == 0
    assert summary["model_sha256"] == records[0]["model_sha256"]
    assert summary["source"] == {"announced": 9, "faulty": 1, "missing": 0, "reconnects": 0}
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p95"] <= summary["latency_ms"]["p99"] <= summary["latency_ms"]["max"]
    assert set(summary["stage_median_ms"]) == {"preprocess", "infer", "decide", "total"}
    assert summary["error"] is None


def test_json_without_a_file_for_the_records_is_refused(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "add --jsonl FILE" in captured.err


def test_fail_on_reject_exits_4_when_a_part_did_not_pass(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--fail-on-reject") == 4


def test_fail_on_reject_exits_0_when_every_part_passed(engine, parts, capsys):
    for path in [*parts.glob("b_*"), *parts.glob("c_*")]:
        path.unlink()
    assert run("--engine", engine, "--images", parts, "--fail-on-reject") == 0


def test_pictures_are_saved_beside_the_records(engine, parts, tmp_path, capsys):
    rejects, overlays = tmp_path / "rejects", tmp_path / "overlays"
    assert run("--engine", engine, "--images", parts, "--save-rejects", rejects, "--overlay", overlays) == 0
    assert sorted(path.name for path in rejects.iterdir()) == ["000006_REJECT_b_bad0.png", "000007_REJECT_b_bad1.png"]
    assert len(list(overlays.iterdir())) == 8
    assert (cv2.imread(str(rejects / "000006_REJECT_b_bad0.png")) == cv2.imread(str(parts / "b_bad0.png"))).all()


def test_overlays_of_parts_that_did_not_pass_alone(engine, parts, tmp_path, capsys):
    overlays = tmp_path / "overlays"
    assert run("--engine", engine, "--images", parts, "--overlay", overlays, "--overlay-of", "not-passed") == 0
    assert sorted(path.name for path in overlays.iterdir()) == ["000006_REJECT_b_bad0.jpg", "000007_REJECT_b_bad1.jpg"]


def test_choice_of_overlays_without_a_folder_for_them_is_refused(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--overlay-of", "not-passed") == 2
    assert "add --overlay DIR" in capsys.readouterr().err


def test_max_frames_stops_early(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--max-frames", 3) == 0
    assert len(lines_of(capsys.readouterr().out)) == 3


def test_whole_video_exits_0(engine, model, tmp_path, capsys):
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), 25, (32, 32))
    for seed in range(12):
        writer.write(model.good_frame(seed))
    writer.release()
    assert run("--engine", engine, "--video", path) == 0
    records = lines_of(capsys.readouterr().out)
    assert len(records) == 12
    assert {record["source_id"] for record in records} == {str(path)}


def test_video_that_ends_early_exits_2_after_every_record(engine, make_video, tmp_path, capsys):
    path = make_video(tmp_path / "line.avi", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    records_path = tmp_path / "out.jsonl"
    assert run("--engine", engine, "--video", path, "--jsonl", records_path, "--json") == 2
    captured = capsys.readouterr()
    summary = summary_of(captured)
    assert len(lines_of(records_path.read_text())) == summary["captured"] > 0
    assert summary["source"]["missing"] == 30 - summary["captured"]
    assert "ended early" in summary["error"]
    assert captured.err.splitlines()[-1].startswith(f"snl-run: error: {path} ended early")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--camera", "99"], "cannot open camera 99"),
        (["--camera", "front"], "a camera is a number or an address"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--video", "nowhere.avi"], "cannot read nowhere.avi"),
        (["--images", "{parts}", "--product", "botle"], "it has bottle; did you mean 'bottle'?"),
        (["--images", "{parts}", "--public-key", "nowhere.pem"], "cannot read the public key nowhere.pem"),
        (["--images", "{parts}", "--jsonl", "nowhere/out.jsonl"], "nowhere/out.jsonl: there is no folder"),
        (["--images", "{parts}", "--save-rejects", "{engine}"], "cannot make the folder"),
        (["--images", "{parts}", "--backend", "caffe"], "caffe"),
    ],
)
def test_user_error_is_one_line_and_exit_2(engine, parts, capsys, flags, message):
    assert run("--engine", engine, *(flag.format(parts=parts, engine=engine) for flag in flags)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("snl-run: error: ")
    assert message in captured.err


@pytest.mark.parametrize("flags", [[], ["--images", "x", "--video", "y"], ["--images", "x", "--max-frames", "0"], ["--images", "x", "--imag", "y"]])
def test_wrong_flags_are_one_line_and_exit_2(engine, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        run("--engine", engine, *flags)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_engine_is_a_user_error(parts, tmp_path, capsys):
    assert run("--engine", tmp_path / "none.onnx", "--images", parts) == 2
    assert "none.onnx" in capsys.readouterr().err


def test_model_without_decision_runs_and_passes_nothing(model, parts, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    bare = model.ModelFolder(tmp_path / "bare").write(decisions=[])
    assert run("--engine", bare, "--images", parts, "--product", "bottle", "--fail-on-reject") == 4
    assert {record["verdict"] for record in lines_of(capsys.readouterr().out)} == {"ERROR"}


def test_records_that_a_full_disk_refused_are_printed_and_not_lost(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--jsonl", "/dev/full") == 2
    error = capsys.readouterr().err
    saved = [json.loads(line) for line in error.splitlines() if line.startswith('{"record"')]
    captured = int(error.partition("frames: ")[2].split()[0])
    assert [record["frame_index"] for record in saved] == list(range(captured))
    assert captured > 0
    assert "cannot write records to /dev/full: No space left on device" in error.splitlines()[-1]


def command(*arguments):
    return [sys.executable, "-m", "snl_runtime.cli.run", *map(str, arguments)]


def test_full_standard_output_exits_2(engine, parts):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("--engine", engine, "--images", parts), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write records to standard output" in done.stderr.splitlines()[-1]


LONG = 4000


@pytest.fixture(scope="session")
def long_video(model, tmp_path_factory):
    """A video that still runs when the test strikes: seconds of work, milliseconds into it."""
    path = tmp_path_factory.mktemp("long") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 160))
    frames = [model.good_frame(seed, 160) for seed in range(10)]
    for index in range(LONG):
        writer.write(frames[index % 10])
    writer.release()
    return path


def start_and_wait_for_records(engine, video, path, *flags):
    """Start a run and return when its file has grown; the wait ends with the process at the latest."""
    process = subprocess.Popen(
        command("--engine", engine, "--video", video, "--jsonl", path, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (path.exists() and path.stat().st_size > 2000):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the run ended with {process.wait(0.01)} before it wrote records")
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_service_stop_delivers_what_is_under_way_and_exits_130(engine, long_video, tmp_path, number):
    path = tmp_path / "out.jsonl"
    process = start_and_wait_for_records(engine, long_video, path, "--json")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    summary = json.loads(out)
    indices = [record["frame_index"] for record in lines_of(path.read_text())]
    assert indices == list(range(summary["captured"]))
    assert summary["waiting"] == summary["dropped"] == 0
    assert summary["captured"] < LONG
    assert error.splitlines()[-1] == "snl-run: interrupted"


def test_kill_in_the_middle_leaves_whole_records(engine, long_video, tmp_path):
    path = tmp_path / "out.jsonl"
    process = start_and_wait_for_records(engine, long_video, path)
    process.kill()
    process.communicate(timeout=60)
    content = path.read_text()
    assert content.endswith("\n")
    indices = [record["frame_index"] for record in lines_of(content)]
    assert indices == list(range(len(indices)))
    assert 0 < len(indices) < LONG


def test_help_ends_with_a_worked_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-h"])
    assert ended.value.code == 0
    assert "snl-run --camera 0 --engine line.trt" in capsys.readouterr().out.splitlines()[-1]
