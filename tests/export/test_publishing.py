"""A reader finds the earlier export or the new one, whatever happens while files are replaced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snl_export import publishing
from snl_runtime.errors import ManifestError, SinkError
from snl_runtime.files import sha256_file
from snl_runtime.manifest import Manifest, write_manifest

NAMES = ("x.onnx", "x.golden.npz", "x.json")

KILLED_PUBLISH = """
import os, sys
from pathlib import Path
from snl_export import publishing
calls, last = 0, int(sys.argv[2])
plain = Path.replace
def counted(self, target):
    global calls
    if calls == last:
        os._exit(9)
    calls += 1
    return plain(self, target)
Path.replace = counted
folder = Path(sys.argv[1])
publishing.publish([folder / ".x.export" / name for name in ("x.onnx", "x.golden.npz", "x.json")], folder, stem="x")
"""


def write_bundle(folder: Path, content: str) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for name in NAMES[:2]:
        (folder / name).write_text(f"{content} {name}")
    hashes = {name: sha256_file(folder / name) for name in NAMES[:2]}
    manifest = Manifest(
        model_file="x.onnx",
        model_sha256=hashes["x.onnx"],
        files=hashes,
        input={"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "rgb", "size_hw": [8, 8], "batch": 1, "max_batch": 1},
        outputs={},
        graph={},
        classes=[],
        training={},
        training_image_sha256=[],
        held_out=[],
        created_at="2026-01-01T00:00:00+00:00",
    )
    write_manifest(folder / "x.json", manifest)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def is_refused(folder: Path) -> bool:
    from snl_runtime.bundle import open_bundle

    try:
        open_bundle(folder / "x.onnx")
    except ManifestError:
        return True
    return False


@pytest.fixture
def staged(tmp_path: Path) -> dict[str, bytes]:
    return write_bundle(tmp_path / ".x.export", "new")


def staged_paths(folder: Path) -> list[Path]:
    return [folder / ".x.export" / name for name in NAMES]


def test_new_bundle_replaces_the_earlier_one_whole(tmp_path: Path, staged: dict[str, bytes]) -> None:
    write_bundle(tmp_path, "old")
    publishing.publish(staged_paths(tmp_path), tmp_path, stem="x")
    assert contents(tmp_path) == staged
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".x.export"]


@pytest.mark.parametrize("failing", NAMES)
@pytest.mark.parametrize("has_earlier", [True, False])
def test_error_at_any_file_brings_the_earlier_files_back(
    failing: str, has_earlier: bool, tmp_path: Path, staged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_bundle(tmp_path, "old") if has_earlier else {}
    plain = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.parent.name == ".x.export" and self.name == failing:
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(SinkError, match="No space left"):
        publishing.publish(staged_paths(tmp_path), tmp_path, stem="x")
    assert contents(tmp_path) == before
    assert not (tmp_path / ".x.replaced").exists()


@pytest.mark.parametrize("step", range(6))
def test_killed_between_any_two_renames_the_next_export_finds_one_whole_bundle(step: int, tmp_path: Path, staged: dict[str, bytes]) -> None:
    before = write_bundle(tmp_path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED_PUBLISH, str(tmp_path), str(step)], check=False, env={**os.environ, "PYTHONWARNINGS": ""})
    is_finished = killed.returncode == 0
    assert is_finished or killed.returncode == 9
    if contents(tmp_path) not in (before, staged):
        assert is_refused(tmp_path)
    publishing.restore_interrupted(tmp_path, stem="x")
    assert contents(tmp_path) == (staged if step >= 4 else before)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".x.export"]


def test_first_export_killed_before_its_manifest_leaves_nothing_after_restoring(tmp_path: Path, staged: dict[str, bytes]) -> None:
    subprocess.run([sys.executable, "-c", KILLED_PUBLISH, str(tmp_path), "3"], check=False)
    assert set(contents(tmp_path)) == {"x.onnx", "x.golden.npz"}
    assert publishing.restore_interrupted(tmp_path, stem="x")
    assert contents(tmp_path) == {}


def test_restoring_where_nothing_was_interrupted_changes_nothing(tmp_path: Path) -> None:
    before = write_bundle(tmp_path, "old")
    assert not publishing.restore_interrupted(tmp_path, stem="x")
    assert contents(tmp_path) == before
