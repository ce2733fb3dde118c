"""A student that continues from a memory keeps its centers, teacher and images, and adds its own map to the memory's."""

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from snl_runtime.errors import ConfigError  # noqa: E402
from snl_train.checkpoint import load_checkpoint  # noqa: E402
from snl_train.cli.train import main  # noqa: E402
from snl_train.config import ModelConfig, load_config  # noqa: E402
from snl_train.continuing import student_config  # noqa: E402
from snl_train.data.dataset import load_training_data  # noqa: E402
from snl_train.training import train  # noqa: E402

MEMORY = {
    "model.method": "memory",
    "model.teacher": "resnet18",
    "model.teacher_weights": "random",
    "memory.centers": 12,
    "memory.normalization_share": 0.3,
    "image_size": [32, 32],
    "batch_size": 4,
    "device": "cpu",
}


@pytest.fixture
def memory(plain_root: Path, tmp_path: Path) -> Path:
    config = load_config(None, MEMORY)
    train(config, load_training_data(plain_root, config.image_size, config=config.data, seed=config.seed), tmp_path / "memory.pt")
    return tmp_path / "memory.pt"


def test_student_keeps_teacher_centers_and_weights_of_the_memory(memory: Path, plain_root: Path, tmp_path: Path):
    out = tmp_path / "x.pt"
    assert main(["--data", str(plain_root), "--from", str(memory), "--out", str(out), "--steps", "2", "--batch-size", "4", "--device", "cpu"]) == 0
    before, after = load_checkpoint(memory), load_checkpoint(out)
    for name, tensor in before.state_dict.items():
        if name.startswith(("teacher.", "memory.codebooks.")):  # the preset of both is best, so maps and weights are the same too
            assert torch.allclose(tensor, after.state_dict[name], rtol=1e-6, atol=0), name
    assert float(after.build_model().memory.student_weight) not in (0.0, 1.0)
    assert (after.config.model.method, after.config.preset, after.config.model.whitening) == ("snl-rd", "best", True)
    assert after.provenance["steps_done"] == 2


def test_settings_of_the_memory_are_kept_and_the_others_are_free(memory: Path):
    base = load_checkpoint(memory)
    config = student_config(base, {"model.method": "rd", "steps": 7, "optim.learning_rate": 0.001})
    assert (config.model.method, config.steps, config.optim.learning_rate) == ("rd", 7, 0.001)
    assert (config.memory, config.data, config.image_size, config.seed) == (base.config.memory, base.config.data, (32, 32), 0)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("seed", 3, "seed"), ("image_size", [64, 64], "image_size"), ("memory.centers", 9, "memory"), ("model.method", "memory", "method memory")],
)
def test_what_the_memory_depends_on_cannot_be_changed(memory: Path, key: str, value: object, named: str):
    with pytest.raises(ConfigError, match=f"--from keeps the memory, which does not go with another {named}"):
        student_config(load_checkpoint(memory), {key: value})


def test_other_images_are_refused(memory: Path, plain_root: Path, tmp_path: Path, picture, capsys):
    picture(plain_root / "ring" / "900.png", 900)
    assert main(["--data", str(plain_root), "--from", str(memory), "--out", str(tmp_path / "x.pt"), "--steps", "1"]) == 2
    assert "are not those of the memory (13 images now)" in capsys.readouterr().err


def test_model_with_a_student_or_with_added_products_is_refused(memory: Path):
    base = load_checkpoint(memory)
    with_student = dataclasses.replace(base, config=dataclasses.replace(base.config, model=ModelConfig(method="fd", teacher="resnet18")))
    with pytest.raises(ConfigError, match="has a student already"):
        student_config(with_student, {})
    extended = dataclasses.replace(base, provenance={**base.provenance, "added": [{"products": ["cap"]}]})
    with pytest.raises(ConfigError, match="products were added to this one"):
        student_config(extended, {})
