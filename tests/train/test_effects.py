"""The rows of docs/effects.md about snl-train and snl-eval: each write fails on a real file system, and the folder is as it was."""

import subprocess
import sys

import pytest

from snl_train.cli.evaluate import main as evaluate
from snl_train.cli.train import main as train

TINY = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --device cpu --threads 1 --epochs 1".split()
PROBED_BYTES = 5000
"""More than what is probed, less than any checkpoint or page."""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(command, *arguments):
    return command([str(argument) for argument in arguments])


@pytest.fixture
def out(mvtec_root, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    assert run(train, "--data", mvtec_root, "--out", folder / "x.pt", *TINY) == 0
    return folder / "x.pt"


def one_line(capsys):
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ": error: cannot write " in error
    return error


# snl-train


@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["new", "overwrite"])
def test_checkpoint_that_finds_no_room_changes_nothing_but_the_log(mvtec_root, out, capsys, file_size_limit, flags):
    if not flags:
        out.unlink()
        (out.parent / "x.metrics.jsonl").unlink()
    before = contents(out.parent)
    with file_size_limit(PROBED_BYTES):
        assert run(train, "--data", mvtec_root, "--out", out, *TINY, "--seed", 1, *flags) == 2
    assert "x.pt: File too large" in one_line(capsys)
    after = contents(out.parent)
    log = after.pop("x.metrics.jsonl")
    assert bool(log)
    assert after == {name: content for name, content in before.items() if name != "x.metrics.jsonl"}
    if flags:
        assert log == before["x.metrics.jsonl"]


def test_read_only_folder_is_refused_before_an_image_is_read(mvtec_root, out, capsys, read_only):
    (mvtec_root / "nut" / "train" / "good" / "003.png").write_bytes(b"would be named, if it were read")
    before = contents(out.parent)
    read_only(out.parent)
    assert run(train, "--data", mvtec_root, "--out", out, *TINY, "--overwrite") == 2
    assert str(out) in one_line(capsys)
    assert contents(out.parent) == before


def test_checkpoint_is_in_place_when_standard_output_is_full(mvtec_root, tmp_path):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        command = [sys.executable, "-m", "snl_train.cli.train", "--data", str(mvtec_root), "--out", str(tmp_path / "y.pt"), *TINY]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (tmp_path / "y.pt").exists()


# snl-eval


@pytest.mark.parametrize("fault", ["no folder", "folder is a file", "read-only", "full disk", "page is a folder"])
def test_page_that_cannot_be_written_leaves_nothing(mvtec_root, out, capsys, read_only, file_size_limit, fault):
    page = out.parent / "pages" / "page.html"
    if fault != "no folder":
        page.parent.mkdir()
    if fault == "folder is a file":
        page.parent.rmdir()
        page.parent.write_text("a file")
    if fault == "page is a folder":
        page.mkdir()
    if fault == "read-only":
        read_only(page.parent)
    before = contents(out.parent)
    with file_size_limit(PROBED_BYTES if fault == "full disk" else 1 << 40):
        assert run(evaluate, "--ckpt", out, "--data", mvtec_root, "--classes", "nut", "--bootstrap", 0, "--report", page, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"cannot write {page}" in captured.err.splitlines()[-1]
    assert contents(out.parent) == before
    assert not page.parent.is_dir() or not page.is_file()
