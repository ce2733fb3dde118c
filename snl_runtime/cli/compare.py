"""``snl-compare``: what a new model changes on an archive, and whether calibration allows for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snl_runtime.cli.command import EXIT_NOT_ALL_PASSED, EXIT_OK, CommandParser, need_packages, run_command
from snl_runtime.cli.model_flags import whole_number
from snl_runtime.files import atomic_write_text, check_writable
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.fleet.comparison import Allowance, Comparison, ProductComparison

PROGRAM = "snl-compare"
EXAMPLE = """
snl-compare results-old/ results-new/
snl-compare results-old/ results-new/ --html change.html --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _compare(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Compare two results of snl-inspect on one archive. Exit status 4 if more changed than calibration allows.",
        example=EXAMPLE,
    )
    parser.add_argument("old", metavar="OLD", type=Path, help="results of the model in use")
    parser.add_argument("new", metavar="NEW", type=Path, help="results of the model that is to replace it")
    parser.add_argument("--html", metavar="FILE", type=Path, help="page with the most changed images (default: NEW/_comparison.html)")
    parser.add_argument("--most", metavar="N", type=whole_number, default=24, help="images on the page (default: 24)")
    parser.add_argument("--json", action="store_true", help="report as one JSON object on standard output")
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    need_packages(("pyarrow",), what=PROGRAM, extra="fleet")
    from snl_runtime.fleet.comparison import compare_results
    from snl_runtime.fleet.comparison_page import render_page

    page = arguments.html or arguments.new / "_comparison.html"
    comparison = compare_results(arguments.old, arguments.new, most=arguments.most)
    check_writable(page)
    atomic_write_text(page, render_page(comparison, arguments.old, arguments.new))
    if arguments.json:
        print(to_json(_plain(comparison)))
    else:
        for product in comparison.products:
            _print(product)
        if comparison.only_old or comparison.only_new:
            print(f"not compared: {comparison.only_old} images in {arguments.old} only, {comparison.only_new} in {arguments.new} only")
        print(f"the changes are {'within' if comparison.is_within else 'BEYOND'} what calibration allows; look at what passes now: {page}")
    print(f"{PROGRAM}: {page} is written", file=sys.stderr)
    return EXIT_OK if comparison.is_within else EXIT_NOT_ALL_PASSED


def _print(product: "ProductComparison") -> None:
    print(f"{product.product or 'no product named'}: {product.rows} images")
    for (before, now), count in product.verdicts.items():
        print(f"  {before} -> {now}: {count}{'' if before != now else ' (unchanged)'}")
    print(f"  passed and are refused now: {_allowance(product.refused)}")
    print(f"  were refused and pass now: {_allowance(product.passed)}")
    print(f"  became ERROR: {product.new_errors}; were ERROR and pass now: {product.lost_errors}; not compared: {product.not_compared}")
    if any(product.ignored):
        before, now = (f"{100 * share:.3g} %" for share in product.ignored)
        is_within = product.ignored[1] <= product.ignored[0]
        print(f"  not judged (ignore mask): {before} of the inspected part before, {now} now: {'within' if is_within else 'BEYOND'}")
    shown = ", ".join(f"{percent} % {value:+.4f}" for percent, value in product.score_changes.items())
    print(f"  change of score / threshold, percentiles: {shown or 'none was scored twice'}")


def _allowance(allowance: "Allowance") -> str:
    share = "no promise" if allowance.share is None else f"at most {allowance.share:.4g} promised, probability {allowance.probability:.3g}"
    return f"{allowance.changed} of {allowance.of} ({share}): {'within' if allowance.is_within else 'BEYOND'}"


def _plain(comparison: "Comparison") -> dict[str, object]:
    import dataclasses

    products = []
    for product in comparison.products:
        plain = dataclasses.asdict(product) | {"is_within": product.is_within}
        plain["verdicts"] = [{"before": before, "now": now, "count": count} for (before, now), count in product.verdicts.items()]
        del plain["histogram"]
        products.append(plain)
    return {"products": products, "only_old": comparison.only_old, "only_new": comparison.only_new, "is_within": comparison.is_within}


if __name__ == "__main__":
    sys.exit(main())
