"""snl-run reads the same station from a file and from its flags, writes a start of one, and tries it without leaving a trace."""

import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from snl_runtime.cli.run import main
from snl_runtime.cli.run_flags import config_of, parse_flags
from snl_runtime.config import to_plain
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.line.sources import ImageFolderSource
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.station.build import build_source
from snl_runtime.station.check import check_camera
from snl_runtime.station.config import RecordsConfig
from snl_runtime.station.crop import CroppedDetector
from snl_runtime.station.station_file import station_of


@pytest.fixture
def station(model, tmp_path, monkeypatch):
    """A working folder with a model, four good parts and a bad one; the bad one comes last."""
    monkeypatch.chdir(tmp_path)
    model.ModelFolder(tmp_path).write(decisions=[{"frame_sizes": FrameSizes(seen_hw=[(32, 32)], any_size=False)}])
    (tmp_path / "parts").mkdir()
    for seed in range(4):
        cv2.imwrite(f"parts/a{seed}.png", model.good_frame(seed))
    cv2.imwrite("parts/b.png", model.bad_frame(0))
    return tmp_path


def run(line):
    return main(shlex.split(line))


def configured(line):
    return config_of(parse_flags(shlex.split(line)))


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


SMALL = "model: {file: line.onnx}\ncameras: {top: {source: {images: {path: parts}}}}\n"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--images parts", SMALL),
        ("--video v.mp4 --product nut", "model: {file: line.onnx}\ncameras: {top: {source: {video: {file: v.mp4}}, product: nut}}\n"),
        ("--camera 3 --frozen-after 0", "model: {file: line.onnx}\ncameras: {top: {source: {camera: {number: 3, frozen_after: 0}}}}\n"),
        ("--camera rtsp://h/s", "model: {file: line.onnx}\ncameras: {top: {source: {camera: {address: 'rtsp://h/s'}}}}\n"),
        (
            "--images parts --pages all --threads 2 --timeout-ms 50 --backend onnxruntime --device cpu --public-key k.pem --rebuild",
            "model: {file: line.onnx, threads: 2, timeout_ms: 50, backend: onnxruntime, device: cpu, public_key_file: k.pem, rebuild: true}\n"
            "cameras: {top: {source: {images: {path: parts, pages: all}}}}\n",
        ),
        (
            "--images parts --jsonl r.jsonl --jsonl-max-mib 5 --save-rejects rej"
            " --overlay ov --overlay-of not-passed --saved-images-max-mib 7 --sink a:b",
            SMALL + "records: {jsonl: {file: r.jsonl, max_mib: 5}, rejects: {folder: rej, max_mib: 7},"
            " overlay: {folder: ov, frames: not-passed, max_mib: 7}}\noutputs: {plugins: ['a:b']}\n",
        ),
    ],
)
def test_flags_and_file_give_the_same_configuration(station, flags, text):
    Path("station.yaml").write_text(text)
    by_flags, by_file = configured(f"--engine line.onnx {flags}"), configured("--config station.yaml")
    assert list(by_flags.cameras.values()) == list(by_file.cameras.values())
    assert (by_flags.model, by_flags.records, by_flags.outputs) == (by_file.model, by_file.records, by_file.outputs)


def test_flags_win_over_set_and_set_wins_over_the_file(station):
    Path("station.yaml").write_text(SMALL)
    line = "--config station.yaml --set cameras.top.product=nut --set model.threads=3"
    assert configured(line).cameras["top"].product == "nut"
    config = configured(f"{line} --product bolt --threads 4 --camera 0")
    assert (config.cameras["top"].product, config.model.threads) == ("bolt", 4)
    assert config.cameras["top"].source.kind == "camera"


def test_run_of_a_station_file_gives_the_records_of_its_flags(station, capsys):
    Path("station.yaml").write_text(SMALL)
    records = []
    for line in ("--config station.yaml", "--engine line.onnx --images parts"):
        assert run(line) == 0
        records.append([json.loads(text) for text in capsys.readouterr().out.splitlines()])
    by_file, by_flags = ([(one["source_id"], one["verdict"], one["score"]) for one in each] for each in records)
    assert by_file == by_flags
    assert [verdict for _, verdict, _ in by_file] == ["PASS"] * 4 + ["REJECT"]


def test_start_of_a_station_is_written_checked_and_run(station, capsys):
    assert run("--init station.yaml --engine line.onnx --images parts --product bottle --jsonl out.jsonl") == 0
    assert yaml.safe_load(Path("station.yaml").read_text())["cameras"] == {"camera": {"source": {"images": {"path": "parts"}}, "product": "bottle"}}
    assert configured("--config station.yaml") == configured("--engine line.onnx --images parts --product bottle --jsonl out.jsonl")
    assert run("--config station.yaml --check") == 0
    assert run("--config station.yaml") == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 5


