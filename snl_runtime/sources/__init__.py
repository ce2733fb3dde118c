"""Where frames come from: a folder of pictures, a video file, a camera."""

from snl_runtime.sources.base import FrameSource, FrameStamper, SourceCounters
from snl_runtime.sources.camera import CameraSource, parse_camera
from snl_runtime.sources.folder import ImageFolderSource
from snl_runtime.sources.video import VideoSource

__all__ = [
    "CameraSource",
    "FrameSource",
    "FrameStamper",
    "ImageFolderSource",
    "SourceCounters",
    "VideoSource",
    "parse_camera",
]
