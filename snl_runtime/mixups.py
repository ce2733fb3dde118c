"""Mix-ups of files and options: what a file is, where it belongs, and the command that takes it."""

import enum
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.text import redact_credentials


class Kind(enum.Enum):
    """What a command was given, in words for a message."""

    ADDRESS = "an address"
    FOLDER = "a folder"
    IMAGE = "an image"
    VIDEO = "a video"
    CHECKPOINT = "a checkpoint of snl-train"
    STATE = "the state of a training"
    WEIGHTS = "a file of teacher weights"
    ONNX = "an exported model"
    ENGINE = "an engine"
    MANIFEST = "a manifest"
    GOLDEN = "a file of golden samples"
    RECORDS = "a file of records"


_SUFFIXES = {
    Kind.IMAGE: ".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .jp2 .avif .pgm .ppm .pbm .pnm",
    Kind.VIDEO: ".avi .mp4 .m4v .mov .mkv .webm .wmv .flv .mpg .mpeg .mts .m2ts .3gp .mjpg .mjpeg .h264 .h265",
    Kind.STATE: ".resume.pt",
    Kind.CHECKPOINT: ".pt .pth .ckpt",
    Kind.WEIGHTS: ".safetensors",
    Kind.ONNX: ".onnx",
    Kind.ENGINE: ".trt .engine .plan",
    Kind.MANIFEST: ".json",
    Kind.GOLDEN: ".npz",
    Kind.RECORDS: ".jsonl",
}
"""Endings of a file's name; the first that fits counts."""
_BEGINNINGS = {b"\x89PNG": Kind.IMAGE, b"RIFF": Kind.VIDEO, b"\x1aE\xdf\xa3": Kind.VIDEO}
"""First bytes of a file whose name has no known ending."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""An address, also one that ``Path`` has taken a slash from; a drive has one letter."""
_MODELS = (Kind.ONNX, Kind.ENGINE)
_BESIDE = (Kind.MANIFEST, Kind.GOLDEN)
_NO_MODEL = (Kind.IMAGE, Kind.VIDEO, Kind.ADDRESS, Kind.RECORDS)
_ENGINE = ("--engine", "--compare")
_FOLDERS_ONLY = ("snl-train", "snl-eval", "snl-export", "snl-calibrate", "snl-bench")
"""Commands whose images lie in folders; snl-inspect reads addresses too."""
_IMAGES = ("--data", "--good", "--bad", "--must-reject", "--frames", "--calib-data")


@dataclass(frozen=True, slots=True)
class Hint:
    """What to do about one kind of thing in one option.

    Attributes:
        options: Where it was given.
        kinds: What it is.
        advice: What to do; may hold ``{value}``, ``{onnx}`` and ``{checkpoint}`` (the names beside it).
        commands: Where this holds, empty for all.
    """

    options: Collection[str]
    kinds: Collection[Kind]
    advice: str
    commands: Collection[str] = ()


