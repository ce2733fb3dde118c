"""Tables come from records alone, show means, spread and interval, and refuse to mix origins silently."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from snl_runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def loaded(name: str):
    from benchmarks.accuracy.protocol import load_protocol

    return load_protocol(name)


def group(image: float, pixel: float | None) -> dict:
    metrics = {"image_auroc": image, "pixel_auroc": pixel, "aupro": pixel}
    plain = {name: {"value": value, "interval": None if value is None else [value - 0.05, value + 0.02]} for name, value in metrics.items()}
    return {"good": 10, "anomalous": 20, "masked": 0 if pixel is None else 20, "metrics": plain}


def write(out: Path, variant: str, seed: int, classes: dict, *, protocol="tiny", setting="multi-class", size=32, class_set="all", **changes) -> None:
    """Write a record by hand; ``classes`` maps names to (image AUROC, pixel AUROC)."""
    origin = {
        "commit": "abc",
        "source_sha256": "1" * 64,
        "device": "CPU one",
        "versions": {"python": "3.11.7", "torch": "2.6"},
        "command": "python x",
    }
    origin |= {key: changes.pop(key) for key in tuple(changes) if key in origin}
    plain = {
        "record": 1,
        "protocol": protocol,
        "variant": variant,
        "setting": setting,
        "class_set": class_set,
        "classes": sorted(classes),
        "image_size": size,
        "seed": seed,
        "source": "snl-edge",
        "data": {"test_sha256": dict.fromkeys(classes, "t")},
        "evaluation": {"classes": {name: group(*figures) for name, figures in classes.items()}},
        "provenance": origin,
        "slices": [{"commit": origin["commit"], "source_sha256": origin["source_sha256"], "device": origin["device"]}],
    }
    plain |= changes
    folder = out / protocol
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{len(list(folder.iterdir())):03}.json").write_text(json.dumps(plain))


def rendered(out: Path, only: str = "tiny", **options) -> str:
    from benchmarks.accuracy.render import render

    return render(out, only=only, **options)


# Figures


def test_summary_equals_student_s_t_of_scipy():
    from benchmarks.accuracy.statistics import summarise

    for count in (2, 3, 5, 12):
        values = np.random.default_rng(count).uniform(0.7, 0.75, count).tolist()
        low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
        found = summarise(values)
        assert found.interval == pytest.approx((max(low, 0), min(high, 1)), abs=2e-4)
        assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
        assert found.spread == pytest.approx(max(values) - min(values), abs=1e-6)


def test_single_seed_has_no_interval_and_no_spread():
    from benchmarks.accuracy.statistics import summarise

    assert summarise([0.9]) == (0.9, None, None, 1)


def test_tables_show_mean_interval_and_spread_per_set(tmp_path: Path):
    for seed, image in enumerate((0.80, 0.84)):
        write(tmp_path, "FD", seed, {"cap": (image, None), "nut": (image + 0.1, 0.9)})
    text = rendered(tmp_path)
    # cap: mean .82, spread .04; t(1) = 12.706, sd = .0283, so .82 -+ .254
    assert "| FD | multi-class | 32 | 2 | 0.820 [0.566, 1.000] | 0.040 | – | – | – | – |" in text
    # confirm (nut): .92; all: mean of .90 and .94 and of the pixel metrics where there are masks
    assert "| FD | multi-class | 32 | 2 | 0.920 [0.666, 1.000] | 0.040 | 0.900 [0.900, 0.900] | 0.000 |" in text
    assert "| FD | multi-class | 32 | 2 | 0.870 [0.616, 1.000] | 0.040 | 0.900 [0.900, 0.900] | 0.000 |" in text
    assert text.index("Confirm set: nut") < text.index("Choose set: cap") < text.index("All set: cap, nut")


def test_class_tables_show_the_interval_over_images_and_the_counts(tmp_path: Path):
    for seed, image in enumerate((0.80, 0.84)):
        write(tmp_path, "FD", seed, {"cap": (image, None), "nut": (image + 0.1, 0.9)})
    text = rendered(tmp_path)
    assert "| image AUROC | setting | px | cap (10 + 20) | nut (10 + 20) |" in text
    assert "| FD | multi-class | 32 | 0.820 (0.770–0.840) | 0.920 (0.870–0.940) |" in text
    assert "| pixel AUROC | setting | px | nut (10 + 20) |" in text  # a class without masks has no column


def test_class_tables_show_how_far_each_class_moves_between_seeds(tmp_path: Path):
    for seed, image in enumerate((0.80, 0.84, 0.81)):
        write(tmp_path, "FD", seed, {"cap": (image, None), "nut": (0.9, 0.9)})
    write(tmp_path, "SNL(FD)", 0, {"cap": (0.7, None), "nut": (0.7, 0.7)})
    text = rendered(tmp_path)
    table = text[text.index("| image AUROC, spread over seeds | setting | px | cap (10 + 20) | nut (10 + 20) |") :].partition("\n\n")[0]
    assert "| FD | multi-class | 32 | 0.040 | 0.000 |" in table
    assert "| SNL(FD) | multi-class | 32 | – | – |" in table  # one seed has no spread


def test_classes_of_one_seed_have_no_table_of_spreads(tmp_path: Path):
    write(tmp_path, "FD", 0, {"cap": (0.8, None), "nut": (0.9, 0.9)})
    assert "spread over seeds" not in rendered(tmp_path)


def test_one_class_runs_of_a_seed_make_one_row(tmp_path: Path):
    for seed in (0, 1):
        write(tmp_path, "FD", seed, {"cap": (0.8, None)}, setting="one-class")
        write(tmp_path, "FD", seed, {"nut": (0.9, 0.7)}, setting="one-class")
    assert "| FD | one-class | 32 | 2 | 0.850 [0.850, 0.850] | 0.000 | 0.700" in rendered(tmp_path)


def test_seed_that_lacks_a_class_does_not_count_for_the_mean(tmp_path: Path):
    for seed in (0, 1):
        write(tmp_path, "FD", seed, {"cap": (0.8, None)}, setting="one-class")
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.7)}, setting="one-class")
    text = rendered(tmp_path)
    assert "| FD | one-class | 32 | 1 of 2 | 0.850 | – |" in text
    assert "| `tiny` | 3 | 8 | 0 | unfinished |" in text


def test_diverged_seed_is_named(tmp_path: Path):
    write(tmp_path, "FD", 0, {"cap": (0.8, None), "nut": (0.9, 0.9)})
    write(tmp_path, "FD", 1, {"cap": (0.8, None), "nut": (0.9, 0.9)}, failure="the loss is no longer finite", evaluation=None)
    assert "| FD | multi-class | 32 | 1 of 2, diverged: 1 | 0.850 | – |" in rendered(tmp_path)


def test_peers_stand_below_with_their_package(tmp_path: Path):
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)})
    write(tmp_path, "PatchCore", 0, {"nut": (0.95, 0.9)}, source="anomalib 2.7.0", slices=[])
    text = rendered(tmp_path)
    assert "| PatchCore (anomalib 2.7.0) | multi-class | 32 | 1 of 2 | 0.950 |" in text
    assert "| `tiny` | 1 | 6 | 1 | unfinished |" in text  # with one class: (FD, SNL(FD) and one-class FD) x 2 seeds; the peer is none of them


def test_peers_get_enough_steps_on_small_classes():
    from benchmarks.accuracy.peers import peer_epochs
    from benchmarks.accuracy.protocol import train_config

    config = train_config(loaded("reduced"), "RD", image_size=128)  # 8 epochs in batches of 8
    assert peer_epochs("STFPM", 28, config, min_steps=500) == 167  # 3 whole batches per epoch
    assert peer_epochs("STFPM", 800, config, min_steps=500) == 8  # 100 batches, 800 steps
    assert peer_epochs("PatchCore", 28, config, min_steps=500) == 1


def test_peers_train_in_the_precision_of_the_protocol_s_own_rows():
    import dataclasses

    import torch

    from benchmarks.accuracy.peers import peer_precision
    from snl_train.config import TrainConfig

    plain = TrainConfig()
    halved = dataclasses.replace(plain, mixed_precision_cpu=True)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = known.get("avx512_bf16") or known.get("amx_bf16")
    assert peer_precision("STFPM", plain, "cpu") == "32-true"
    assert peer_precision("STFPM", halved, "cpu") == ("bf16-mixed" if has_bfloat16 else "32-true")
    assert peer_precision("PatchCore", halved, "cpu") == "32-true"  # it trains nothing


def test_runs_of_peers_cover_both_settings_and_all_seeds():
    from benchmarks.accuracy.peers import peer_runs

    protocol = loaded("reduced")
    (classes,) = protocol.class_sets.values()
    assert len(peer_runs(protocol, classes, ["one-class", "multi-class"])) == 3 * 3 * (7 + 1)
    with pytest.raises(ConfigError, match="got 'two'"):
        peer_runs(protocol, classes, ["two"])


def test_a_coreset_with_bounds_is_refused_on_a_gpu(capsys: pytest.CaptureFixture[str]):
    from benchmarks.accuracy.peers import main

    files = ["--protocol", "reduced", "--data", "images", "--weights", "x.safetensors"]
    assert main([*files, "--bounded-coreset", "--device", "cuda"]) != 0
    assert "--bounded-coreset works on a CPU only, got --device cuda; give --compile-coreset there" in capsys.readouterr().err


def test_interference_stands_with_its_protocol(tmp_path: Path):
    assert "not run yet" in rendered(tmp_path)
    figures = {kind: {"mean": 0.75, "of": {}} for kind in ("mixup", "paste", "paste_pixel")}
    origin = {"device": "CPU one", "commit": "abc", "source_sha256": "1" * 64, "command": "python y"}
    models = [{"method": "fd_multi", "separation": figures}, {"method": "fd_multi", "separation": figures}]
    (tmp_path / "tiny" / "figure2").mkdir(parents=True)
    (tmp_path / "tiny" / "figure2" / "interference.json").write_text(json.dumps({"per_pair": 20, "models": models, "provenance": origin}))
    assert "| fd_multi | 2 | 0.750 [0.750, 0.750] | 0.000 |" in rendered(tmp_path)


# Origins


def test_tables_state_device_versions_seeds_commit_and_command(tmp_path: Path):
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)})
    text = rendered(tmp_path)
    for line in ("- Device: CPU one", "- Versions: python 3.11.7, torch 2.6", "- Seeds: 0", "- Commit: abc (sources 111111111111)", "python x"):
        assert line in text
    assert "For tests; its figures mean nothing." in text  # the reduction is stated with the figures


@pytest.mark.parametrize("other", [{"device": "GPU two"}, {"source_sha256": "2" * 64, "commit": "def"}])
def test_mixed_origins_are_refused_and_named_when_allowed(other: dict, tmp_path: Path):
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)})
    write(tmp_path, "FD", 1, {"nut": (0.9, 0.9)}, **other)
    with pytest.raises(ConfigError, match="give --allow-mixed"):
        rendered(tmp_path)
    assert "**Mixed: these runs come from several devices or sources" in rendered(tmp_path, allow_mixed=True)


def test_run_that_was_trained_on_two_devices_is_mixed(tmp_path: Path):
    pieces = [{"commit": "abc", "source_sha256": "1" * 64, "device": device} for device in ("CPU one", "GPU two")]
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)}, slices=pieces)
    with pytest.raises(ConfigError, match="CPU one, GPU two"):
        rendered(tmp_path)


def test_commits_with_the_same_sources_are_not_mixed(tmp_path: Path):
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)})
    write(tmp_path, "FD", 1, {"nut": (0.9, 0.9)}, commit="def")
    assert "- Commit: abc, def (sources 111111111111)" in rendered(tmp_path)


def test_other_test_images_are_refused_even_when_mixing_is_allowed(tmp_path: Path):
    write(tmp_path, "FD", 0, {"nut": (0.9, 0.9)})
    write(tmp_path, "FD", 1, {"nut": (0.9, 0.9)}, data={"test_sha256": {"nut": "u"}})
    with pytest.raises(ConfigError, match="different test images of class 'nut'"):
        rendered(tmp_path, allow_mixed=True)


# The paper's figures


def test_quoted_means_follow_from_the_quoted_classes():
    from benchmarks.accuracy.published import METHODS, published

    for quoted in ("mvtec", "visa"):
        for table in published(quoted):
            for method in METHODS:
                for setting in ("multi-class", "one-class"):
                    values = [table.value(method, name, setting) for name in table.classes]
                    assert np.mean(values[:-1]) == pytest.approx(values[-1], abs=1e-3), (table.table, method, setting)


def test_own_figures_stand_below_the_paper_s(tmp_path: Path):
    classes = dict.fromkeys(loaded("visa_paper").class_sets["visa"], (0.9, 0.8))
    write(tmp_path, "RD", 0, classes, protocol="visa_paper", size=256, class_set="visa")
    lines = rendered(tmp_path, "visa_paper").splitlines()
    paper = next(index for index, line in enumerate(lines) if line.startswith("| RD | 0.959 | 0.944 |"))  # Table 2: 95.9/97.1, 94.4/97.0
    assert lines[paper].endswith("| 0.928 |")
    assert lines[paper + 1] == "| *own* RD |" + " 0.900 |" * 13


def test_ablation_of_the_paper_stands_beside_the_own_one(tmp_path: Path):
    text = rendered(tmp_path, "mvtec_paper")
    assert "| cd + sd, CRAM | 0.971 | 0.973 | – | – |" in text
    assert "| `mvtec_paper` | 0 | 210 | 0 | not run yet |" in text


def test_rendering_needs_neither_data_nor_torch(tmp_path: Path):
    write(tmp_path / "runs", "FD", 0, {"nut": (0.9, 0.9)})
    code = (
        "import sys; from benchmarks.accuracy.command import main; "
        f"status = main(['--render', {str(tmp_path / 'a.md')!r}, '--protocol', 'tiny', '--out', {str(tmp_path / 'runs')!r}]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.md").read_text().startswith("# Accuracy")
