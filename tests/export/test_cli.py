"""``snl-export`` prints results on stdout, the rest on stderr, and exits as the design says."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle
from snl_export.cli import main
from snl_runtime.errors import ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import Decision, read_manifest, write_manifest
from snl_train.checkpoint import load_checkpoint, save_checkpoint

Install = Callable[..., None]


def test_help_needs_neither_torch_nor_onnx() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime'])); from snl_export.cli import main; main(['-h'])"
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "snl-export --ckpt line.pt" in finished.stdout


def test_text_states_figures_files_and_that_no_engine_was_built(
    checkpoint_path: Path, tmp_path: Path, ready_made: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made()
    assert main(["--ckpt", str(checkpoint_path), "--out", str(tmp_path / "a" / "line.onnx")]) == 0
    printed = capsys.readouterr()
    assert "parity passed on 12 frames (golden crops, flips and noise) against checkpoint line.pt" in printed.out
    for name in ("line.onnx", "line.golden.npz", "line.json"):
        path = tmp_path / "a" / name
        assert f"{path}  sha256 {sha256_file(path)}" in printed.out
    assert "no engine was built" in printed.out
    assert "compare the file with the checkpoint" in printed.err
    assert "parity: 12/12 frames, 100 %" in printed.err


def test_json_is_one_object_on_stdout(checkpoint_path: Path, tmp_path: Path, ready_made: Install, capsys: pytest.CaptureFixture[str]) -> None:
    ready_made()
    assert main(["--ckpt", str(checkpoint_path), "--out", str(tmp_path / "line.onnx"), "--json", "--engine", "none"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model_sha256"] == sha256_file(tmp_path / "line.onnx")
    assert printed["parity"][0]["passed"] is True
    assert printed["engine"] is None
    assert printed["no_engine_because"] == "--engine none was given"


def test_engine_is_built_beside_the_bundle_and_listed_as_unverified(
    checkpoint_path: Path, tmp_path: Path, ready_made: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx, which builds without a GPU")
    monkeypatch.setattr("snl_runtime.cache.default_cache_folder", lambda: tmp_path / "cache")
    ready_made()
    arguments = ["--ckpt", str(checkpoint_path), "--out", str(tmp_path / "line.onnx"), "--engine", "tensorrt-rtx", "--sm", "86"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "line.trt is an engine of tensorrt-rtx" in printed
    assert "not verified on a device: " in printed
    assert "snl-run --engine line.trt --rebuild" in printed
    manifest = read_manifest(tmp_path / "line.json")
    (entry,) = manifest.engines
    assert entry.sha256 == sha256_file(tmp_path / "line.trt")
    assert entry.compute_capability == ["8.6"]
    assert entry.parity is None
    assert manifest.decisions_for(entry.sha256) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "many"], "--batch must be"),
        (["--tile-rows", "0"], "tile_rows must be 1 or more"),
        (["--sm", "ampere"], "--sm must list"),
        (["--out", "line.trt"], "must end in .onnx"),
        (["--frames", "nowhere"], "nowhere"),
        (["--engine", "none", "--sm", "86"], "leave one of them out"),
    ],
)
def test_wrong_option_is_one_line_and_status_2(
    arguments: list[str], message: str, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--ckpt", str(checkpoint_path), "--out", "x.onnx", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("snl-export: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", str(tmp_path / "none.pt")]) == 2
    assert "none.pt does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("keep", "message"), [(slice(0, 0), "holds no golden samples"), (slice(0, 32), "golden samples of")])
def test_checkpoint_whose_golden_samples_cannot_serve_is_refused(
    keep: slice, message: str, checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    golden = checkpoint.golden_images[keep] if keep.stop == 0 else checkpoint.golden_images[:, keep]
    broken = dataclasses.replace(checkpoint, golden_images=golden, golden_classes=checkpoint.golden_classes[: len(golden)])
    save_checkpoint(tmp_path / "broken.pt", broken)
    assert main(["--ckpt", str(tmp_path / "broken.pt")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


def test_decision_of_an_earlier_model_is_kept_as_history_and_applies_to_nothing(
    checkpoint_path: Path, earlier: Path, ready_made: Install, make_decision: Callable[..., Decision]
) -> None:
    old = make_decision(product="bolt", model_sha256="f" * 64)
    manifest = read_manifest(earlier.with_suffix(".json"))
    write_manifest(earlier.with_suffix(".json"), manifest.with_decision(old))
    ready_made()
    bundle = export_bundle(checkpoint_path, earlier, ExportOptions())
    assert read_manifest(earlier.with_suffix(".json")).decisions == [old]
    assert bundle.manifest.decisions_for(bundle.manifest.model_sha256) == {}
    assert "calibrate again for bolt" in bundle.notes[-1]


def test_decision_stays_valid_when_the_same_file_comes_out_again(
    checkpoint_path: Path, earlier: Path, ready_made: Install, make_decision: Callable[..., Decision]
) -> None:
    manifest = read_manifest(earlier.with_suffix(".json"))
    fitted = make_decision(product="bolt", model_sha256=manifest.model_sha256)
    write_manifest(earlier.with_suffix(".json"), manifest.with_decision(fitted))
    ready_made()
    bundle = export_bundle(checkpoint_path, earlier, ExportOptions())
    assert set(bundle.manifest.decisions_for(bundle.manifest.model_sha256)) == {"bolt"}
    assert bundle.notes == []


def test_engine_of_an_earlier_export_is_named_as_useless(checkpoint_path: Path, earlier: Path, ready_made: Install) -> None:
    earlier.with_suffix(".trt").write_bytes(b"an engine")
    ready_made()
    bundle = export_bundle(checkpoint_path, earlier, ExportOptions())
    assert "line.trt was built from an earlier file" in bundle.notes[0]


def test_manifest_that_cannot_be_read_is_not_replaced(checkpoint_path: Path, earlier: Path) -> None:
    path = earlier.with_suffix(".json")
    path.write_text(path.read_text(encoding="utf-8").replace('"schema":1', '"schema":1,"more":2'), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ManifestError, match="decisions would be lost"):
        export_bundle(checkpoint_path, earlier, ExportOptions())
    assert path.read_bytes() == before


def test_bundle_opens_where_it_was_copied_to(exported: ExportedBundle, earlier: Path) -> None:
    from snl_runtime.scorer import Scorer

    with Scorer(earlier) as scorer:
        assert scorer.golden_checked
        assert scorer.bundle.manifest is not None
        assert dataclasses.asdict(scorer.bundle.manifest)["classes"] == ["bolt", "nut"]
