"""Installed as sitecustomize in a station's process: pylon's emulator damages the buffer of each software trigger while a file says so."""

import os
from pathlib import Path

from snl_runtime.line.sources import genicam


class DamagedCamera(genicam.GenicamSource):
    def trigger(self):
        if Path(os.environ["SNL_BUFFER_MODE"]).read_text() == "damaged":
            nodes = self._opened.camera.GetNodeMap()
            nodes.GetNode("ForceFailedBufferCount").Value = 1
            nodes.GetNode("ForceFailedBuffer").Execute()
        return super().trigger()


genicam.GenicamSource = DamagedCamera
import snl_runtime.line.sources  # noqa: E402 - after the class was replaced

snl_runtime.line.sources.GenicamSource = DamagedCamera
