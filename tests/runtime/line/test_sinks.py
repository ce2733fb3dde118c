"""Every sink takes every verdict and any frame."""

import io
import math
from pathlib import Path

import numpy as np
import pytest

from snl_runtime.line.image_folders import OverlaySaver, RejectSaver
from snl_runtime.line.jsonl import JsonlSink
from snl_runtime.line.records import StreamSink
from snl_runtime.types import Verdict

CONTRACT_SINKS = {
    "jsonl": lambda folder: JsonlSink(folder / "out.jsonl"),
    "stream": lambda folder: StreamSink(io.StringIO()),
    "rejects": lambda folder: RejectSaver(folder / "rejects"),
    "overlays": lambda folder: OverlaySaver(folder / "overlays"),
}


@pytest.mark.parametrize("name", CONTRACT_SINKS)
def test_every_sink_takes_every_verdict_and_any_frame(fakes, tmp_path, name):
    images = [None, np.zeros((1, 1, 3), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 5), np.float32), np.zeros((0, 3, 3), np.uint8)]
    with CONTRACT_SINKS[name](Path(tmp_path)) as sink:
        for verdict in Verdict:
            for index, image in enumerate(images):
                usable = isinstance(image, np.ndarray) and image.shape == (1, 1, 3)
                changes = {"roi_xyxy": (0, 0, 1, 1)} if usable else {"anomaly_map": None, "roi_xyxy": None, "score": math.nan}
                sink.emit(fakes.frame_of(index, image=image), fakes.result_of(verdict, **changes))
