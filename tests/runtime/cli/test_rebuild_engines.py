"""An engine is verified where it runs and built again where it does not fit, when asked; until then it never passes a part."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_calibration.appending import append_decisions
from snl_runtime.backends.tensorrt import builder as engine_builder
from snl_runtime.backends.tensorrt.builder import rebuild_engine
from snl_runtime.backends.tensorrt.library import load_library
from snl_runtime.cli import rebuild
from snl_runtime.cli.rebuild import open_or_rebuild
from snl_runtime.cli.run import main as run_main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendUnavailableError, EngineMismatchError, ManifestError, SinkError
from snl_runtime.files import sha256_file
from snl_runtime.images.files import write_image
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.model.manifest import TileGrid, manifest_path, read_manifest, update_manifest
from snl_runtime.model.signing import sign_manifest
from snl_runtime.parity import engine as engine_parity
from snl_runtime.parity.engine import verify_engine
from snl_runtime.parity.frames import derived_frames
from snl_runtime.types import Verdict

pytest.importorskip("onnxruntime")


# ---- in the detector and in snl-run ----------------------------------------------------------------------------------------------------------


def test_unverified_engine_is_verified_at_first_load_when_asked_and_then_passes_parts(engine_path, installed, cuda, model_fixtures):
    with SnlDetector(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.ERROR
        assert "not verified on a device" in detector.notes[0]
    with open_or_rebuild(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        assert detector.notes == ()
    assert cuda.leaks == {}


def test_engine_that_fails_its_verification_opens_and_passes_nothing(engine_path, installed, shifted, model_fixtures, caplog):
    """Honest on the golden samples, which the self-test at load asks for, and off by 3 % where a frame was cropped, flipped or noisy."""
    golden = model_fixtures.ModelFolder(engine_path.parent).golden_images
    known = [model_fixtures.reference_map(image) for image in golden]
    shifted(lambda maps: np.stack([each if any(np.array_equal(each, one) for one in known) else each * np.float32(1.03) for each in maps]))
    with caplog.at_level("WARNING"), open_or_rebuild(engine_path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.ERROR
        assert "does not score like its ONNX file" in detector.notes[0]
    assert "does not score like its ONNX file" in caplog.text


def test_an_engine_is_not_rebuilt_because_another_file_is_missing(write_engine, installed, model_fixtures, monkeypatch):
    path = write_engine()
    folder = model_fixtures.ModelFolder(path.parent)
    folder.give_normalization(np.full((model_fixtures.SIZE, model_fixtures.SIZE), 0.5, np.float32)).unlink()
    monkeypatch.setattr(rebuild, "rebuild_engine", lambda engine: pytest.fail(f"{engine} was rebuilt"))
    with pytest.raises(ManifestError, match="normalization map"):
        open_or_rebuild(path)


@pytest.fixture
def tiled_beside_whole(write_engine, installed, model_fixtures):
    """An engine not verified yet, of a model that inspects bottles as a whole and caps in tiles, both under an ignore mask."""
    path, size = write_engine(parity=False), model_fixtures.SIZE
    folder = model_fixtures.ModelFolder(path.parent)
    tiles = TileGrid(tile_px=size, overlap_px=0, map_hw=(2 * size, 2 * size), count=4)
    caps = folder.decision(product="cap", tiles=tiles)
    update_manifest(folder.manifest, lambda manifest: manifest.with_decision(caps))
    for product, side in (("bottle", size), ("cap", 2 * size)):
        ignored = np.zeros((side, side), bool)
        ignored[6:16, 4:20] = True  # the scratch of a bad frame
        folder.give_ignore_mask(ignored, product)
    return path


def test_verified_engine_judges_under_a_mask_and_no_product_in_tiles(tiled_beside_whole, model_fixtures):
    """No parity report looks at tiles: one line says so and what to do, and a cap is ERROR."""
    with open_or_rebuild(tiled_beside_whole) as detector:
        hidden, seen = model_fixtures.bad_frame(120), np.ascontiguousarray(model_fixtures.bad_frame(120)[::-1])
        assert [detector.detect(frame, product="bottle").verdict for frame in (hidden, seen)] == [Verdict.PASS, Verdict.REJECT]
        result = detector.detect(model_fixtures.good_frame(120), product="cap")
        assert (result.verdict, result.reason_code) == (Verdict.ERROR, "no_threshold_for_engine")
        assert [note for note in detector.notes if "tiles" in note] == [
            "cap: inspected in tiles, on which line.trt inherits no decision; calibrate the engine: snl-calibrate --engine line.trt"
        ]
    (entry,) = read_manifest(manifest_path(tiled_beside_whole)).engines
    assert (entry.parity.passed, entry.parity.passed_by_reference) == (True, bottles_passed(tiled_beside_whole, model_fixtures)), (
        "no cap is among them"
    )


def bottles_passed(engine, model_fixtures):
    """By hand: how many of the golden samples and of the frames made of them pass as bottles on the model."""
    folder = model_fixtures.ModelFolder(engine.parent)
    spec = InputSpec(size_hw=(model_fixtures.SIZE, model_fixtures.SIZE))
    images = [*folder.golden_images, *(prepare(frame.image_rgb, "rgb", spec) for frame in derived_frames(folder.golden_images))]
    maps = [model_fixtures.reference_map(image) for image in images]
    for each in maps:
        each[6:16, 4:20] = 0
    bounds = folder.decision_values
    return sum(bounds["floor"] <= each.max() <= bounds["pass_threshold"] for each in maps)


def test_snl_run_says_once_that_a_product_in_tiles_has_no_decision(tiled_beside_whole, model_fixtures, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(model_fixtures.good_frame(1)[:, :, ::-1]))
    line = ["--engine", str(tiled_beside_whole), "--images", str(tmp_path / "parts"), "--product", "bottle", "--rebuild", "--fail-on-reject"]
    assert run_main([*line, "--jsonl", str(tmp_path / "x.jsonl")]) == 0
    assert capsys.readouterr().err.count("cap: inspected in tiles, on which line.trt inherits no decision") == 1


def test_snl_run_repeats_that_the_engine_is_not_verified(engine_path, installed, model_fixtures, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(model_fixtures.good_frame(1)[:, :, ::-1]))
    arguments = ["--engine", str(engine_path), "--images", str(tmp_path / "parts"), "--jsonl", str(tmp_path / "x.jsonl"), "--json"]
    assert run_main(arguments) == 0
    printed = capsys.readouterr()
    assert "line.trt is not verified on a device" in printed.err
    assert "not verified on a device" in json.loads(printed.out)["notes"][0]


# ---- rebuilding with the real builder of TensorRT-RTX, running on the fake -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def rtx(installed, monkeypatch, cache_folder):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")
    monkeypatch.setenv("SNL_EDGE_CACHE", str(cache_folder))
    installed.name, installed.version = "tensorrt-rtx", load_library("tensorrt-rtx").version
    return installed


MISFITS = {
    "another GPU": {"compute_capability": ["12.0"]},
    "another version": {"library_version": "1.0.0.1"},
    "altered": {"sha256": "0" * 64},
}


@pytest.mark.parametrize("entry", MISFITS.values(), ids=MISFITS)
def test_engine_that_does_not_fit_is_rebuilt_verified_and_used(write_engine, rtx, cuda, model_fixtures, entry):
    path = write_engine(parity=False, precision="fp32", **{"library": "tensorrt-rtx", "library_version": rtx.version, **entry})
    with pytest.raises((EngineMismatchError, ManifestError), match="--rebuild"):
        SnlDetector(path)
    with open_or_rebuild(path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
        assert detector.detect(model_fixtures.bad_frame(120)).verdict is Verdict.REJECT
    (rebuilt,) = read_manifest(manifest_path(path)).engines
    assert rebuilt.sha256 == sha256_file(path)
    assert rebuilt.compute_capability == ["8.9"]  # the GPU here
    assert rebuilt.parity.passed
    assert cuda.leaks == {}


def test_snl_run_refuses_a_truncated_engine_in_one_line_and_rebuilds_it_when_asked(write_engine, rtx, model_fixtures, tmp_path, capsys):
    path = write_engine(parity=False, precision="fp32", library="tensorrt-rtx", library_version=rtx.version)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(model_fixtures.good_frame(1)[:, :, ::-1]))
    arguments = ["--engine", str(path), "--images", str(tmp_path / "parts"), "--jsonl", str(tmp_path / "x.jsonl"), "--json"]
    assert run_main(arguments) == 2
    assert "snl-run --engine line.trt --rebuild" in capsys.readouterr().err.strip().splitlines()[-1]
    assert run_main([*arguments, "--rebuild", "--fail-on-reject"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert read_manifest(manifest_path(path)).engines[0].sha256 == sha256_file(path)


def test_missing_engine_is_built_from_its_onnx(write_engine, rtx, model_fixtures):
    path = write_engine(parity=False, library="tensorrt-rtx", library_version=rtx.version)
    path.unlink()
    with open_or_rebuild(path) as detector:
        assert detector.detect(model_fixtures.good_frame(120)).verdict is Verdict.PASS
    assert path.is_file()


def test_decision_appended_while_an_engine_is_built_or_compared_survives(write_engine, rtx, monkeypatch, caplog):
    """The manifest is signed too: that it loses the signature is said."""
    path = write_engine(parity=False, precision="fp32", library="tensorrt-rtx", library_version=rtx.version)
    manifest = manifest_path(path)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def appending(product, real):
        def run(*arguments, **options):
            result = real(*arguments, **options)
            append_decisions(path.with_name("line.onnx"), [(dataclasses.replace(read_manifest(manifest).decisions[0], product=product), ())])
            sign_manifest(manifest, pem)
            return result

        return run

    monkeypatch.setattr("snl_runtime.backends.tensorrt.builder.build_engine", appending("built", engine_builder.build_engine))
    monkeypatch.setattr("snl_runtime.parity.engine.compare", appending("compared", engine_parity.compare))
    rebuilt = rebuild_engine(path)
    verify_engine(path)
    written = read_manifest(manifest)
    assert [decision.product for decision in written.decisions] == ["bottle", "built", "compared"]
    assert [(entry.sha256, entry.parity.passed) for entry in written.engines] == [(rebuilt.entry.sha256, True)]
    assert written.signature is None
    assert [record.getMessage() for record in caplog.records if "loses its signature" in record.getMessage()] == [
        "line.json loses its signature, which does not cover the change; sign it again: snl-sign --engine line.onnx --key key.pem"
    ] * 2  # by the new engine and by the report


def test_report_about_an_engine_that_was_replaced_meanwhile_is_refused(engine_path, installed, monkeypatch):
    def replace_engine(*arguments, **options):
        real(*arguments, **options)
        update_manifest(manifest_path(engine_path), lambda listed: listed.with_engine(dataclasses.replace(listed.engines[0], sha256="f" * 64)))

    real = engine_parity.compare
    monkeypatch.setattr("snl_runtime.parity.engine.compare", replace_engine)
    with pytest.raises(ManifestError, match="replaced while they were compared"):
        verify_engine(engine_path)
    (entry,) = read_manifest(manifest_path(engine_path)).engines
    assert (entry.sha256, entry.parity) == ("f" * 64, None)


def test_rebuild_where_there_is_no_gpu_builds_and_says_that_it_cannot_run(write_engine, rtx, cuda):
    path = write_engine(parity=False, library="tensorrt-rtx", library_version="1.0.0.1")
    cuda.devices = []
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        open_or_rebuild(path)
    (entry,) = read_manifest(manifest_path(path)).engines
    assert entry.library_version == rtx.version
    assert entry.parity is None
    assert entry.options["verified_on"] == "not verified on a device"


@pytest.mark.parametrize("fault", ["read-only", "full disk"])
def test_engine_that_cannot_be_written_leaves_engine_and_manifest_as_they_were(write_engine, rtx, read_only, file_size_limit, fault):
    path = write_engine(parity=False, library="tensorrt-rtx", library_version="1.0.0.1")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    if fault == "read-only":
        read_only(path.parent)
    with file_size_limit(8) if fault == "full disk" else contextlib.nullcontext(), pytest.raises(SinkError, match="cannot write"):
        open_or_rebuild(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
