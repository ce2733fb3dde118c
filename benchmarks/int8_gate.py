"""INT8 judged on images that it never saw: ranges from training images, the gate and these figures from test images.

    python -m benchmarks.int8_gate --ckpt runs/realmix/realmix.pt --data ../shared/data/realmix --work runs/int8

Exports and calibrates with the commands that a user types, with and without a review band, and prints what the gate said. The table beside it is made
without the gate: each map of a quantized graph against the float graph's, by NumPy. Its rows go into ``benchmarks/results/int8.csv``. An export that
lies in --work already is used again.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.accuracy import provenance
from benchmarks.accuracy.tables import INT8, RESULTS, Row, merge_rows
from snl_calibration.quantize import DEFAULT_PARTS, PARTS, calibration_images, quantize_backbone
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.files import check_writable, sha256_file
from snl_runtime.images.files import read_image
from snl_runtime.images.listing import list_images
from snl_runtime.model.manifest import manifest_path, read_manifest
from snl_runtime.parity.meter import correlation_of, correlation_text
from snl_runtime.progress import Progress
from snl_runtime.scorer import Scorer
from snl_train.metrics import roc_auc

PROGRAM = "benchmarks.int8_gate"
_EXAMPLE = """
python -m benchmarks.int8_gate --ckpt runs/realmix/realmix.pt --data realmix --work runs/int8
"""
MAX_FRR = "0.1"
PART_SETS = {"default": DEFAULT_PARTS, "all": PARTS}
GATED = (("0", "default"), ("0.1", "default"), ("0.1", "all"))
"""Review band and parts of each gated export; without held-out images there is no decision to flip, and the first is enough."""
HEADINGS = {
    "product": "product",
    "images": "images",
    "correlation_lowest": "correlation, lowest",
    "correlation_median": "median",
    "largest_change_of_peak": "largest change of a map value / peak",
    "image_auroc_float": "image AUROC, float",
    "image_auroc_int8": "8 bits",
    "flips": "flips",
    "flips_outside_10_percent_band": "outside a band of 10 %",
}
SUFFIXES = (".onnx", ".json", ".golden.npz")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What one graph gave for every test image: (n,) scores and (n, H, W) maps."""

    scores: npt.NDArray[np.float64]
    maps: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TestImages:
    """The test images with what their folders say."""

    paths: list[Path]
    products: npt.NDArray[np.str_]
    is_bad: npt.NDArray[np.bool_]


def read_test_images(data: Path) -> TestImages:
    """Return the test images of every product below a data set in MVTec AD's layout."""
    paths = [path for folder in sorted(data.glob("*/test")) for path in list_images(folder).taken]
    products = np.array([path.relative_to(data).parts[0] for path in paths])
    return TestImages(paths, products, np.array([path.parent.name != "good" for path in paths]))


def link_images(data: Path, work: Path) -> None:
    """Put links to training good images into ``ranges``, to test images into ``frames`` and to bad ones into ``bad``, so that no folder holds
    both.
    """
    for product in sorted(path.parent.name for path in data.glob("*/test")):
        kinds = [path.name for path in (data / product / "test").iterdir() if path.is_dir()]
        folders = {f"ranges/{product}/good": data / product / "train" / "good"}
        folders |= {f"frames/{product}/{kind}": data / product / "test" / kind for kind in kinds}
        folders |= {f"bad/{product}/{kind}": data / product / "test" / kind for kind in kinds if kind != "good"}
        for name, source in folders.items():
            (work / name).mkdir(parents=True, exist_ok=True)
            for image in list_images(source).taken:
                link = work / name / image.name
                if not link.is_symlink():
                    link.symlink_to(image.resolve())


