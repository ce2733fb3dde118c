"""snl-run reads files by what the product was calibrated on, and gives an ERROR record for every other size and bit depth."""

import json

import cv2
import numpy as np
import pytest

from snl_runtime.cli.run import main
from snl_runtime.model.frame_range import FrameSizes


@pytest.fixture
def run(model, tmp_path, capsys):
    """Run the tiny model, its decision changed, over images by name; return the records by name."""

    def run_it(changes, saved_images, *more):
        (tmp_path / "model").mkdir()
        engine = model.ModelFolder(tmp_path / "model").write(decisions=[changes])
        folder = tmp_path / "in"
        folder.mkdir()
        for name, image in saved_images.items():
            assert cv2.imwrite(str(folder / name), image)
        assert main(["--engine", str(engine), "--images", str(folder), *map(str, more)]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return dict(zip(sorted(saved_images), records, strict=True))

    return run_it


def in_bits(image, bits):
    return np.round(image.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)


def test_files_of_12_bits_are_read_as_such_and_others_are_errors(run, model):
    good = model.good_frame(1)
    saved_images = {
        "a.png": in_bits(good, 12),
        "b.tif": in_bits(good, 12),
        "c.png": good,
        "d.png": in_bits(good, 16),
        "e.png": in_bits(good, 12)[:, :, 1],
    }
    records = run({"bit_depth": 12}, saved_images)
    codes = [record["reason_code"] for record in records.values()]
    assert codes == ["below_threshold", "below_threshold", "frame_bit_depth", "frame_bit_depth", "below_threshold"]
    assert records["a.png"]["score"] == records["b.tif"]["score"]


def test_overlay_of_a_12_bit_frame_is_as_bright_as_the_frame_and_its_reject_is_saved_untouched(run, model, tmp_path):
    stored = in_bits(model.bad_frame(1), 12)
    records = run({"bit_depth": 12}, {"a.png": stored}, "--overlay", tmp_path / "overlay", "--save-rejects", tmp_path / "rejects")
    assert records["a.png"]["verdict"] == "REJECT"
    (overlay,) = (tmp_path / "overlay").iterdir()
    assert cv2.imread(str(overlay)).mean() > 40  # 12 bits read as 16 would give 8
    (saved,) = (tmp_path / "rejects").iterdir()
    assert np.array_equal(cv2.imread(str(saved), cv2.IMREAD_UNCHANGED), stored)


def test_files_of_another_size_are_errors_that_name_both(run, model):
    good = model.good_frame(1)
    saved_images = {"a.png": good, "b.png": cv2.resize(good, (64, 64)), "c.png": cv2.resize(good, (32, 16))}
    records = run({"frame_sizes": FrameSizes(seen_hw=[(32, 32)], any_size=False)}, saved_images, "--product", "bottle")
    assert [record["reason_code"] for record in records.values()] == ["below_threshold", "frame_size", "frame_size"]
    assert "64x64" in records["b.png"]["reason"]
    assert "32x32" in records["b.png"]["reason"]
