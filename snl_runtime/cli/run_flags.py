"""The flags of ``snl-run``: the short form of a station file."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snl_runtime.cli.command import CommandParser, add_listing_flag
from snl_runtime.cli.model_flags import add_model_flags, model_values, positive, whole_number
from snl_runtime.config import merge, nested, parse_override
from snl_runtime.errors import ConfigError
from snl_runtime.line.plugins import provides_source
from snl_runtime.station.config import StationConfig
from snl_runtime.station.station_file import layered, read_station_file, station_of
from snl_runtime.station.web.config import parse_address

PROGRAM = "snl-run"
EXAMPLE = """
snl-run --engine line.onnx --images parts/ --product bottle --jsonl verdicts.jsonl --save-rejects rejects/
snl-run --engine line.onnx --images "parts/**/cam1_*.png" --product bottle
snl-run --init station.yaml --engine line.onnx --video line.mp4
snl-run --config station.yaml --check
snl-run --camera 0 --engine line.trt
"""
FIRST_CAMERA = "camera"
"""Name of the camera of a run without a station file."""
_START = {"model": {"file": "line.onnx"}, "cameras": {FIRST_CAMERA: {"source": {"camera": {"number": 0}}}}}
"""What ``--init`` writes where no flag says otherwise."""
_OF_ONE_CAMERA = ("images", "video", "camera", "product", "pages", "frozen_after")


def run_parser() -> CommandParser:
    """Return the parser; a flag that is not given has the value None."""
    parser = CommandParser(
        PROGRAM,
        "Inspect every frame of a folder, a video or a camera. One JSON record per frame goes to --jsonl or standard output, a summary to stderr.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", help="model: x.onnx or x.trt; x.json and x.golden.npz are found beside it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images",
        metavar="DIR|FILE|PATTERN",
        help="every image in a folder and the folders below it, one image, or those that match a pattern in quotes",
    )
    source.add_argument("--video", metavar="FILE", help="every frame of a video file")
    source.add_argument("--camera", metavar="N_OR_URL", help="number of a local camera, or an address (rtsp://..., http://..., or a plug-in's)")
    parser.add_argument("--product", metavar="P", help="product on the line (default: the strictest rule of all calibrated products)")
    parser.add_argument("--pages", choices=("one", "all"), help="a file of several images is an ERROR, or one frame for each (default: one)")
    add_listing_flag(parser)
    _add_station_flags(parser)
    _add_output_flags(parser)
    running = parser.add_argument_group("running")
    add_model_flags(running)
    running.add_argument("--max-frames", metavar="N", type=positive(int), help="stop after this many captured frames")
    running.add_argument(
        "--frozen-after", metavar="N", type=whole_number, help="byte-equal frames in a row that count as a frozen camera, 0 for never (default: 25)"
    )
    return parser


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed flags; exit with status 2 and one line if a run cannot follow from them."""
    parser = run_parser()
    arguments = parser.parse_args(argv)
    has_other = arguments.config is not None or arguments.init is not None or arguments.set
    if not has_other and arguments.engine is None:
        parser.error("name a model with --engine FILE, or a station file with --config FILE")
    if not has_other and all(getattr(arguments, name) is None for name in ("images", "video", "camera")):
        parser.error("one of the arguments --images --video --camera is required, or a station file with --config FILE")
    return arguments


def config_of(arguments: argparse.Namespace) -> StationConfig:
    """Return the configuration that a station file, ``--set`` and flags give, the later ones winning.

    Raises:
        ConfigError: If a key or value is wrong, or flags contradict each other or the file.
    """
    below = {} if arguments.config is None else read_station_file(Path(arguments.config))
    below = layered(below, *(nested(name, value) for name, value in map(parse_override, arguments.set)))
    if arguments.init is not None:
        below = layered(_START, below)
    config = station_of(layered(below, _flag_values(arguments, below)))
    _check_flags(arguments, config)
    return config


def _add_station_flags(parser: argparse.ArgumentParser) -> None:
    station = parser.add_argument_group("station file", "YAML with all that the flags say and more; flags win over it")
    station.add_argument("--config", metavar="FILE", help="station file; unknown keys are refused")
    station.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key by its dotted name, e.g. model.threads=2")
    action = station.add_mutually_exclusive_group()
    action.add_argument("--init", metavar="FILE", help="write a commented station file of the other flags and stop; replaces nothing")
    action.add_argument("--print-config", action="store_true", help="print every key with its value as YAML, without credentials, and stop")
    action.add_argument("--check", action="store_true", help="open everything, inspect a frame per camera, say what each output would get, and stop")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument("--store", metavar="FILE", help="keep the records in this SQLite file too; what tells the line or is watched needs it")
    outputs.add_argument(
        "--serve", metavar="HOST:PORT", help="show the station in a browser, e.g. at 127.0.0.1:8080; needs --store and the extra web"
    )
    outputs.add_argument("--jsonl", metavar="FILE", help="append the records to this file instead of writing them to standard output")
    outputs.add_argument(
        "--jsonl-max-mib",
        metavar="N",
        type=positive(int),
        help="begin a new file at this size; the full one becomes FILE-<UTC time>-<number> (default: one file)",
    )
    outputs.add_argument("--save-rejects", metavar="DIR", help="save the untouched frame of every verdict other than PASS as PNG")
    outputs.add_argument(
        "--overlay", metavar="DIR", help="save frames with heat map and verdict as JPEG; a GPU blends the heat map where frames go there"
    )
    outputs.add_argument("--overlay-of", choices=("all", "not-passed"), help="frames that --overlay saves (default: all)")
    outputs.add_argument(
        "--saved-images-max-mib",
        metavar="N",
        type=positive(int),
        help="MiB that each of these two folders may hold; images that do not fit are counted, not saved (default: 10240)",
    )
    outputs.add_argument("--sink", metavar="NAME:ARG", action="append", help="also hand every verdict to a plug-in; may be repeated")
    outputs.add_argument("--json", action="store_true", help="summary as one JSON object on standard output; needs --jsonl")
    outputs.add_argument("--fail-on-reject", action="store_true", help="exit with 4 if a verdict was not PASS or no frame was inspected")


