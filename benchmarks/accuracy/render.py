"""``python -m benchmarks.accuracy.render --out FOLDER``: the pages of results, their tables filled in from the CSV files in ``benchmarks/results``.

A page in ``docs/results`` has a line ``<!-- table: NAME -->`` where the tables of ``NAME.csv`` go. Beside the filled pages, FOLDER gets a page with
the figures of each class and a plot per protocol. Needs neither torch nor images.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy.page_tables import (
    markdown_table,
    method,
    ordered,
    protocol_classes,
    protocol_tables,
    scope_of,
    seed_range,
    varying,
    with_interval,
)
from benchmarks.accuracy.plot import dot_plot
from benchmarks.accuracy.protocol import Protocol, known_protocols, load_protocol
from benchmarks.accuracy.results import ACCURACY
from benchmarks.accuracy.statistics import Row, rows, summarize
from benchmarks.accuracy.tables import COMBINATIONS, CONTAMINATION, KINDS, MIXTURES, RESULTS, SCORING, read_rows
from benchmarks.accuracy.tables import Row as TableRow
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import ConfigError
from snl_runtime.files import atomic_write_text

PROGRAM = "benchmarks.accuracy.render"
PAGES = Path(__file__).resolve().parents[2] / "docs" / "results"
MARKER = re.compile(r"^<!-- table: ([a-z0-9_]+) -->$", re.MULTILINE)
_CLASSES_OF = "reduced256"
"""Protocol whose development and held-out classes the scoring ablation shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser(
        PROGRAM, "Write the pages of results with their tables.", example="\npython -m benchmarks.accuracy.render --out build/results\n"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write pages and plots to")
    parser.add_argument("--pages", type=Path, default=PAGES, metavar="DIR", help="pages with markers (default: docs/results)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the tables (default: benchmarks/results)")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM)


