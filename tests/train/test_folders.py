"""What a folder is called says what lies in it, in any case and at any depth; what cannot be told is refused with what was found."""

import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from snl_runtime.errors import DataError
from snl_train.data.checks import check_dataset
from snl_train.data.layouts import list_dataset, read_dataset


def refused(root, *parts, **options):
    with pytest.raises(DataError) as caught:
        read_dataset(root, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def counts(index):
    return Counter((sample.split, sample.defect) for sample in [*index.train, *index.test])


GOOD_NAMES = ["good", "OK", "Ok", "normal", "PASS", "gut", "Non_Defective", "no defect", "iO", "good_2"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_usual_names_of_good_are_good_in_every_layout(name, mvtec_root, plain_root):
    for split in ("train", "test"):
        (mvtec_root / "nut" / split / "good").rename(mvtec_root / "nut" / split / name)
    assert counts(read_dataset(mvtec_root / "nut")) == {("train", None): 4, ("test", None): 2, ("test", "scratch"): 2}
    (plain_root / "ring").rename(plain_root / "moved")
    (plain_root / "ring").mkdir()
    (plain_root / "moved").rename(plain_root / "ring" / name)
    index = read_dataset(plain_root)
    assert Counter(sample.class_name for sample in index.train) == {"bolt": 9, "ring": 3}
    assert [sample.class_name for sample in read_dataset(plain_root / "ring").train] == ["ring"] * 3


def test_two_folders_of_good_images_are_both_good(mvtec_root, picture):
    picture(mvtec_root / "nut" / "test" / "OK" / "900.png", 900)
    assert counts(read_dataset(mvtec_root / "nut")) == {("train", None): 4, ("test", None): 3, ("test", "scratch"): 2}


def test_test_tree_without_good_images_is_refused_with_the_folders_found(mvtec_root, picture):
    shutil.rmtree(mvtec_root / "cap" / "test" / "good")
    picture(mvtec_root / "cap" / "test" / "dent" / "000.png", 901)
    refused(mvtec_root, "cap/test", "dent with 1 images, scratch with 2 images", "test/good")


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("TRAIN", "test")])
def test_splits_are_found_in_any_case(train, test, mvtec_root):
    for old, new in (("train", train), ("test", test), ("ground_truth", "Ground_Truth")):
        (mvtec_root / "nut" / old).rename(mvtec_root / "nut" / new)
    assert read_dataset(mvtec_root / "nut").classes_with_masks() == ["nut"]


def test_folders_inside_good_and_defect_and_their_masks_count(mvtec_root, picture, mask_file):
    picture(mvtec_root / "nut" / "train" / "good" / "day2" / "000.png", 902)
    picture(mvtec_root / "nut" / "test" / "good" / "day2" / "deep" / "000.png", 903)
    picture(mvtec_root / "nut" / "test" / "scratch" / "a" / "000.png", 904)
    mask_file(mvtec_root / "nut" / "ground_truth" / "scratch" / "a" / "000_mask.png")
    index = read_dataset(mvtec_root / "nut")
    assert counts(index) == {("train", None): 5, ("test", None): 3, ("test", "scratch"): 3}
    masks = {index.relative(sample): sample.mask_path.relative_to(index.root).as_posix() for sample in index.test if sample.mask_path}
    assert masks["test/scratch/a/000.png"] == "ground_truth/scratch/a/000_mask.png"
    assert masks["test/scratch/000.png"] == "ground_truth/scratch/000_mask.png"


@pytest.mark.parametrize("inner", ["bad", "Defects", "ground_truth", "NG"])
def test_folder_of_good_images_that_holds_others_is_refused(inner, mvtec_root, picture):
    picture(mvtec_root / "nut" / "train" / "good" / inner / "000.png", 905)
    refused(mvtec_root, "train/good", inner)


@pytest.mark.parametrize("inner", ["scratch", "day1", "bad"])
def test_product_folder_whose_inner_folders_do_not_say_good_is_refused_with_the_counts(inner, plain_root, picture):
    picture(plain_root / "ring" / inner / "000.png", 906)
    refused(plain_root, "ring holds 4 images", f"{inner} with 1 images", "ring/train/good")
    shutil.move(plain_root / "ring" / "000.png", plain_root / "ring" / "good.png")
    (plain_root / "ring" / "good").mkdir()
    for path in plain_root.glob("ring/*.png"):
        path.rename(plain_root / "ring" / "good" / path.name)
    refused(plain_root, f"{inner} with 1 images", "good with 3 images")


