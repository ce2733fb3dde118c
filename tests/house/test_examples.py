"""The examples do what they show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = str(Path(__file__).parents[2] / "examples")


def run_example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def test_embedded_detector_prints_a_verdict_per_part_and_stops_bad_ones(demo_folder: Path) -> None:
    images = "demo/data/images/washer/test"
    paths = [f"{images}/good/000.png", f"{images}/foreign_body/000.png", f"{images}/good/missing.png"]
    done = run_example(demo_folder, "examples/embed_in_python.py", "demo/line.onnx", "washer", *paths)
    assert done.returncode == 4, done.stderr
    verdicts = re.findall(r"^\S+\.png: (\w+)", done.stdout, re.MULTILINE)
    assert verdicts[1] in ("REJECT", "REVIEW", "ERROR")
    assert verdicts[2] == "ERROR"
    assert len(verdicts) == 3


@pytest.mark.parametrize("name", ["line.pt", "line.onnx", "line.json", "line.golden.npz", "verdicts.jsonl", "report.html"])
def test_demo_leaves_what_it_promises(demo_folder: Path, name: str) -> None:
    assert (demo_folder / "demo" / name).stat().st_size > 0


def test_demo_report_loads_nothing_from_elsewhere(demo_folder: Path) -> None:
    page = (demo_folder / "demo" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)


def test_same_seed_draws_the_same_products(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {EXAMPLES!r})\n"
        "import hashlib, numpy as np, generate_products as g\n"
        "digest = hashlib.sha256()\n"
        "for product in g.PRODUCTS:\n"
        "    for defect in (None, *g.DEFECTS):\n"
        "        image, mask = g.draw_part(product, defect, np.random.default_rng(3))\n"
        "        assert image.shape == (g.SIZE_PX, g.SIZE_PX, 3) and mask.any() == (defect is not None)\n"
        "        digest.update(image.tobytes() + mask.tobytes())\n"
        "print(digest.hexdigest())"
    )
    first, second = (run_example(tmp_path, "-c", program) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
