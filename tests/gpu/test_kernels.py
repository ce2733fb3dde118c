"""The CUDA kernels give on this GPU what NumPy gives, for cameras' frames of every color order, and touch no memory that is not theirs."""

import shutil
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

FRAMES = {
    "bgr 2592x2048": ((2048, 2592), "bgr", np.uint8, None),
    "gray 2592x2048": ((2048, 2592), "gray", np.uint8, None),
    "bgr 2592x2048, 16 bits, region": ((2048, 2592), "bgr", np.uint16, (301, 77, 2190, 1811)),
    "rgb 640x480": ((480, 640), "rgb", np.uint8, None),
    "rgba 640x480": ((480, 640), "rgba", np.uint8, None),
    "bgra 131x97": ((97, 131), "bgra", np.uint8, (5, 9, 121, 90)),
    "gray 131x97, 16 bits": ((97, 131), "gray", np.uint16, None),
    "rgb of the network's size": ((256, 256), "rgb", np.uint8, None),
    "bgr of 3 pixels": ((1, 3), "bgr", np.uint8, None),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_and_its_map_go_through_as_on_the_host(api, kernel_checks, name):
    size_hw, color, dtype, roi_xyxy = FRAMES[name]
    kernel_checks.check_kernels(api, (256, 256), [(kernel_checks.make_frame(size_hw, color, dtype=dtype), color, roi_xyxy)])


@pytest.mark.parametrize("size_hw", [(32, 32), (97, 131), (512, 512), (256, 640)], ids=str)
def test_maps_of_other_network_sizes_go_through_as_on_the_host(api, kernel_checks, size_hw):
    kernel_checks.check_kernels(api, size_hw, [(kernel_checks.make_frame((480, 640), "bgr"), "bgr", None)])


def test_device_memory_is_given_back(api, kernel_checks, detector_checks, free_bytes):
    frame = (kernel_checks.make_frame((480, 640), "bgr"), "bgr", None)
    work = lambda: kernel_checks.check_kernels(api, (256, 256), [frame])  # noqa: E731
    detector_checks.check_memory(free_bytes, work, rounds=10, warm_up=2)


def test_memory_checker_sees_no_error(api, kernel_checks):
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("needs compute-sanitizer, which comes with the CUDA toolkit")
    kernel_checks.sanitize(program, f"{Path(__file__)}::{test_maps_of_other_network_sizes_go_through_as_on_the_host.__name__}")
