"""Committed pages of tables are what the committed results give."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "results", "only"),
    [
        ("accuracy", "results", None),
        ("accuracy-without-focus", "results-without-focus", "reduced256"),
        ("accuracy-epyc", "results-epyc", "reduced256"),
        ("accuracy-peers-cpu", "results-peers-cpu", "full"),
        ("accuracy-half-precision-muon", "results-half-precision-muon", "constant256,full,full384,long,parts,reduced256"),
    ],
)
def test_committed_page_is_made_from_the_kept_results(page, results, only):
    from benchmarks.accuracy.render import render

    assert (ROOT / f"docs/{page}.md").read_text() == render(ROOT / "benchmarks/accuracy" / results, only=only)
