"""snl-run gives every image that it is offered a verdict or an ERROR record, and names what it left out."""

import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.cli.run import main

_spec = importlib.util.spec_from_file_location("snl_tests_image_files", Path(__file__).parents[1] / "image_files.py")
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20)


@pytest.fixture
def good(model):
    """A frame that passes, BGR."""
    return model.good_frame(1)


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    """Run the tiny model in a folder of its own; return exit status, records by source and what was said on stderr."""
    (tmp_path / "model").mkdir()
    (tmp_path / "work" / "in").mkdir(parents=True)
    engine = model.ModelFolder(tmp_path / "model").write()
    monkeypatch.chdir(tmp_path / "work")

    def run_it(*more, images="in"):
        status = main(["--engine", str(engine), "--images", str(images), "--product", "bottle", *map(str, more)])
        captured = capsys.readouterr()
        records = [json.loads(line) for line in captured.out.splitlines()]
        return status, {record["source_id"]: record for record in records}, captured.err

    return run_it


def put(name, data):
    path = Path("in") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def png(image):
    return files.encode(".png", image)


FAULTS = {
    "empty.png": lambda good: b"",
    "text.JPG": lambda good: b"no image",
    "half.png": lambda good: png(good)[: len(png(good)) // 2],
    "half": lambda good: png(good)[: len(png(good)) // 2],
    "phone.heic": lambda good: HEIC,
    "phone-without-suffix": lambda good: HEIC,
    "raw.cr3": lambda good: b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
    "unknown.tga": lambda good: bytes(100),
    "wide.png": lambda good: png(np.zeros((2, 70000), np.uint8)),
    "huge.pgm": lambda good: b"P5\n70000 70000\n255\n" + bytes(100),
    "float.tif": lambda good: files.encode(".tif", np.zeros((32, 32), np.float32)),
    "stack.tif": lambda good: files.tiff([good[:, :, ::-1]] * 2),
    "stereo.jpg": lambda good: files.mpo([good, good]),
    "several.ppm": lambda good: files.encode(".ppm", good) * 2,
    "thumbnail-only.dng": lambda good: files.tiff([good], subfiles=(1,)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_file_that_cannot_be_inspected_is_an_error_record_that_names_it_and_the_rest_is_inspected(name, run, good):
    put("a.png", png(good))
    put(name, FAULTS[name](good))
    put("z.png", png(good))
    status, records, _ = run("--fail-on-reject")
    assert status == 4
    assert [records[f"in/{other}"]["verdict"] for other in ("a.png", "z.png")] == ["PASS", "PASS"]
    record = records[f"in/{name}"]
    assert (record["verdict"], record["reason_code"]) == ("ERROR", "frame_fault")
    assert name in record["reason"]
    assert len(records) == 3


def test_link_to_nothing_is_an_error_record(run, good):
    put("a.png", png(good))
    Path("in/b.png").symlink_to("gone.png")
    status, records, _ = run("--fail-on-reject")
    assert status == 4
    assert records["in/b.png"]["reason"].startswith("in/b.png is a link to nothing")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".dib", ".gif", ".jp2", ".webp", ".avif", ".pnm", ".TIFF", ""])
def test_bad_part_is_rejected_whatever_its_file_is_called(suffix, run, good, model):
    written = {".jfif": ".jpg", ".jpe": ".jpg", ".dib": ".bmp", ".pnm": ".ppm", "": ".png"}.get(suffix, suffix.lower())
    try:
        data = files.encode(written, model.bad_frame(1))
    except (cv2.error, AssertionError):
        pytest.skip(f"this OpenCV writes no {written}")
    put("a.png", png(good))
    put(f"bad{suffix}", data)
    status, records, _ = run("--fail-on-reject")
    assert status == 4
    record = records[f"in/bad{suffix}"]
    assert record["verdict"] != "PASS"
    assert record["reason_code"] != "frame_fault"  # it was read; the palette of a GIF changes its colors so much that it leaves the range


def test_pages_all_gives_one_record_a_page(run, good, model):
    put("stack.tif", files.tiff([np.ascontiguousarray(image[:, :, ::-1]) for image in (good, model.bad_frame(1), good)]))
    put("a.png", png(good))
    status, records, err = run("--pages", "all", "--fail-on-reject")
    assert status == 4
    names = ["in/a.png", "in/stack.tif#page=1", "in/stack.tif#page=2", "in/stack.tif#page=3"]
    assert {name: record["verdict"] for name, record in records.items()} == dict(zip(names, ["PASS", "PASS", "REJECT", "PASS"], strict=True))
    assert "frames: 4 captured, 4 inspected" in err


def test_pages_one_is_an_error_that_says_how_many(run, good):
    put("stack.tif", files.tiff([good[:, :, ::-1]] * 3))
    _, records, _ = run()
    assert records["in/stack.tif"]["verdict"] == "ERROR"
    assert "holds 3 images" in records["in/stack.tif"]["reason"]


def test_own_pictures_inside_the_images_are_not_inspected_by_the_next_run(run, good, model):
    put("a.png", png(good))
    put("b.png", png(model.bad_frame(1)))
    for _ in range(3):
        _, records, _ = run("--overlay", "in/overlays", "--save-rejects", Path("in/rejects").absolute())
        assert sorted(records) == ["in/a.png", "in/b.png"]
    assert len(list(Path("in/overlays").iterdir())) == 6


def test_output_folder_that_is_the_folder_of_images_is_refused(run, good):
    put("a.png", png(good))
    status, records, err = run("--overlay", "in")
    assert status == 2
    assert not records
    assert "name another folder for the output" in err


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("in/a.png", ["in/a.png"]),
        ("in/*.png", ["in/a.png", "in/b.png"]),
        ("in/**/c*", ["in/day 1/c.png"]),
        ("in/[b]*", ["in/b.png"]),
    ],
)
def test_images_is_a_folder_a_file_or_a_pattern(images, expected, run, good):
    for name in ("a.png", "b.png", "day 1/c.png"):
        put(name, png(good))
    status, records, _ = run(images=images)
    assert status == 0
    assert list(records) == expected


