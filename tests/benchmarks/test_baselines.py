"""Baselines train under the protocol's conditions: its steps, precision, classes and seeds."""

import pytest

from snl_runtime.errors import ConfigError


def loaded(name: str):
    from benchmarks.accuracy.protocol import load_protocol

    return load_protocol(name)


def test_baselines_get_enough_steps_on_small_classes():
    from benchmarks.accuracy.baselines import baseline_epochs
    from benchmarks.accuracy.protocol import train_config

    config = train_config(loaded("reduced"), "RD", image_size=128)  # 8 epochs in batches of 8
    assert baseline_epochs("STFPM", 28, config, min_steps=500) == 167  # 3 whole batches per epoch
    assert baseline_epochs("STFPM", 800, config, min_steps=500) == 8  # 100 batches, 800 steps
    assert baseline_epochs("PatchCore", 28, config, min_steps=500) == 1


def test_baselines_train_in_the_precision_of_the_protocol_s_own_rows():
    import dataclasses

    import torch

    from benchmarks.accuracy.baselines import baseline_precision
    from snl_train.config import TrainConfig

    plain = TrainConfig()
    halved = dataclasses.replace(plain, mixed_precision_cpu=True)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = known.get("avx512_bf16") or known.get("amx_bf16")
    assert baseline_precision("STFPM", plain, "cpu") == "32-true"
    assert baseline_precision("STFPM", halved, "cpu") == ("bf16-mixed" if has_bfloat16 else "32-true")
    assert baseline_precision("PatchCore", halved, "cpu") == "32-true"  # it trains nothing


def test_runs_of_baselines_cover_both_settings_and_all_seeds():
    from benchmarks.accuracy.baselines import baseline_runs

    protocol = loaded("reduced")
    (classes,) = protocol.class_sets.values()
    assert len(baseline_runs(protocol, classes, ["one-class", "multi-class"])) == 3 * 3 * (7 + 1)
    with pytest.raises(ConfigError, match="got 'two'"):
        baseline_runs(protocol, classes, ["two"])


def test_a_coreset_with_bounds_is_refused_on_a_gpu(capsys: pytest.CaptureFixture[str]):
    from benchmarks.accuracy.baselines import main

    files = ["--protocol", "reduced", "--data", "images", "--weights", "x.safetensors"]
    assert main([*files, "--bounded-coreset", "--device", "cuda"]) != 0
    assert "--bounded-coreset works on a CPU only, got --device cuda; give --compile-coreset there" in capsys.readouterr().err
