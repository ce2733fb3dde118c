"""Where frames come from: a folder of images, a video file, a camera."""

from snl_runtime.line.sources.base import FrameSource, FrameStamper, SourceCounters
from snl_runtime.line.sources.camera import CameraSource, parse_camera
from snl_runtime.line.sources.folder import ImageFolderSource
from snl_runtime.line.sources.video import VideoSource

__all__ = [
    "CameraSource",
    "FrameSource",
    "FrameStamper",
    "ImageFolderSource",
    "SourceCounters",
    "VideoSource",
    "parse_camera",
]