def test_start_without_flags_is_the_default_of_every_key(station):
    assert run("--init station.yaml") == 0
    defaults = station_of({"model": {"file": "line.onnx"}, "cameras": {"camera": {"source": {"camera": {"number": 0}}}}})
    assert configured("--config station.yaml") == defaults


@pytest.mark.parametrize(("name", "message"), [("station.yaml", "is there already and is not overwritten"), ("gone/station.yaml", "cannot write")])
def test_start_replaces_nothing(station, capsys, name, message):
    Path("station.yaml").write_text("mine")
    assert run(f"--init {name} --engine line.onnx --images parts") == 2
    assert message in capsys.readouterr().err
    assert Path("station.yaml").read_text() == "mine"
    assert not Path("gone").exists()


def test_printed_configuration_is_a_station_file(station, capsys):
    assert run("--engine line.onnx --images parts --overlay ov --print-config") == 0
    text = capsys.readouterr().out
    Path("station.yaml").write_text(text)
    assert run("--config station.yaml --print-config") == 0
    assert capsys.readouterr().out == text
    assert yaml.safe_load(text)["records"]["overlay"]["folder"] == str(station / "ov")


def test_check_says_what_each_output_would_get_and_leaves_no_trace(station, capsys):
    before = tree(station)
    line = "--engine line.onnx --images parts --product bottle --jsonl out.jsonl --save-rejects rej --overlay a/b/ov"
    assert run(f"{line} --check") == 0
    out, err = capsys.readouterr()
    assert tree(station) == before
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "model: line.onnx with onnxruntime on cpu"
    assert "camera camera: parts/a0.png, 32 x 32 pixels, rgb, uint8" in lines
    assert any(line.startswith("  verdict: PASS (below_threshold: ") for line in lines)
    (record,) = [line for line in lines if line.startswith("  records to out.jsonl: ")]
    assert json.loads(record.partition("jsonl: ")[2])["verdict"] == "PASS"
    assert "  frame to rej: nothing of PASS" in lines
    assert "  overlay to a/b/ov: the frame with heat map and verdict" in lines


def test_check_of_a_bad_part_is_a_good_check(station, capsys):
    assert run("--engine line.onnx --images parts/b.png --save-rejects rej --check") == 0
    assert "  frame to rej: the frame as it is" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images nowhere", "nowhere does not exist"),
        ("--images parts --product botle", "did you mean 'bottle'?"),
        ("--images parts --jsonl gone/x.jsonl", "there is no folder"),
        ("--images parts --overlay line.onnx/ov", "cannot make the folder line.onnx/ov"),
        ("--images parts --sink nobody:1", "no plug-in provides the sink 'nobody'"),
        ("--images cut.png", "cameras.camera: frame_fault, "),
        ("--images large.png", "cameras.camera: frame_size, "),
        ("--images parts --set cameras.camera.crop_xyxy=[0,0,33,32]", "cameras.camera: frame_size, the frame has 32 x 32 pixels"),
        ("--images parts --engine none.onnx", "none.onnx"),
    ],
)
def test_check_that_fails_exits_2_with_one_line_and_leaves_no_trace(station, model, capsys, flags, message):
    Path("cut.png").write_bytes(Path("parts/a0.png").read_bytes()[:300])
    cv2.imwrite("large.png", model.good_frame(0, 64))
    before = tree(station)
    assert run(f"--engine line.onnx {flags} --check") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert tree(station) == before


