"""The protocols of the paper's tables run on folders of the published layouts of MVTec AD and VisA."""

import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("protocol", "layout", "count"), [("mvtec_paper", "mvtec_root", 210), ("visa_paper", "visa_root", 156)])
def test_paper_protocols_accept_the_published_layouts(protocol: str, layout: str, count: int, tmp_path: Path, command, request):
    data = request.getfixturevalue(layout)
    status, out, _ = command("--protocol", protocol, "--data", data, "--out", tmp_path, "--list")
    assert status == 0
    assert sum(line.startswith("open") for line in out.splitlines()) == count


@pytest.mark.parametrize(("protocol", "layout", "count"), [("mvtec_paper", "mvtec_root", 15), ("visa_paper", "visa_root", 12)])
def test_paper_protocols_run_on_the_published_layouts(protocol: str, layout: str, count: int, tmp_path: Path, command, request):
    plain = yaml.safe_load((ROOT / f"benchmarks/accuracy/protocols/{protocol}.yaml").read_text())
    plain |= {"image_sizes": [32], "resamples": 0}  # the paper's protocol in all but size
    plain["base"] = {"epochs": 1, "golden_samples": 2, "model": {"teacher": "resnet18", "teacher_weights": "random", "centers": 3}}
    small = tmp_path / f"{protocol}.yaml"
    small.write_text(yaml.safe_dump(plain, sort_keys=False))
    data = request.getfixturevalue(layout)
    arguments = ["--protocol", small, "--out", tmp_path / "runs", "--jobs", 1, "--device", "cpu"]
    only = "snl-fd_32_mvtec-ad_multi_s0" if protocol == "mvtec_paper" else "snl-fd_32_visa_multi_s0"
    status, out, err = command(*arguments, "--data", data, "--only", only)
    assert (status, "finished: all 1 runs" in out) == (0, True), err
    (facts,) = (json.loads(path.read_text()) for path in (tmp_path / "runs" / protocol).glob("snl-fd*_s0.json"))
    assert len(facts["evaluation"]["classes"]) == count
    assert facts["evaluation"]["mean"]["metrics"]["aupro"]["value"] is not None  # masks of label numbers too
    assert not list((tmp_path / "runs" / protocol).glob("*.pt"))  # keep_checkpoints: false
