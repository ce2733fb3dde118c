"""The whole line on real images: checkpoint and export side by side, thresholds from held-out good parts, verdicts on the test images.

    python benchmarks/realmix_line.py --data ../shared/data/realmix --ckpt runs/realmix/realmix.pt

Runs the commands that a user types and prints them into the page. The images are not part of the project; training comes first:

    snl-train --data ../shared/data/realmix --out runs/realmix/realmix.pt --method snl-rd --teacher resnet18 \\
        --teacher-weights ../shared/weights/resnet18_imagenet_stem-layer3.safetensors --image-size 128 --epochs 16 --hold-out 0.2 --seed 0 --threads 1
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VERDICTS = ("PASS", "REVIEW", "REJECT", "ERROR")
METRICS = {"image_auroc": "image AUROC", "image_f1_max": "image F1-max", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
MAX_FRR = "0.1"


class Line:
    """Runs commands in one folder and remembers them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.commands: list[str] = []

    def run(self, *arguments: str, allowed: Sequence[int] = (0,)) -> str:
        """Run one ``snl-`` command and return what it printed on stdout."""
        self.commands.append(shlex.join(arguments))
        print(f"$ {self.commands[-1]}", file=sys.stderr, flush=True)
        program = Path(sys.executable).parent / arguments[0]
        done = subprocess.run([str(program), *arguments[1:]], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in allowed:
            raise SystemExit(f"'{self.commands[-1]}' exited with status {done.returncode}")
        return done.stdout


def evaluation_table(of_checkpoint: dict[str, Any], of_export: dict[str, Any]) -> list[str]:
    """Return a Markdown table: each metric of the checkpoint and, behind a slash, of the exported ONNX."""
    lines = [f"| class | good | bad | {' | '.join(METRICS.values())} |", "|---|---|---|" + "---|" * len(METRICS)]
    groups = [*of_checkpoint["classes"], "mean", "pooled"]
    for name in groups:
        first = of_checkpoint["classes"].get(name) or of_checkpoint[name]
        second = of_export["classes"].get(name) or of_export[name]
        cells = [f"{_measure(first['metrics'][key])} / {_value(second['metrics'][key])}" for key in METRICS]
        lines.append(f"| {name} | {first['good']} | {first['anomalous']} | {' | '.join(cells)} |")
    return lines


def _measure(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "no masks"
    interval = metric["interval"]
    return _value(metric) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _value(metric: dict[str, Any]) -> str:
    return "no masks" if metric["value"] is None else f"{metric['value']:.4f}"


def calibration_table(products: Sequence[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of what each product's calibration gave, refusals included."""
    lines = ["| product | held-out good parts | pass threshold | synthetic defects detected | outcome |", "|---|---|---|---|---|"]
    for product in products:
        decision = product["decision"]
        threshold = f"{decision['pass_threshold']:.4f}" if decision else "none"
        evidence = product.get("evidence") or {}
        rate = f"{evidence['detection_rate']:.0%}" if evidence.get("detection_rate") is not None else "not reached"
        outcome = "fitted" if decision else f"refused: {product['refusal']}"
        lines.append(f"| {product['product']} | {product['sample_count']} | {threshold} | {rate} | {outcome} |")
    return lines


def confusion_table(records: Sequence[dict[str, Any]], fitted: Sequence[str]) -> list[str]:
    """Return a Markdown table: verdicts on the good and bad test images of each product that has a threshold."""
    counts = Counter((record["product"], _truth(record), record["verdict"]) for record in records)
    lines = [f"| product | truth | {' | '.join(VERDICTS)} |", "|---|---|" + "---|" * len(VERDICTS)]
    for product in fitted:
        for truth in ("good", "bad"):
            cells = " | ".join(str(counts[product, truth, verdict]) for verdict in VERDICTS)
            lines.append(f"| {product} | {truth} | {cells} |")
    return lines


def _truth(record: dict[str, Any]) -> str:
    return "good" if Path(record["source_id"]).parent.name == "good" else "bad"


def inspect_tests(line: Line, model: Path, data: Path, products: Sequence[str]) -> list[dict[str, Any]]:
    """Run ``snl-run`` on every folder of test images of every product and return the records."""
    verdicts = line.work / "verdicts.jsonl"
    verdicts.unlink(missing_ok=True)
    for product in products:
        folder = data / product / "test"
        line.run("snl-run", "--engine", str(model), "--images", str(folder), "--product", product, "--jsonl", str(verdicts))
    return [json.loads(text) for text in verdicts.read_text(encoding="utf-8").splitlines()]


def run_line(data: Path, checkpoint: Path) -> str:
    """Run every step and return the page's section in Markdown."""
    line = Line(checkpoint.parent)
    model = checkpoint.with_suffix(".onnx")
    of_checkpoint = json.loads(line.run("snl-eval", "--ckpt", str(checkpoint), "--data", str(data), "--json"))
    line.run("snl-export", "--ckpt", str(checkpoint), "--out", str(model))
    of_export = json.loads(line.run("snl-eval", "--engine", str(model), "--data", str(data), "--json"))
    # magnetic_tile is cut out to the tile: hardly two images have one size
    calibrate = ("snl-calibrate", "--engine", str(model), "--good", str(data), "--held-out", "--any-size", "--max-frr", MAX_FRR, "--json")
    products = json.loads(line.run(*calibrate, allowed=(0, 3)))["products"]  # 3: some products were refused, the table says why
    fitted = [product["product"] for product in products if product["decision"]]
    records = inspect_tests(line, model, data, fitted)
    provenance = of_checkpoint["provenance"]
    parts = [
        _heading(provenance, checkpoint),
        "### Accuracy: checkpoint / exported ONNX",
        "\n".join(evaluation_table(of_checkpoint, of_export)),
        f"### Thresholds from held-out good images (`--max-frr {MAX_FRR}`, 95 % confidence, 29 needed)",
        "\n".join(calibration_table(products)),
        "### Verdicts of `snl-run` on the test images",
        "\n".join(confusion_table(records, fitted)),
        "Nothing but these runs and `snl-eval` touched the test images; products without a threshold are left out: `snl-run` gives them ERROR.",
        "### Commands",
        "```\n" + "\n".join(line.commands) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _heading(provenance: dict[str, Any], checkpoint: Path) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    return (
        f"Printed by `python benchmarks/realmix_line.py` on {date.today().isoformat()} at commit {commit}: {versions}; "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU. Checkpoint `{checkpoint.name}`: {_training(provenance)}."
    )


def _training(provenance: dict[str, Any]) -> str:
    config = provenance["config"]
    config = config.get("training", config).get("config", config)
    model = config.get("model", {})
    height, width = config.get("image_size", ("?", "?"))
    return (
        f"{model.get('method')}, teacher {model.get('teacher')}, {height} x {width}, {config.get('epochs')} epochs, "
        f"seed {config.get('seed')}, last epoch, one run"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real images, MVTec AD layout")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint trained with --hold-out")
    parser.add_argument("--out", type=Path, help="file to write the section to (default: stdout)")
    arguments = parser.parse_args(argv)
    text = run_line(arguments.data, arguments.ckpt)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
