"""The section ``source`` of a camera: exactly one place that frames come from."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from snl_runtime.errors import ConfigError
from snl_runtime.line.sources.camera import CameraConfig
from snl_runtime.line.sources.genicam_device import GenicamConfig
from snl_runtime.line.sources.watched_folder import WatchedFolderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSourceConfig:
    """A local camera, or one behind an address."""

    number: int | None = None
    """Number of a local camera; on Linux ``/dev/video<number>``."""
    device: str | None = None
    """Device of a local camera instead of a number, e.g. ``/dev/v4l/by-id/...``; it is found again after it was unplugged."""
    address: str | None = None
    """Address instead of a number, e.g. ``rtsp://10.0.0.7/stream``; better without a password in it."""
    pixel_format: str | None = None
    """V4L2 code of the raw format that a local camera shall send, e.g. ``GREY``, ``Y16``, ``RGGB``; none is the driver's own conversion to color."""
    username: str | None = None
    """User that the address is opened as."""
    password_file: str | None = None
    """File that holds the user's password and nothing else."""
    decoder: Literal["auto", "pyav", "opencv"] = "auto"
    """What decodes an address; ``auto`` is ``pyav`` where the package av is installed. ``pyav`` passes on a size that changes mid-stream and makes a
    damaged frame a fault; OpenCV does neither. Calibrate with the one that the line uses."""
    open_timeout_s: float = 5.0
    """Longest time for opening an address, in seconds."""
    read_timeout_s: float = 2.0
    """Longest time for one frame from an address, in seconds."""
    stall_timeout_s: float = 30.0
    """Longest time without a frame, reconnects included, until the run ends with an error."""
    frozen_after: int = 25
    """Byte-equal frames in a row that count as a frozen camera; 0 for never."""

    def __post_init__(self) -> None:
        if [self.number, self.device, self.address].count(None) != 2:
            raise ConfigError("source.camera needs exactly one of number, device and address")
        if self.address is not None and "://" not in self.address:
            raise ConfigError(f"source.camera.address must be an address such as rtsp://host/stream, got '{self.address}'")
        if self.device is not None and not self.device.startswith("/dev/"):
            raise ConfigError(f"source.camera.device must be a device in /dev, got '{self.device}'")
        if (self.username is None) != (self.password_file is None) or (self.username is not None and self.address is None):
            raise ConfigError("source.camera.username and source.camera.password_file belong together and to an address")
        self.with_address(self.address)

    def with_address(self, address: str | None) -> CameraConfig:
        """Return the source's own configuration, with an address that may hold the password.

        Raises:
            ConfigError: If a value is out of range.
        """
        camera = self.number if self.number is not None else (self.device or address or "")
        kept = ("pixel_format", "decoder", "open_timeout_s", "read_timeout_s", "stall_timeout_s", "frozen_after")
        return CameraConfig(camera=camera, **{name: getattr(self, name) for name in kept})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSourceConfig:
    """Image files that are there."""

    path: str
    """A folder with all below it, one image, or a pattern such as ``parts/**/cam1_*.png``."""
    pages: Literal["one", "all"] = "one"
    """A file of several images is an ERROR (``one``) or gives one frame for each (``all``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSourceConfig:
    """A video file."""

    file: str
    """The file; every frame of it is inspected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSourceConfig:
    """A source that an installed plug-in brings."""

    address: str
    """Address whose scheme is the plug-in's name, e.g. ``myplc://0``."""

    def __post_init__(self) -> None:
        if not self.address.partition("://")[0] or "://" not in self.address:
            raise ConfigError(f"source.plugin.address must be an address such as name://argument, got '{self.address}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """Where frames come from."""

    camera: CameraSourceConfig | None = None
    """A local camera or an address."""
    images: ImagesSourceConfig | None = None
    """Image files."""
    video: VideoSourceConfig | None = None
    """A video file."""
    watch: WatchedFolderConfig | None = None
    """A folder whose image files are inspected as they come."""
    genicam: GenicamConfig | None = None
    """A GenICam camera (GigE Vision, USB3 Vision)."""
    plugin: PluginSourceConfig | None = None
    """A plug-in."""

    def __post_init__(self) -> None:
        names = [one.name for one in dataclasses.fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"source needs exactly one of {', '.join(names)}, got {' and '.join(given) or 'none'}")

    @property
    def kind(self) -> str:
        """Name of the section that is given."""
        return next(one.name for one in dataclasses.fields(self) if getattr(self, one.name) is not None)