def test_camera_that_gives_no_frame_ends_the_check(station, model, monkeypatch):
    config = configured("--engine line.onnx --images parts")

    class Silent(ImageFolderSource):
        def frames(self, stop):
            assert stop.wait(10)
            return iter(())

    monkeypatch.setattr("snl_runtime.station.check.build_source", lambda camera, *, records: Silent("parts"))
    with SnlDetector("line.onnx") as detector, pytest.raises(Exception, match=r"cameras.camera gave no frame within 0.01 s"):
        check_camera("camera", config, detector, timeout_s=0.01)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config none.yaml", "cannot read configuration none.yaml"),
        ("--config two.yaml --product nut", "--product is about one camera, the station has left, right; say which: --set cameras.left.KEY=VALUE"),
        ("--config two.yaml --camera 0", "--camera is about one camera"),
        ("--config top.yaml --pages all --video v.mp4", "--pages and --list-left-out belong to --images"),
        ("--config top.yaml --frozen-after 3", "--frozen-after belongs to --camera"),
        ("--config top.yaml --jsonl-max-mib 3", "add --jsonl FILE"),
        ("--config top.yaml --saved-images-max-mib 3", "add one of them"),
        ("--config top.yaml --json", "add --jsonl FILE"),
        ("--config top.yaml --set model.thread=3", "unknown key 'model.thread'; did you mean 'threads'?"),
        ("--config top.yaml --set model.threads", "override must read name=value"),
        ("--config password.yaml", "unknown key 'cameras.top.source.camera.password'; did you mean 'password_file'?"),
    ],
)
def test_contradiction_of_flags_and_file_is_one_line(station, capsys, line, message):
    Path("top.yaml").write_text(SMALL)
    camera = "{source: {images: {path: parts}}}"
    Path("two.yaml").write_text(f"model: {{file: line.onnx}}\ncameras: {{left: {camera}, right: {camera}}}\n")
    Path("password.yaml").write_text("model: {file: x.onnx}\ncameras: {top: {source: {camera: {address: 'rtsp://h', password: x}}}}\n")
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_password_comes_from_its_file_and_is_shown_nowhere(station, capsys):
    Path("pw").write_text("p@ss/word\n")
    Path("pw").chmod(0o600)
    text = "model: {file: line.onnx}\ncameras: {top: {source: {camera: {address: 'rtsp://h:1/s', username: me, password_file: pw}}}}\n"
    Path("station.yaml").write_text(text)
    config = configured("--config station.yaml")
    source = build_source(config.cameras["top"], records=RecordsConfig())
    assert source._config.camera == "rtsp://me:p%40ss%2Fword@h:1/s"
    assert run("--config station.yaml --print-config") == 0
    printed = capsys.readouterr().out
    assert "p@ss" not in printed
    assert "p%40ss" not in printed
    Path("pw").unlink()
    with pytest.raises(Exception, match="source.camera.password_file: cannot read pw: No such file"):
        build_source(config.cameras["top"], records=RecordsConfig())


def test_folders_that_images_go_to_are_not_inspected(station, capsys):
    assert run("--engine line.onnx --images . --save-rejects rej --overlay ov") == 0
    first = len(capsys.readouterr().out.splitlines())
    assert run("--engine line.onnx --images . --save-rejects rej --overlay ov") == 0
    assert len(capsys.readouterr().out.splitlines()) == first == 5


def test_crop_is_judged_as_a_frame_and_told_in_pixels_of_the_camera(station, model, capsys):
    part = model.bad_frame(1)
    wide = np.full((100, 120, 3), 90, np.uint8)
    wide[40:72, 50:82] = part
    with SnlDetector("line.onnx") as detector:
        alone, result = detector.detect(part), CroppedDetector(detector, (50, 40, 82, 72)).detect(wide)
    assert (result.verdict, result.score) == (alone.verdict, alone.score)
    assert result.roi_xyxy == (50, 40, 82, 72)
    assert len(result.regions) == len(alone.regions) > 0
    for moved, region in zip(result.regions, alone.regions, strict=True):
        assert np.subtract(moved.box_xyxy, region.box_xyxy).tolist() == [50, 40, 50, 40]
    cv2.imwrite("wide.png", wide)
    assert run("--engine line.onnx --images wide.png --save-rejects rej --overlay ov --set cameras.camera.crop_xyxy=[50,40,82,72]") == 0
    (record,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [tuple(one["box_xyxy"]) for one in record["regions"]] == [one.box_xyxy for one in result.regions]
    (saved,) = Path("rej").iterdir()
    assert (cv2.imread(str(saved)) == wide).all(), "the whole frame is kept"


@pytest.mark.parametrize("box", [(0, 0, 121, 32), (0, 90, 32, 122), (0, 0, 31, 32), (0, 0, 64, 64)])
def test_crop_of_another_size_or_outside_the_frame_is_an_error(station, model, box):
    with SnlDetector("line.onnx") as detector:
        result = CroppedDetector(detector, box).detect(model.good_frame(0, 120)[:100])
    assert (result.verdict.value, result.reason_code) == ("ERROR", "frame_size")


def test_frame_without_an_image_stays_an_error_under_a_crop(station):
    with SnlDetector("line.onnx") as detector:
        assert CroppedDetector(detector, (0, 0, 32, 32)).detect(None).verdict.value == "ERROR"


def test_options_of_the_model_have_one_default(station):
    assert to_plain(configured("--engine line.onnx --images parts").model)["timeout_ms"] == 10_000
