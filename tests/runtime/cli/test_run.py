"""snl-run gives one record per frame, a summary, and the documented exit status, whatever the source and the outputs do."""

import json
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
    first, second = sorted(rejects.iterdir())
    assert first.name.endswith("Z_b_bad0_000006_REJECT.png")
    assert second.name.endswith("Z_b_bad1_000007_REJECT.png")
    assert len(list(overlays.iterdir())) == 8
    assert (cv2.imread(str(first)) == cv2.imread(str(parts / "b_bad0.png"))).all()


def test_overlays_of_parts_that_did_not_pass_alone(engine, parts, tmp_path, capsys):
    overlays = tmp_path / "overlays"
    assert run("--engine", engine, "--images", parts, "--overlay", overlays, "--overlay-of", "not-passed") == 0
    assert [path.name.partition("Z_")[2] for path in sorted(overlays.iterdir())] == ["b_bad0_000006_REJECT.jpg", "b_bad1_000007_REJECT.jpg"]


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
        (["--images", "nowhere"], "nowhere does not exist"),
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


def test_pictures_that_do_not_fit_are_counted_and_every_record_is_written(engine, parts, tmp_path, capsys):
    rejects, overlays = tmp_path / "rejects", tmp_path / "overlays"
    rejects.mkdir()
    with (rejects / "earlier.png").open("wb") as file:
        file.truncate(1 << 20)
    flags = ["--save-rejects", rejects, "--overlay", overlays, "--saved-images-max-mib", 1, "--jsonl", tmp_path / "out.jsonl", "--json"]
    assert run("--engine", engine, "--images", parts, *flags) == 0
    captured = capsys.readouterr()
    saved_images = summary_of(captured)["saved_images"]
    assert (saved_images[str(rejects)]["saved"], saved_images[str(rejects)]["lost"]) == (0, 2)
    assert saved_images[str(overlays)] == {"saved": 8, "lost": 0, "why_lost": None, "deleted": 0}
    assert f"images in {rejects}: 0 saved, 2 LOST, the first because: it holds 1 MiB of at most 1" in captured.err
    assert len(lines_of((tmp_path / "out.jsonl").read_text())) == 9


def test_size_limit_without_a_file_of_records_is_refused(engine, parts, capsys):
    assert run("--engine", engine, "--images", parts, "--jsonl-max-mib", 1) == 2
    assert "add --jsonl FILE" in capsys.readouterr().err


def test_several_products_and_no_name_is_said_before_the_first_frame(model, parts, tmp_path, capsys):
    (tmp_path / "two").mkdir()
    two = model.ModelFolder(tmp_path / "two").write(decisions=[{"product": "bottle"}, {"product": "cap"}])
    assert run("--engine", two, "--images", parts) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "snl-run: no --product: the strictest rule of bottle, cap applies, PASS only where each of them would pass"
    assert run("--engine", two, "--images", parts, "--product", "cap") == 0
    assert "strictest" not in capsys.readouterr().err


def test_help_ends_with_a_worked_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-h"])
    assert ended.value.code == 0
    assert "snl-run --camera 0 --engine line.trt" in capsys.readouterr().out.splitlines()[-1]
