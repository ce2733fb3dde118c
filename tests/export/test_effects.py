"""The rows of docs/effects.md about snl-export: a bundle is there as a whole or not at all, and what stands after a failed engine is said."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from snl_export import engines
from snl_export.bundle_writer import ExportOptions, export_bundle
from snl_export.cli import main
from snl_export.engines import EnginePlan
from snl_runtime.errors import EngineBuildError
from snl_runtime.scorer import Scorer

Install = Callable[..., None]
Limit = Callable[[int], AbstractContextManager[None]]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("target", ["line.onnx", "new/folder/line.onnx"])
def test_graph_that_finds_no_room_leaves_the_folder_as_it_was(
    checkpoint_path: Path, earlier: Path, ready_made: Install, capsys: pytest.CaptureFixture[str], file_size_limit: Limit, target: str
) -> None:
    ready_made()
    before = contents(earlier.parent)
    with file_size_limit(5000):
        assert main(["--ckpt", str(checkpoint_path), "--out", str(earlier.parent / target), "--engine", "none"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "line.onnx: File too large" in captured.err.splitlines()[-1]
    assert contents(earlier.parent) == before


@pytest.mark.parametrize("name", ["line.onnx", "line.json", "line.golden.npz", "line.trt"])
def test_target_that_is_a_folder_is_refused_before_the_checkpoint_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / name).mkdir()
    assert main(["--ckpt", str(tmp_path / "no.pt"), "--out", str(tmp_path / "line.onnx"), "--engine", "none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path / name}: it is a folder" in line
    assert contents(tmp_path) == {name: None}


@pytest.mark.parametrize("target", ["line.onnx", "new/line.onnx"])
def test_read_only_folder_is_refused_before_the_checkpoint_is_loaded(
    earlier: Path, capsys: pytest.CaptureFixture[str], read_only: Callable[[Path], None], target: str
) -> None:
    before = contents(earlier.parent)
    read_only(earlier.parent)
    assert main(["--ckpt", "no.pt", "--out", str(earlier.parent / target), "--engine", "none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line
    assert contents(earlier.parent) == before


@pytest.mark.parametrize("stage", range(5))
def test_interruption_at_any_stage_leaves_the_folder_as_it_was(checkpoint_path: Path, earlier: Path, ready_made: Install, stage: int) -> None:
    ready_made()
    before = contents(earlier.parent)
    stages: list[str] = []

    def interrupt(name: str) -> None:
        stages.append(name)
        if len(stages) > stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint_path, earlier.parent / "new" / "line.onnx", ExportOptions(), on_stage=interrupt)
    assert contents(earlier.parent) == before


@pytest.mark.parametrize(("failure", "status"), [(EngineBuildError("TensorRT refused"), 2), (KeyboardInterrupt(), 130)])
def test_failed_engine_leaves_a_whole_bundle_and_says_so(
    checkpoint_path: Path,
    tmp_path: Path,
    ready_made: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    status: int,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise failure

    ready_made()
    monkeypatch.setattr(engines, "plan_engine", lambda *arguments: EnginePlan(target=SimpleNamespace(), why_not=None))  # type: ignore[arg-type]
    monkeypatch.setattr(engines, "build_planned_engine", fail)
    model = tmp_path / "line.onnx"
    assert main(["--ckpt", str(checkpoint_path), "--out", str(model), "--json"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    said = (
        f"{model}, its manifest and golden samples are in place and whole; build the engine again: snl-run --engine {tmp_path / 'line.trt'} --rebuild"
    )
    assert said in captured.err.splitlines()[-2]
    with Scorer(model) as scorer:
        assert scorer.golden_checked
