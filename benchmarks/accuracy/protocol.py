"""What is run: a protocol in YAML, and the runs that it stands for.

A protocol is the product of variants, image sizes, settings (multi-class, one-class), class sets and seeds. A file may say ``like: NAME`` and give
only what it has otherwise. Imports no torch.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from snl_runtime import config as generic
from snl_runtime.errors import ConfigError
from snl_train.config import Device, Preset, TrainConfig, load_config

PROTOCOL_FOLDER = Path(__file__).parent / "protocols"

Setting: TypeAlias = Literal["multi-class", "one-class"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of a table: settings of a training on top of the protocol's base."""

    overrides: Mapping[str, object] = field(default_factory=dict)
    """Settings of ``snl-train``, nested or by dotted name."""
    settings: tuple[Setting, ...] = ()
    """Settings that the variant is run in; empty for the protocol's."""
    seeds: tuple[int, ...] = ()
    """Seeds that the variant is run with; empty for the protocol's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A set of runs and how they are shown."""

    name: str = ""
    """File name without suffix."""
    title: str = ""
    """Heading of the rendered tables."""
    description: str = ""
    """What is run, in a sentence or two."""
    reduction: str = ""
    """How it falls short of a full run; printed with every table."""
    preset: Preset = "paper"
    """Settings that ``base`` goes on top of."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every run, as in a YAML file of ``snl-train``."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """Rows of the tables by name."""
    settings: tuple[Setting, ...] = ("multi-class",)
    """One multi-class model classes of a set, or one model per class."""
    image_sizes: tuple[int, ...] = (256,)
    """Sides of the square network input in pixels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches and the choice of images."""
    class_sets: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"all": ()})
    """Classes that are trained together, by a name for the set; an empty list for all classes of the data folder."""
    development: tuple[str, ...] = ()
    """Classes on which settings are chosen."""
    held_out: tuple[str, ...] = ()
    """Classes on which the choice is judged."""
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Variants of each table in order, by title; empty for one table of all."""
    resamples: int = 200
    """Bootstrap resamples for the intervals over test images; 0 for none."""
    batch_size: int = 8
    """Images per call when measuring."""
    keep_checkpoints: bool = True
    """Keep the checkpoints of measured runs, for the interference benchmark and the overlays."""

    def __post_init__(self) -> None:
        for name in ("settings", "image_sizes", "seeds", "class_sets"):
            values = getattr(self, name)
            _check(name, values, "not empty and without repetitions", bool(values) and len(set(values)) == len(values))
        _check("seeds", self.seeds, "0 or more", min(self.seeds) >= 0)
        _check("resamples", self.resamples, "0 or more", self.resamples >= 0)
        _check("batch_size", self.batch_size, "1 or more", self.batch_size >= 1)
        both = sorted(set(self.development) & set(self.held_out))
        if both:
            raise ConfigError(f"class {both[0]!r} is in development and in held_out; settings must be judged on classes they were not chosen on")

    def shown_tables(self) -> dict[str, tuple[str, ...]]:
        """Return the variants of each table by title."""
        return self.tables or {"Methods": tuple(self.variants)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training and its measurement."""

    protocol: str
    """Name of the protocol."""
    variant: str
    """Row of the table."""
    setting: Setting
    """Multi-class or one-class."""
    class_set: str
    """Name of the class set."""
    classes: tuple[str, ...]
    """Classes trained and measured: all of the set, or one of them."""
    image_size: int
    """Side of the network input in pixels."""
    seed: int
    """Seed of the training."""

    @property
    def name(self) -> str:
        """File name of the run without suffix."""
        scope = "multi" if self.setting == "multi-class" else f"one-{slug(self.classes[0])}"
        return f"{slug(self.variant)}_{self.image_size}_{slug(self.class_set)}_{scope}_s{self.seed}"


def slug(text: str) -> str:
    """Return a text as part of a file name.

    >>> slug("SNL(RD), 25 centers")
    'snl-rd-25-centers'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", " and ")).strip("-")


def known_protocols() -> list[str]:
    """Return the names of the protocols that come with the benchmark."""
    return sorted(path.stem for path in PROTOCOL_FOLDER.glob("*.yaml"))


def load_protocol(name_or_file: str) -> Protocol:
    """Return a protocol by its name, or from a YAML file of one's own.

    A file with ``like: OTHER`` (a name, or a file beside it) has the values of the other one: its own ``base`` goes over the other's section by
    section, every other key replaces the other's as a whole. ``title``, ``description`` and ``reduction`` describe one protocol and are not taken
    over, nor are the tables of variants that it replaces.

    Raises:
        ConfigError: If there is none of that name, or a key is unknown, of another type or out of range, or a variant cannot be trained, or files are
            like each other in a circle, or a protocol like a reduced one does not say how it is reduced itself.
    """
    path = _protocol_file(name_or_file, Path())
    try:
        protocol = parse_protocol(path.stem, _read_protocol(path, ()))
    except ConfigError as error:
        raise ConfigError(f"protocol {path.name}: {error}") from error
    return protocol


def parse_protocol(name: str, plain: Mapping[str, Any]) -> Protocol:
    """Return the protocol that plain values describe; every variant's configuration is built once to see that it holds.

    Raises:
        ConfigError: As ``load_protocol``.
    """
    rest = {key: value for key, value in plain.items() if key not in ("base", "variants", "name")}
    protocol = generic.from_plain(Protocol, rest)
    variants = {key: _variant(key, value) for key, value in _mapping(plain.get("variants"), "variants").items()}
    protocol = dataclasses.replace(protocol, name=name, base=_mapping(plain.get("base") or {}, "base"), variants=variants)
    _check_variants(protocol)
    return protocol


def expand(protocol: Protocol, data_classes: Sequence[str]) -> list[Run]:
    """Return the runs of a protocol on a folder with these classes, seeds outermost, so that a stopped protocol has whole seeds first.

    Raises:
        ConfigError: If a class of the protocol is not in the data.
    """
    class_sets = {name: wanted or tuple(data_classes) for name, wanted in protocol.class_sets.items()}
    missing = sorted({name for names in class_sets.values() for name in names} - set(data_classes))
    if missing:
        raise ConfigError(f"protocol {protocol.name} needs class {missing[0]!r}, and the data folder has {', '.join(data_classes)}")
    seeds = sorted({seed for variant in protocol.variants.values() for seed in variant.seeds or protocol.seeds})
    return [
        Run(
            protocol=protocol.name,
            variant=name,
            setting=setting,
            class_set=class_set,
            classes=classes,
            image_size=size,
            seed=seed,
        )
        for seed in seeds
        for size in protocol.image_sizes
        for setting in protocol.settings
        for class_set, members in class_sets.items()
        for classes in ([members] if setting == "multi-class" else [(member,) for member in members])
        for name, variant in protocol.variants.items()
        if setting in (variant.settings or protocol.settings) and seed in (variant.seeds or protocol.seeds)
    ]


def train_config(
    protocol: Protocol, variant: str, *, image_size: int, seed: int = 0, weights: str | None = None, device: Device = "auto"
) -> TrainConfig:
    """Return the settings of one training.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    overrides: dict[str, object] = {**protocol.base}
    for key, value in protocol.variants[variant].overrides.items():
        overrides = _merged(overrides, key, value)
    overrides |= {"image_size": [image_size, image_size], "seed": seed, "device": device}
    if weights is not None:
        overrides = _merged(overrides, "model.teacher_weights", weights)
    return load_config(None, overrides, preset=protocol.preset)


def _protocol_file(name_or_file: str, folder: Path) -> Path:
    """Return the file of a protocol; a file's name is taken from ``folder``."""
    path = folder / name_or_file if name_or_file.endswith((".yaml", ".yml")) else PROTOCOL_FOLDER / f"{name_or_file}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no protocol {name_or_file!r}; known: {', '.join(known_protocols())}, or give a .yaml file")
    return path


