"""A product is added to a memory without touching its centers: no score rises, and nothing else of the model changes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from snl_runtime.errors import ConfigError, DataError  # noqa: E402
from snl_runtime.files import sha256_file  # noqa: E402
from snl_train.adding_products import add_products  # noqa: E402
from snl_train.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from snl_train.cli.train import main  # noqa: E402
from snl_train.config import DataConfig, ModelConfig, TrainConfig  # noqa: E402
from snl_train.data.dataset import TrainingData, load_training_data  # noqa: E402
from snl_train.evaluation import CheckpointScorer  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.training import train  # noqa: E402

MODEL = ModelConfig(method="memory", teacher="resnet18", teacher_weights="random")
CONFIG = TrainConfig(model=MODEL, memory=MemoryConfig(centers=12, normalization_share=0.3), image_size=(64, 64), batch_size=4)


def data_of(root: Path, config: TrainConfig = CONFIG) -> TrainingData:
    return load_training_data(root, config.image_size, config=config.data, seed=config.seed)


@pytest.fixture
def cap_root(tmp_path: Path, picture) -> Path:
    for index in range(5):
        picture(tmp_path / "new" / "cap" / f"{index}.png", 9000 + index)
    return tmp_path / "new"


@pytest.fixture
def first(plain_root: Path, tmp_path: Path) -> Path:
    train(CONFIG, data_of(plain_root), tmp_path / "first.pt")
    return tmp_path / "first.pt"


def added(first: Path, root: Path, out: Path) -> Checkpoint:
    add_products(load_checkpoint(first), sha256_file(first), data_of(root), out, device="cpu")
    return load_checkpoint(out)


def test_old_centers_and_weights_stay_and_the_product_gets_the_share_of_one(first: Path, cap_root: Path, tmp_path: Path):
    before, after = load_checkpoint(first), added(first, cap_root, tmp_path / "second.pt")
    old, new = before.build_model(), after.build_model()
    assert after.config.memory.centers == 12 + 12 // 2  # of two products
    for one, other in zip(old.memory.books, new.memory.books, strict=True):
        assert torch.equal(one.centers, other.centers[:12])
        assert torch.equal(one.weight, other.weight)
    teachers = [model.teacher.state_dict() for model in (old, new)]
    assert all(torch.equal(teachers[0][name], teachers[1][name]) for name in teachers[0])


def test_full_gpu_is_one_sentence_that_names_the_only_way_out(first: Path, cap_root: Path, tmp_path: Path, monkeypatch):
    """The batch size belongs to the model that is added to."""

    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("snl_train.memory_fit.remembered_features", full)
    with pytest.raises(ConfigError, match="the GPU has too little memory for batches of 4; take --device cpu"):
        added(first, cap_root, tmp_path / "second.pt")


def test_no_score_rises_and_the_new_product_scores_lower(first: Path, cap_root: Path, plain_root: Path, tmp_path: Path):
    before, after = load_checkpoint(first), added(first, cap_root, tmp_path / "second.pt")
    caps, others = data_of(cap_root), data_of(plain_root)
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images = np.concatenate([noise, others.inputs.read(others.samples), caps.inputs.read(caps.samples)])
    (_, old), (_, new) = (CheckpointScorer(checkpoint).score_inputs(images) for checkpoint in (before, after))
    assert (new <= old + 1e-5 * old.max()).all()
    assert (new[-len(caps.samples) :].mean((1, 2)) < old[-len(caps.samples) :].mean((1, 2))).all()


def test_images_of_a_product_in_tiles_are_counted_once(plain_root: Path, cap_root: Path, tmp_path: Path):
    config = dataclasses.replace(CONFIG, data=DataConfig(tile_px=24, tile_overlap_px=4))
    train(config, data_of(plain_root, config), tmp_path / "first.pt")
    caps = data_of(cap_root, config)
    add_products(load_checkpoint(tmp_path / "first.pt"), "0" * 64, caps, tmp_path / "second.pt", device="cpu")
    assert len(caps.samples) > 5
    assert load_checkpoint(tmp_path / "second.pt").provenance["image_counts"]["cap"] == 5


def test_checkpoint_says_what_was_added_to_what(first: Path, cap_root: Path, tmp_path: Path):
    before, after = load_checkpoint(first), added(first, cap_root, tmp_path / "second.pt")
    assert after.classes == ["bolt", "cap", "ring"]
    assert list(after.golden_classes) == [*before.golden_classes, "cap", "cap"]
    assert np.array_equal(after.golden_images[: len(before.golden_images)], before.golden_images)
    assert set(after.training_image_sha256) - set(before.training_image_sha256) == {sample.pixel_sha256 for sample in data_of(cap_root).samples}
    (fact,) = after.provenance["added"]
    assert (fact["products"], fact["to_sha256"]) == (["cap"], sha256_file(first))
    assert after.provenance["image_counts"] == {"bolt": 9, "ring": 3, "cap": 5}
    assert after.unfinished is None


def test_products_can_be_added_one_after_the_other(first: Path, cap_root: Path, tmp_path: Path, picture):
    second = tmp_path / "second.pt"
    added(first, cap_root, second)
    for index in range(3):
        picture(tmp_path / "third" / "nut" / f"{index}.png", 9500 + index)
    third = added(second, tmp_path / "third", tmp_path / "third.pt")
    assert (third.config.memory.centers, len(third.classes), len(third.provenance["added"])) == (24, 4, 2)


def test_known_product_or_image_is_refused(first: Path, plain_root: Path, tmp_path: Path):
    base, sha256 = load_checkpoint(first), sha256_file(first)
    with pytest.raises(ConfigError, match="bolt, ring is known to the model already"):
        add_products(base, sha256, data_of(plain_root), tmp_path / "x.pt")
    (plain_root / "ring").rename(tmp_path / "again")
    (tmp_path / "moved").mkdir()
    (tmp_path / "again").rename(tmp_path / "moved" / "cap")
    with pytest.raises(DataError, match="2 more images belong to a product that the model knows already"):
        add_products(base, sha256, data_of(tmp_path / "moved"), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_model_with_a_student_is_refused(first: Path, cap_root: Path, tmp_path: Path):
    config = dataclasses.replace(CONFIG, model=ModelConfig(method="fd", teacher="resnet18"))
    base = dataclasses.replace(load_checkpoint(first), config=config)
    with pytest.raises(ConfigError, match="a student has not learned it"):
        add_products(base, "0" * 64, data_of(cap_root), tmp_path / "x.pt")


def test_command_adds_a_product_and_says_that_decisions_do_not_hold(first: Path, cap_root: Path, tmp_path: Path, capsys):
    out = tmp_path / "second.pt"
    flags = ["--device", "cpu", "--hold-out", "0.4", "--json"]
    assert main(["--add-product", str(cap_root), "--from", str(first), "--out", str(out), *flags]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["classes"] == ["cap"]
    assert "scores of bolt, ring may have fallen: decisions of first.pt do not hold for second.pt" in captured.err
    checkpoint = load_checkpoint(out)
    assert {entry["class_name"] for entry in checkpoint.held_out} == {"cap"}
    assert checkpoint.provenance["image_counts"]["cap"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--add-product new", "--add-product DIR goes with --from FILE"),
        ("--add-product new --from first.pt --data plain", "without --data"),
        ("--add-product new --from first.pt --seed 4", "a product is added with the settings of the model"),
        ("--data plain --from first.pt --resume", "give one of them"),
        ("--data plain --from x.pt", "name another --out"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(first: Path, cap_root: Path, tmp_path: Path, monkeypatch, capsys, arguments: str, message: str):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments.split(), "--out", "x.pt"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.pt").exists()
