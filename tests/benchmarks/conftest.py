"""Generated folders in the layouts of MVTec AD and VisA, and the benchmarks on the import path."""

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

MVTEC = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper".split()
VISA = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum".split()


def write_image(path: Path, seed: int, size_hw=(40, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(coarse, size_hw[::-1]))
    return path


def write_mask(path: Path, value: int = 255, size_hw=(40, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size_hw, np.uint8)
    mask[4:16, 6:20] = value
    assert cv2.imwrite(str(path), mask)
    return path


def write_mvtec(root: Path, classes, *, unmasked=(), train=4, test=2) -> Path:
    for number, name in enumerate(classes):
        for index in range(train):
            write_image(root / name / "train" / "good" / f"{index:03}.png", 1000 * number + index)
        for index in range(test):
            write_image(root / name / "test" / "good" / f"{index:03}.png", 1000 * number + 100 + index)
            write_image(root / name / "test" / "scratch" / f"{index:03}.png", 1000 * number + 200 + index)
            if name not in unmasked:
                write_mask(root / name / "ground_truth" / "scratch" / f"{index:03}_mask.png")
    return root


def write_visa(root: Path, classes) -> Path:
    rows = []
    for number, name in enumerate(classes):
        for index in range(6):
            split = "train" if index < 4 else "test"
            image = write_image(root / name / "Data" / "Images" / "Normal" / f"{index:04}.JPG", 2000 * number + index)
            rows.append([name, split, "normal", image.relative_to(root).as_posix(), ""])
        for index in range(2):
            image = write_image(root / name / "Data" / "Images" / "Anomaly" / f"{index:03}.JPG", 2000 * number + 500 + index)
            mask = write_mask(root / name / "Data" / "Masks" / "Anomaly" / f"{index:03}.png", value=index + 1)
            rows.append([name, "test", "anomaly", image.relative_to(root).as_posix(), mask.relative_to(root).as_posix()])
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    return root


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class ``cap`` with image-level labels only, class ``nut`` with masks, in MVTec AD's layout."""
    return write_mvtec(tmp_path_factory.mktemp("two"), ("cap", "nut"), unmasked=("cap",))


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 15 classes of MVTec AD."""
    return write_mvtec(tmp_path_factory.mktemp("mvtec"), MVTEC, train=2, test=2)


@pytest.fixture(scope="session")
def visa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 12 classes of VisA with its split file."""
    return write_visa(tmp_path_factory.mktemp("visa"), VISA)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the command itself works on a CPU; figures are equal to the bit only with as many threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the flush to the disk out: 40 MB per checkpoint take seconds on a busy one, and tests/runtime/test_files.py covers it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def command(quick_files: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; returns status, stdout, stderr."""
    from benchmarks.accuracy.command import main

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