def _flag_values(arguments: argparse.Namespace, below: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values that the flags give over those of a file."""
    values: dict[str, Any] = {}
    model = model_values(arguments) | ({} if arguments.engine is None else {"file": arguments.engine})
    if model:
        values["model"] = model
    if any(getattr(arguments, name) is not None for name in _OF_ONE_CAMERA):
        name = _camera_name(arguments, below)
        values["cameras"] = {name: _camera_values(arguments, _section(_section(below, "cameras"), name))}
    records = _record_values(arguments, _section(below, "records"))
    if records:
        values["records"] = records
    if arguments.sink is not None:
        values["outputs"] = {"plugins": arguments.sink}
    if arguments.serve is not None:
        host, port = parse_address(arguments.serve)
        values["web"] = {"host": host, "port": port}
    return values


def _camera_name(arguments: argparse.Namespace, below: Mapping[str, Any]) -> str:
    names = [str(name) for name in _section(below, "cameras")]
    if len(names) < 2:
        return names[0] if names else FIRST_CAMERA
    flag = next(name for name in _OF_ONE_CAMERA if getattr(arguments, name) is not None).replace("_", "-")
    raise ConfigError(f"--{flag} is about one camera, the station has {', '.join(names)}; say which: --set cameras.{names[0]}.KEY=VALUE")


def _camera_values(arguments: argparse.Namespace, below: Mapping[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = {}
    if arguments.images is not None:
        source["images"] = {"path": arguments.images}
    if arguments.video is not None:
        source["video"] = {"file": arguments.video}
    if arguments.camera is not None:
        source = _camera_source_values(arguments.camera)
    kinds = source or {kind: None for kind, section in _section(below, "source").items() if section is not None}
    for kind, key, value, message in (
        ("images", "pages", arguments.pages, "--pages and --list-left-out belong to --images; leave them out"),
        ("camera", "frozen_after", arguments.frozen_after, "--frozen-after belongs to --camera with a number or an address; leave it out"),
    ):
        if value is not None and kind not in kinds:
            raise ConfigError(message)
        if value is not None:
            source[kind] = {**source.get(kind, {}), key: value}
    return _given(source=source or None, product=arguments.product)


def _camera_source_values(text: str) -> dict[str, Any]:
    from snl_runtime.line.sources import parse_camera

    if provides_source(text):
        return {"plugin": {"address": text}}
    camera = parse_camera(text)
    kind = "number" if isinstance(camera, int) else "device" if camera.startswith("/dev/") else "address"
    return {"camera": {"number": None, "device": None, "address": None, "username": None, "password_file": None, kind: camera}}


def _record_values(arguments: argparse.Namespace, below: Mapping[str, Any]) -> dict[str, Any]:
    records: dict[str, Any] = {} if arguments.store is None else {"store": {"path": arguments.store}}
    if arguments.jsonl is not None or arguments.jsonl_max_mib is not None:
        records["jsonl"] = _given(file=arguments.jsonl, max_mib=arguments.jsonl_max_mib)
    if arguments.save_rejects is not None:
        records["rejects"] = {"folder": arguments.save_rejects}
    if arguments.overlay is not None or arguments.overlay_of is not None:
        records["overlay"] = _given(folder=arguments.overlay, frames=arguments.overlay_of)
    if arguments.saved_images_max_mib is not None:
        for name in ("rejects", "overlay"):
            if name in records or below.get(name) is not None:
                records[name] = {**records.get(name, {}), "max_mib": arguments.saved_images_max_mib}
    _check_records(arguments, merge(below, records))
    return records


def _check_records(arguments: argparse.Namespace, records: Mapping[str, Any]) -> None:
    """Refuse flags that limit or choose what nothing writes."""
    jsonl, overlay = _section(records, "jsonl"), _section(records, "overlay")
    if arguments.jsonl_max_mib is not None and jsonl.get("file") is None:
        raise ConfigError("--jsonl-max-mib limits the file that --jsonl writes: add --jsonl FILE")
    if arguments.overlay_of is not None and overlay.get("folder") is None:
        raise ConfigError("--overlay-of chooses among the frames that --overlay saves: add --overlay DIR")
    if arguments.saved_images_max_mib is not None and not (overlay or _section(records, "rejects")):
        raise ConfigError("--saved-images-max-mib limits what --save-rejects and --overlay save: add one of them")


def _check_flags(arguments: argparse.Namespace, config: StationConfig) -> None:
    if arguments.json and config.records.jsonl is None:
        raise ConfigError("--json puts the summary on standard output, so the records need a file: add --jsonl FILE")
    if arguments.list_left_out and all(camera.source.images is None for camera in config.cameras.values()):
        raise ConfigError("--pages and --list-left-out belong to --images; leave them out")


def _section(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section; empty if it is missing or no section, which the types are checked for later."""
    section = plain.get(name)
    return section if isinstance(section, Mapping) else {}


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
