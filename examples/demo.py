"""The whole line in minutes on two CPU cores: draw products, train, export, gate, calibrate, inspect a video, report.

    python examples/demo.py --out demo

Runs the same commands a user types, one after the other, and prints them. Ends with ``report.html`` and exit status 1 if the line did not keep
what it promises. Without ``--teacher-weights`` the teacher is a seeded random ResNet-18, unless torchvision has its ImageNet weights in its cache.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_report import Step, Tally, write_report
from generate_products import PRODUCTS, Amounts, write_products

MAX_FRR = 0.01
CONFIDENCE = 0.95
MIN_CORRECT_SHARE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large the demo is."""

    teacher_weights: str
    """File with ResNet-18 weights, or ``random``."""
    seed: int = 7
    """Seed of the products, the teacher and the training."""
    image_size: int = 128
    """Side of the network's input in pixels."""
    epochs: int = 8
    """Passes over the training parts."""
    train_parts: int = Amounts().train
    """Good parts to train on, of each product."""


class Demo:
    """Runs the steps in one folder and remembers the commands."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.steps: list[Step] = []

    def run(self, title: str, *arguments: str, stdout: Path | None = None) -> None:
        """Run one ``snl-`` command from this environment; stop the demo if it fails."""
        command = shlex.join(arguments) + (f" > {stdout}" if stdout else "")
        print(f"\n== {title}\n$ {command}", file=sys.stderr, flush=True)
        program = Path(sys.executable).parent / arguments[0]
        started_s = time.perf_counter()
        with stdout.open("wb") if stdout else nullcontext() as output:
            done = subprocess.run([str(program), *arguments[1:]], stdout=output, check=False)
        if done.returncode != 0:
            raise SystemExit(f"demo: '{command}' exited with status {done.returncode}")
        self.steps.append(Step(title=title, command=command, elapsed_s=time.perf_counter() - started_s))


def find_teacher_weights() -> str:
    """Return torchvision's cached ResNet-18 file if this machine has it, else ``random``."""
    cache = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints"
    found = sorted(cache.glob("resnet18-*.pth"))
    return str(found[0]) if found else "random"


def read_verdicts(path: Path) -> list[dict[str, Any]]:
    """Return the records that ``snl-run`` wrote, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_truth(line_folder: Path) -> list[str]:
    """Return ``good`` or the defect kind of every frame, in the order the videos were inspected."""
    return [kind for product in PRODUCTS for kind in json.loads((line_folder / f"{product}.json").read_text(encoding="utf-8"))]


def count_verdicts(records: list[dict[str, Any]], truth: list[str]) -> Tally:
    """Compare verdicts with the truth: right is PASS for a good part, REJECT or REVIEW for a bad one; ERROR is right for none."""
    if len(records) != len(truth):
        raise SystemExit(f"demo: {len(truth)} parts went by and {len(records)} verdicts came out")
    counts = Counter((kind, str(record["verdict"])) for kind, record in zip(truth, records))
    good_total = sum(n for (kind, _), n in counts.items() if kind == "good")
    good_passed = counts["good", "PASS"]
    bad_passed = sum(n for (kind, verdict), n in counts.items() if kind != "good" and verdict == "PASS")
    bad_stopped = sum(n for (kind, verdict), n in counts.items() if kind != "good" and verdict in ("REJECT", "REVIEW"))
    correct, allowed = good_passed + bad_stopped, _binomial_quantile(0.999, good_total, MAX_FRR)
    return Tally(
        counts=dict(counts),
        correct=correct,
        total=len(truth),
        bad_passed=bad_passed,
        good_refused=good_total - good_passed,
        good_total=good_total,
        allowed=allowed,
        kept=correct >= MIN_CORRECT_SHARE * len(truth) and good_total - good_passed <= allowed,
    )


def _binomial_quantile(level: float, trials: int, chance: float) -> int:
    """Return the smallest k with P(Binomial(trials, chance) <= k) >= level."""
    term = (1 - chance) ** trials
    total, k = term, 0
    while total < level:
        term *= (trials - k) / (k + 1) * chance / (1 - chance)
        total, k = total + term, k + 1
    return k


def run_demo(out: Path, plan: Plan) -> Tally:
    """Run every step into ``out`` and return what the line said."""
    demo = Demo(out)
    data, model, verdicts = out / "data", out / "line.onnx", out / "verdicts.jsonl"
    for made_before in (
        verdicts,
        *out.glob("line.*"),
        *out.glob("overlays/*/*.jpg"),
    ):  # the folder is the demo's own; another version may have made them
        made_before.unlink(missing_ok=True)
    print("== Draw three products with natural variation and five kinds of defects", file=sys.stderr)
    write_products(data, Amounts(train=plan.train_parts), plan.seed)
    demo.run(
        "Train one model for all products",
        *("snl-train", "--data", str(data / "images"), "--out", str(out / "line.pt"), "--method", "snl-rd", "--teacher", "resnet18"),
        *("--teacher-weights", plan.teacher_weights, "--image-size", str(plan.image_size), "--epochs", str(plan.epochs), "--seed", str(plan.seed)),
    )
    demo.run("Export to ONNX through the parity gate", "snl-export", "--ckpt", str(out / "line.pt"), "--out", str(model))
    demo.run(
        "Fit one threshold per product on good parts that training never saw",
        *("snl-calibrate", "--engine", str(model), "--good", str(data / "calibration")),
        *("--bad", str(data / "bad"), "--max-frr", str(MAX_FRR), "--confidence", str(CONFIDENCE)),
    )
    for product in PRODUCTS:
        demo.run(
            f"Inspect the {product} line",
            *("snl-run", "--engine", str(model), "--video", str(data / "line" / f"{product}.avi"), "--product", product),
            *("--jsonl", str(verdicts), "--overlay", str(out / "overlays" / product)),
        )
    demo.run(
        "Measure accuracy on parts with known truth",
        *("snl-eval", "--engine", str(model), "--data", str(data / "images"), "--json", "--report", str(out / "evaluation.html")),
        stdout=out / "evaluation.json",
    )
    records, truth = read_verdicts(verdicts), read_truth(data / "line")
    tally = count_verdicts(records, truth)
    teacher = "random, seeded: no download, lower accuracy" if plan.teacher_weights == "random" else Path(plan.teacher_weights).name
    write_report(out, demo.steps, tally, records, truth, teacher=teacher)
    return tally


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    defaults = Plan(teacher_weights=find_teacher_weights())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything the demo makes (default: demo)")
    parser.add_argument("--teacher-weights", default=defaults.teacher_weights, help="file with ResNet-18 weights, or random (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of the products, the teacher and the training (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, help="side of the network's input, px (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the training parts (default: %(default)s)")
    parser.add_argument("--train-parts", type=int, default=defaults.train_parts, help="good training parts of each product (default: %(default)s)")
    arguments = parser.parse_args(argv)
    started_s = time.perf_counter()
    out = arguments.out
    tally = run_demo(out, Plan(**{name: value for name, value in vars(arguments).items() if name != "out"}))
    print(
        f"\n{tally.correct} of {tally.total} parts judged rightly; {tally.good_refused} of {tally.good_total} good parts refused "
        f"(at most {tally.allowed} fit the promise of {MAX_FRR:.0%}); {time.perf_counter() - started_s:.0f} s; see {out / 'report.html'}"
    )
    return 0 if tally.kept else 1


if __name__ == "__main__":
    sys.exit(main())
