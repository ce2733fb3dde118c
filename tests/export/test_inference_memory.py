"""The form of the memory in the graph gives the squared distance to the nearest center, for any number of centers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from snl_export.memory import InferenceCodebook, InferenceMemory  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.models.memory import TILE_CENTERS, Codebook, FeatureMemory  # noqa: E402
from tolerances import FLOAT32_ABS  # noqa: E402

CHANNELS = 6


def codebook_of(count: int) -> Codebook:
    codebook = Codebook(CHANNELS, count)
    centers = np.random.default_rng(count).standard_normal((count, CHANNELS)).astype(np.float32) / CHANNELS**0.5
    codebook.set_centers(torch.from_numpy(centers))
    codebook.weight.fill_(3.0)
    return codebook


def by_brute_force(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the squared distances (N, 1, H, W) of averaged unit features to the nearest center, in float64."""
    batch, _, height, width = features.shape
    found = np.empty((batch, 1, height, width))
    for b, y, x in np.ndindex(batch, height, width):
        mean = features[b, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].astype(np.float64).mean((1, 2))
        unit = mean / np.sqrt((mean**2).sum())
        found[b, 0, y, x] = min(((unit - center) ** 2).sum() for center in centers.astype(np.float64))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, TILE_CENTERS, TILE_CENTERS + 1, 2 * TILE_CENTERS + 3])
def test_distance_is_that_of_the_nearest_center_by_brute_force(count: int) -> None:
    codebook = codebook_of(count)
    features = np.random.default_rng(2).standard_normal((2, CHANNELS, 5, 4)).astype(np.float32)
    expected = 3.0 * by_brute_force(features, codebook.centers.numpy())
    np.testing.assert_allclose(InferenceCodebook(codebook)(torch.from_numpy(features)).numpy(), expected, atol=3 * 4 * FLOAT32_ABS)


@pytest.mark.parametrize(("count", "pairs", "size"), [(1, 1, 1), (12, 1, 6), (128, 1, 64), (150, 2, 38), (512, 4, 64)])
def test_tiles_are_pairs_of_equal_size(count: int, pairs: int, size: int) -> None:
    found = InferenceCodebook(codebook_of(count)).pairs
    assert [tuple(pair.centers.shape) for pair in found] == [(size, CHANNELS, 1, 1)] * pairs


def test_feature_that_is_a_center_has_distance_zero_and_a_zero_feature_is_far() -> None:
    codebook = Codebook(CHANNELS, 100)
    centers = np.random.default_rng(4).standard_normal((100, CHANNELS))
    codebook.set_centers(torch.from_numpy((centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)))
    inference = InferenceCodebook(codebook)
    for center in (3, 60):  # of a first and of a second tile
        features = 7 * codebook.centers[center][None, :, None, None].expand(1, -1, 4, 4)
        np.testing.assert_allclose(inference(features).numpy(), 0, atol=4 * FLOAT32_ABS)
    assert bool((inference(torch.zeros(1, CHANNELS, 4, 4)) >= 1).all())


def test_memory_of_two_layers_gives_what_the_training_side_gives() -> None:
    memory = FeatureMemory(MemoryConfig(centers=20, layers=(1, 3)), (4, 8, 16))
    for seed, codebook in enumerate(memory.books):
        codebook.set_centers(torch.randn(codebook.centers.shape, generator=torch.Generator().manual_seed(seed)))
        codebook.weight.fill_(seed + 2.0)
    memory.student_weight.fill_(0.5)
    generator = torch.Generator().manual_seed(9)
    teacher = [torch.randn(2, channels, side, side, generator=generator) for channels, side in ((4, 8), (8, 4), (16, 2))]
    inference = InferenceMemory(memory)
    assert float(inference.student_weight) == 0.5
    for found, expected in zip(inference(teacher), memory(teacher), strict=True):
        np.testing.assert_allclose(found[:, 0].numpy(), expected.numpy(), rtol=1e-5, atol=4 * FLOAT32_ABS * float(expected.max()))
