"""Committed pages of tables are what the committed results give, and these are of their protocols as they are today."""

import json
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


@pytest.mark.parametrize("protocol", sorted(path.name for path in (ROOT / "benchmarks/accuracy/results").iterdir()))
def test_kept_rows_are_what_their_protocol_trains_and_scores_today(protocol):
    from benchmarks.accuracy.protocol import expand, load_protocol, train_config
    from benchmarks.accuracy.session import changed_settings

    shipped = load_protocol(protocol)
    (classes,) = shipped.class_sets.values()
    runs = {run.name: run for run in expand(shipped, classes)}
    records = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks/accuracy/results" / protocol).glob("*_s?.json")}
    ours = {name: record for name, record in records.items() if record["source"] == "snl-edge"}
    assert ours
    for name, record in ours.items():
        weights = record["config"]["model"]["teacher_weights"]
        config = train_config(shipped, record["variant"], image_size=record["image_size"], seed=record["seed"], weights=weights)
        assert not changed_settings(record, runs[name], config), name
