"""Rows of the device check: each either passed, failed, or says why it was not run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from snl_runtime.errors import BackendUnavailableError

PASSED: Literal["passed"] = "passed"
FAILED: Literal["FAILED"] = "FAILED"
NOT_RUN: Literal["not run"] = "not run"

EXIT_ALL_PASSED = 0
EXIT_FAILED = 3
EXIT_NOT_ALL_RUN = 4


class NotRunError(Exception):
    """A check has no device, file or tool to run with; the message says which."""


class CheckFailedError(Exception):
    """A check ran and what it saw is wrong; the message holds the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        part: What was checked.
        outcome: passed, FAILED or not run.
        figures: What was measured, or why not.
        seconds: How long it took.
    """

    part: str
    outcome: Literal["passed", "FAILED", "not run"]
    figures: str
    seconds: float


def check(part: str, body: Callable[[], str]) -> Row:
    """Run one check; nothing that goes wrong in it stops the next one."""
    started_s = time.perf_counter()
    outcome: Literal["passed", "FAILED", "not run"] = PASSED
    try:
        figures = body()
    except (NotRunError, BackendUnavailableError) as reason:
        outcome, figures = NOT_RUN, str(reason)
    except Exception as failure:  # noqa: BLE001 - the table is the report: whatever it was belongs into it
        outcome, figures = FAILED, f"{type(failure).__name__}: {failure}"
    return Row(part=part, outcome=outcome, figures=" ".join(figures.split()).replace("|", "/"), seconds=time.perf_counter() - started_s)


def exit_status(rows: list[Row]) -> int:
    """Return 3 if a check failed, 4 if none failed and some were not run, 0 if all passed."""
    outcomes = {row.outcome for row in rows}
    if FAILED in outcomes:
        return EXIT_FAILED
    return EXIT_NOT_ALL_RUN if NOT_RUN in outcomes else EXIT_ALL_PASSED


def as_markdown(rows: list[Row], *, heading: str) -> str:
    """Return the table as a page that can be sent as it is."""
    lines = [f"# {heading}", "", "| part | result | seconds |", "|---|---|---|"]
    lines += [f"| {row.part} | {row.outcome}: {row.figures} | {row.seconds:.1f} |" for row in rows]
    counts = ", ".join(f"{sum(row.outcome == outcome for row in rows)} {outcome}" for outcome in (PASSED, FAILED, NOT_RUN))
    return "\n".join([*lines, "", f"{counts}.", ""])
