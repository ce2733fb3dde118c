"""From the configuration of a station to its parts: sources, sinks, and what is checked before the model is opened."""

import difflib
import os
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.files import check_writable
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.station.config import CameraQueueConfig, RecordsConfig, StationCameraConfig, StationConfig, changed_keys, line_outputs
from snl_runtime.station.outputs.addresses import read_secret
from snl_runtime.station.sources import CameraSourceConfig, SourceConfig
from snl_runtime.types import OutputRequest, Verdict

if TYPE_CHECKING:
    from snl_runtime.images.listing import Listing
    from snl_runtime.line.image_folders import ImageFolder, OverlaySaver, RejectSaver
    from snl_runtime.line.jsonl import JsonlSink
    from snl_runtime.line.records import StreamSink
    from snl_runtime.line.sinks import Sink
    from snl_runtime.line.sources import FrameSource


@dataclass(frozen=True, slots=True, eq=False)
class Sinks:
    """Where verdicts go within this process; the records come first, because a PLC and an image may take long."""

    records: "JsonlSink | StreamSink"
    plug_ins: "list[Sink]"
    rejects: "RejectSaver | None"
    overlays: "OverlaySaver | None"

    @property
    def saved_images(self) -> "list[ImageFolder]":
        """The folders of images."""
        return [folder for folder in (self.rejects, self.overlays) if folder is not None]

    @property
    def others(self) -> "list[Sink]":
        """All but the records, in the order in which they are told."""
        return [*self.plug_ins, *self.saved_images]  # a PLC waits for its verdict, an image does not

    @property
    def need_maps(self) -> bool:
        """Whether results must carry the anomaly map."""
        return bool(self.plug_ins) or self.overlays is not None

    @property
    def request(self) -> OutputRequest | None:
        """What results carry at frame resolution."""
        return None if self.overlays is None else self.overlays.outputs


def needs_station(config: StationConfig) -> bool:
    """Return whether one camera's pipeline is not enough: several cameras, triggers, deadlines, a record store or outputs to the line."""
    is_triggered = any(changed_keys(camera.trigger) for camera in config.cameras.values())
    return bool(config.watches) or len(config.cameras) > 1 or is_triggered or config.records.store is not None or bool(line_outputs(config.outputs))


def check_paths(config: StationConfig) -> None:
    """Refuse what could not be written, before a model is opened or an engine built; leaves nothing behind.

    Raises:
        SinkError: With the path and the reason.
    """
    if config.records.jsonl is not None:
        check_writable(config.records.jsonl.file, append=True)
    if config.records.store is not None:
        check_writable(config.records.store.path, append=True)
    for folder in _image_folders(config.records):
        _check_folder(folder)


def check_products(config: StationConfig, products: Sequence[str]) -> None:
    """Refuse a product that was never calibrated while others were; a model without any decision runs, and every verdict is ERROR.

    Args:
        config: The station.
        products: What the opened model was calibrated for.

    Raises:
        ConfigError: With the closest name.
    """
    named = [product for camera in config.cameras.values() for product in ((camera.product, *camera.products)) if product is not None]
    for product in named if products else ():
        if product not in products:
            close = difflib.get_close_matches(product, products, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"no decision for product '{product}' in this model, it has {', '.join(products)}{hint}")


def build_source(camera: StationCameraConfig, *, records: RecordsConfig, on_listed: "Callable[[Listing], None]" = lambda _: None) -> "FrameSource":
    """Return the source of one camera, not yet opened.

    Args:
        camera: Its section.
        records: Folders that images are saved to, which are never taken for parts.
        on_listed: Is told what a folder of images holds.

    Raises:
        ConfigError: If a plug-in is missing or refuses, or a password cannot be read.
    """
    from snl_runtime.line.sources import GenicamSource, ImageFolderSource, VideoSource, WatchedFolderSource

    source, product = camera.source, camera.product
    if source.images is not None:
        exclude = [Path(folder) for folder in _image_folders(records)]
        return ImageFolderSource(source.images.path, product=product, pages=source.images.pages, exclude=exclude, on_listed=on_listed)
    if source.video is not None:
        return VideoSource(source.video.file, product=product)
    if source.watch is not None:
        return WatchedFolderSource(source.watch, product=product)
    if source.genicam is not None:
        return GenicamSource(source.genicam, product=product)
    if source.plugin is not None:
        return _plugin_source(source.plugin.address, product)
    return _camera_source(source, product)


def build_sinks(config: StationConfig) -> Sinks:
    """Return the sinks within this process, not yet entered.

    Raises:
        ConfigError: If a plug-in is missing or refuses.
    """
    from snl_runtime.line.image_folders import OverlaySaver, RejectSaver
    from snl_runtime.line.jsonl import JsonlSink
    from snl_runtime.line.plugins import open_sink
    from snl_runtime.line.records import StreamSink

    jsonl, rejects, overlay = config.records.jsonl, config.records.rejects, config.records.overlay
    return Sinks(
        records=StreamSink() if jsonl is None else JsonlSink(jsonl.file, max_bytes=None if jsonl.max_mib is None else jsonl.max_mib << 20),
        plug_ins=[open_sink(text) for text in config.outputs.plugins],
        rejects=None if rejects is None else RejectSaver(rejects.folder, max_bytes=rejects.max_mib << 20, max_age_days=rejects.max_age_days),
        overlays=None
        if overlay is None
        else OverlaySaver(
            overlay.folder, verdicts=drawn_verdicts(overlay.frames), max_bytes=overlay.max_mib << 20, max_age_days=overlay.max_age_days
        ),
    )


def drawn_verdicts(frames: str) -> list[Verdict]:
    """Return the verdicts whose frames ``records.overlay.frames`` saves."""
    return [verdict for verdict in Verdict if frames == "all" or verdict is not Verdict.PASS]


def overflow_of(queue: CameraQueueConfig) -> tuple[OverflowPolicy | None, int | None]:
    """Return policy and capacity of the hand-off between a camera and the detector; None leaves them to the source."""
    if queue.policy == "latest":
        return OverflowPolicy.LATEST, 1
    return (None if queue.policy is None else OverflowPolicy(queue.policy)), queue.capacity


def _plugin_source(address: str, product: str | None) -> "FrameSource":
    from snl_runtime.line.plugins import find_source

    source = find_source(address, product=product)
    if source is None:
        raise ConfigError(f"no installed plug-in provides the source '{address.partition('://')[0]}'; install it, or name another source")
    return source


def _camera_source(source: SourceConfig, product: str | None) -> "FrameSource":
    from snl_runtime.line.sources import CameraSource

    config = source.camera
    if config is None:
        raise ConfigError(f"source.{source.kind} has no source behind it")
    return CameraSource(config.with_address(_address(config)), product=product)


def _address(config: CameraSourceConfig) -> str | None:
    address = config.address
    if address is None or config.username is None or config.password_file is None:
        return address
    scheme, _, rest = address.partition("://")
    password = read_secret(config.password_file, key="source.camera.password_file")
    return f"{scheme}://{urllib.parse.quote(config.username, safe='')}:{urllib.parse.quote(password, safe='')}@{rest.rpartition('@')[2]}"


def _image_folders(records: RecordsConfig) -> list[str]:
    return [section.folder for section in (records.rejects, records.overlay) if section is not None]


def _check_folder(folder: str) -> None:
    """Refuse a folder that could neither be made nor written; makes nothing."""
    path = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as a person chose them
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise SinkError(f"cannot make the folder {folder}: {there} is a file; check the path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write images to {folder}: no permission to write in {there}; check its permissions")
