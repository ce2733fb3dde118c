"""docs/decisions holds short records of one form, and its index lists each of them."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
MAX_LINES = 40


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_record_is_short_and_states_context_decision_and_evidence(record):
    lines = record.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert re.fullmatch(rf"# {int(record.stem[:4])}\. .+", lines[0])
    assert lines[2].startswith("Status: accepted")
    assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Evidence"]


def test_index_lists_every_record_once_by_its_title():
    rows = re.findall(r"^\| (\d+) \| \[([^]]+)\]\(([^)]+)\) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    titles = [record.read_text(encoding="utf-8").splitlines()[0].split(". ", 1)[1] for record in RECORDS]
    expected = [(str(number), title, record.name) for number, (title, record) in enumerate(zip(titles, RECORDS, strict=True), 1)]
    assert sorted(rows, key=lambda row: int(row[0])) == expected  # within its subject a record comes where it is read best
