"""Finding, opening and setting up a GenICam camera with pypylon."""

import contextlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, TypeAlias

from snl_runtime.errors import BackendUnavailableError, ConfigError, SourceOpenError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.pixel_formats import PixelFormat, find_pixel_format

TriggerMode: TypeAlias = Literal["free", "software", "hardware"]

_ACTIVATIONS = {"rising": "RisingEdge", "falling": "FallingEdge"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenicamConfig:
    """A GenICam camera (GigE Vision, USB3 Vision) that pylon finds; what is None stays as the camera has it."""

    serial: str | None = None
    """Serial number. At most one of serial, user_name and index; with none of them exactly one camera must be connected."""
    user_name: str | None = None
    """The name that was stored in the camera (DeviceUserID)."""
    index: int | None = None
    """Position among the cameras found, from 0; it can change with the cabling, so a station names the serial number."""
    trigger: TriggerMode = "free"
    """``free``: it runs by itself; ``software``: a frame for each ``trigger()``; ``hardware``: a frame for each edge on ``trigger_line``."""
    trigger_line: str = "Line1"
    """Input of the hardware trigger, as the camera calls it (TriggerSource)."""
    trigger_edge: Literal["rising", "falling"] = "rising"
    """Which edge of the hardware trigger counts."""
    exposure_us: float | None = None
    """Exposure time in microseconds; switches the automatic exposure off."""
    gain: float | None = None
    """Gain in the camera's own unit, mostly dB; switches the automatic gain off."""
    pixel_format: str | None = None
    """Name of the pixel format, e.g. ``Mono8`` or ``BayerRG12``."""
    features: dict[str, Any] = field(default_factory=dict)
    """Further features by their GenICam names, set in this order before all others, e.g. ``{Width: 1280, ReverseX: true}``."""
    policy: Literal["auto", "latest", "every"] = "auto"
    """``latest``: a newer frame replaces one that was not fetched; ``every``: none is skipped; ``auto``: latest for ``free``, else every."""
    buffers: int = 10
    """Frames that the driver can hold."""
    frame_timeout_s: float = 2.0
    """Longest time to the next frame of a free-running camera, and from a software trigger to its frame."""
    stall_timeout_s: float = 30.0
    """Longest time without the camera, reconnects included, until the source gives up."""
    frozen_after: int = 25
    """Byte-equal frames in a row after which the camera counts as frozen; 0 switches the check off."""

    def __post_init__(self) -> None:
        named = [key for key in ("serial", "user_name", "index") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ConfigError(f"genicam.{named[0]} and genicam.{named[1]} both name the camera; leave one out")
        if self.index is not None and self.index < 0:
            raise ConfigError(f"genicam.index must be 0 or more, got {self.index}")
        for key in ("exposure_us", "frame_timeout_s", "stall_timeout_s"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"genicam.{key} must be positive, got {value}")
        if self.buffers < 2:
            raise ConfigError(f"genicam.buffers must be at least 2, got {self.buffers}")
        if self.frozen_after < 0:
            raise ConfigError(f"genicam.frozen_after must be 0 (off) or a number of frames, got {self.frozen_after}")
        if self.trigger != "free" and self.policy == "latest":
            raise ConfigError(f"genicam.policy must be every with genicam.trigger {self.trigger}: each frame is a part; got latest")
        if self.pixel_format is not None:
            find_pixel_format(self.pixel_format, key="genicam.pixel_format")

    @property
    def overflow(self) -> OverflowPolicy:
        """What ``policy`` means for this trigger."""
        latest = self.policy == "latest" or (self.policy == "auto" and self.trigger == "free")
        return OverflowPolicy.LATEST if latest else OverflowPolicy.EVERY

    @property
    def name(self) -> str:
        """What records and messages call the camera."""
        if self.serial is not None:
            return f"genicam {self.serial}"
        return f"genicam {self.user_name if self.user_name is not None else self.index if self.index is not None else 'camera'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCamera:
    """A camera that is set up and not yet grabbing.

    Attributes:
        camera: pylon's InstantCamera.
        serial: Its serial number, by which it is found again.
        declared: What its buffers hold.
        pixel_type: pylon's number of that format, which every buffer must carry.
        counts_16_bits: Whether its frame numbers go from 65535 to 1.
    """

    camera: Any
    serial: str
    declared: PixelFormat
    pixel_type: int
    counts_16_bits: bool


def load_pylon() -> ModuleType:
    """Return the module ``pypylon.pylon``.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    try:
        # Its wrapper warns while it is imported; where warnings are errors, the process dies of that (pypylon 26.9).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pypylon import pylon
    except ImportError as error:
        raise BackendUnavailableError(f"GenICam cameras need the package pypylon ({error}): pip install 'snl-edge[genicam]'") from error
    module: ModuleType = pylon
    return module


def genicam_error() -> type[Exception]:
    """Return the base class of everything that pylon raises."""
    load_pylon()
    from pypylon import genicam

    error: type[Exception] = genicam.GenericException
    return error


def open_camera(config: GenicamConfig, serial: str | None = None) -> OpenedCamera:
    """Open the camera and set it up; on any error it is closed again.

    Args:
        config: Which camera, and how.
        serial: Serial number of the camera that was opened before; None to look for what ``config`` names.

    Raises:
        SourceOpenError: If it is not there, in use, or refuses a setting.
        ConfigError: If it sends a pixel format that cannot be decoded.
    """
    pylon = load_pylon()
    factory = pylon.TlFactory.GetInstance()
    with contextlib.ExitStack() as opened:
        try:
            info = _find(factory.EnumerateDevices(), config, serial)
            camera = pylon.InstantCamera(factory.CreateDevice(info))
            opened.callback(close_camera, camera)
            camera.Open()
        except genicam_error() as error:
            raise SourceOpenError(f"cannot open {config.name}: {_first_line(error)}; check that no other program uses it") from error
        _set_up(camera, config)
        sent = camera.GetNodeMap().GetNode("PixelFormat").Value
        declared = find_pixel_format(sent, key="genicam.pixel_format: the camera is set to")
        pixel_type = pylon.PixelTypeMapper.GetPylonPixelTypeByName(sent)
        opened.pop_all()
    return OpenedCamera(
        camera=camera,
        serial=info.GetSerialNumber(),
        declared=declared,
        pixel_type=int(pixel_type),
        counts_16_bits=info.GetDeviceClass() == "BaslerGigE",
    )


def close_camera(camera: Any) -> None:
    """Stop, close and detach a camera, also one that is no longer there."""
    for step in (camera.StopGrabbing, camera.Close, camera.DestroyDevice):
        with contextlib.suppress(genicam_error()):  # a removed device refuses each of them
            step()


def _find(found: Sequence[Any], config: GenicamConfig, serial: str | None) -> Any:
    known = ", ".join(f"{info.GetModelName()} {info.GetSerialNumber()}" for info in found) or "none"
    wanted_serial = serial or config.serial
    if wanted_serial is not None:
        matching = [info for info in found if info.GetSerialNumber() == wanted_serial]
    elif config.user_name is not None:
        matching = [info for info in found if info.GetUserDefinedName() == config.user_name]
    elif config.index is not None:
        matching = list(found[config.index : config.index + 1])
    else:
        matching = list(found)
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise SourceOpenError(f"{config.name} can be each of {len(matching)} cameras; name the serial number of one: {known}")
    raise SourceOpenError(f"cannot find {config.name}; check power, cable and network; found: {known}")


def _set_up(camera: Any, config: GenicamConfig) -> None:
    for name, value in config.features.items():
        _set(camera, config, (name,), value)
    if config.pixel_format is not None:
        _set(camera, config, ("PixelFormat",), config.pixel_format)
    if config.exposure_us is not None:
        _set(camera, config, ("ExposureAuto",), "Off", optional=True)
        _set(camera, config, ("ExposureTime", "ExposureTimeAbs"), config.exposure_us)
    if config.gain is not None:
        _set(camera, config, ("GainAuto",), "Off", optional=True)
        _set(camera, config, ("Gain", "GainRaw"), config.gain)
    # Before this, Open() has switched every trigger off and asked for continuous acquisition (pylon's AcquireContinuousConfiguration).
    if config.trigger != "free":
        _set(camera, config, ("TriggerSelector",), "FrameStart")
        _set(camera, config, ("TriggerMode",), "On")
        _set(camera, config, ("TriggerSource",), "Software" if config.trigger == "software" else config.trigger_line)
    if config.trigger == "hardware":
        _set(camera, config, ("TriggerActivation",), _ACTIVATIONS[config.trigger_edge])
    camera.MaxNumBuffer.Value = config.buffers


def _set(camera: Any, config: GenicamConfig, names: tuple[str, ...], value: Any, *, optional: bool = False) -> None:
    """Set the first of these features that the camera has."""
    nodes = camera.GetNodeMap()
    present = [name for name in names if nodes.GetNode(name).IsWritable()]
    if not present:
        if optional:
            return
        raise SourceOpenError(f"{config.name} has no feature {' or '.join(names)} that can be set; leave it out of the configuration")
    node = nodes.GetNode(present[0])
    try:
        node.Value = int(value) if isinstance(value, float) and "Integer" in type(node).__name__ else value
    except (genicam_error(), TypeError, ValueError) as error:
        raise SourceOpenError(f"{config.name} refuses {present[0]} = {value}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return the sentence for people of an error; pylon appends file names of its sources."""
    return str(error).split(" : ")[0].splitlines()[0].strip().rstrip(".") if str(error) else type(error).__name__