def test_junk_of_a_nas_is_no_product_and_is_listed(plain_root, picture):
    picture(plain_root / "@eaDir" / "000.jpg", 907)
    picture(plain_root / "ring" / "@eaDir" / "000.png" / "SYNOFILE_THUMB_M.png", 908)
    (plain_root / "System Volume Information").mkdir()
    (plain_root / "$RECYCLE.BIN").mkdir()
    index = read_dataset(plain_root)
    assert index.classes == ["bolt", "ring"]
    assert len(index.train) == 12
    assert len(index.listing.left_out) == 4


def test_every_file_is_used_or_listed_as_left_out(mvtec_root, picture):
    (mvtec_root / "readme.txt").write_text("text")
    picture(mvtec_root / "nut" / "overview.png", 909)
    picture(mvtec_root / "nut" / "validation" / "good" / "000.png", 910)
    listing = list_dataset(mvtec_root).listing
    files = {path for path in mvtec_root.rglob("*") if path.is_file()}
    assert {*listing.taken, *(one.path for one in listing.left_out)} == files
    assert sorted(one.path.name for one in listing.left_out) == ["000.png", "overview.png", "readme.txt"]


@pytest.mark.parametrize("name", ["phone.heic", "empty.png", "gone.png"])
def test_what_cannot_be_taken_is_refused_or_skipped_and_listed(name, mvtec_root):
    path = mvtec_root / "nut" / "train" / "good" / name
    if name == "gone.png":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" if name == "phone.heic" else b"")
    refused(mvtec_root, name)
    index = read_dataset(mvtec_root, skip_unreadable=True)
    assert [path.name for path, _ in index.left_out] == [name]
    assert len(index.train) == 8
    testing = check_dataset(list_dataset(mvtec_root).without_training(), require_train=False)
    assert len(testing.test) == 8


# Masks


@pytest.mark.parametrize("ending", ["", "_mask", "_gt", "_label", "-MASK", ".gt"])
@pytest.mark.parametrize("suffix", [".png", ".BMP", ".tif"])
def test_usual_names_of_masks_are_accepted(ending, suffix, mvtec_root):
    folder = mvtec_root / "nut" / "ground_truth" / "scratch"
    for path in list(folder.iterdir()):
        image = cv2.imread(str(path))
        path.unlink()
        assert cv2.imwrite(str(folder / f"{path.stem.removesuffix('_mask')}{ending}{suffix}"), image)
    assert len([sample for sample in read_dataset(mvtec_root / "nut").test if sample.mask_path]) == 2


def test_masks_that_fit_no_image_are_refused_with_three_examples_and_the_expected_name(mvtec_root):
    folder = mvtec_root / "nut" / "ground_truth" / "scratch"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"defect{number}.png")
    for number in (2, 3, 4):
        shutil.copy(folder / "defect0.png", folder / f"defect{number}.png")
    refused(mvtec_root, "5 of 5 masks", "defect0.png", "defect1.png", "defect2.png; expected", "ground_truth/scratch/000_mask.png")


def test_one_mask_that_fits_no_image_is_refused(mvtec_root):
    folder = mvtec_root / "nut" / "ground_truth" / "scratch"
    shutil.copy(folder / "000_mask.png", folder / "777_mask.png")
    refused(mvtec_root, "1 of 3 masks", "777_mask.png")


def test_two_masks_of_one_image_are_refused(mvtec_root):
    folder = mvtec_root / "nut" / "ground_truth" / "scratch"
    shutil.copy(folder / "000_mask.png", folder / "000_gt.png")
    refused(mvtec_root, "scratch/000.png has several masks", "000_gt.png", "000_mask.png")


def test_mask_that_fits_two_images_is_refused(mvtec_root, picture):
    picture(mvtec_root / "nut" / "test" / "scratch" / "000.bmp", 911)
    refused(mvtec_root, "000_mask.png fits 2 images", "000.bmp", "000.png")


def test_mask_of_an_image_that_cannot_be_taken_is_no_mistake(mvtec_root):
    (mvtec_root / "nut" / "test" / "scratch" / "005.png").write_bytes(b"")
    assert len(read_dataset(mvtec_root, skip_unreadable=True).test) == 7


