"""Small generated datasets."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest


def write_image(path: Path, seed: int, size_hw: tuple[int, int] = (40, 48)) -> Path:
    """Write random pixels, smooth enough to survive a resize, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(coarse, size_hw[::-1]))
    return path


def write_mask(path: Path, size_hw: tuple[int, int] = (40, 48), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask: npt.NDArray[np.uint8] = np.zeros(size_hw, np.uint8)
    mask[4:9, 6:12] = value
    assert cv2.imwrite(str(path), mask)
    return path


@pytest.fixture
def picture() -> Callable[..., Path]:
    return write_image


@pytest.fixture
def mask_file() -> Callable[..., Path]:
    return write_mask


@pytest.fixture
def mvtec_root(tmp_path: Path) -> Path:
    """Class ``cap`` with image-level labels only, class ``nut`` with masks; file numbers have gaps."""
    root = tmp_path / "mvtec"
    for number, name in enumerate(("cap", "nut")):
        for index in (0, 1, 3, 7):
            write_image(root / name / "train" / "good" / f"{index:03}.png", 1000 * number + index)
        for index in (0, 5):
            write_image(root / name / "test" / "good" / f"{index:03}.png", 1000 * number + 100 + index)
            write_image(root / name / "test" / "scratch" / f"{index:03}.png", 1000 * number + 200 + index)
            if name == "nut":
                write_mask(root / name / "ground_truth" / "scratch" / f"{index:03}_mask.png")
    return root


@pytest.fixture
def plain_root(tmp_path: Path) -> Path:
    """Good images of two products, one folder each."""
    return write_products(tmp_path / "plain")


@pytest.fixture(scope="module")
def picture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of ``plain_root``, for fixtures of a whole module."""
    return write_products(tmp_path_factory.mktemp("data") / "plain")


def write_products(root: Path) -> Path:
    for number, (name, count) in enumerate((("bolt", 9), ("ring", 3))):
        for index in range(count):
            write_image(root / name / f"{index:03}.png", 5000 + 1000 * number + index)
    return root