@pytest.mark.parametrize("images", ["in/*.bmp", "nowhere", "in/notes.txt"])
def test_images_that_name_nothing_are_one_line(images, run, good):
    put("a.png", png(good))
    put("notes.txt", b"text")
    status, records, err = run(images=images)
    assert (status, records) == (2, {})
    assert err.startswith("snl-run: error: ")
    assert err.count("\n") == 1


def test_left_out_files_are_counted_and_named_on_request(run, good):
    put("a.png", png(good))
    put("b.heic", HEIC)
    put("@eaDir/a.png", png(good))
    put("notes.txt", b"text")
    _, _, err = run()
    assert "snl-run: in: 1 images taken, 1 cannot be taken, 2 files left out; --list-left-out names them" in err
    _, _, err = run("--list-left-out")
    assert "left out: in/b.heic is a HEIF image, which cannot be read" in err
    assert "left out: in/@eaDir/a.png lies in @eaDir, which is hidden or junk" in err
    assert "left out: in/notes.txt is not an image" in err


def test_names_that_are_not_utf8_and_equal_names_get_records_of_their_own(run, good):
    name = os.fsdecode(b"part_\xff.png")
    try:
        put(name, png(good))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    put("x/part.png", png(good))
    put("y/part.png", png(good))
    put(f"y/{name}", b"")
    status, records, _ = run("--fail-on-reject")
    assert status == 4
    assert {source: record["verdict"] for source, record in records.items()} == {
        "in/part_\\xff.png": "PASS",
        "in/x/part.png": "PASS",
        "in/y/part.png": "PASS",
        "in/y/part_\\xff.png": "ERROR",
    }


def test_picture_on_its_side_is_inspected_upright(run, good):
    turned = cv2.rotate(good, cv2.ROTATE_90_COUNTERCLOCKWISE)
    put("upright.png", png(good))
    put("turned.png", files.oriented_png(turned, 6))  # 6: turn by 90 degrees to show it
    _, records, _ = run()
    assert records["in/turned.png"]["score"] == records["in/upright.png"]["score"]


def test_pages_and_list_left_out_belong_to_images(model, tmp_path, capsys):
    engine = model.ModelFolder(tmp_path).write()
    assert main(["--engine", str(engine), "--camera", "0", "--pages", "all"]) == 2
    assert "belong to --images" in capsys.readouterr().err
