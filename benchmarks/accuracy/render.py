"""Tables in Markdown, made from the JSON files of finished runs and from nothing else."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.interference import table as interference_table
from benchmarks.accuracy.origins import Origins, check_origins
from benchmarks.accuracy.protocol import Protocol, expand, known_protocols, load_protocol
from benchmarks.accuracy.published import ABLATION, METHODS, Published, published
from benchmarks.accuracy.records import FIGURE_2, read_records
from benchmarks.accuracy.statistics import METRICS, Row, RowKey, Summary, rows

OWN = "snl-edge"
_TESTS_ONLY = "tiny"
_HEAD = """# Accuracy

Written by `python -m benchmarks.accuracy --render` from a JSON file per run, kept in the project; do not edit by hand.
[accuracy.md](accuracy.md) is made from `benchmarks/accuracy/results`: `full` ran on a GPU until its time was up, the others
on CPU cores. Peers that the GPU had no time for ran [on CPU cores](accuracy-peers-cpu.md) (`results-peers-cpu`). Earlier pages show
runs whose `best`, and what else is trained like it, had no focus in L_cd (`loss.channel_focus` 0): [on the processor of
`reduced256`](accuracy-without-focus.md) (`results-without-focus`; missing seeds were given up when the focus gained on the choose
classes) and [on another](accuracy-epyc.md)
(`results-epyc`); rounding differs between processors, so their seeds are other trainings. Runs before 2026-11-25 are
[on a page of their own](accuracy-2026-11-24.md): `best` had no Muon either, and their files are not kept. Until 2026-11-27 Muon's steps were faulty
in mixed precision, in which all of its rows were trained (`best`, and what is trained like it): those rows are
[on a page of their own](accuracy-half-precision-muon.md) (`results-half-precision-muon`), beside the rows and peers of their protocols; the two
pages without focus have the fault too. Rows with Adam and peers stay.

- Every figure is of the last epoch. No run was stopped, chosen or repeated by its result on test images.
- Metrics are exact and measured at network resolution; the image score is the maximum of the anomaly map; AUPRO integrates up to a false-positive
  rate of 0.3. Classes without masks count for image AUROC only.
