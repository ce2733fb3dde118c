"""The whole line on real images: checkpoint and export side by side, thresholds from held-out good parts, verdicts on the test images.

    python -m benchmarks.realmix_line --data ../shared/data/realmix --ckpt runs/realmix/realmix.pt

Runs the commands that a user types, prints what they gave and adds the verdicts to ``benchmarks/results/line.csv``; ``--fixed-pose`` gives the
rows with a normalization map. A product that calibration refuses gets no row. The images are not part of the project; training comes first:

    snl-train --data ../shared/data/realmix --out runs/realmix/realmix.pt --method snl-rd --teacher resnet18 \\
        --teacher-weights ../shared/weights/resnet18_imagenet_stem-layer3.safetensors --image-size 128 --epochs 16 --hold-out 0.2 --seed 0 --threads 1
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.provenance import origin as origin_of
from benchmarks.accuracy.tables import LINE, RESULTS, merge_rows
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.files import check_writable

PROGRAM = "benchmarks.realmix_line"
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


def rows_of(products: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], *, normalization_map: bool) -> list[dict[str, str]]:
    """Return a row for each product that has a threshold, without its origin."""
    counts = Counter((record["product"], _truth(record), record["verdict"] == "PASS") for record in records)
    rows = []
    for product in products:
        if product["decision"]:
            name = product["product"]
            good, bad = ({passed: counts[name, truth, passed] for passed in (True, False)} for truth in ("good", "bad"))
            rows.append(
                {
                    "product": name,
                    "normalization_map": "yes" if normalization_map else "no",
                    "pass_threshold": f"{product['decision']['pass_threshold']:.4f}",
                    "synthetic_defects_detected": f"{100 * product['evidence']['detection_rate']:.0f} %",
                    "good": str(sum(good.values())),
                    "good_not_passed": str(good[False]),
                    "bad": str(sum(bad.values())),
                    "bad_passed": str(bad[True]),
                }
            )
    return rows


def run_line(data: Path, checkpoint: Path, origin: dict[str, str], *, fixed_pose: bool) -> tuple[str, list[dict[str, str]]]:
    """Run every step and return what to read, in Markdown, and the rows of the table."""
    line = Line(checkpoint.parent)
    model = checkpoint.with_suffix(".onnx")
    of_checkpoint = json.loads(line.run("snl-eval", "--ckpt", str(checkpoint), "--data", str(data), "--json"))
    line.run("snl-export", "--ckpt", str(checkpoint), "--out", str(model))
    of_export = json.loads(line.run("snl-eval", "--engine", str(model), "--data", str(data), "--json"))
    # magnetic_tile is cut out to the tile: hardly two images have one size
    calibrate = ["snl-calibrate", "--engine", str(model), "--good", str(data), "--held-out", "--any-size", "--max-frr", MAX_FRR, "--json"]
    calibrate += ["--fixed-pose"] if fixed_pose else []
    products = json.loads(line.run(*calibrate, allowed=(0, 3)))["products"]  # 3: some products were refused, the table says why
    fitted = [product["product"] for product in products if product["decision"]]
    records = inspect_tests(line, model, data, fitted)
    provenance = of_checkpoint["provenance"]
    parts = [
        _heading(provenance, checkpoint, origin),
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
    rows = rows_of(products, records, normalization_map=fixed_pose)
    return "\n\n".join(parts), [row | origin for row in rows]


def _heading(provenance: dict[str, Any], checkpoint: Path, origin: dict[str, str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    return (
        f"Printed by `python -m benchmarks.realmix_line` on {origin['date']} at commit {origin['commit']}: {versions}; "
        f"{os.cpu_count()} cores, {origin['device']}. Checkpoint `{checkpoint.name}`: {_training(provenance)}."
    )


def _training(provenance: dict[str, Any]) -> str:
    config = provenance["config"]
    config = config.get("training", config).get("config", config)
    model = config.get("model", {})
    height, width = config.get("image_size", ("?", "?"))
    budgets = [f"{config[name]} {name}" for name in ("steps", "epochs") if config.get(name) is not None]
    return (
        f"{model.get('method')}, teacher {model.get('teacher')}, {height} x {width}, {budgets[0] if budgets else 'default budget'}, "
        f"seed {config.get('seed')}, last step, one run"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real images, MVTec AD layout")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint trained with --hold-out")
    parser.add_argument("--fixed-pose", action="store_true", help="calibrate with a normalization map per product")
    parser.add_argument("--out", type=Path, default=RESULTS / "line.csv", metavar="FILE", help="table (default: benchmarks/results/line.csv)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    return run_command(lambda: _run(parser.parse_args(argv)), program=PROGRAM)


def _run(options: argparse.Namespace) -> int:
    check_writable(options.out)
    text, rows = run_line(options.data, options.ckpt, origin_of("cpu", options.commit), fixed_pose=options.fixed_pose)
    print(text)
    replaced = merge_rows(options.out, LINE, rows)
    print(f"\n{options.out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
