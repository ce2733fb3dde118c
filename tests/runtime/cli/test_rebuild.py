"""``--rebuild`` builds an engine again where the engine is what does not open, and leaves everything else as it is."""

import pytest

from snl_runtime.cli import rebuild
from snl_runtime.cli.rebuild import open_or_rebuild
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import EngineBuildError, GoldenSampleError, ManifestError, SignatureError
from snl_runtime.types import DetectorState


@pytest.fixture
def rebuilt(monkeypatch):
    """Stands in for TensorRT: records what was to be rebuilt and refuses."""
    asked = []

    def rebuild_engine(engine_path, **_):
        asked.append(engine_path.name)
        raise EngineBuildError("no GPU in this test")

    monkeypatch.setattr(rebuild, "rebuild_engine", rebuild_engine)
    return asked


@pytest.mark.parametrize("open_engine", [SnlDetector, open_or_rebuild])
def test_an_altered_engine_is_rebuilt_only_when_asked(model_folder, rebuilt, open_engine):
    engine = model_folder.write().with_suffix(".trt")
    engine.write_bytes(b"an engine of another export")
    is_asked = open_engine is open_or_rebuild
    with pytest.raises(EngineBuildError if is_asked else ManifestError):
        open_engine(engine)
    assert rebuilt == (["line.trt"] if is_asked else [])


def test_an_onnx_is_never_rebuilt(model_folder, rebuilt):
    model = model_folder.write()
    model.write_bytes(b"altered")
    with pytest.raises(ManifestError):
        open_or_rebuild(model)
    assert rebuilt == []


def test_a_model_that_fits_is_opened_as_it_is(model_folder, rebuilt):
    with open_or_rebuild(model_folder.write()) as detector:
        assert detector.state is DetectorState.READY
    assert rebuilt == []


def test_samples_that_score_differently_are_no_reason_to_rebuild(model_folder, rebuilt):
    with pytest.raises(GoldenSampleError):
        open_or_rebuild(model_folder.write(golden_shift=0.5))
    assert rebuilt == []


def test_a_signed_manifest_is_not_rewritten_by_a_rebuild(model_folder, rebuilt, monkeypatch):
    """The key is checked before the engine, so an engine that does not fit is met with a valid signature only."""
    monkeypatch.setattr("snl_runtime.model.bundle.verify_manifest", lambda manifest, key: None)
    engine = model_folder.write().with_suffix(".trt")
    engine.write_bytes(b"an engine of another export")
    with pytest.raises(SignatureError, match="sign it where the private key is"):
        open_or_rebuild(engine, public_key="any")
    assert rebuilt == []
