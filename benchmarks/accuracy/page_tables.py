"""Markdown tables of one protocol: means over class sets and seeds, and figures of each class."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from benchmarks.accuracy.protocol import Protocol
from benchmarks.accuracy.results import METRICS
from benchmarks.accuracy.statistics import Row, Summary

OWN = "snl-edge"
_SCOPE = {"setting": "setting", "image_size": "px", "device": "device"}
"""What may be the same for all rows of a protocol, and its column's head if it is not."""


def protocol_tables(protocol: Protocol, shown: Sequence[Row]) -> list[str]:
    """Return what a protocol does, where its figures come from and its tables of means."""
    lines = [protocol.description, ""]
    if protocol.reduction:
        lines += [f"**{protocol.reduction}**", ""]
    lines += [*_origin(shown), "", "```bash", f"python -m benchmarks.accuracy --protocol {protocol.name} --data DIR --weights FILE", "```", ""]
    tables, told = protocol.shown_tables(), varying(shown)
    for title, variants in tables.items():
        in_table = ordered(protocol, shown, variants, with_baselines=title == next(iter(tables)))
        if in_table:
            lines += [*([f"**{title}**", ""] if len(tables) > 1 else []), *_set_tables(protocol, in_table, told)]
    return lines


def protocol_classes(protocol: Protocol, shown: Sequence[Row]) -> list[str]:
    """Return the page with the figures of each class."""
    lines = [f"# {protocol.title}: each class", "", f"Protocol `{protocol.name}`; see [accuracy](accuracy.md).", ""]
    lines += [*_origin(shown), "", "`Mean over seeds (95 % interval over test images)`: a bootstrap, its ends averaged over the seeds.", ""]
    in_order, told = ordered(protocol, shown), varying(shown)
    for metric, title in METRICS.items():
        lines += _class_table(in_order, told, title, partial(_class_cell, metric))
        if metric == "image_auroc":
            lines += _class_table(in_order, told, f"{title}, range over seeds", partial(_class_range, metric))
    return [*lines, "In brackets in the heads: good + anomalous test images.", ""]


def ordered(protocol: Protocol, shown: Sequence[Row], variants: Sequence[str] | None = None, *, with_baselines: bool = True) -> list[Row]:
    """Return the rows of some variants (None for all) in the protocol's order, then those of other packages."""
    names = list(protocol.variants if variants is None else variants)
    own = [row for row in shown if row.key.source == OWN and row.key.variant in names]
    own.sort(key=lambda row: (row.key.class_set, row.key.image_size, row.key.setting != "multi-class", names.index(row.key.variant), row.key.device))
    return [*own, *(sorted((row for row in shown if row.key.source != OWN), key=lambda row: row.key) if with_baselines else [])]


def varying(shown: Sequence[Row]) -> list[str]:
    """Return the fields of a row's key that tell rows apart beside the method."""
    return [name for name in _SCOPE if len({getattr(row.key, name) for row in shown}) > 1]


def scope_of(row: Row, told: Iterable[str]) -> list[str]:
    """Return some of those fields of a row."""
    return [getattr(row.key, name) for name in told]


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a table, numbers to the right."""
    numbers = "|".join("---" if index == 0 else "---:" for index in range(len(header)))
    return [f"| {' | '.join(header)} |", f"|{numbers}|", *(f"| {' | '.join(line)} |" for line in lines)]


def with_interval(summary: Summary | None) -> str:
    """Return ``mean [95 % interval over seeds]``."""
    if summary is None:
        return "–"
    return f"{summary.mean:.3f}" + ("" if summary.interval is None else f" [{summary.interval[0]:.3f}, {summary.interval[1]:.3f}]")


def seed_range(summary: Summary | None) -> str:
    """Return highest less lowest seed."""
    return "–" if summary is None or summary.seed_range is None else f"{summary.seed_range:.3f}"


def _origin(shown: Sequence[Row]) -> list[str]:
    dates, commits = sorted(set().union(*(row.dates for row in shown))), sorted(set().union(*(row.commits for row in shown)))
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    same = scope_of(shown[0], [name for name in _SCOPE if name not in varying(shown)])
    words = ", ".join([*(f"{value} px" if value == shown[0].key.image_size else value for value in same), f"measured {days}"])
    return [f"{words[0].upper()}{words[1:]}, commits {', '.join(commits)}."]


def _set_tables(protocol: Protocol, shown: Sequence[Row], told: Sequence[str]) -> list[str]:
    lines = []
    everything = tuple(sorted({name for row in shown for name in row.classes}))
    header = ["method", *(_SCOPE[name] for name in told), "seeds", *(part for name in METRICS.values() for part in (name, "range"))]
    for name, classes in {"Held-out classes": protocol.held_out, "Development classes": protocol.development, "All classes": everything}.items():
        if classes:
            measured = [row for row in shown if row.per_seed("image_auroc", classes) or row.diverged]
            lines += [f"{name}: {', '.join(classes)}", "", *markdown_table(header, [_set_row(row, classes, protocol, told) for row in measured]), ""]
    return lines


def _set_row(row: Row, classes: Sequence[str], protocol: Protocol, told: Sequence[str]) -> list[str]:
    summaries = [row.of_classes(metric, classes) for metric in METRICS]
    seeds = max((summary.seeds for summary in summaries if summary is not None), default=0)
    variant = protocol.variants.get(row.key.variant)
    expected = len((variant.seeds if variant is not None else ()) or protocol.seeds)
    state = str(seeds) if seeds == expected else f"{seeds} of {expected}"
    if row.diverged:
        state += f", diverged: {', '.join(map(str, sorted(row.diverged)))}"
    cells = [part for summary in summaries for part in (with_interval(summary), seed_range(summary))]
    return [method(row), *scope_of(row, told), state, *cells]


def _class_table(shown: Sequence[Row], told: Sequence[str], title: str, cell: Callable[[Row, str], str]) -> list[str]:
    """Return a table of rows by classes without the columns that nothing is known of; nothing if none is left."""
    counts = {name: count for row in shown for name, count in sorted(row.counts.items())}
    cells = {name: [cell(row, name) for row in shown] for name in sorted(counts)}
    used = [name for name, column in cells.items() if set(column) != {"–"}]
    if not used:
        return []
    header = [title, *(_SCOPE[name] for name in told), *(f"{name} ({counts[name][0]} + {counts[name][1]})" for name in used)]
    table = [[method(row), *scope_of(row, told), *(cells[name][place] for name in used)] for place, row in enumerate(shown)]
    return [*markdown_table(header, table), ""]


def _class_cell(metric: str, row: Row, name: str) -> str:
    summary = row.of_classes(metric, [name])
    if summary is None:
        return "–"
    interval = row.image_interval(metric, name)
    return f"{summary.mean:.3f}" + ("" if interval is None else f" ({interval[0]:.3f}–{interval[1]:.3f})")


def _class_range(metric: str, row: Row, name: str) -> str:
    return seed_range(row.of_classes(metric, [name]))


def method(row: Row) -> str:
    """Return what a row is called: its variant, and the package if it is another one."""
    return row.key.variant if row.key.source == OWN else f"{row.key.variant} ({row.key.source})"
