"""``snl-records``: ask a station's record."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import ConfigError
from snl_runtime.files import check_writable
from snl_runtime.text import to_json
from snl_runtime.types import Verdict

if TYPE_CHECKING:
    from snl_runtime.line.record_query import ProductCounts, RecordFilter, RecordReader

PROGRAM = "snl-records"
EXAMPLE = """
snl-records --store records.sqlite --since 2h --verdict REJECT --verdict ERROR
snl-records --store records.sqlite --since 2026-11-28 --summary
snl-records --store records.sqlite --product bottle --csv bottle.csv
"""
TABLE_LIMIT = 50
_TABLE = ("row", "captured_at", "camera", "trigger_id", "part_id", "product", "verdict", "reason_code", "answered", "score", "threshold")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _run(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "List, count or export the records of a station, also while it writes. A record must fit every option, and one value of a repeated option.",
        example=EXAMPLE,
    )
    parser.add_argument("--store", metavar="FILE", type=Path, required=True, help="the station's record, a SQLite file")
    chosen = parser.add_argument_group("which records")
    chosen.add_argument("--since", metavar="TIME", help="captured then or later: ISO 8601, UTC unless it says otherwise, or an age (90m, 2h, 7d)")
    chosen.add_argument("--until", metavar="TIME", help="captured before then; likewise")
    chosen.add_argument("--camera", metavar="NAME", action="append", default=[], help="of this camera; may be repeated")
    chosen.add_argument("--product", metavar="P", action="append", default=[], help="of this product; may be repeated")
    verdicts = [verdict.value for verdict in Verdict]
    chosen.add_argument("--verdict", action="append", default=[], choices=verdicts, help="with this verdict; may be repeated")
    chosen.add_argument("--reason", metavar="CODE", action="append", default=[], help="with this reason code; may be repeated")
    chosen.add_argument("--part-id", metavar="ID", action="append", default=[], help="of this part; may be repeated")
    chosen.add_argument("--trigger", metavar="N", type=_count, action="append", default=[], help="that answer this trigger; may be repeated")
    chosen.add_argument("--limit", metavar="N", type=_count, help=f"the newest N of them (default: {TABLE_LIMIT} in a table, all otherwise)")
    output = parser.add_argument_group("output (default: a table)")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--csv", metavar="FILE", type=Path, help="write them to a CSV file")
    form.add_argument("--parquet", metavar="FILE", type=Path, help="write them to a Parquet file; needs the package pyarrow")
    output.add_argument("--summary", action="store_true", help="counts per product and verdict, and first pass yield, instead of records")
    output.add_argument("--json", action="store_true", help="one JSON object per record and line; with --summary or a file exactly one object")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from snl_runtime.line.record_query import RecordReader

    chosen = _filter(arguments)
    file = arguments.csv or arguments.parquet
    if arguments.summary and (file or arguments.verdict or arguments.reason or arguments.limit):
        raise ConfigError("--summary counts every verdict and writes no file; leave --verdict, --reason, --limit, --csv and --parquet out")
    if file is not None:
        _check_file(arguments)
    with RecordReader(arguments.store) as reader:
        if arguments.summary:
            _print_summary(reader.summary(chosen), as_json=arguments.json)
        elif file is not None:
            _write(reader.rows(chosen, limit=arguments.limit), arguments)
        elif arguments.json:
            for row in reader.rows(chosen, limit=arguments.limit):
                print(to_json(row))
        else:
            _print_table(reader, chosen, arguments.limit or TABLE_LIMIT)
    return EXIT_OK


def _filter(arguments: argparse.Namespace) -> "RecordFilter":
    from snl_runtime.line.record_query import RecordFilter, parse_time

    now_s = time.time()
    return RecordFilter(
        since=None if arguments.since is None else parse_time(arguments.since, option="--since", now_s=now_s),
        until=None if arguments.until is None else parse_time(arguments.until, option="--until", now_s=now_s),
        cameras=arguments.camera,
        products=arguments.product,
        verdicts=arguments.verdict,
        reason_codes=arguments.reason,
        part_ids=arguments.part_id,
        trigger_ids=arguments.trigger,
    )


def _check_file(arguments: argparse.Namespace) -> None:
    from snl_runtime.line.record_exports import need_pyarrow

    file = arguments.csv or arguments.parquet
    if file.exists() and arguments.store.exists() and file.samefile(arguments.store):
        raise ConfigError(f"{file} is the store itself; name another file")
    if arguments.parquet is not None:
        need_pyarrow()
    check_writable(file)


def _write(rows: Iterable[dict[str, Any]], arguments: argparse.Namespace) -> None:
    from snl_runtime.line.record_exports import write_csv, write_parquet

    file = arguments.csv or arguments.parquet
    count = (write_csv if arguments.csv else write_parquet)(file, rows)
    print(to_json({"file": str(file), "records": count}) if arguments.json else f"{count} records in {file}")


def _print_table(reader: "RecordReader", chosen: "RecordFilter", limit: int) -> None:
    rows = [[_shown(row[name]) for name in _TABLE] for row in reader.rows(chosen, limit=limit)]
    if not rows:
        print(f"{PROGRAM}: no record of {reader.path} is chosen", file=sys.stderr)
        return
    _print_columns([list(_TABLE), *rows])
    if len(rows) == limit and (more := reader.count(chosen) - limit) > 0:
        print(f"{PROGRAM}: {more} older records are not shown; --limit N shows more, --json or --csv FILE all", file=sys.stderr)


def _print_summary(counts: "Sequence[ProductCounts]", *, as_json: bool) -> None:
    verdicts = [verdict.value for verdict in Verdict]
    if as_json:
        products = [
            {
                "product": each.product,
                "records": each.records,
                **{verdict: each.verdicts.get(verdict, 0) for verdict in verdicts},
                "parts": each.parts,
                "first_pass_yield": each.first_pass_yield,
            }
            for each in counts
        ]
        print(to_json({"products": products}))
        return
    if not counts:
        print(f"{PROGRAM}: no record is chosen", file=sys.stderr)
        return
    rows = []
    for each in counts:
        numbers = [str(each.verdicts.get(verdict, 0)) for verdict in verdicts]
        rows.append([_shown(each.product), str(each.records), *numbers, str(each.parts), f"{each.first_pass_yield:.2%}"])
    _print_columns([["product", "records", *verdicts, "parts", "first_pass_yield"], *rows])


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else " ".join(str(value).split())


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"must be 1 or more, and below 2**63, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