@pytest.mark.parametrize("share", [0.91, 1.0])
def test_inverted_masks_are_refused_by_what_they_look_like(share, mvtec_root):
    for path in (mvtec_root / "nut" / "ground_truth" / "scratch").iterdir():
        mask = np.zeros((40, 48), np.uint8)
        mask[: round(40 * share) + 1] = 255
        assert cv2.imwrite(str(path), mask)
    refused(mvtec_root, "2 of 2 masks of class 'nut' cover more than 90% of the frame", "inverted")


def test_one_defect_that_covers_the_frame_is_no_inversion(mvtec_root):
    assert cv2.imwrite(str(mvtec_root / "nut" / "ground_truth" / "scratch" / "000_mask.png"), np.full((40, 48), 255, np.uint8))
    assert read_dataset(mvtec_root).classes_with_masks() == ["nut"]


def test_alpha_masks_are_refused(mvtec_root):
    path = mvtec_root / "nut" / "ground_truth" / "scratch" / "000_mask.png"
    drawn = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert cv2.imwrite(str(path), np.dstack([np.full((40, 48, 3), 255, np.uint8), drawn]))
    refused(mvtec_root, "000_mask.png looks like an alpha mask")


# What a pixel means


def write_deep(path, seed, highest):
    coarse = np.random.default_rng(seed).integers(0, highest + 1, (8, 8)).astype(np.uint16)
    coarse[0, 0] = highest
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_NEAREST))


def test_dark_16_bit_training_image_is_refused_until_its_bits_are_declared(tmp_path):
    for seed in range(3):
        write_deep(tmp_path / "cap" / f"{seed}.png", seed, 4095)
    refused(tmp_path, "cap/0.png", "4095", "--bit-depth 12")
    refused(tmp_path, "cap/0.png", "--bit-depth 12", skip_unreadable=True)
    seen = []
    index = check_dataset(list_dataset(tmp_path), bit_depth=12, on_image=lambda _, image: seen.append(int(image.max())))
    assert seen == [255, 255, 255]
    assert [sample.read_image().max() for sample in index.train] == [255, 255, 255]
    with pytest.raises(DataError, match=r"cap/0\.png: .*4095.*10 bits"):
        check_dataset(list_dataset(tmp_path), bit_depth=10)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (200, 90, 10)])
def test_training_image_without_contrast_is_refused(color, plain_root):
    assert cv2.imwrite(str(plain_root / "ring" / "000.png"), np.full((40, 48, 3), color, np.uint8))
    refused(plain_root, "ring/000.png shows nothing")


# VisA as Windows writes it


@pytest.fixture
def visa_rows(tmp_path, picture):
    rows = [("image", "label", "mask")]
    for index in range(12):
        name = f"cap/Data/Images/{'Normal' if index < 10 else 'Anomaly'}/{index:03}.png"
        picture(tmp_path / name, 950 + index)
        rows.append((name, "normal" if index < 10 else "bent, torn" if index == 10 else "bent", ""))
    return rows


def as_text(rows, *, delimiter=",", backslashes=False, line_end="\n"):
    lines = []
    for row in rows:
        cells = [cell.replace("/", "\\") if backslashes else cell for cell in row]
        lines.append(delimiter.join(json.dumps(cell) if delimiter in cell else cell for cell in cells))
    return line_end.join([*lines, ""])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("backslashes", [False, True])
@pytest.mark.parametrize(("encoding", "first"), [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("utf-8", "sep={}\r\n")])
def test_visa_table_of_windows_reads_like_any_other(delimiter, backslashes, encoding, first, visa_rows, tmp_path):
    text = first.format(delimiter) + as_text(visa_rows, delimiter=delimiter, backslashes=backslashes, line_end="\r\n")
    (tmp_path / "cap" / "image_anno.csv").write_bytes(text.encode(encoding))
    index = read_dataset(tmp_path)
    assert counts(index) == {("train", None): 9, ("test", None): 1, ("test", "bent, torn"): 1, ("test", "bent"): 1}


def test_visa_row_with_too_many_values_is_refused(visa_rows, tmp_path):
    (tmp_path / "cap" / "image_anno.csv").write_text(as_text(visa_rows).replace('"bent, torn"', "bent, torn"))
    refused(tmp_path, "line 12: expected 3 values, got 4")
