"""Bad images among the training images: which ones are moved, what is measured on the rest, and rows of a whole run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.contamination import as_training_images, choose_moved, class_figures
from snl_runtime.errors import DataError
from snl_train.data.samples import Sample
from snl_train.measures import ScoredImage


def sample(name: str, number: int, *, is_anomalous: bool) -> Sample:
    path = Path(f"{name}-{'bad' if is_anomalous else 'good'}-{number}.png")
    defect, mask = ("scratch", Path("mask.png")) if is_anomalous else (None, None)
    return Sample(path=path, class_name=name, split="test", is_anomalous=is_anomalous, defect=defect, mask_path=mask, pixel_sha256=path.stem)


TEST = [sample(name, number, is_anomalous=bad) for name in ("cap", "nut") for bad in (False, True) for number in range(10)]


def test_a_share_of_the_training_images_is_moved_and_a_smaller_one_is_part_of_it():
    good = {"cap": 100, "nut": 30}
    few, many = (choose_moved(TEST, good, percent, seed=3) for percent in (1, 7))
    assert [[one.class_name for one in moved].count("cap") for moved in (few, many)] == [1, 7]
    assert [[one.class_name for one in moved].count("nut") for moved in (few, many)] == [1, 2]  # 0.3 is at least one, 2.1 is 2
    assert set(few) < set(many)
    assert all(one.is_anomalous for one in many)
    assert choose_moved(TEST, good, 0, seed=3) == []
    assert set(choose_moved(TEST, good, 7, seed=4)) != set(many)


def test_a_class_keeps_anomalous_images_to_be_measured_on():
    with pytest.raises(DataError, match="class 'cap' has 10 anomalous test images, and 10 would be moved; lower --bad-percent"):
        choose_moved(TEST, {"cap": 100}, 10, seed=0)


def test_moved_images_look_like_good_training_images():
    (moved,) = as_training_images(TEST[10:11])
    assert (moved.split, moved.is_anomalous, moved.defect, moved.mask_path) == ("train", False, None, None)
    assert moved.path == TEST[10].path


def test_figures_are_of_the_rest_and_of_the_moved_images_apart():
    scores = {"cap-good-0": 1, "cap-good-1": 3, "cap-bad-0": 2, "cap-bad-1": 4, "cap-bad-2": 0}
    clean = {"cap-good-0": 1, "cap-good-1": 3, "cap-bad-0": 2, "cap-bad-1": 4, "cap-bad-2": 5}
    images = []
    for one in TEST:
        if one.path.stem in scores:
            mask = np.array([[one.is_anomalous, False]])
            maps = np.array([[scores[one.path.stem], 0]], np.float32)
            images.append(ScoredImage(sample=one, score=float(scores[one.path.stem]), anomaly_map=maps, mask=mask))
    rest = {one.sample.path for one in images} - {Path("cap-bad-2.png")}
    found = class_figures(images, rest, {Path("cap-bad-2.png")}, {Path(f"{stem}.png"): float(score) for stem, score in clean.items()})
    # the rest: bad 2 and 4 against good 1 and 3, three of four pairs in order
    assert found["image_auroc"] == 0.75
    # bad pixels 2 and 4 against 1, 3 and four zeros: 5 and 6 of 6 in order
    assert found["pixel_auroc"] == pytest.approx(11 / 12)
    # the moved one: 0 is below both good ones, without it in the memory 5 was above them
    assert found["moved_auroc"] == 0.0
    assert found["moved_auroc_without"] == 1.0


def test_without_moved_images_nothing_is_said_of_them():
    images = [ScoredImage(sample=one, score=float(one.is_anomalous), anomaly_map=np.zeros((1, 1), np.float32), mask=None) for one in TEST[8:12]]
    found = class_figures(images, {one.sample.path for one in images}, set(), {one.sample.path: 0.0 for one in images})
    assert found == {"image_auroc": 1.0, "pixel_auroc": None, "moved_auroc": None, "moved_auroc_without": None}


PROTOCOL = """
base:
  golden_samples: 2
  model: {teacher: resnet18, teacher_weights: random, method: memory}
  memory: {centers: 4}
image_sizes: [32]
seeds: [0]
development: [cap, nut]
variants:
  "memory, 512 centers": {}
"""


def test_the_command_adds_a_row_per_share_seed_and_class(two_classes: Path, tmp_path: Path, quick_files: None):
    from benchmarks.accuracy.contamination import main
    from benchmarks.accuracy.tables import CONTAMINATION, read_rows

    protocol, table = tmp_path / "mine.yaml", tmp_path / "contamination.csv"
    protocol.write_text(PROTOCOL)
    assert main(["--data", str(two_classes), "--protocol", str(protocol), "--bad-percent", "20", "--out", str(table), "--commit", "abc"]) == 0
    found = read_rows(table, CONTAMINATION)
    assert len(found) == 2 * 2  # none and one bad image, two classes
    assert {(row["bad_percent"], row["good"], row["bad"]) for row in found} == {("0", "4", "0"), ("20", "4", "1")}
    assert all((row["moved_auroc"] == "") == (row["bad"] == "0") for row in found)
    assert all((row["pixel_auroc"] == "") == (row["class"] == "cap") for row in found)  # its masks are unknown
