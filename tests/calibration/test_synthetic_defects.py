"""Synthetic defects are visible, lie inside the part, keep their stated size and contrast, and are the same on every run."""

import cv2
import numpy as np
import pytest

from snl_calibration.synthetic_defects import DEFECT_KINDS, add_defect, find_part
from snl_runtime.errors import ConfigError
from tolerances import FLOAT32_REL

CONTRAST = {"scratch": (60, 100), "stain": (10, 81), "missing_patch": (20, 255), "pasted_patch": (10, 255), "color_shift": (30, 61)}
"""Stated range in gray levels; stains fade at the edge, holes and pastes depend on what lies there, clipping takes some away."""


def _disk(color=True, size=(120, 160)):
    """A textured part on a plain background, and where it is."""
    rng = np.random.default_rng(2)
    image = np.full((*size, 3), 200, dtype=np.uint8)
    part = np.zeros(size, dtype=np.uint8)
    cv2.circle(part, (size[1] // 2, size[0] // 2), 40, 1, -1)
    texture = rng.integers(60, 110, (*size, 3 if color else 1), dtype=np.uint8)
    image[part > 0] = np.broadcast_to(texture, image.shape)[part > 0]
    return image, part > 0


def _texture():
    noise = np.random.default_rng(4).normal(120, 25, (90, 70, 1)).clip(0, 255).astype(np.uint8)
    return np.repeat(noise, 3, axis=2)


def _plain():
    return np.full((64, 64, 3), 128, dtype=np.uint8)


FRAMES = {
    "disk": _disk()[0],
    "gray_disk": _disk(color=False)[0],
    "texture": _texture(),
    "plain": _plain(),
    "black": _plain() * 0,
    "white": _plain() * 0 + 255,
}


def test_there_are_at_least_four_kinds():
    assert len(set(DEFECT_KINDS)) >= 4


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("frame", FRAMES)
def test_mask_is_where_the_frame_changed_and_something_did(frame, kind):
    for seed in range(5):
        before = FRAMES[frame].copy()
        defect = add_defect(FRAMES[frame], kind, np.random.default_rng(seed))
        assert np.array_equal(FRAMES[frame], before)
        assert np.array_equal((defect.image != before).any(axis=2), defect.mask)
        assert defect.mask.any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_defect_lies_inside_the_part(kind):
    image, part = _disk()
    for seed in range(20):
        mask = add_defect(image, kind, np.random.default_rng(seed)).mask
        assert (mask & part).sum() >= 0.95 * mask.sum()  # the part's outline is found to about a pixel


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_contrast_is_the_documented_one(kind):
    low, high = CONTRAST[kind]
    for seed in range(20):
        defect = add_defect(_disk()[0], kind, np.random.default_rng(seed))
        change = np.abs(defect.image.astype(int) - _disk()[0].astype(int)).max(axis=2)[defect.mask].mean()
        assert defect.contrast == pytest.approx(change, rel=FLOAT32_REL)
        assert low <= change <= high


@pytest.mark.parametrize("kind", sorted(set(DEFECT_KINDS) - {"scratch"}))
def test_size_is_a_tenth_to_a_fifth_of_the_part(kind):
    # the disk is 80 px across: 8 to 16 px, 0.55 for a ragged or squeezed outline, 1.1 for a ragged corner, and a pixel of rounding
    for seed in range(20):
        rows, columns = np.nonzero(add_defect(_disk()[0], kind, np.random.default_rng(seed)).mask)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.55 * 8 <= extent <= 1.1 * 16 + 2


def test_scratch_is_long_and_thin():
    for seed in range(20):
        mask = add_defect(_disk()[0], "scratch", np.random.default_rng(seed)).mask
        (_, _), sides, _ = cv2.minAreaRect(np.argwhere(mask).astype(np.float32))
        assert mask.sum() <= 5 * max(sides)  # 1.5 to 3 % of 80 px is 1 to 2 px wide
        assert max(sides) >= 0.5 * 0.25 * 80  # part of it may hang over the edge


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_defect_lies_inside_the_region_of_interest(kind):
    roi = (30, 20, 90, 100)
    outside = np.ones((120, 160), dtype=bool)
    outside[20:100, 30:90] = False
    for seed in range(10):
        assert not (add_defect(_disk()[0], kind, np.random.default_rng(seed), roi).mask & outside).any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_gray_frame_stays_gray(kind):
    image = add_defect(FRAMES["gray_disk"], kind, np.random.default_rng(0)).image
    part = find_part(FRAMES["gray_disk"])
    assert np.array_equal(image[part][:, 0], image[part][:, 1])


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_same_seed_gives_the_same_defect_and_another_seed_another(kind):
    first, again, other = (add_defect(_disk()[0], kind, np.random.default_rng(seed)).image for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_part_is_found_on_a_plain_background():
    image, part = _disk()
    found = find_part(image)
    assert (found & part).sum() / (found | part).sum() > 0.9


def test_part_with_a_bright_label_on_dark_glass_is_found_whole():
    image = np.full((100, 100, 3), 5, dtype=np.uint8)
    image[10:90, 30:70] = 70  # the glass
    image[40:60, 35:65] = 240  # its label
    found = find_part(image)
    assert found[12:88, 32:68].mean() > 0.95
    assert not found[:, :25].any()


def test_texture_without_background_is_a_part_up_to_the_margin():
    found = find_part(_texture())
    assert found[10:-10, 10:-10].all()
    assert not found[0].any()


def test_unknown_kind_is_a_user_error():
    with pytest.raises(ConfigError, match="unknown defect kind 'dent'; expected one of scratch"):
        add_defect(_plain(), "dent", np.random.default_rng(0))


def test_frame_too_small_for_a_defect_is_a_user_error():
    with pytest.raises(ConfigError, match="at least 16 x 16 px to be put on, got 10 x 64 px"):
        add_defect(_plain()[:, :10], "stain", np.random.default_rng(0))
