"""A decision is written only for independent good parts, enough of them, held out or in folders of their own."""

import cv2
import numpy as np
import pytest

from snl_runtime.errors import ConfigError, DataError


def _too_few(station, tools):
    station.write_good(count=28)
    return "28 good parts cannot carry a false-reject rate of 10 % at 95 % confidence: 29 are needed"


def _trained_on(station, tools):
    frames = station.write_good(count=40)
    station.write_model("sighted", training=[tools.sha256_of_pixels(frames[name]) for name in ("002.png", "007.png")])
    return "2 of 40 good images were trained on: disk/002.png, disk/007.png"


def _copies(station, tools):
    frames = station.write_good(count=40)
    tools.save(station.good / "disk" / "copy.bmp", frames["005.png"])
    return "1 good images appear more than once: disk/copy.bmp = disk/005.png"


def _bad_among_good(station, tools):
    station.write_good(count=40)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    return "1 good images score beyond median + 6 MAD"


def _flat(station, tools):
    station.write_good(count=40)
    tools.save(station.good / "disk" / "500.png", np.full((48, 48, 3), 90, dtype=np.uint8))
    return "1 good images show nothing (deviation below 2 gray levels): disk/500.png"


@pytest.mark.parametrize("prepare", [_too_few, _trained_on, _copies, _bad_among_good, _flat], ids=lambda prepare: prepare.__name__[1:])
def test_sample_is_refused_and_nothing_is_written(station, tools, prepare):
    message = prepare(station, tools)
    before = {path.name: path.read_bytes() for path in station.root.iterdir() if path.is_file()}
    fit = station.fit_one()
    assert fit.decision is None
    assert message in fit.refusal
    assert {path.name: path.read_bytes() for path in station.root.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["disk/500.png", "500.png"])
def test_outlier_accepted_by_name_is_fitted_and_recorded(station, tools, name):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    refusal = station.fit_one().refusal
    assert "disk/500.png (" in refusal
    assert "--accept-outlier disk/500.png" in refusal
    decision = station.fit_one(accept_outliers=(name,)).decision
    assert decision.accepted_outliers == ["disk/500.png"]


def test_accepting_one_outlier_does_not_accept_another(station, tools):
    station.write_good(count=60)
    tools.save(station.good / "disk" / "500.png", tools.bad_frame(0))
    tools.save(station.good / "disk" / "501.png", tools.bad_frame(1))
    refusal = station.fit_one(accept_outliers=("500.png",)).refusal
    assert "1 good images score beyond" in refusal
    assert "501.png" in refusal


def test_every_product_folder_is_fitted_by_itself_and_a_refused_one_blocks_no_other(station):
    station.write_good("disk", count=30)
    station.write_good("ring", count=10, seed=3)
    fits = {fit.product: fit for fit in station.fit_all()}
    assert fits["disk"].decision is not None
    assert "10 good parts cannot carry" in fits["ring"].refusal
    assert [decision.product for decision in station.manifest().decisions] == ["disk"]


def test_product_picks_one_folder(station):
    station.write_good("disk", count=30)
    station.write_good("ring", count=10, seed=3)
    assert station.fit_one(product="disk").product == "disk"


def test_folder_of_images_takes_its_name_as_the_product(station):
    station.write_good("disk", count=30)
    assert station.fit_one(station.good / "disk").decision.product == "disk"


def test_folder_with_another_name_asks_for_the_product(station):
    station.write_good(folder=station.root / "monday", count=30)
    with pytest.raises(ConfigError, match="say --product NAME"):
        station.fit_all(station.root / "monday")
    assert station.fit_one(station.root / "monday", product="ring").decision.product == "ring"


def test_product_that_was_not_trained_on_is_fitted_with_a_warning(station):
    station.write_good(folder=station.root / "monday", count=30)
    fit = station.fit_one(station.root / "monday", product="cube")
    assert fit.decision.product == "cube"
    assert "product 'cube' was not trained on" in fit.warnings[0]


def test_folder_that_is_no_product_is_left_out_with_a_warning(station):
    station.write_good("disk", count=30)
    station.write_good("scrap", count=5, seed=2)
    fit = station.fit_one()
    assert fit.product == "disk"
    assert "not fitted: scrap" in fit.warnings[0]


def _hold_out(station, tools, count=30, **changes):
    frames = station.write_good(folder=station.root / "data" / "disk" / "train" / "good", count=count)
    entries = [
        {"path": f"disk/train/good/{name}", "sha256": tools.sha256_of_pixels(image), "class_name": "disk"} | changes for name, image in frames.items()
    ]
    station.write_model("sighted", held_out=entries)
    return entries


