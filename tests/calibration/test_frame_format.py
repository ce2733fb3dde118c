"""A decision records the sizes and the bit depth of the good images, and images that a line could not send together are refused."""

import cv2
import numpy as np
import pytest

from snl_calibration.cli import main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.types import Verdict


def save_in_bits(folder, frames, bits):
    """Write the frames as 16-bit files of a camera that uses ``bits`` of them, and return them by name, BGR."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: np.round(image[..., ::-1].astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16) for name, image in frames.items()}
    for name, image in stored.items():
        assert cv2.imwrite(str(folder / name), image)
    return stored


def widen(station, names, size_hw):
    """Write the named good images again in another size."""
    for name in names:
        path = str(station.good / "disk" / name)
        cv2.imwrite(path, cv2.resize(cv2.imread(path), size_hw[::-1], interpolation=cv2.INTER_NEAREST))


def test_decision_records_the_size_and_bit_depth_of_its_sample(station):
    station.write_good(count=30)
    decision = station.fit_one().decision
    assert decision.frame_sizes == FrameSizes(seen_hw=[(48, 48)], any_size=False)
    assert decision.bit_depth == 8


def test_region_of_interest_leaves_the_recorded_size_that_of_the_whole_frame(station):
    station.write_good(count=30)
    widen(station, [f"{index:03d}.png" for index in range(30)], (48, 96))
    fit = station.fit_one(roi_xyxy=(0, 0, 96, 48))
    assert fit.decision.frame_sizes.seen_hw == [(48, 96)]


def test_every_size_of_the_sample_is_recorded_once_and_sorted(station):
    station.write_good(count=30)
    widen(station, ["003.png", "007.png"], (96, 96))
    widen(station, ["004.png"], (48, 96))
    decision = station.fit_one(any_size=True, accept_outliers=("003.png", "004.png", "007.png")).decision
    assert decision.frame_sizes == FrameSizes(seen_hw=[(48, 48), (48, 96), (96, 96)], any_size=True)
    assert station.manifest().decisions == [decision]


def test_any_size_of_images_that_have_one_size_is_told_to_change_nothing(station):
    station.write_good(count=30)
    fit = station.fit_one(any_size=True)
    assert any("--any-size changes nothing: every good image has 48x48 pixels" in warning for warning in fit.warnings)


def test_many_sizes_without_any_size_are_told(station):
    station.write_good(count=30)
    for index, factor in enumerate((1, 2, 3, 4)):
        widen(station, [f"{index:03d}.png"], (48 * factor, 48 * (factor + 1)))
    fit = station.fit_one(roi_xyxy=(0, 0, 48, 48), accept_outliers=tuple(f"{index:03d}.png" for index in range(4)), min_detection=0.1)
    assert any("have 5 sizes" in warning and "--any-size" in warning for warning in fit.warnings)
    assert any("--roi lies at the same pixels" in warning for warning in fit.warnings)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_files_of_more_bits_are_judged_as_their_8_bit_twins(station, bits):
    frames = station.write_good(count=30)
    expected = station.fit_one().decision
    stored = save_in_bits(station.good / "disk", frames, bits)
    decision = station.fit_one(bit_depth=bits).decision
    assert (decision.bit_depth, decision.pass_threshold, decision.sample_sha256) == (bits, expected.pass_threshold, expected.sample_sha256)
    with SnlDetector(station.model) as detector:
        assert detector.detect(stored["003.png"]).verdict is Verdict.PASS
        assert detector.detect(frames["003.png"], color="rgb").reason_code == "frame_bit_depth"


def test_16_bit_files_count_as_16_bits_where_nothing_is_declared(station):
    save_in_bits(station.good / "disk", station.write_good(count=30), 16)
    assert station.fit_one().decision.bit_depth == 16


def test_mixture_of_8_and_16_bits_is_refused_and_named(station):
    frames = station.write_good(count=30)
    save_in_bits(station.good / "disk", {"007.png": frames["007.png"]}, 16)
    fit = station.fit_one()
    assert fit.decision is None
    assert "007.png (16 bits)" in fit.refusal
    assert "(8 bits)" in fit.refusal


@pytest.mark.parametrize(
    ("stored", "declared", "message"), [(16, 12, r"\.png: .* holds the value \d+, 12 bits hold at most 4095"), (16, 8, "must be uint8")]
)
def test_files_that_are_not_of_the_declared_bit_depth_are_named(station, stored, declared, message):
    save_in_bits(station.good / "disk", station.write_good(count=30), stored)
    with pytest.raises(DataError, match=message):
        station.fit_one(bit_depth=declared)


def test_8_bit_files_are_not_of_12_bits(station):
    station.write_good(count=30)
    with pytest.raises(DataError, match=r"000\.png: a frame of 12 bits must be uint16"):
        station.fit_one(bit_depth=12)


def test_bit_depth_that_no_camera_has_is_refused(station):
    with pytest.raises(ConfigError, match="--bit-depth must be one of 8, 10, 12, 14, 16, got 11"):
        station.fit_one(bit_depth=11)


def test_bad_images_of_another_size_are_told_to_become_errors(station, tools):
    station.write_good(count=30)
    for index in range(4):
        bad = cv2.resize(tools.bad_frame(index), (96, 96), interpolation=cv2.INTER_NEAREST)
        tools.save(station.root / "bad" / "hole" / f"{index}.png", bad)
    fit = station.fit_one(bad=station.root / "bad")
    assert any("4 of 4 bad images leave the qualified input range" in warning for warning in fit.warnings)


def test_command_takes_both_options_and_prints_what_frames_must_be(station, capsys):
    frames = station.write_good(count=30)
    save_in_bits(station.good / "disk", frames, 12)
    arguments = ["--engine", str(station.model), "--good", str(station.good / "disk"), "--max-frr", "0.1", "--bit-depth", "12", "--any-size"]
    assert main(arguments) == 0
    assert "frames            48x48 pixels, 12 bits" in capsys.readouterr().out
    (decision,) = station.manifest().decisions
    assert (decision.bit_depth, decision.frame_sizes.any_size) == (12, True)
