"""snl-replay: an archived frame is the camera's array bit for bit, and judged again it gives the verdict and score on record."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.cli.replay import main
from snl_runtime.cli.run import main as run
from snl_runtime.errors import DataError
from snl_runtime.line.archived_frames import encode_frame, read_archived
from snl_runtime.line.image_folders import RejectSaver
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.parity.replay import Outcome, replay_frame
from snl_runtime.types import Verdict

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, model, engine, parts = fixtures.frame_of, fixtures.result_of, fixtures.model, fixtures.engine, fixtures.parts

SHAPES = [
    ("gray", (5, 7)),
    ("gray", (5, 7, 1)),
    ("bgr", (5, 7, 3)),
    ("rgb", (5, 7, 3)),
    ("bgra", (5, 7, 4)),
    ("rgba", (5, 7, 4)),
    ("gray", (5, 7, 3)),  # a source that says the wrong thing: an ERROR, and one that can be repeated
    ("rgb", (5, 7)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("color", "shape"), SHAPES)
def test_array_comes_back_bit_for_bit(tmp_path, dtype, color, shape):
    image = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    frame = frame_of(12, image=image, color=color, product="bottle", trigger_id=4, part_id="S-1", source_id="Kamera ü")
    with RejectSaver(tmp_path, camera="top") as saver:
        saver.emit(frame, result_of(Verdict.REJECT, score=1.1 / 3, bit_depth=12))
    (path,) = tmp_path.iterdir()
    archived = read_archived(path)
    assert archived.is_labeled
    assert (archived.image.dtype, archived.image.shape) == (image.dtype, image.shape)
    assert np.array_equal(archived.image, image)
    assert (archived.color, archived.product, archived.bit_depth, archived.camera) == (color, "bottle", 12, "top")
    assert (archived.record["score"], archived.record["verdict"], archived.record["trigger_id"]) == (1.1 / 3, "REJECT", 4)
    assert archived.key == ("2023-11-14T22:13:32.000Z", 12, "Kamera ü")


def test_other_programs_see_the_same_picture(tmp_path):
    image = np.random.default_rng(3).integers(0, 65535, (5, 7), np.uint16)
    data, suffix = encode_frame(frame_of(image=image, color="gray"), result_of(Verdict.REJECT))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image)


def test_frame_without_a_label_is_known_by_its_name(tmp_path):
    path = tmp_path / "20231114T221332.500Z_camera_0_000012_REJECT_2.png"
    cv2.imwrite(str(path), np.full((4, 5), 7, np.uint8))
    archived = read_archived(path)
    assert archived.record == {"captured_at": "2023-11-14T22:13:32.500Z", "frame_index": 12, "verdict": "REJECT"}
    assert (archived.color, archived.is_labeled) == ("gray", False)


def test_array_that_png_cannot_hold_comes_back(tmp_path):
    image = np.linspace(0, 1, 40).reshape(2, 4, 5)
    with RejectSaver(tmp_path) as saver:
        saver.emit(frame_of(3, image=image), result_of(Verdict.ERROR))
    (path,) = tmp_path.iterdir()
    assert np.array_equal(read_archived(path).image, image)


@pytest.mark.parametrize("damage", ["cut", "flipped", "stranger", "label", "npy"])
def test_file_that_is_not_a_whole_frame_is_named(tmp_path, damage):
    data, _ = encode_frame(frame_of(image=np.random.default_rng(3).integers(0, 255, (32, 32, 3), np.uint8)), result_of(Verdict.REJECT))
    name = "20231114T221332.500Z_camera_0_000012_REJECT.png"
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage in ("flipped", "label"):
        position = len(data) - 40 if damage == "flipped" else data.index(b'"verdict"') + 2
        data = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    elif damage == "npy":
        name, data = name.replace(".png", ".npy"), b"\x93NUMPY\x01\x00"
    else:
        name, data = "holiday.png", cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        read_archived(tmp_path / name)


# End to end


@pytest.fixture
def archive(engine, parts, tmp_path, capsys):
    """What a run leaves: frames of two bad parts, records of all."""
    assert (
        run(["--engine", str(engine), "--images", str(parts), "--save-rejects", str(tmp_path / "rejects"), "--jsonl", str(tmp_path / "v.jsonl")]) == 0
    )
    capsys.readouterr()
    return tmp_path / "rejects"


@pytest.fixture
def replay(capsys):
    def replay_it(*flags):
        status = main([*map(str, flags), "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return replay_it


def test_replay_on_the_same_model_is_equal_bit_for_bit(engine, archive, replay, tmp_path):
    status, report, _ = replay("--engine", engine, "--archive", archive, "--records", tmp_path / "v.jsonl", "--exact")
    assert status == 0
    assert (report["replayed"], report["equal"], report["scores_equal"]) == (2, 2, 2)
    assert report["scores_different"] == report["scores_unknown"] == report["different"] == 0
    assert report["unreadable"] == report["images_without_record"] == report["records_without_image"] == []
    on_record = {record["score"] for line in (tmp_path / "v.jsonl").read_text().splitlines() if (record := json.loads(line))["verdict"] == "REJECT"}
    assert {frame["score"] for frame in report["frames"]} == on_record


def test_replay_needs_no_records_beside_the_images(engine, archive, replay):
    status, report, _ = replay("--engine", engine, "--archive", archive, "--exact")
    assert (status, report["equal"], report["scores_equal"]) == (0, 2, 2)


def test_replay_takes_a_store(engine, archive, replay, tmp_path, model):
    from snl_runtime import SnlDetector

    store = tmp_path / "records.sqlite"
    with (
        SnlDetector(engine) as detector,
        RecordStore(RecordStoreConfig(path=str(store))) as opened,
        RejectSaver(tmp_path / "a", camera="top") as saver,
    ):
        for index in range(4):
            image = model.bad_frame(index) if index % 2 else model.good_frame(index)
            frame = frame_of(index, image=image, trigger_id=index + 1)
            result = detector.detect(image, color="bgr")
            opened.mark_answered(opened.add(frame, result, camera="top"))
            saver.emit(frame, result)
    status, report, _ = replay("--engine", engine, "--archive", tmp_path / "a", "--records", store, "--exact")
    assert (status, report["replayed"], report["equal"], report["scores_equal"]) == (0, 2, 2, 2)
    assert report["images_without_record"] == report["records_without_image"] == []


def test_other_thresholds_change_verdicts_and_the_replay_says_which(model, archive, replay, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = model.ModelFolder(tmp_path / "other").write(decisions=[{"pass_threshold": 500.0, "reject_threshold": 600.0}])
    status, report, _ = replay("--engine", other, "--archive", archive)
    assert status == 4
    assert (report["different"], report["equal"], report["scores_equal"]) == (2, 0, 2)
    assert {(frame["verdict_before"], frame["verdict"], frame["outcome"]) for frame in report["frames"]} == {("REJECT", "PASS", "different")}
    assert main(["--engine", str(other), "--archive", str(archive)]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["different", "different"]
    assert "2 frames judged again: 0 verdicts equal, 2 different" in lines[3]


def test_other_scores_with_the_same_verdicts_fail_only_where_they_must_be_exact(model, archive, replay, tmp_path):
    (tmp_path / "other").mkdir()
    other = model.ModelFolder(tmp_path / "other").write(kernel_value=1 / 25 * 1.000001)  # within the tolerance of the golden samples
    status, report, _ = replay("--engine", other, "--archive", archive)
    assert (status, report["equal"], report["scores_different"]) == (0, 2, 2)
    assert replay("--engine", other, "--archive", archive, "--exact")[0] == 4


def test_missing_images_and_records_are_counted_and_named(engine, archive, replay, tmp_path, capsys):
    first, second = sorted(archive.iterdir())
    first.rename(archive / "20200101T000000.000Z_x_000099_REJECT.png")  # its content still says which it is
    cv2.imwrite(str(archive / "20200101T000000.000Z_x_000098_REJECT.png"), np.zeros((4, 4, 3), np.uint8))
    second.unlink()
    (archive / "notes.txt").write_text("nothing to do with it")
    status, report, _ = replay("--engine", engine, "--archive", archive, "--records", tmp_path / "v.jsonl")
    assert status == 4  # the black square is no REJECT
    assert report["images_without_record"] == ["20200101T000000.000Z_x_000098_REJECT.png"]
    assert [name.split(" of ")[1] for name in report["records_without_image"]] == [str(tmp_path / "parts" / "b_bad1.png")]
    main(["--engine", str(engine), "--archive", str(archive), "--records", str(tmp_path / "v.jsonl")])
    assert "1 records without an image: " in capsys.readouterr().out


def test_image_that_cannot_be_read_is_no_success(engine, archive, replay):
    first, _ = sorted(archive.iterdir())
    first.write_bytes(first.read_bytes()[:100])
    status, report, _ = replay("--engine", engine, "--archive", archive)
    assert (status, report["replayed"]) == (4, 1)
    assert first.name in report["unreadable"][0]


@pytest.mark.parametrize("what", ["empty folder", "no folder", "no records", "strange records"])
def test_errors_are_one_line(engine, archive, replay, tmp_path, what):
    flags = ["--engine", engine, "--archive", archive]
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange.jsonl").write_text('{"x": 1}\n')
    flags += {
        "empty folder": ["--archive", tmp_path / "empty"],
        "no folder": ["--archive", tmp_path / "gone"],
        "no records": ["--records", tmp_path / "gone.jsonl"],
        "strange records": ["--records", tmp_path / "strange.jsonl"],
    }[what]
    status, report, err = replay(*flags)
    assert (status, report, err.count("\n")) == (2, None, 1)
    assert err.startswith("snl-replay: error: ")


# Rules of the comparison


class _Answers:
    """A detector with one answer."""

    def __init__(self, verdict, score):
        self.result = result_of(verdict, score=score)
        self.asked = None

    def detect(self, image, *, color="bgr", product=None, bit_depth=None):
        self.asked = (color, product, bit_depth)
        return self.result


def outcome(tmp_path, before, now, *, score=1.0, score_now=None, reason_code="above_reject_threshold", guard_band=0.0, **frame):
    image = frame.pop("image", np.zeros((4, 4, 3), np.uint8))
    result = result_of(before, score=score, threshold=1.05, reject_threshold=2.0, reason_code=reason_code, bit_depth=frame.pop("bit_depth", 8))
    data, suffix = encode_frame(frame_of(image=image, **frame), result)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    archived, detector = read_archived(path), _Answers(now, score if score_now is None else score_now)
    return replay_frame(detector, archived, archived.record, guard_band=guard_band).outcome, detector.asked


@pytest.mark.parametrize(
    ("before", "now", "guard_band", "expected"),
    [
        (Verdict.REVIEW, Verdict.REVIEW, 0.0, Outcome.EQUAL),
        (Verdict.PASS, Verdict.REVIEW, 0.0, Outcome.DIFFERENT),
        (Verdict.PASS, Verdict.REVIEW, 0.025, Outcome.WITHIN_GUARD_BAND),  # 1.0 is 0.05 below the threshold: score and threshold may each move 0.025
        (Verdict.PASS, Verdict.REVIEW, 0.02, Outcome.DIFFERENT),
        (Verdict.PASS, Verdict.ERROR, 0.1, Outcome.DIFFERENT),
        (Verdict.REVIEW, Verdict.PASS, 0.1, Outcome.DIFFERENT),  # never more lenient
        (Verdict.REJECT, Verdict.PASS, 5.0, Outcome.DIFFERENT),
    ],
)
def test_guard_band_excuses_stricter_verdicts_just_below_a_threshold_and_nothing_else(tmp_path, before, now, guard_band, expected):
    # 1.05 - 1.0 is not exactly 0.05 in binary: the score leaves room on the side that each case needs.
    assert outcome(tmp_path, before, now, score=1.000001, guard_band=guard_band)[0] is expected


@pytest.mark.parametrize("reason_code", ["timeout", "deadline_missed", "record_late"])
def test_error_of_the_moment_is_not_compared(tmp_path, reason_code):
    assert outcome(tmp_path, Verdict.ERROR, Verdict.PASS, reason_code=reason_code)[0] is Outcome.NOT_COMPARED


def test_frame_is_judged_as_the_product_and_depth_that_the_line_read_it_with(tmp_path):
    image = np.zeros((4, 4), np.uint16)
    assert outcome(tmp_path, Verdict.REJECT, Verdict.REJECT, image=image, color="gray", product="cap", bit_depth=12)[1] == ("gray", "cap", 12)
    assert outcome(tmp_path, Verdict.REJECT, Verdict.REJECT, image=image, color="gray", bit_depth=16)[1] == ("gray", None, None)