def _run(options: argparse.Namespace) -> int:
    files = rendered(options.pages, options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write_text(options.out / name, text)
    print(f"{options.out}: {len(files)} files")
    return EXIT_OK


def rendered(pages: Path, results: Path) -> dict[str, str]:
    """Return the text of every file of the built pages by its name.

    Raises:
        ConfigError: If a marker names no table, or there is no page.
        DataError: If a table cannot be read.
    """
    sources = sorted(pages.glob("*.md"))
    if not sources:
        raise ConfigError(f"there are no pages in {pages}; expected Markdown files with <!-- table: NAME --> lines")
    files: dict[str, str] = {}
    for page in sources:

        def fill(found: re.Match[str], page: Path = page) -> str:
            name = found[1]
            if not (results / f"{name}.csv").is_file():
                raise ConfigError(f"{page} shows the table {name!r}, and there is no {results / f'{name}.csv'}")
            if name not in known_protocols():
                return "\n".join(_OTHERS.get(name, _as_it_is)(results / f"{name}.csv"))
            protocol = load_protocol(name)
            shown = list(rows(read_rows(results / f"{name}.csv", ACCURACY)).values())
            files[f"{name}.md"] = "\n".join(protocol_classes(protocol, shown))
            files[f"{name}.svg"] = _plot(protocol, shown)
            image = f"![Image AUROC of each seed]({name}.svg)"
            return "\n".join([*protocol_tables(protocol, shown), image, "", f"Figures of each class: [{protocol.title}]({name}.md)."])

        files[page.name] = MARKER.sub(fill, page.read_text(encoding="utf-8"))
    return files


def _plot(protocol: Protocol, shown: Sequence[Row]) -> str:
    """Return a dot per seed of each row: image AUROC on the held-out classes, on all classes where a protocol has none."""
    classes = protocol.held_out or tuple(sorted({name for row in shown for name in row.classes}))
    told = varying(shown)
    dots = {", ".join([method(row), *scope_of(row, told)]): row.per_seed("image_auroc", classes) for row in ordered(protocol, shown)}
    what = "held-out classes" if protocol.held_out else "all classes"
    values = {label: list(of_seeds.values()) for label, of_seeds in dots.items() if of_seeds}
    return dot_plot(values, f"image AUROC, mean over the {what}; a dot per seed")


def _scoring(path: Path) -> list[str]:
    """Return a table per model: means over the development and the held-out classes, then over seeds."""
    protocol = load_protocol(_CLASSES_OF)
    found = read_rows(path, SCORING)
    lines = []
    for model in dict.fromkeys(row["model"] for row in found):
        lines += _ways_to_score(f"`{model}`", [row for row in found if row["model"] == model], protocol)
    return lines


def _combinations(path: Path) -> list[str]:
    """Return a table per protocol and model, as :func:`_scoring`."""
    found = read_rows(path, COMBINATIONS)
    lines = []
    for name, model in dict.fromkeys((row["protocol"], row["model"]) for row in found):
        ours = [row for row in found if (row["protocol"], row["model"]) == (name, model)]
        lines += _ways_to_score(f"`{name}`, `{model}`", ours, load_protocol(name))
    return lines


def _ways_to_score(title: str, found: Sequence[TableRow], protocol: Protocol) -> list[str]:
    """Return a table of some rows; a protocol without development or held-out classes has no columns for them."""
    sets = {name: classes for name, classes in {"development": protocol.development, "held-out": protocol.held_out}.items() if classes}
    table = []
    for scoring in dict.fromkeys(row["scoring"] for row in found):
        ours = [row for row in found if row["scoring"] == scoring]
        means = [
            _mean_of_seeds([row for row in ours if row["class"] in classes], metric)
            for classes in sets.values()
            for metric in ("image_auroc", "pixel_auroc")
        ]
        table.append([scoring, *("–" if mean is None else f"{mean:.4f}" for mean in means)])
    header = ["scoring", *(f"{name}, {kind}" for name in sets for kind in ("image", "pixel"))]
    return [f"{title}, {_told(found)}", "", *markdown_table(header, table), ""]


def _contamination(path: Path) -> list[str]:
    """Return a line per share of bad images and of images that a center had to stand for: means over classes, then over seeds."""
    found = read_rows(path, CONTAMINATION)
    metrics = ("image_auroc", "pixel_auroc", "moved_auroc", "moved_auroc_without")
    lines = []
    for name, variant in dict.fromkeys((row["protocol"], row["variant"]) for row in found):
        of_variant = [row for row in found if (row["protocol"], row["variant"]) == (name, variant)]
        table = []
        for percent, asked in sorted({(int(row["bad_percent"]), int(row["images_per_center"])) for row in of_variant}):
            ours = [row for row in of_variant if (row["bad_percent"], row["images_per_center"]) == (str(percent), str(asked))]
            means = [_mean_of_seeds(ours, metric) for metric in metrics]
            cells = ["–" if mean is None else f"{mean:.3f}" for mean in means]
            table.append([f"{percent} %", str(asked), str(len({row["seed"] for row in ours})), *cells])
        header = ["bad images", "images per center", "seeds", "image AUROC", "pixel AUROC", "the bad ones", "the bad ones, fitted without"]
        lines += [f"`{name}`, {variant}, {_told(of_variant)}", "", *markdown_table(header, table), ""]
    return lines


def _mean_of_seeds(found: Sequence[TableRow], metric: str) -> float | None:
    seeds = dict.fromkeys(row["seed"] for row in found)
    means = [[float(row[metric]) for row in found if row["seed"] == seed and row[metric]] for seed in seeds]
    summary = summarize([float(np.mean(values)) for values in means if values])
    return None if summary is None else summary.mean


def _mixtures(path: Path) -> list[str]:
    """Return a line per model: means over pairs or classes, then over seeds."""
    found = read_rows(path, MIXTURES)
    table = []
    for model in dict.fromkeys(row["model"] for row in found):
        cells = []
        for kind in KINDS:
            ours = [row for row in found if row["model"] == model and row["kind"] == kind]
            per_seed = [np.mean([float(row["auroc"]) for row in ours if row["seed"] == seed]) for seed in dict.fromkeys(row["seed"] for row in ours)]
            summary = summarize([float(value) for value in per_seed])
            cells += [with_interval(summary), seed_range(summary)]
        table.append([model, str(len({row["seed"] for row in found if row["model"] == model})), *cells])
    header = ["model", "seeds", *(part for title in KINDS.values() for part in (title, "range"))]
    return [_told(found), "", *markdown_table(header, table), ""]


def _told(found: Sequence[TableRow]) -> str:
    """Return seeds, device, commits and days of some rows in words."""
    seeds, devices, commits, days = (sorted({row[name] for row in found}) for name in ("seed", "device", "commit", "date"))
    return f"seeds {', '.join(seeds)}, {', '.join(devices)}, commit {', '.join(commits)}, {', '.join(days)}."


def _as_it_is(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *table = csv.reader(file)
    return [*markdown_table([name.replace("_", " ") for name in header], table), ""]


_OTHERS: dict[str, Callable[[Path], list[str]]] = {
    "scoring": _scoring,
    "combinations": _combinations,
    "contamination": _contamination,
    "mixtures": _mixtures,
}

if __name__ == "__main__":
    sys.exit(main())
