"""One tiny checkpoint and one export of it, shared by the session; exporting takes seconds."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from snl_export import onnx_export  # noqa: E402
from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle  # noqa: E402
from snl_runtime.model.manifest import Decision  # noqa: E402
from snl_train.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from snl_train.config import ModelConfig, TrainConfig  # noqa: E402
from snl_train.models import build_model  # noqa: E402

SIZE_PX = 64


def make_checkpoint(method: str = "snl-fd", *, seed: int = 0, size_px: int = SIZE_PX) -> Checkpoint:
    """Return random networks whose batch norms have statistics worth folding."""
    config = TrainConfig(
        model=ModelConfig(method=method, teacher="resnet18", teacher_weights="random", centers=4), image_size=(size_px, size_px), epochs=1
    )
    torch.manual_seed(seed)
    model = build_model(config.model)
    for part in model.student.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    generator = np.random.default_rng(seed)
    golden = generator.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8).repeat(size_px // 8, 1).repeat(size_px // 8, 2)
    return Checkpoint(
        config=config,
        state_dict=model.state_dict(),
        classes=["bolt", "nut"],
        seed=seed,
        epochs_done=1,
        training_image_sha256=["0" * 64, "1" * 64],
        held_out=[{"path": "bolt/7.png", "sha256": "2" * 64, "class_name": "bolt"}],
        golden_images=golden,
        golden_classes=["bolt", "nut", "bolt"],
    )


@pytest.fixture(scope="session")
def runtime_fixtures() -> ModuleType:
    """The tiny calibrated model of the runtime's tests."""
    path = Path(__file__).parents[1] / "runtime" / "detector_fixtures.py"
    spec = importlib.util.spec_from_file_location("snl_tests_export_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_decision(runtime_fixtures: ModuleType) -> Callable[..., Decision]:
    """Makes a valid decision of the runtime tests, with the given fields replaced."""
    make: Callable[..., Decision] = runtime_fixtures.make_decision
    return make


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "line.pt"
    save_checkpoint(path, make_checkpoint())
    return path


@pytest.fixture(scope="session")
def exported(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    return export_bundle(checkpoint_path, tmp_path_factory.mktemp("exported") / "line.onnx", ExportOptions())


@pytest.fixture
def earlier(exported: ExportedBundle, tmp_path: Path) -> Path:
    """An earlier export of the same checkpoint in a folder of its own."""
    for path in exported.files:
        shutil.copy2(path, tmp_path / path.name)
    return tmp_path / "line.onnx"


@pytest.fixture
def ready_made(exported: ExportedBundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    """Makes the exporter write the session's file after an edit, which spares the seconds of tracing."""

    def install(edit: Callable[[onnx.ModelProto], None] = lambda model: None) -> None:
        def write(graph: object, path: Path, **settings: object) -> None:
            model = onnx.load(exported.model_path)
            edit(model)
            path.write_bytes(model.SerializeToString(deterministic=True))

        monkeypatch.setattr(onnx_export, "export_onnx", write)

    return install