- Means over a class set: `mean [95 % interval over seeds]` (Student's t, so wide with three seeds), then the spread, highest less lowest seed.
- Per class: `mean over seeds (95 % interval over test images)`, from a bootstrap of the images, its ends averaged over the seeds.
- Settings are chosen on the *choose* classes and judged on the *confirm* classes.
- Figures on `realmix` cannot be set beside published MVTec AD or VisA figures: other images, other splits.

## How it is run

```bash
# A protocol: what is done is not done again, a stopped training goes on. --budget-s 560 stops before ten minutes are over.
python -m benchmarks.accuracy --protocol reduced --data ../shared/data/realmix --weights resnet18.safetensors
# The paper's Tables 1 to 6, for who has the data and a GPU (weights: torchvision's download, or a file with --weights).
python -m benchmarks.accuracy --protocol mvtec_paper --data mvtec_anomaly_detection --budget-s 560
python -m benchmarks.accuracy --protocol visa_paper --data VisA --budget-s 560
# anomalib's PatchCore, STFPM and Reverse Distillation, in an environment of their own.
python -m venv peers-venv && peers-venv/bin/pip install -r benchmarks/accuracy/peers-requirements.txt
peers-venv/bin/python -m benchmarks.accuracy.peers --protocol reduced --data ../shared/data/realmix --weights resnet18.safetensors
# Figure 2 (mixtures of classes) and Figure 5 (heat maps side by side) of the paper.
python -m benchmarks.accuracy.interference --data ../shared/data/realmix --checkpoints runs/accuracy/reduced/*multi_s*.pt \\
  --out runs/accuracy/reduced/figure2/interference.json
python -m benchmarks.accuracy.overlays --data ../shared/data/realmix --names RD 'SNL(RD)' --out runs/figure5.html \\
  --checkpoints runs/accuracy/reduced/rd_128_realmix_multi_s0.pt runs/accuracy/reduced/snl-rd_128_realmix_multi_s0.pt
# The results without their scores per image are kept in the project; this page is made from them.
python -m benchmarks.accuracy --keep benchmarks/accuracy/results
python -m benchmarks.accuracy --out benchmarks/accuracy/results --render docs/accuracy.md
```

Peers are trained by the package's own engine with its own losses, optimisers and scores; batch size and epochs are the protocol's, with at least 500
optimiser steps. EfficientAD is not run: its teacher cannot be had here. UniAD and OmniAL are the paper's figures, quoted on MVTec AD and VisA only.
"""
_NOTHING = "No run of this protocol has been made yet."


def render(out: Path, *, only: str | None = None, allow_mixed: bool = False) -> str:
    """Return a Markdown page with the tables of all protocols, or of some.

    Args:
        out: Folder with a folder of records per protocol.
        only: Names or files of the protocols to show, with commas between them; None for all that come with the benchmark, tests' own left out.
        allow_mixed: Put runs of several devices or sources into one table and say so.

    Raises:
        ConfigError: If the runs of a table come from several devices, sources or test images.
        DataError: If a file is no record.
    """
    names = only.split(",") if only is not None else [name for name in known_protocols() if name != _TESTS_ONLY]
    protocols = [load_protocol(name) for name in names]
    records = {protocol.name: read_records(out / protocol.name) for protocol in protocols}
    parts = [_HEAD, _state(protocols, records)]
    for protocol in protocols:
        parts.append(_section(protocol, records[protocol.name], allow_mixed=allow_mixed))
        parts.append(_interference(out / protocol.name / FIGURE_2))
    return "\n".join(parts).rstrip() + "\n"


def _interference(path: Path) -> str:
    """Return the interference table of a protocol, or that there is none."""
    if not path.exists():
        return "Mixtures of two classes (the paper's Figure 2): not run yet.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    origin = found["provenance"]
    lines = [
        "### Mixtures of two classes (the paper's Figure 2)",
        "",
        f"{found['per_pair']} mixtures per pair of classes and pastes per class, made from good test images; device {origin['device']}, commit "
        f"{origin['commit']} (sources {origin['source_sha256'][:12]}).",
        "",
        interference_table(found["models"]),
        "",
        "```bash",
        origin["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _state(protocols: Sequence[Protocol], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = ["## What has been run", ""]
    table = []
    for protocol in protocols:
        own = [record for record in records[protocol.name] if record["source"] == OWN]
        expected = _expected(protocol, own)
        state = "not run yet" if not own else "complete" if len(own) == expected else "unfinished"
        table.append(
            [f"`{protocol.name}`", str(len(own)), str(expected or "depends on the data"), str(len(records[protocol.name]) - len(own)), state]
        )
    return "\n".join([*lines, *_table(["protocol", "runs done", "of", "runs of peers", "state"], table), ""])


def _expected(protocol: Protocol, own: Sequence[Mapping[str, Any]]) -> int:
    named = {name for names in protocol.class_sets.values() for name in names}
    found = {name for record in own for name in record["classes"]}
    classes = sorted(named | found)
    return len(expand(protocol, classes)) if classes else 0


def _section(protocol: Protocol, records: Sequence[Mapping[str, Any]], *, allow_mixed: bool) -> str:
    parts = [f"## {protocol.title or protocol.name}", "", f"Protocol `{protocol.name}`. {protocol.description}", ""]
    if protocol.reduction:
        parts += [f"**{protocol.reduction}**", ""]
    found: dict[RowKey, Row] = {}
    if records:
        found = rows(records)
        parts += _origin_lines(check_origins(protocol.name, records, allow_mixed=allow_mixed), records)
        for title, variants in protocol.shown_tables().items():
            with_peers = variants == next(iter(protocol.shown_tables().values()))
            parts += _set_tables(protocol, title, _shown(found, variants, with_peers=with_peers))
        parts += _class_tables(_shown(found, tuple(protocol.variants), with_peers=True))
    else:
        parts += [_NOTHING, ""]
    parts += _quoted_tables(protocol, found)
    return "\n".join(parts)


def _origin_lines(origins: Origins, records: Sequence[Mapping[str, Any]]) -> list[str]:
    commands = sorted({record["provenance"]["command"] for record in records})
    seeds = sorted({record["seed"] for record in records})
    lines = [
        f"- Device: {'; '.join(origins.devices)}",
        f"- Versions: {'; '.join(origins.versions)}",
        f"- Seeds: {', '.join(map(str, seeds))}",
        f"- Commit: {', '.join(origins.commits)} (sources {', '.join(one[:12] for one in origins.sources)})",
        "",
    ]
    if origins.is_mixed:
        lines += ["**Mixed: these runs come from several devices or sources, so differences between rows may not be the methods'.**", ""]
    return [*lines, "```bash", *commands, "```", ""]


def _shown(found: Mapping[RowKey, Row], variants: Sequence[str], *, with_peers: bool) -> list[Row]:
    own = [row for key, row in found.items() if key.source == OWN and key.variant in variants]
    own.sort(key=lambda row: (row.key.class_set, row.key.image_size, row.key.setting != "multi-class", variants.index(row.key.variant)))
    peers = sorted((row for key, row in found.items() if key.source != OWN), key=lambda row: row.key) if with_peers else []
    return [*own, *peers]


def _set_tables(protocol: Protocol, title: str, shown: Sequence[Row]) -> list[str]:
    if not shown:
        return []
    lines = [f"### {title}", ""]
    sets = {"confirm": protocol.confirm, "choose": protocol.choose, "all": tuple(sorted({name for row in shown for name in row.classes}))}
    header = ["method", "setting", "px", "seeds", *(part for name in METRICS.values() for part in (name, "spread"))]
    for name, classes in sets.items():
        if classes:
            lines += [f"{name.capitalize()} set: {', '.join(classes)}", "", *_table(header, [_set_row(row, classes, protocol) for row in shown]), ""]
    return lines


def _set_row(row: Row, classes: Sequence[str], protocol: Protocol) -> list[str]:
    summaries = [row.of_classes(metric, classes) for metric in METRICS]
    seeds = max((summary.seeds for summary in summaries if summary is not None), default=0)
    variant = protocol.variants.get(row.key.variant)
    expected = len((variant.seeds if variant is not None else ()) or protocol.seeds)
    state = str(seeds) if seeds == expected else f"{seeds} of {expected}"
    if row.diverged:
        state += f", diverged: {', '.join(map(str, sorted(row.diverged)))}"
    cells = [part for summary in summaries for part in (_with_interval(summary), _spread(summary))]
    return [_method(row.key), row.key.setting, str(row.key.image_size), state, *cells]


def _class_tables(shown: Sequence[Row]) -> list[str]:
    lines = ["### Per class", ""]
    for metric, title in METRICS.items():
        lines += _class_table(shown, title, partial(_class_cell, metric))
        if metric == "image_auroc":
            lines += _class_table(shown, f"{title}, spread over seeds", partial(_class_spread, metric))
    return [*lines, "In brackets in the heads: good + anomalous test images.", ""]


def _class_table(shown: Sequence[Row], title: str, cell: Callable[[Row, str], str]) -> list[str]:
    """Return a table of rows by classes without the columns that nothing is known of; nothing if none is left."""
    counts = {name: count for row in shown for name, count in sorted(row.counts.items())}
    cells = {name: [cell(row, name) for row in shown] for name in sorted(counts)}
    used = [name for name, column in cells.items() if set(column) != {"–"}]
    if not used:
        return []
    header = [title, "setting", "px", *(f"{name} ({counts[name][0]} + {counts[name][1]})" for name in used)]
    table = [[_method(row.key), row.key.setting, str(row.key.image_size), *(cells[name][place] for name in used)] for place, row in enumerate(shown)]
    return [*_table(header, table), ""]


def _class_cell(metric: str, row: Row, name: str) -> str:
    summary = row.of_classes(metric, [name])
    if summary is None:
        return "–"
    interval = row.image_interval(metric, name)
    return f"{summary.mean:.3f}" + ("" if interval is None else f" ({interval[0]:.3f}–{interval[1]:.3f})")


def _class_spread(metric: str, row: Row, name: str) -> str:
    return _spread(row.of_classes(metric, [name]))


def _quoted_tables(protocol: Protocol, found: Mapping[RowKey, Row]) -> list[str]:
    """Return the paper's figures, the own ones in a second line of each cell's method where there are any."""
    tables = published(protocol.quoted)
    if not tables:
        return []
    lines = ["### The paper's figures", "", "Quoted from SNL (arXiv 2402.17091), not measured here; rows marked *own* are the runs above.", ""]
    for table in tables:
        lines += _quoted_table(table, protocol, found)
    return [*lines, *(_quoted_ablation(found) if protocol.quoted == "mvtec" else [])]


def _quoted_table(table: Published, protocol: Protocol, found: Mapping[RowKey, Row]) -> list[str]:
    lines = []
    for setting in protocol.settings:
        rows_of_table = []
        for method in METHODS:
            rows_of_table.append([method, *(f"{table.value(method, name, setting):.3f}" for name in table.classes)])
            for row in _shown(found, (method,), with_peers=False):
                if row.key.setting == setting:
                    rows_of_table.append([f"*own* {method}", *_own_cells(row, table)])
        lines += [f"Table {table.table}, {METRICS[table.metric]}, {setting}", "", *_table(["method", *table.classes], rows_of_table), ""]
    return lines


def _own_cells(row: Row, table: Published) -> list[str]:
    summaries = [row.of_classes(table.metric, row.classes if name == "mean" else [name]) for name in table.classes]
    return ["–" if summary is None else f"{summary.mean:.3f}" for summary in summaries]


def _quoted_ablation(found: Mapping[RowKey, Row]) -> list[str]:
    table = []
    for variant, (image, pixel) in ABLATION.items():
        own = next((row for row in _shown(found, (variant,), with_peers=False) if row.key.setting == "multi-class"), None)
        figures = [own.of_classes(metric, own.classes) if own is not None else None for metric in ("image_auroc", "pixel_auroc")]
        table.append([variant, f"{image:.3f}", f"{pixel:.3f}", *("–" if figure is None else f"{figure.mean:.3f}" for figure in figures)])
    header = ["variant", "image AUROC, paper", "pixel AUROC, paper", "image AUROC, own", "pixel AUROC, own"]
    return ["Tables 5 and 6, mean over the classes, multi-class", "", *_table(header, table), ""]


def _method(key: RowKey) -> str:
    return key.variant if key.source == OWN else f"{key.variant} ({key.source})"


def _with_interval(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    return f"{summary.mean:.3f}" + ("" if summary.interval is None else f" [{summary.interval[0]:.3f}, {summary.interval[1]:.3f}]")


def _spread(summary: Summary | None) -> str:
    return "–" if summary is None or summary.spread is None else f"{summary.spread:.3f}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    numbers = "|".join("---" if index == 0 else "---:" for index in range(len(header)))
    return [f"| {' | '.join(header)} |", f"|{numbers}|", *(f"| {' | '.join(line)} |" for line in lines)]
