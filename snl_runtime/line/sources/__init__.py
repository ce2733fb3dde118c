"""Where frames come from: files, a watched folder, a video, a camera of this computer, of the network, or of the GenICam standard."""

from snl_runtime.line.sources.base import FrameSource, FrameStamper, SourceCounters, TriggerableSource
from snl_runtime.line.sources.camera import CameraConfig, CameraSource, parse_camera
from snl_runtime.line.sources.folder import ImageFolderSource
from snl_runtime.line.sources.genicam import GenicamConfig, GenicamSource
from snl_runtime.line.sources.video import VideoSource
from snl_runtime.line.sources.watched_folder import WatchedFolderConfig, WatchedFolderSource

__all__ = [
    "CameraConfig",
    "CameraSource",
    "FrameSource",
    "FrameStamper",
    "GenicamConfig",
    "GenicamSource",
    "ImageFolderSource",
    "SourceCounters",
    "TriggerableSource",
    "VideoSource",
    "WatchedFolderConfig",
    "WatchedFolderSource",
    "parse_camera",
]
