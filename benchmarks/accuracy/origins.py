"""Where the runs of a table come from, and whether they may stand in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snl_runtime.errors import ConfigError

_VERSIONS_SHOWN = ("python", "torch", "numpy", "anomalib")
_NOW = "25838f4c5778eecc335b4f864a45deedcdb9e112705835feaa8c11da3f015e1d"
_SAME = {
    "65da4cf400b208e76bc60b50aeda1c9aee536900c4b1ff19a83bb0bac498b3a7": _NOW,
    "a037bc47dd500f68e075da517bf9a8ad4fca30fb18ebe5f7529647cfc7645dcc": _NOW,
    "b05f8dd47586b47e5bbe993e5f6d5b5c9e56e1f12bda62e6ab1550b82e17edb3": _NOW,
}
"""Older sources: the newer ones that train, score and measure alike to the bit (docs/decisions.md says how that was seen)."""
_SAME_BUT_FOR_MUON = {"60e70ace0bc35c5e0e7862de35e4616649bd0df4806faee52813220845e45759": _NOW, **_SAME}
"""The same for runs without Muon."""


@dataclass(frozen=True, slots=True)
class Origins:
    """What the runs of one table have in common, and what not.

    Attributes:
        devices: Devices that trained or measured.
        sources: Hashes of the sources.
        figures: The same, with sources that make no difference to their runs taken as one.
        commits: Commits that the runs name.
        versions: Package versions, one text for each combination.
    """

    devices: tuple[str, ...]
    sources: tuple[str, ...]
    figures: tuple[str, ...]
    commits: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def is_mixed(self) -> bool:
        """Whether a difference between two rows may come from something else than the method."""
        return len(self.devices) > 1 or (len(self.sources) > 1 and len(self.figures) > 1)


def check_origins(protocol: str, records: Sequence[Mapping[str, Any]], *, allow_mixed: bool) -> Origins:
    """Return the origins of some runs.

    Raises:
        ConfigError: If they come from several devices or sources and that was not allowed, or were measured on different images.
    """
    pieces = [piece for record in records for piece in (record["provenance"], *record["slices"])]
    origins = Origins(
        devices=_different(pieces, "device"),
        sources=_different(pieces, "source_sha256"),
        figures=tuple(sorted({_figures(record, piece) for record in records for piece in (record["provenance"], *record["slices"])})),
        commits=_different(pieces, "commit"),
        versions=tuple(sorted({_versions(record["provenance"]["versions"]) for record in records})),
    )
    _check_images(protocol, records)
    if origins.is_mixed and not allow_mixed:
        what = f"devices ({', '.join(origins.devices)})" if len(origins.devices) > 1 else f"sources (commits {', '.join(origins.commits)})"
        raise ConfigError(
            f"the runs of {protocol} come from {what}, so their differences may not be the methods'; run them anew into another --out, "
            "or give --allow-mixed, and the table says so"
        )
    return origins


def _check_images(protocol: str, records: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        for name, digest in record["data"]["test_sha256"].items():
            if seen.setdefault(name, digest) != digest:
                raise ConfigError(f"the runs of {protocol} were measured on different test images of class {name!r}; they cannot stand in one table")


def _figures(record: Mapping[str, Any], piece: Mapping[str, Any]) -> str:
    """Return the hash of the sources that gave a piece of a run, or of newer ones that would have given the same."""
    source = str(piece["source_sha256"])
    has_muon = record.get("config", {}).get("optim", {}).get("optimizer") == "muon"
    return (_SAME if has_muon else _SAME_BUT_FOR_MUON).get(source, source)


def _different(pieces: Sequence[Mapping[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(sorted({str(piece[key]) for piece in pieces}))


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in _VERSIONS_SHOWN if name in versions)
