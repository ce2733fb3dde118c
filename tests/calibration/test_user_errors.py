"""A wrong folder, file or option is a user error that names it."""

import math

import pytest

from snl_calibration.options import CalibrationOptions
from snl_runtime.errors import ConfigError, DataError, ManifestError


def test_unreadable_image_is_named(station):
    station.write_good(count=30)
    broken = station.good / "disk" / "004.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"004\.png"):
        station.fit_all()


def test_region_outside_the_frame_names_the_file(station):
    station.write_good(count=30)
    with pytest.raises(DataError, match=r"000\.png"):
        station.fit_all(station.good, roi_xyxy=(0, 0, 64, 48))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"product": "cube"}, ConfigError, "no folder 'cube'"),
        ({"accept_outliers": ("nobody.png",)}, ConfigError, "nobody.png: no such good image"),
        ({"bad": "nowhere"}, DataError, "is not a folder"),
    ],
)
def test_wrong_option_is_a_user_error(station, change, error, message):
    station.write_good(count=30)
    if "bad" in change:
        change = {"bad": station.root / change["bad"]}
    with pytest.raises(error, match=message):
        station.fit_all(**change)


def test_missing_and_empty_folders_are_user_errors(station):
    with pytest.raises(DataError, match="is not a folder"):
        station.fit_all()
    (station.good / "disk").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image"):
        station.fit_all()


def test_model_without_manifest_is_refused(station):
    station.write_good(count=30)
    (station.root / "line.json").unlink()
    (station.root / "line.golden.npz").unlink()
    with pytest.raises(ManifestError, match="export it"):
        station.fit_all()


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"max_frr": 0.0}, "--max-frr"),
        ({"max_frr": math.nan}, "--max-frr"),
        ({"confidence": 1.0}, "--confidence"),
        ({"min_detection": 0.0}, "--min-detection"),
        ({"min_detection": 1.1}, "--min-detection"),
        ({"review_band": -0.1}, "--review-band"),
        ({"review_band": math.inf}, "--review-band"),
        ({"valid_days": 0}, "--valid-days"),
        ({"defects_per_kind": 0}, "--defects-per-kind"),
        ({"roi_xyxy": (5, 5, 5, 9)}, "--roi"),
        ({"roi_xyxy": (-1, 0, 5, 9)}, "--roi"),
    ],
)
def test_option_out_of_range_is_a_user_error(change, flag):
    with pytest.raises(ConfigError, match=f"^{flag} must be "):
        CalibrationOptions(**change)
