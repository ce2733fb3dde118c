"""A folder in one of three layouts becomes a list of samples; what cannot be used is named in one line."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.errors import DataError
from snl_train.data.layouts import list_dataset, read_dataset

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "realmix"


def refused(root: Path, *names: str, **options: bool) -> str:
    """Return the one-line message with which ``root`` is refused, after checking that it holds all of ``names``."""
    with pytest.raises(DataError) as caught:
        read_dataset(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    return message


def test_folder_of_mvtec_classes_is_read_with_its_splits_defects_and_masks(mvtec_root):
    index = read_dataset(mvtec_root)
    assert index.classes == ["cap", "nut"]
    counts = Counter((s.class_name, s.split, s.defect, s.mask_path is not None) for s in [*index.train, *index.test])
    assert counts == {
        ("cap", "train", None, False): 4,
        ("cap", "test", None, False): 2,
        ("cap", "test", "scratch", False): 2,
        ("nut", "train", None, False): 4,
        ("nut", "test", None, False): 2,
        ("nut", "test", "scratch", True): 2,
    }
    assert all(sample.is_anomalous == (sample.defect is not None) for sample in index.test)


def test_class_without_masks_is_not_among_the_classes_with_masks(mvtec_root):
    assert read_dataset(mvtec_root).classes_with_masks() == ["nut"]


def test_one_mvtec_class_folder_is_one_class_of_that_name(mvtec_root):
    index = read_dataset(mvtec_root / "nut")
    assert index.classes == ["nut"]
    assert [index.relative(sample) for sample in index.train] == [f"train/good/{number:03}.png" for number in (0, 1, 3, 7)]


def test_mask_belongs_to_the_image_of_the_same_number(mvtec_root):
    masks = {sample.path.stem: sample.mask_path.name for sample in read_dataset(mvtec_root).test if sample.mask_path}
    assert masks == {"000": "000_mask.png", "005": "005_mask.png"}


def test_mask_without_the_mask_suffix_is_found(mvtec_root):
    folder = mvtec_root / "nut" / "ground_truth" / "scratch"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_mask", ""))
    assert read_dataset(mvtec_root).classes_with_masks() == ["nut"]


def test_training_images_alone_are_enough(mvtec_root):
    for name in ("cap", "nut"):
        shutil.rmtree(mvtec_root / name / "test")
    index = read_dataset(mvtec_root)
    assert len(index.train) == 8
    assert not index.test


def test_folder_per_product_holds_good_training_images(plain_root):
    index = read_dataset(plain_root)
    assert index.classes == ["bolt", "ring"]
    assert Counter(sample.class_name for sample in index.train) == {"bolt": 9, "ring": 3}
    assert not any(sample.is_anomalous for sample in index.train)


def test_single_folder_of_images_is_one_product(plain_root):
    index = read_dataset(plain_root / "ring")
    assert index.classes == ["ring"]
    assert len(index.train) == 3


def test_pixel_hash_is_that_of_the_decoded_rgb_bytes(plain_root):
    sample = read_dataset(plain_root / "ring").train[0]
    pixels = np.ascontiguousarray(cv2.imread(str(sample.path))[:, :, ::-1])
    assert sample.pixel_sha256 == hashlib.sha256(b"40x48x3\0" + pixels.tobytes()).hexdigest()


# VisA


def write_visa(root: Path, picture: Callable[..., Path], mask_file: Callable[..., Path], *, good_images: int = 12) -> Path:
    rows = []
    for index in range(good_images):
        name = f"candle/Data/Images/Normal/{index:04}.JPG"
        picture(root / name, index)
        rows.append((name, "normal", ""))
    for index in range(2):
        name, mask = f"candle/Data/Images/Anomaly/{index:03}.JPG", f"candle/Data/Masks/Anomaly/{index:03}.png"
        picture(root / name, 100 + index)
        mask_file(root / mask, value=1)  # VisA's masks hold label numbers
        rows.append((name, '"wax missing,chunk"', mask))
    (root / "candle" / "image_anno.csv").write_text("image,label,mask\n" + "".join(f"{','.join(row)}\n" for row in rows))
    lines = ["object,split,label,image,mask"]
    for index, (name, label, mask) in enumerate(rows):
        is_good = label == "normal"
        lines.append(f"candle,{'train' if is_good and index < 8 else 'test'},{'normal' if is_good else 'anomaly'},{name},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def visa_root(tmp_path, picture, mask_file):
    return write_visa(tmp_path / "VisA", picture, mask_file)


@pytest.mark.parametrize("entry", ["", "split_csv/1cls.csv"])
def test_visa_split_file_decides_the_split(visa_root, entry):
    index = read_dataset(visa_root / entry)
    assert index.classes == ["candle"]
    assert index.root == visa_root
    assert len(index.train) == 8
    assert Counter(sample.defect for sample in index.test) == {None: 4, "anomaly": 2}


@pytest.mark.parametrize("entry", ["", "candle", "candle/image_anno.csv"])
def test_visa_annotations_without_a_split_send_every_tenth_good_image_to_test(visa_root, entry):
    shutil.rmtree(visa_root / "split_csv")
    index = read_dataset(visa_root / entry)
    assert index.classes == ["candle"]
    assert [sample.path.stem for sample in index.test if not sample.is_anomalous] == ["0009"]
    assert [sample.defect for sample in index.test if sample.is_anomalous] == ["wax missing,chunk"] * 2
    assert len(index.train) == 11


def test_visa_mask_of_label_numbers_marks_every_number_but_zero(visa_root):
    sample = next(sample for sample in read_dataset(visa_root).test if sample.is_anomalous)
    assert int(sample.read_mask().sum()) == 5 * 6


def test_visa_table_without_a_column_is_refused(visa_root):
    table = visa_root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace("object,split,label", "object,part,label"))
    refused(visa_root, "1cls.csv", "'split'")


def test_visa_table_with_a_short_line_is_refused(visa_root):
    table = visa_root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text() + "candle,train\n")
    refused(visa_root, "1cls.csv", "line 16")


def test_visa_table_that_names_a_missing_image_is_refused(visa_root):
    (visa_root / "candle" / "Data" / "Images" / "Normal" / "0003.JPG").unlink()
    refused(visa_root, "0003.JPG")


def test_visa_table_with_bad_images_in_train_is_refused(visa_root):
    table = visa_root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace("candle,test,anomaly", "candle,train,anomaly"))
    refused(visa_root, "Anomaly/000.JPG", "train")


# What cannot be used


def test_text_file_with_an_image_suffix_is_refused(mvtec_root):
    (mvtec_root / "nut" / "train" / "good" / "001.png").write_text("no image")
    refused(mvtec_root, "nut/train/good/001.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_truncated_image_is_refused(mvtec_root, picture, suffix):
    path = picture(mvtec_root / "nut" / "train" / "good" / f"900{suffix}", 900)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(mvtec_root, f"900{suffix}")


def test_unreadable_files_are_left_out_and_listed_when_skipping(mvtec_root):
    broken = [mvtec_root / "nut" / "train" / "good" / "001.png", mvtec_root / "cap" / "test" / "scratch" / "005.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    index = read_dataset(mvtec_root, skip_unreadable=True)
    assert [path for path, _ in index.left_out] == broken
    assert all(path.name in reason for path, reason in index.left_out)
    assert len(index.train) == 7
    assert len(index.test) == 7


def test_class_that_loses_all_its_images_by_skipping_is_empty(plain_root):
    for path in (plain_root / "ring").iterdir():
        path.write_bytes(b"")
    refused(plain_root, "'ring'", "3 unreadable", skip_unreadable=True)


@pytest.mark.parametrize("inner", ["", "train/good"])
def test_empty_class_is_refused(mvtec_root, inner):
    (mvtec_root / "washer" / inner).mkdir(parents=True)
    refused(mvtec_root, "'washer'", str(mvtec_root / "washer"))


def test_class_without_training_images_is_allowed_for_evaluation_only(mvtec_root):
    shutil.rmtree(mvtec_root / "cap" / "train")
    refused(mvtec_root, "'cap'")
    assert read_dataset(mvtec_root, require_train=False).classes == ["cap", "nut"]


def test_mask_of_another_size_is_refused(mvtec_root, mask_file):
    mask_file(mvtec_root / "nut" / "ground_truth" / "scratch" / "005_mask.png", (48, 40))
    refused(mvtec_root, "scratch/005_mask.png", "40 x 48", "48 x 40")


@pytest.mark.parametrize("value", [0, 127])
def test_mask_without_a_pixel_of_at_least_128_is_refused_as_empty(mvtec_root, mask_file, value):
    mask_file(mvtec_root / "nut" / "ground_truth" / "scratch" / "000_mask.png", value=value)
    refused(mvtec_root, "scratch/000_mask.png", "empty")


def test_missing_mask_among_others_is_refused(mvtec_root):
    (mvtec_root / "nut" / "ground_truth" / "scratch" / "005_mask.png").unlink()
    refused(mvtec_root, "scratch/005.png", "005_mask.png")


def test_masks_are_not_looked_at_when_they_are_not_wanted(mvtec_root, mask_file):
    mask_file(mvtec_root / "nut" / "ground_truth" / "scratch" / "000_mask.png", value=0)
    assert read_dataset(mvtec_root, masks=False).classes_with_masks() == []


def test_same_pixels_in_train_and_test_are_refused_whatever_the_file_format(mvtec_root):
    source = mvtec_root / "nut" / "train" / "good" / "003.png"
    copy = mvtec_root / "cap" / "test" / "good" / "900.bmp"
    assert cv2.imwrite(str(copy), cv2.imread(str(source)))
    refused(mvtec_root, str(source), str(copy))


def test_bad_images_in_the_train_split_are_refused(mvtec_root, picture):
    picture(mvtec_root / "nut" / "train" / "scratch" / "000.png", 77)
    refused(mvtec_root, "train/scratch")


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_outside_good_and_defect_folders_are_refused(mvtec_root, picture, split):
    picture(mvtec_root / "nut" / split / "000.png", 77)
    refused(mvtec_root, f"{split}/000.png")


@pytest.mark.parametrize("name", ["good", "bad", "test"])
def test_folder_named_like_a_split_is_not_taken_for_a_product(plain_root, picture, name):
    picture(plain_root / name / "000.png", 77)
    if name == "test":
        picture(plain_root / "000.png", 78)
    refused(plain_root)


def test_images_beside_product_folders_are_refused(plain_root, picture):
    picture(plain_root / "000.png", 77)
    refused(plain_root, str(plain_root))


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_what_is_no_dataset_is_refused(tmp_path, make):
    root = tmp_path / "data"
    if make == "empty":
        root.mkdir()
    elif make == "file":
        root.write_text("x")
    refused(root, str(root))


def test_relative_path_uses_forward_slashes_below_the_root(mvtec_root):
    index = list_dataset(mvtec_root)
    assert index.relative(index.train[0]) == "cap/train/good/000.png"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real images are not beside the checkout")
def test_real_images_are_read_with_the_counts_of_their_table():
    index = read_dataset(SHARED_DATA)
    train = Counter(sample.class_name for sample in index.train)
    bad = Counter(sample.class_name for sample in index.test if sample.is_anomalous)
    good = Counter(sample.class_name for sample in index.test if not sample.is_anomalous)
    table = {
        "bottle": (160, 54, 63),
        "cookie": (31, 14, 32),
        "hazelnut": (28, 6, 17),
        "juice_bottle": (250, 54, 60),
        "magnetic_tile": (250, 100, 150),
        "pcb": (237, 72, 116),
        "solar_cell": (250, 90, 90),
    }
    assert {name: (train[name], good[name], bad[name]) for name in index.classes} == table
    assert index.classes_with_masks() == ["cookie", "hazelnut", "juice_bottle", "magnetic_tile", "pcb"]