HINTS = (
    Hint(_ENGINE, (Kind.CHECKPOINT,), "name it with --ckpt", ("snl-eval",)),
    Hint(_ENGINE, (Kind.CHECKPOINT,), "export it first: snl-export --ckpt {value}"),
    Hint(_ENGINE, (Kind.STATE,), "finish the training with snl-train --resume, then export it: snl-export --ckpt {checkpoint}"),
    Hint(_ENGINE, (Kind.WEIGHTS,), "train with them: snl-train --teacher-weights {value}"),
    Hint(_ENGINE, _BESIDE, "name the model beside it, e.g. {onnx}"),
    Hint(_ENGINE, (Kind.FOLDER,), "name the model in it, x.onnx or x.trt"),
    Hint(_ENGINE, (Kind.IMAGE,), "name the model with --engine and images with --images", ("snl-run",)),
    Hint(_ENGINE, (Kind.VIDEO,), "name the model with --engine and a video with --video", ("snl-run",)),
    Hint(_ENGINE, (Kind.ADDRESS,), "name the model with --engine and an address with --camera", ("snl-run",)),
    Hint(_ENGINE, _NO_MODEL, "name an exported model, x.onnx or x.trt"),
    Hint(("--ckpt",), _MODELS, "name it with --engine", ("snl-eval",)),
    Hint(("--ckpt",), _MODELS, "it is exported already and runs as it is: snl-run --engine {value}; --ckpt takes the checkpoint of snl-train, x.pt"),
    Hint(("--ckpt",), (Kind.STATE,), "name the checkpoint beside it, {checkpoint}"),
    Hint(("--ckpt",), (Kind.WEIGHTS,), "train with them: snl-train --teacher-weights {value}"),
    Hint(("--ckpt",), (*_NO_MODEL, *_BESIDE, Kind.FOLDER), "name a checkpoint of snl-train, x.pt"),
    Hint(("--onnx",), (Kind.CHECKPOINT,), "name it with --ckpt"),
    Hint(("--onnx",), (*_NO_MODEL, *_BESIDE, Kind.ENGINE, Kind.FOLDER), "name an exported model, x.onnx"),
    Hint(("--out", "--triton"), (Kind.ADDRESS,), "name a place in the file system, and copy what is written when it is whole"),
    Hint(("--video", "--camera"), (Kind.FOLDER, Kind.IMAGE), "name it with --images"),
    Hint(("--video", "--images"), (Kind.ADDRESS,), "name it with --camera"),
    Hint(("--camera", "--images"), (Kind.VIDEO,), "name it with --video"),
    Hint(("--video", "--camera", "--images"), _MODELS, "name it with --engine"),
    Hint(("--video", "--camera", "--images"), (Kind.CHECKPOINT,), "export it first: snl-export --ckpt {value}, and name the model with --engine"),
    Hint(_IMAGES, (Kind.VIDEO,), "save its frames as images and name their folder"),
    Hint(_IMAGES, (Kind.ADDRESS,), "name a folder of images", _FOLDERS_ONLY),
    Hint(_IMAGES, _MODELS, "name a folder of images, and the model with --engine"),
    Hint(_IMAGES, (Kind.CHECKPOINT,), "name a folder of images, and the checkpoint with --ckpt"),
)
"""The first that fits counts, so a row for one command stands before the row for all."""


def find_mix_up(command: str, option: str, value: str | os.PathLike[str]) -> str | None:
    """Return one sentence if something is given where it does not belong, None otherwise; files that are not there are no mix-up.

    Args:
        command: E.g. ``snl-run``.
        option: E.g. ``--engine``.
        value: What was given for it.
    """
    text = os.fspath(value)
    kind = kind_of(text)
    if kind is None:
        return None
    for hint in HINTS:
        if option in hint.options and kind in hint.kinds and (not hint.commands or command in hint.commands):
            names = {"value": text, "onnx": _beside(text, ".onnx"), "checkpoint": _beside(text, ".pt")}
            shown = _shown(text) if kind is Kind.ADDRESS else text
            return f"{shown} is {kind.value}; {hint.advice.format(**names)}"
    return None


def kind_of(text: str) -> Kind | None:
    """Return what a file, folder or address is, None if it is not there or nothing that a command knows."""
    if _SCHEME.match(text) and not _is_there(text):
        return None if text.startswith("file:") else Kind.ADDRESS
    if text.isdigit():  # a camera, also where a folder has that name
        return None
    try:
        path = Path(text)
        if path.is_dir():
            return Kind.FOLDER
        if not path.is_file():
            return None
        name = path.name.lower()
        for kind, suffixes in _SUFFIXES.items():
            if name.endswith(tuple(suffixes.split())):
                return kind
        with path.open("rb") as file:
            return _BEGINNINGS.get(file.read(4))
    except (OSError, ValueError):  # no permission, or no name that a file can have
        return None


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than any name
        return False


def _beside(text: str, suffix: str) -> str:
    path = Path(text)
    return str(path.with_name(path.name.split(".")[0] + suffix)) if path.name else text


def _shown(address: str) -> str:
    return redact_credentials(_SCHEME.sub(r"\1://", address, count=1))
