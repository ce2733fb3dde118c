"""The start is that of a process which really judges the frame; a process that does not is one line."""

import os
import sys

import numpy as np
import pytest

from snl_runtime.bench.start import time_start
from snl_runtime.errors import DataError
from snl_runtime.station.config import ModelConfig


def test_new_process_gives_a_verdict_and_states_its_memory(engine, model):
    start = time_start(ModelConfig(file=str(engine), threads=1), model.good_frame(0), product="bottle")
    assert start.processor_s > 0
    assert start.elapsed_s > 0
    if sys.platform == "linux":
        assert 0 < start.memory.resident_bytes <= start.memory.peak_bytes


def test_process_that_cannot_open_the_model_is_one_line_with_its_reason(tmp_path):
    with pytest.raises(DataError, match=r"none\.onnx gives no verdict in a new process: .*Error: ") as caught:
        time_start(ModelConfig(file=str(tmp_path / "none.onnx")), np.zeros((32, 32, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_frame_that_is_not_scored_has_no_start(engine):
    with pytest.raises(DataError, match="cannot score a frame in a new process, so its start means nothing"):
        time_start(ModelConfig(file=str(engine)), np.zeros((32, 32), np.float64))


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_model_whose_name_is_not_utf_8_is_started_too(model, tmp_path):
    folder = tmp_path / os.fsdecode(b"line_\xff")
    folder.mkdir()
    engine = model.ModelFolder(folder).write()
    assert time_start(ModelConfig(file=str(engine), threads=1), model.good_frame(0), product="bottle").elapsed_s > 0
