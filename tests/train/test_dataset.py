"""Training images are decoded, hashed and resized once; what does not fit into memory is read again and gives the same pixels."""

import dataclasses

import cv2
import numpy as np
import pytest

from snl_runtime.errors import DataError
from snl_runtime.images.preprocess import resize
from snl_train.config import DataConfig
from snl_train.data.dataset import load_training_data

SIZE_HW = (32, 64)


def load(root, seed=0, **options):
    return load_training_data(root, SIZE_HW, config=DataConfig(**options), seed=seed, threads=2)


def test_network_inputs_are_the_resized_rgb_pixels(plain_root):
    data = load(plain_root)
    chosen = [data.samples[0], data.samples[-1]]
    expected = [resize(np.ascontiguousarray(cv2.imread(str(sample.path))[:, :, ::-1]), SIZE_HW) for sample in chosen]
    inputs = data.inputs.read(chosen)
    assert inputs.dtype == np.uint8
    assert np.array_equal(inputs, np.stack(expected))


def test_images_in_memory_are_not_read_again(plain_root):
    data = load(plain_root)
    before = data.inputs.read(data.samples)
    for sample in data.samples:
        sample.path.unlink()
    assert np.array_equal(data.inputs.read(data.samples), before)


def test_images_beyond_the_memory_budget_give_the_same_pixels(plain_root):
    data = load(plain_root, cache_mib=0)
    assert np.array_equal(data.inputs.read(data.samples), load(plain_root).inputs.read(data.samples))
    data.samples[2].path.unlink()
    with pytest.raises(DataError, match=data.samples[2].path.name):
        data.inputs.read(data.samples)


def test_tiles_are_the_pixels_of_the_image_and_each_is_a_sample(plain_root):
    whole = load(plain_root)
    image = cv2.imread(str(whole.samples[0].path))[:, :, ::-1]
    config = DataConfig(tile_px=16, tile_overlap_px=4)
    data = load_training_data(plain_root, (16, 16), config=config, threads=2)
    views = data.inputs.views_of((image.shape[0], image.shape[1]))
    assert [sample.view for sample in data.samples[: views.count]] == list(range(views.count))
    assert len(data.samples) == views.count * len(whole.samples)
    expected = [image[top : top + 16, left : left + 16] for top, left, *_ in views.grid]
    assert np.array_equal(data.inputs.read(data.samples[: views.count]), np.stack(expected))
    from_disk = load_training_data(plain_root, (16, 16), config=dataclasses.replace(config, cache_mib=0), threads=2)
    chosen = [3, 0, len(data.samples) - 1, 1]
    assert np.array_equal(from_disk.inputs.read([data.samples[number] for number in chosen]), data.inputs.read([data.samples[n] for n in chosen]))


def test_whole_image_is_the_last_of_its_views_reduced_to_the_networks_input(plain_root):
    """In memory and read again; tiles are what they are without it."""
    tiled = DataConfig(tile_px=16, tile_overlap_px=4)
    whole, tiles = load(plain_root), load_training_data(plain_root, (16, 16), config=tiled, threads=2)
    image = cv2.imread(str(whole.samples[0].path))[:, :, ::-1]
    for cache_mib in (2048, 0):
        config = dataclasses.replace(tiled, with_whole_frame=True, cache_mib=cache_mib)
        data = load_training_data(plain_root, (16, 16), config=config, threads=2)
        assert len(data.samples) == len(tiles.samples) + len(whole.samples)
        count = data.inputs.views_of((image.shape[0], image.shape[1])).count
        seen = data.inputs.read(data.samples[:count])
        assert np.array_equal(seen[:-1], tiles.inputs.read(tiles.samples[: count - 1]))
        assert np.array_equal(seen[-1], resize(np.ascontiguousarray(image), (16, 16)))


def test_tiles_of_one_image_stay_on_one_side_of_the_hold_out(plain_root):
    data = load_training_data(plain_root, (16, 16), config=DataConfig(tile_px=16, tile_overlap_px=0, hold_out=0.4), threads=2)
    held = {entry["sha256"] for entry in data.held_out}
    assert held
    assert not held & {sample.pixel_sha256 for sample in data.samples}


def test_labels_number_the_sorted_classes(plain_root):
    data = load(plain_root)
    assert data.classes == ["bolt", "ring"]
    assert data.labels == [0] * 9 + [1] * 3


def test_held_out_images_are_listed_by_relative_path_hash_and_class(mvtec_root):
    data = load(mvtec_root, hold_out=0.25)
    assert len(data.samples) == 6
    assert [entry["class_name"] for entry in data.held_out] == ["cap", "nut"]
    for entry in data.held_out:
        assert set(entry) == {"path", "sha256", "class_name"}
        assert (mvtec_root / entry["path"]).is_file()
        assert entry["path"].startswith(f"{entry['class_name']}/train/good/")
    assert not {sample.pixel_sha256 for sample in data.samples} & {entry["sha256"] for entry in data.held_out}


def test_at_most_so_many_images_per_class_are_used(plain_root):
    assert load(plain_root, max_per_class=4).labels == [0] * 4 + [1] * 3


def test_left_out_files_are_listed(plain_root):
    broken = plain_root / "bolt" / "003.png"
    broken.write_bytes(b"")
    assert [path for path, _ in load(plain_root, skip_unreadable=True).left_out] == [broken]
    with pytest.raises(DataError, match="bolt/003.png"):
        load(plain_root)


def test_fingerprint_follows_pixels_and_classes_and_not_the_place(plain_root, tmp_path, picture):
    before = load(plain_root).fingerprint()
    moved = plain_root.rename(tmp_path / "moved")
    assert load(moved).fingerprint() == before
    picture(moved / "bolt" / "004.png", 31337)
    assert load(moved).fingerprint() != before


def test_every_image_is_reported_once_while_reading(mvtec_root):
    announced: list[int] = []
    reported: list[None] = []

    def on_listed(index):
        announced.append(len(index.train) + len(index.test))
        return lambda: reported.append(None)

    load_training_data(mvtec_root, SIZE_HW, config=DataConfig(), on_listed=on_listed)
    assert announced == [16]
    assert len(reported) == 16
