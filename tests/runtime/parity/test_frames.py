"""The frames of the parity gate are every image of a folder, good or bad by the names of its folders, and no mask."""

import cv2
import numpy as np
import pytest

from snl_runtime.errors import DataError
from snl_runtime.parity.frames import folder_frames


def write(path, value=0, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), (np.arange(64).reshape(8, 8) + value).astype(dtype))


@pytest.mark.parametrize("good", ["good", "OK", "non_defective"])
def test_folders_say_what_is_good_at_any_depth_and_masks_are_left_out(good, tmp_path):
    for name in (f"test/{good}/day1/0.png", f"test/{good}/1.png", "test/scratch/a/2.png", "Ground_Truth/scratch/a/2_mask.png", "@eaDir/3.png"):
        write(tmp_path / name)
    frames = {frame.name: frame.is_anomalous for frame in folder_frames(tmp_path)}
    assert frames == {f"test/{good}/1.png": False, f"test/{good}/day1/0.png": False, "test/scratch/a/2.png": True}


def test_frames_without_such_folders_are_neither(tmp_path):
    write(tmp_path / "day1" / "0.png")
    assert [frame.is_anomalous for frame in folder_frames(tmp_path)] == [None]


def test_picture_that_cannot_be_taken_is_refused(tmp_path):
    write(tmp_path / "0.png")
    (tmp_path / "1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(DataError, match=r"1\.heic is a HEIF image"):
        folder_frames(tmp_path)


def test_frames_are_read_with_the_bit_depth_of_the_training(tmp_path):
    write(tmp_path / "0.png", value=4095 - 63, dtype=np.uint16)
    (frame,) = folder_frames(tmp_path, 12)
    assert frame.image_rgb.max() == 255
