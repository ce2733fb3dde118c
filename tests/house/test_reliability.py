"""Every row of the fault table names a test that exists, and every injected fault has its row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "tests" / "station" / "faults"


def test_rows_of_the_fault_table_and_the_tests_of_faults_are_the_same() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\| `(test_\w+\.py::test_\w+)` \|", page))
    there = {f"{path.name}::{name}" for path in FAULTS.glob("test_*.py") for name in re.findall(r"(?m)^def (test_\w+)", path.read_text("utf-8"))}
    assert named == there