def _read_protocol(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a protocol file over those of the file it is like; ``readers`` are like it, the first one asked for."""
    chain = (*readers, path.resolve())
    if path.resolve() in readers:
        raise ConfigError(f"like goes in a circle: {' -> '.join(one.name for one in chain)}; leave it out of one of them")
    own = generic.read_yaml(path)
    other = own.pop("like", None)
    if other is None:
        return own
    if not isinstance(other, str):
        raise ConfigError(f"like must be the name of a protocol or a .yaml file, got {other!r}")
    lower = _read_protocol(_protocol_file(other, path.parent), chain)
    if lower.get("reduction") and "reduction" not in own:
        raise ConfigError(f"{path.name} is like {other}, which is reduced; say in reduction how this one is, '' if it is not")
    dropped = {"title", "description", "reduction"} | ({"tables"} if "variants" in own else set())
    taken = {key: value for key, value in lower.items() if key not in dropped}
    base = generic.merge(_mapping(taken.get("base") or {}, "base"), _mapping(own.get("base") or {}, "base"))
    return {**taken, **own, "base": base}


def _merged(overrides: Mapping[str, object], dotted: str, value: object) -> dict[str, object]:
    *sections, last = dotted.split(".")
    nested: dict[str, object] = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    return generic.merge(overrides, nested)


def _variant(name: str, plain: object) -> Variant:
    values = _mapping(plain or {}, f"variants.{name}")
    overrides = _mapping(values.pop("overrides", None) or {}, f"variants.{name}.overrides")
    return dataclasses.replace(generic.from_plain(Variant, values, prefix=f"variants.{name}"), overrides=overrides)


def _check_variants(protocol: Protocol) -> None:
    if not protocol.variants:
        raise ConfigError("variants is empty; name at least one, e.g. RD: {overrides: {model.method: rd}}")
    slugs = [slug(name) for name in protocol.variants]
    repeated = sorted({one for one in slugs if slugs.count(one) > 1})
    if repeated:
        raise ConfigError(f"two variants would write the same files ({repeated[0]}); give them names that differ in letters or digits")
    for title, names in protocol.tables.items():
        unknown = [name for name in names if name not in protocol.variants]
        if unknown:
            raise ConfigError(f"table {title!r} shows variant {unknown[0]!r}, which is not one of {', '.join(protocol.variants)}")
    for name in protocol.variants:
        for size in protocol.image_sizes:
            try:
                train_config(protocol, name, image_size=size)
            except ConfigError as error:
                raise ConfigError(f"variant {name!r} at {size} px: {error}") from error


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a section of keys, got {value!r}")
    return {str(key): item for key, item in value.items()}


def _check(name: str, value: object, expected: str, is_met: bool) -> None:
    if not is_met:
        raise ConfigError(f"{name} must be {expected}, got {value}")
