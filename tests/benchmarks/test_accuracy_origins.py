"""Runs of older sources stand beside newer ones only where what changed does not touch them."""

import pytest

from benchmarks.accuracy.origins import check_origins
from snl_runtime.errors import ConfigError

OLDER = "60e70ace0bc35c5e0e7862de35e4616649bd0df4806faee52813220845e45759"
NEWER = "65da4cf400b208e76bc60b50aeda1c9aee536900c4b1ff19a83bb0bac498b3a7"
GUARDED = "a037bc47dd500f68e075da517bf9a8ad4fca30fb18ebe5f7529647cfc7645dcc"


def run(source: str, optimizer: str | None) -> dict:
    piece = {"source_sha256": source, "device": "CPU one", "commit": source[:3], "versions": {}}
    config = {} if optimizer is None else {"optim": {"optimizer": optimizer}}
    return {"config": config, "data": {"test_sha256": {}}, "provenance": piece, "slices": [piece]}


@pytest.mark.parametrize(
    "runs",
    [
        [run(OLDER, "adam"), run(NEWER, "muon")],
        [run(OLDER, None), run(NEWER, "muon"), run(NEWER, "adam")],  # a peer has no optimiser of ours
        [run(OLDER, "muon"), run(OLDER, "adam"), run(OLDER, None)],
        [run(NEWER, "muon"), run(GUARDED, "muon"), run(GUARDED, "adam"), run(OLDER, "adam")],
    ],
)
def test_what_the_change_of_muon_leaves_alone_may_stand_together(runs):
    origins = check_origins("mine", runs, allow_mixed=False)
    assert not origins.is_mixed
    assert origins.sources == tuple(sorted({one["provenance"]["source_sha256"] for one in runs}))


@pytest.mark.parametrize("others", [[run(NEWER, "muon")], [run(GUARDED, "muon")], [run(NEWER, "adam")], [run("1" * 64, "adam")]])
def test_runs_with_the_older_muon_stand_with_older_runs_alone(others):
    with pytest.raises(ConfigError, match="the runs of mine come from sources"):
        check_origins("mine", [run(OLDER, "muon"), *others], allow_mixed=False)
    assert check_origins("mine", [run(OLDER, "muon"), *others], allow_mixed=True).is_mixed


def test_another_change_of_the_sources_stands_with_nothing_else():
    with pytest.raises(ConfigError, match="the runs of mine come from sources"):
        check_origins("mine", [run(OLDER, "adam"), run("1" * 64, "adam")], allow_mixed=False)