def test_held_out_images_of_the_manifest_are_the_sample(station, tools):
    _hold_out(station, tools)
    tools.save(station.root / "data" / "disk" / "train" / "good" / "trained.png", tools.bad_frame(0))
    fit = station.fit_one(station.root / "data", held_out=True)
    assert fit.decision.sample_count == 30
    assert set(fit.scores) == {f"disk/train/good/{index:03d}.png" for index in range(30)}


def test_held_out_copy_of_a_training_image_is_left_out_with_a_warning(station, tools):
    entries = _hold_out(station, tools, count=31)
    station.write_model("sighted", held_out=entries, training=[entries[4]["sha256"]])
    fit = station.fit_one(station.root / "data", held_out=True)
    assert fit.decision.sample_count == 30
    assert "disk/train/good/004.png" in fit.warnings[0]


def test_held_out_image_with_other_pixels_is_named(station, tools):
    _hold_out(station, tools)
    tools.save(station.root / "data" / "disk" / "train" / "good" / "003.png", tools.bad_frame(0))
    with pytest.raises(DataError, match=r"1 held-out images have other pixels than at training: disk/train/good/003\.png"):
        station.fit_all(station.root / "data", held_out=True)


@pytest.mark.parametrize(
    ("path", "message"), [("disk/train/good/gone.png", "is missing; with --held-out"), ("../line.onnx", "leaves"), ("/etc/hostname", "leaves")]
)
def test_held_out_path_that_cannot_be_used_is_named(station, tools, path, message):
    _hold_out(station, tools, path=path)
    with pytest.raises(DataError, match=message):
        station.fit_all(station.root / "data", held_out=True)


def test_model_without_held_out_images_says_how_to_get_some(station):
    station.write_good(count=30)
    with pytest.raises(ConfigError, match="train with --hold-out"):
        station.fit_all(held_out=True)


def test_folders_inside_a_product_and_a_kind_count(station, tools):
    frames = station.write_good(count=40)
    for number, name in enumerate(sorted(frames)):
        if number % 2:
            (station.good / "disk" / "day 1" / "deep").mkdir(parents=True, exist_ok=True)
            (station.good / "disk" / name).rename(station.good / "disk" / "day 1" / "deep" / name)
    for number in range(3):
        tools.save(station.root / "bad" / "dent" / "day 1" / f"{number}.jfif.png", tools.bad_frame(number))
    tools.save(station.root / "bad" / "OK" / "0.png", tools.bad_frame(9))
    seen = []
    (fit,) = station.fit_all(bad=station.root / "bad", on_listed=seen.append)
    assert fit.sample_count == 40
    assert "disk/day 1/deep/001.png" in fit.scores
    assert {kind: total for kind, (_, total) in fit.evidence.counts.items()} == {"dent": 3}
    assert [len(listing.taken) for listing in seen] == [40, 4]


@pytest.mark.parametrize("inner", ["bad", "ground_truth", "test/scratch", "NG"])
def test_folder_of_good_parts_that_says_something_else_is_refused(station, tools, inner):
    station.write_good(count=30)
    tools.save(station.good / "disk" / inner / "0.png", tools.bad_frame(0))
    with pytest.raises(DataError, match=f"do not say good: {inner}"):
        station.fit_all()


def test_whole_dataset_is_no_folder_of_bad_images(station, tools):
    station.write_good(count=30)
    for name in ("test/scratch/0.png", "ground_truth/scratch/0_mask.png"):
        tools.save(station.root / "bad" / name, tools.bad_frame(0))
    with pytest.raises(DataError, match="holds ground_truth and test of a dataset"):
        station.fit_all(bad=station.root / "bad")


def test_images_beside_product_folders_are_refused(station, tools):
    station.write_good(count=30)
    tools.save(station.good / "0.png", tools.good_frame(0))
    with pytest.raises(DataError, match="images and folders of products"):
        station.fit_all()


@pytest.mark.parametrize(("name", "content"), [("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0"), ("empty.png", b""), ("half.png", None)])
def test_picture_that_cannot_be_taken_is_refused_by_name(station, name, content):
    station.write_good(count=30)
    if content is None:
        content = (station.good / "disk" / "000.png").read_bytes()[:99]
    (station.good / "disk" / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        station.fit_all()


def test_dark_16_bit_image_is_refused_until_its_bits_are_declared(station):
    station.write_good(count=30)
    for path in (station.good / "disk").iterdir():
        assert cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 16)
    with pytest.raises(DataError, match=r"no value above \d+; .*--bit-depth 12"):
        station.fit_all()
