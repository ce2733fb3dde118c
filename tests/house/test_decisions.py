"""Records of decisions stay short, complete and findable."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))


def test_records_are_numbered_without_gaps():
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_says_context_decision_and_evidence_in_at_most_40_lines(record):
    lines = record.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith(f"# {record.name[:4]}. ")
    assert re.fullmatch(r"Status: accepted, \d{4}-\d{2}-\d{2}", lines[2])
    assert [line for line in lines if line.startswith("## ")][:3] == ["## Context", "## Decision", "## Evidence"]


def test_the_index_lists_every_record_once_with_its_title():
    listed = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+?) \| ", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    titles = [(r.name[:4], r.name, r.read_text(encoding="utf-8").splitlines()[0].removeprefix(f"# {r.name[:4]}. ")) for r in RECORDS]
    assert sorted(listed) == titles
