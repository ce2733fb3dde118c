"""The memory gives each feature's squared distance to the nearest of its centers, chosen from good images with a share for every product."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from snl_runtime.errors import ConfigError, DataError  # noqa: E402
from snl_train.checkpoint import load_checkpoint  # noqa: E402
from snl_train.config import ModelConfig, TrainConfig, load_config  # noqa: E402
from snl_train.data.dataset import TrainingData, load_training_data  # noqa: E402
from snl_train.evaluation import CheckpointScorer  # noqa: E402
from snl_train.memory_centers import Candidates, choose_centers  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.memory_fit import split_for_normalization  # noqa: E402
from snl_train.models.memory import TILE_CENTERS, Codebook, FeatureMemory, remembered_features  # noqa: E402
from snl_train.scoring import memory_maps, score_features  # noqa: E402
from snl_train.training import train  # noqa: E402
from tolerances import FLOAT32_ABS  # noqa: E402

MODEL = ModelConfig(method="memory", teacher="resnet18", teacher_weights="random")
CONFIG = TrainConfig(model=MODEL, memory=MemoryConfig(centers=12, normalization_share=0.3), image_size=(64, 64), batch_size=4)


def codebook_of(centers: np.ndarray) -> Codebook:
    codebook = Codebook(centers.shape[1], len(centers))
    codebook.set_centers(torch.from_numpy(centers))
    return codebook


def random_centers(count: int, channels: int = 6) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, channels)).astype(np.float32) / channels**0.5


def data_of(root: Path, config: TrainConfig = CONFIG) -> TrainingData:
    return load_training_data(root, config.image_size, config=config.data, seed=config.seed)


def candidates_of(groups: list[list[np.ndarray]]) -> Candidates:
    """Return candidates of products that each have images of features (n, D)."""
    features = [np.concatenate(images).astype(np.float32) for images in groups]
    return Candidates(features=np.concatenate(features), products=np.repeat(np.arange(len(groups)), [len(one) for one in features]))


def near(point: list[float], count: int, seed: int, spread: float = 0.02) -> np.ndarray:
    vectors = np.array(point) + spread * np.random.default_rng(seed).standard_normal((count, len(point)))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_full_gpu_is_one_sentence_that_says_what_to_lower(plain_root, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("snl_train.memory_fit.remembered_features", full)
    with pytest.raises(ConfigError, match="the GPU has too little memory for batches of 4; lower --batch-size or --image-size"):
        train(CONFIG, data_of(plain_root), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_distance_is_that_of_the_nearest_center_by_brute_force():
    centers = random_centers(7)
    features = np.random.default_rng(2).standard_normal((2, 6, 5, 4)).astype(np.float32)
    expected = np.empty((2, 5, 4))
    for b, y, x in np.ndindex(2, 5, 4):
        window = features[b, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].astype(np.float64)
        mean = window.mean((1, 2))
        unit = mean / np.sqrt((mean**2).sum())
        expected[b, y, x] = min(((unit - center) ** 2).sum() for center in centers.astype(np.float64))
    found = codebook_of(centers)(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), expected, atol=4 * FLOAT32_ABS)


def test_tiles_equal_all_centers_at_once():
    centers = random_centers(2 * TILE_CENTERS + 3)
    features = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    codebook = codebook_of(centers)
    assert [len(tile.centers) for tile in codebook.tiles] == [TILE_CENTERS, TILE_CENTERS, 3]
    unit = remembered_features(features).flatten(2)[0].T  # (P, D)
    expected = torch.cdist(unit.double(), torch.from_numpy(centers).double()).square().amin(1)
    np.testing.assert_allclose(codebook(features).flatten().numpy(), expected.numpy(), atol=4 * FLOAT32_ABS)


def test_zero_feature_is_far_and_finite():
    found = codebook_of(random_centers(3))(torch.zeros(1, 6, 4, 4))
    assert bool((found >= 1).all())
    assert bool(torch.isfinite(found).all())


def test_centers_must_fit_and_be_finite():
    codebook = Codebook(6, 3)
    for wrong in (torch.zeros(2, 6), torch.full((3, 6), float("nan"))):
        with pytest.raises(ValueError, match="centers must be finite with shape"):
            codebook.set_centers(wrong)


def test_choice_without_products_is_farthest_points_and_their_means():
    points = np.random.default_rng(3).standard_normal((300, 8)).astype(np.float32)
    config = MemoryConfig(centers=20, guaranteed_share=0.0)
    candidates = Candidates(features=points, products=np.zeros(300, np.int64))
    first = int(np.random.default_rng(5).integers(300))
    chosen = [first]
    while len(chosen) < 20:
        chosen.append(int(np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1).argmax()))
    owner = np.linalg.norm(points[:, None] - points[chosen], axis=2).argmin(1)
    expected = np.stack([points[owner == n].mean(0) for n in range(20)])
    np.testing.assert_allclose(choose_centers(candidates, config, seed=5), expected, atol=4 * FLOAT32_ABS)


def test_choice_is_the_same_for_the_same_seed():
    points = np.random.default_rng(3).standard_normal((500, 100)).astype(np.float32)  # projected
    candidates = Candidates(features=points, products=np.arange(500) // 250)
    config = MemoryConfig(centers=30)
    first, second, other = (choose_centers(candidates, config, seed=seed) for seed in (0, 0, 1))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_product_of_20_images_keeps_its_share_beside_one_of_250():
    large = [near([1, 0, 0, 0], 8, seed, spread=0.5) for seed in range(250)]  # wide: it would take nearly all centers
    small = [near([0, 0, 0, -1], 8, 1000 + seed, spread=0.05) for seed in range(20)]
    centers = choose_centers(candidates_of([large, small]), MemoryConfig(centers=40, guaranteed_share=0.5), seed=0)
    of_small = int((centers[:, 3] < -0.9).sum())
    unbalanced = choose_centers(candidates_of([large, small]), MemoryConfig(centers=40, guaranteed_share=0.0), seed=0)
    assert of_small >= 10  # a quarter: half of the centers are dealt, and half of those are its own
    assert int((unbalanced[:, 3] < -0.9).sum()) < 10


def test_more_centers_than_a_few_images_fill_leave_nothing_normal_uncovered():
    images = [near([1, 0, 0, 0], 40, seed, spread=0.5) for seed in range(6)]
    unseen = np.concatenate([near([1, 0, 0, 0], 40, 100 + seed, spread=0.5) for seed in range(6)])
    few, many = (choose_centers(candidates_of([images]), MemoryConfig(centers=count), seed=0) for count in (30, 120))  # a center for 2 of 240 cells

    def distance(centers: np.ndarray) -> float:
        return float(np.linalg.norm(unseen[:, None] - centers, axis=2).min(1).mean())

    assert distance(many) < distance(few)


def test_fewer_features_than_centers_are_repeated():
    features = near([1, 0, 0], 4, 0, spread=0.5)
    centers = choose_centers(candidates_of([[features]]), MemoryConfig(centers=10), seed=0)
    assert centers.shape == (10, 3)
    assert {tuple(center) for center in centers} == {tuple(feature) for feature in features.astype(np.float32)}


def test_training_a_memory_is_reproducible_and_leaves_a_finished_checkpoint(plain_root: Path, tmp_path: Path):
    for name in ("a", "b"):
        result = train(CONFIG, data_of(plain_root), tmp_path / f"{name}.pt")
        assert result.is_complete
    stored, again = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("a", "b"))
    assert stored.unfinished is None
    assert len(stored.training_image_sha256) == 12  # also those that set the normalization: they are no fresh images for thresholds
    for key, tensor in stored.state_dict.items():
        assert torch.equal(tensor, again.state_dict[key]), key
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.pt", "b.pt"]


def test_each_map_has_a_mean_peak_of_one_on_good_images_that_were_kept_back(plain_root: Path, tmp_path: Path):
    config = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, layers=(1, 2, 3)))
    data = data_of(plain_root, config)
    train(config, data, tmp_path / "x.pt")
    model = load_checkpoint(tmp_path / "x.pt").build_model()
    _, kept_back = split_for_normalization(data, config)
    assert [sample.class_name for sample in kept_back.samples] == ["bolt"] * 3 + ["ring"]
    images = torch.from_numpy(kept_back.inputs.read(kept_back.samples))
    teacher, _ = model(model.normalize(images))
    for of_layer in memory_maps(model.memory, teacher, config.image_size, config.score):
        peaks = of_layer.amax((1, 2))
        assert 0.5 * (float(peaks[:3].mean()) + float(peaks[3])) == pytest.approx(1, rel=1e-4)


def test_student_and_memory_add_up_divided_by_their_peaks(plain_root: Path, tmp_path: Path):
    model = ModelConfig(method="rd", teacher="resnet18", teacher_weights="random", whitening=True)
    config = TrainConfig(model=model, memory=CONFIG.memory, image_size=(64, 64), batch_size=4, epochs=1)
    data = data_of(plain_root, config)
    train(config, data, tmp_path / "x.pt")
    networks = load_checkpoint(tmp_path / "x.pt").build_model()
    _, kept_back = split_for_normalization(data, config)
    images = torch.from_numpy(kept_back.inputs.read(kept_back.samples))
    with torch.no_grad():
        teacher, student = networks(networks.normalize(images))
        of_student, peaks = score_features(teacher, student, (64, 64), config.score, whitening=networks.whitening)
        of_memory, _ = score_features(teacher, [], (64, 64), config.score, memory=networks.memory)
        both, _ = score_features(teacher, student, (64, 64), config.score, whitening=networks.whitening, memory=networks.memory)
    assert float(networks.memory.student_weight) * 0.5 * float(peaks[:3].mean() + peaks[3]) == pytest.approx(2, rel=1e-4)  # the student counts twice
    np.testing.assert_allclose(both, networks.memory.student_weight * of_student + of_memory, rtol=1e-5)


def test_memory_beside_a_student_survives_a_stop(plain_root: Path, tmp_path: Path):
    model = ModelConfig(method="fd", teacher="resnet18", teacher_weights="random")
    config = TrainConfig(model=model, memory=CONFIG.memory, image_size=(32, 32), batch_size=4, epochs=1)
    data = data_of(plain_root, config)
    train(config, data, tmp_path / "whole.pt")
    assert not train(config, data, tmp_path / "x.pt", should_stop=lambda: True).is_complete
    assert train(config, data, tmp_path / "x.pt", resume=True).is_complete
    whole, resumed = (load_checkpoint(tmp_path / name).state_dict for name in ("whole.pt", "x.pt"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_checkpoint_scores_without_a_student(plain_root: Path, tmp_path: Path):
    train(CONFIG, data_of(plain_root), tmp_path / "x.pt")
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    scores, maps = CheckpointScorer(checkpoint).score_inputs(checkpoint.golden_images)
    assert maps.shape == (len(checkpoint.golden_images), 64, 64)
    np.testing.assert_array_equal(scores, maps.max((1, 2)))
    assert bool((scores > 0).all())


def test_too_few_images_for_a_normalization_say_so(tmp_path: Path, picture):
    picture(tmp_path / "data" / "bolt" / "0.png", 0)
    with pytest.raises(DataError, match=r"memory.normalization_share is .* keeps none of any product back.*add images"):
        train(CONFIG, data_of(tmp_path / "data"), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_method_memory_has_512_centers_and_the_score_of_best_unless_told():
    config = load_config(None, {"model.method": "memory"})
    assert (config.memory.centers, config.score.smoothing_sigma, config.preset) == (512, 4.0, "best")
    assert not config.model.whitening
    assert load_config(None, {"model.method": "memory", "memory.centers": 7, "preset": "paper"}).score.smoothing_sigma == 0
    assert load_config(None, {}).memory.centers == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("memory.centers", -1, "memory.centers must be 0 or more, got -1"),
        ("memory.layers", [2, 1], "memory.layers must be one or more of 1, 2, 3 in rising order"),
        ("memory.layers", [4], "memory.layers must be one or more of 1, 2, 3 in rising order"),
        ("memory.normalization_share", 0.0, r"memory.normalization_share must be in \(0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {key: value})


def test_memory_without_centers_is_no_module():
    from snl_train.models import build_model

    assert build_model(ModelConfig(method="rd", teacher="resnet18", teacher_weights="random"), MemoryConfig()).memory is None
    memory = FeatureMemory(MemoryConfig(centers=3, layers=(2,)), (64, 128, 256))
    assert [tuple(codebook.centers.shape) for codebook in memory.codebooks] == [(3, 128)]
