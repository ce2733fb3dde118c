"""Synthetic anomalies in training images: where, how many, and what they leave alone."""

import numpy as np
import pytest
import torch

from snl_runtime.errors import ConfigError
from snl_train.synthetic_anomalies import SyntheticAnomalies
from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8))


def test_no_share_changes_nothing_and_draws_nothing(images):
    state = torch.get_rng_state()
    altered, has_anomaly = SyntheticAnomalies(SyntheticAnomalyConfig(share=0))(images)
    assert not has_anomaly.any()
    assert torch.equal(altered, images)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_without_a_synthetic_anomaly_are_the_same_and_the_input_is_not_changed(images):
    before = images.clone()
    torch.manual_seed(1)
    altered, has_anomaly = SyntheticAnomalies(SyntheticAnomalyConfig(share=0.5))(images)
    assert torch.equal(images, before)
    assert 0 < int(has_anomaly.sum()) < len(images)
    assert torch.equal(altered[~has_anomaly], images[~has_anomaly])
    assert (altered.dtype, altered.shape) == (torch.uint8, images.shape)


def test_a_synthetic_anomaly_covers_no_more_than_asked():
    torch.manual_seed(2)
    images = torch.full((60, 40, 40, 3), 128, dtype=torch.uint8)
    altered, has_anomaly = SyntheticAnomalies(SyntheticAnomalyConfig(share=1, area_min=0.02, area_max=0.1))(images)
    changed = (altered != images).any(3).float().mean((1, 2))
    assert has_anomaly.all()
    assert float(changed.max()) <= 0.1 + 1 / 40**2
    assert float((changed > 0).float().mean()) > 0.5  # a disc may miss the shape, and a moved flat image looks the same


def test_opacity_of_one_puts_nothing_of_the_good_image_into_the_synthetic_anomaly():
    torch.manual_seed(3)
    images = torch.stack([torch.full((32, 32, 3), value, dtype=torch.uint8) for value in (0, 255)])
    config = SyntheticAnomalyConfig(share=1, opacity_min=1, foreign_share=1)
    values = set()
    for _ in range(20):
        altered, _ = SyntheticAnomalies(config)(images)
        values |= set(altered[0].unique().tolist())
    # the other image (255) as it is or re-lit, or the image itself (0), re-lit by at most 40 gray levels; nothing in between
    assert values <= set(range(41)) | set(range(87, 256))


def test_the_same_generator_state_gives_the_same_synthetic_anomaly(images):
    synthetic_anomalies = SyntheticAnomalies(SyntheticAnomalyConfig(share=0.7))
    torch.manual_seed(4)
    first = synthetic_anomalies(images)
    torch.manual_seed(4)
    second = synthetic_anomalies(images)
    torch.manual_seed(5)
    third = synthetic_anomalies(images)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], third[0])


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("share", 1.5, "synthetic_anomalies.share must be in"),
        ("opacity_min", 0.0, "synthetic_anomalies.opacity_min must be in"),
        ("area_min", 0.0, "synthetic_anomalies.area_min must be in"),
        ("area_max", 0.005, "synthetic_anomalies.area_max must be in"),
        ("foreign_share", -0.1, "synthetic_anomalies.foreign_share must be in"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value, expected):
    with pytest.raises(ConfigError, match=expected):
        SyntheticAnomalyConfig(**{setting: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_draws_synthetic_anomaly_into_the_same_images_as_a_cpu(images):
    painted = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        painted.append(SyntheticAnomalies(SyntheticAnomalyConfig(share=0.5))(images.to(device)))
    (_, on_cpu), (altered, on_gpu) = painted
    assert torch.equal(on_cpu, on_gpu)
    assert altered.is_cuda
    assert altered.dtype == torch.uint8
    assert torch.equal(altered[~on_gpu].cpu(), images[~on_gpu])
    changed = (altered.cpu() != images).flatten(1).any(1)  # a small synthetic anomaly outside its disc changes nothing
    assert changed[on_gpu].float().mean() > 0.5