def command(*arguments: str, allowed: Sequence[int] = (0,)) -> tuple[int, str]:
    """Run one ``snl-`` command, echo it on stdout and return its status and the last line it wrote to stderr."""
    print(f"$ {shlex.join(arguments)}", flush=True)
    program = Path(sys.executable).parent / arguments[0]
    done = subprocess.run([str(program), *arguments[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    if done.returncode not in allowed:
        raise SystemExit(f"exit status {done.returncode}: {lines[-1] if lines else ''}")
    return done.returncode, lines[-1] if lines else ""


def export_float(checkpoint: Path, work: Path) -> Path:
    """Return the fp32 export of the checkpoint, made unless it is there."""
    model = work / "float" / "line.onnx"
    path = manifest_path(model)
    if path.exists() and read_manifest(path).training["checkpoint_sha256"] == sha256_file(checkpoint):
        return model
    command("snl-export", "--ckpt", str(checkpoint), "--out", str(model), "--engine", "none")
    return model


def gate(checkpoint: Path, data: Path, work: Path, float_model: Path, *, band: str, parts: str) -> dict[str, float]:
    """Calibrate the float export, export INT8 over it, print what the gate said, and return the pass thresholds that it had to keep."""
    folder = work / f"band-{band}-{parts}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = folder / "line.onnx"
    for suffix in SUFFIXES:
        shutil.copy(float_model.with_suffix(suffix), model.with_suffix(suffix))
    fit = ("--held-out", "--max-frr", MAX_FRR, "--review-band", band, "--bad", str(work / "bad"))
    if read_manifest(manifest_path(model)).held_out:
        command("snl-calibrate", "--engine", str(model), "--good", str(data), *fit, allowed=(0, 3))  # 3: some products were refused
    decisions = read_manifest(manifest_path(model)).decisions
    print(f"decisions: {', '.join(decision.product for decision in decisions) or 'none'}")
    quantize = ("--int8", "--int8-parts", ",".join(PART_SETS[parts]), "--calib-data", str(work / "ranges"), "--frames", str(work / "frames"))
    status, last = command("snl-export", "--ckpt", str(checkpoint), "--out", str(model), *quantize, "--engine", "none", allowed=(0, 3))
    if status == 0:
        (report,) = read_manifest(manifest_path(model)).parity
        drift = f"AUROC changes by {100 * (report.auroc_drift or 0):.2f} points, {report.flips} flips"
        last = f"passed: {correlation_text(report)}, map {report.map_max_abs:.3g} of {report.map_scale:.3g}, {drift}, {report.frame_count} frames"
    print(f"exit {status}: {last}\n")
    return {decision.product: decision.pass_threshold for decision in decisions}


def score_all(model: Path, images: TestImages, label: str) -> Scores:
    """Score every test image with a graph on the CPU."""
    with Scorer(model, backend="onnxruntime", golden_check=False) as scorer, Progress(len(images.paths), unit="images", label=label) as progress:
        scores, maps = [], []
        for path in images.paths:
            scored = scorer.score(read_image(path), "rgb")
            scores.append(scored.score)
            maps.append(scored.anomaly_map)
            progress.advance()
    return Scores(np.array(scores), np.stack(maps))


def figures(images: TestImages, expected: Scores, actual: Scores, thresholds: dict[str, float]) -> list[dict[str, str]]:
    """Return what eight bits change, a row per product and one for all of them, without parts and origin."""
    correlations = np.array([correlation_of(*(maps.astype(np.float64) for maps in pair)) for pair in zip(expected.maps, actual.maps)])
    changes = _changes(expected, actual)
    rows = []
    for name in [*np.unique(images.products), "all"]:
        chosen = images.products == name if name != "all" else np.ones(len(images.paths), dtype=bool)
        before, after = (roc_auc(images.is_bad[chosen], answers.scores[chosen]) for answers in (expected, actual))
        flips = [_flips(expected.scores[chosen], actual.scores[chosen], thresholds.get(str(name)), band) for band in (0.0, 0.1)]
        rows.append(
            {
                "product": str(name),
                "images": str(chosen.sum()),
                "correlation_lowest": f"{correlations[chosen].min():.4f}",
                "correlation_median": f"{np.median(correlations[chosen]):.4f}",
                "largest_change_of_peak": f"{changes[chosen].max():.4f}",
                "image_auroc_float": f"{before:.4f}",
                "image_auroc_int8": f"{after:.4f}",
                "flips": flips[0],
                "flips_outside_10_percent_band": flips[1],
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [list(HEADINGS.values()), ["---"] * len(HEADINGS), *([row[name] for name in HEADINGS] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(expected: Scores, actual: Scores) -> str:
    """Return one sentence on all images at once."""
    pooled = correlation_of(expected.maps.astype(np.float64), actual.maps.astype(np.float64))
    moved = int((_changes(expected, actual) > 0.1).sum())
    return f"On {moved} images a map value moves by more than a tenth of the peak; all values at once correlate by {pooled:.4f}."


def _changes(expected: Scores, actual: Scores) -> npt.NDArray[np.float32]:
    """Return each image's largest change of a map value, as a share of the float map's peak, (n,)."""
    return np.asarray(np.abs(actual.maps - expected.maps).max(axis=(1, 2)) / expected.maps.max(axis=(1, 2)))


def _flips(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], threshold: float | None, band: float) -> str:
    """Return how many images of a product change between PASS and REJECT under its own decision."""
    if threshold is None:
        return "no decision"
    passes, rejects = ([scores <= threshold for scores in (before, after)], [scores > threshold * (1 + band) for scores in (before, after)])
    return str(int(((passes[0] & rejects[1]) | (rejects[0] & passes[1])).sum()))


def judge(float_model: Path, images: TestImages, work: Path, thresholds: dict[str, float]) -> list[dict[str, str]]:
    """Compare the float graph with one quantized graph per set of parts, print the tables and return their rows without origin."""
    expected = score_all(float_model, images, "float")
    rows: list[dict[str, str]] = []
    for name, parts in PART_SETS.items():
        quantized = quantize_backbone(onnx.load(float_model), calibration_images(work / "ranges"), parts=parts, progress=Progress)
        path = work / f"ungated-{name}.onnx"
        path.write_bytes(quantized.model.SerializeToString(deterministic=True))
        actual = score_all(path, images, name)
        found = figures(images, expected, actual, thresholds)
        print(f"\n{name}: {quantized.convolution_count} convolutions in INT8, ranges from {quantized.image_count} training images\n")
        print(f"{table(found)}\n\n{summary(expected, actual)}", flush=True)
        rows += [{"int8_parts": name, **row} for row in found]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, print it and add the figures to the table of results."""
    parser = CommandParser(PROGRAM, "Judge INT8 exports of a checkpoint on images that their ranges were not collected on.", example=_EXAMPLE)
    parser.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint of snl-train")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in MVTec AD's layout")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for exports and links")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.csv", metavar="FILE", help="table (default: benchmarks/results/int8.csv)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    return run_command(lambda: _run(parser.parse_args(argv)), program=PROGRAM)


def _run(options: argparse.Namespace) -> int:
    check_writable(options.out)
    origin = provenance.origin("cpu", options.commit)
    print(f"`{options.ckpt.name}`, {origin['date']}, commit {origin['commit']}, ONNX Runtime on {origin['device']}\n")
    images = read_test_images(options.data)
    link_images(options.data, options.work)
    float_model = export_float(options.ckpt, options.work)
    thresholds: dict[str, float] = {}
    for band, parts in GATED if read_manifest(manifest_path(float_model)).held_out else GATED[:1]:
        thresholds |= gate(options.ckpt, options.data, options.work, float_model, band=band, parts=parts)
    rows = judge(float_model, images, options.work, thresholds)
    replaced = merge_rows(options.out, INT8, [row | origin for row in rows])
    print(f"\n{options.out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
