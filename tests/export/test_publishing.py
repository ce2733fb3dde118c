"""A reader finds the earlier export or the new one, whatever happens while files are replaced."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snl_export import publishing
from snl_runtime.errors import ManifestError, SinkError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import Decision, EngineEntry, Manifest, read_manifest, update_manifest, write_manifest

NAMES = ("x.onnx", "x.golden.npz")

KILLED_PUBLISH = """
import os, sys
from pathlib import Path
from snl_export import publishing
from snl_runtime.model.manifest import read_manifest
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
staged = folder / ".x.export"
publishing.publish([staged / name for name in ("x.onnx", "x.golden.npz")], read_manifest(staged / "x.json"), folder, stem="x")
"""


def write_bundle(folder: Path, content: str) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).write_text(f"{content} {name}")
    hashes = {name: sha256_file(folder / name) for name in NAMES}
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
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}


def is_refused(folder: Path) -> bool:
    from snl_runtime.model.bundle import open_bundle

    try:
        open_bundle(folder / "x.onnx")
    except ManifestError:
        return True
    return False


@pytest.fixture
def staged(tmp_path: Path) -> dict[str, bytes]:
    return write_bundle(tmp_path / ".x.export", "new")


def publish(folder: Path) -> Manifest:
    staged = folder / ".x.export"
    return publishing.publish([staged / name for name in NAMES], read_manifest(staged / "x.json"), folder, stem="x")


def test_new_bundle_replaces_the_earlier_one_whole(tmp_path: Path, staged: dict[str, bytes]) -> None:
    write_bundle(tmp_path, "old")
    publish(tmp_path)
    assert contents(tmp_path) == staged
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".x.export"]


@pytest.mark.parametrize("killed_at", [None, 2])
def test_what_others_add_to_the_earlier_manifest_survives(
    tmp_path: Path, staged: dict[str, bytes], killed_at: int | None, make_decision: Callable[..., Decision]
) -> None:
    """Added while the export ran, or between an export that was killed and the next one."""
    write_bundle(tmp_path, "old")
    if killed_at is not None:
        subprocess.run([sys.executable, "-c", KILLED_PUBLISH, str(tmp_path), str(killed_at)], check=False)
    model_sha256 = read_manifest(tmp_path / ".x.export" / "x.json").model_sha256
    decision = make_decision(product="bolt")
    fits = EngineEntry(
        file="x.trt",
        sha256="a" * 64,
        library="tensorrt",
        library_version="10.3.0",
        compute_capability=["8.9"],
        precision="fp32",
        built_at="2026-01-01T00:00:00+00:00",
        parity=None,
        onnx_sha256=model_sha256,
    )
    stale = dataclasses.replace(fits, file="y.trt", onnx_sha256="b" * 64)
    update_manifest(tmp_path / "x.json", lambda manifest: manifest.with_decision(decision).with_engine(fits).with_engine(stale))
    if killed_at is not None:
        assert publishing.restore_interrupted(tmp_path, stem="x")
        assert read_manifest(tmp_path / "x.json").decisions == [decision]
        write_bundle(tmp_path / ".x.export", "new")
    written = publish(tmp_path)
    assert written == read_manifest(tmp_path / "x.json")
    assert (written.model_sha256, written.decisions, written.engines) == (model_sha256, [decision], [fits])


@pytest.mark.parametrize("failing", ["x.onnx", "x.golden.npz", "x.json"])
@pytest.mark.parametrize("has_earlier", [True, False])
def test_error_at_any_file_brings_the_earlier_files_back(
    failing: str, has_earlier: bool, tmp_path: Path, staged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_bundle(tmp_path, "old") if has_earlier else {}
    plain = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == failing and self.parent.name != ".x.replaced":
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(SinkError, match="No space left"):
        publish(tmp_path)
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
