"""Shipped protocols stand for the runs they name and train what the paper ticks; a wrong protocol says what is wrong with it."""

import pytest

from snl_runtime.errors import ConfigError

PROTOCOLS = (
    *(
        "ablation",
        "ablation256",
        "all256",
        "choices",
        "constant256",
        "forward256",
        "full",
        "long",
        "long256",
        "mvtec_paper",
        "parts",
        "pill_bottle256",
        "pill_bottle_few",
        "pill_bottle_tiles",
    ),
    *("reduced", "reduced256", "reduced384", "tile_and_board_tiles", "tiny", "visa_paper"),
)
TINY = {"base": {"model": {"teacher": "resnet18"}}, "variants": {"RD": {"overrides": {"model.method": "rd"}}}}


def parsed(**changes):
    from benchmarks.accuracy.protocol import parse_protocol

    return parse_protocol("mine", {**TINY, **changes})


def loaded(name: str):
    from benchmarks.accuracy.protocol import load_protocol

    return load_protocol(name)


@pytest.mark.parametrize(
    ("name", "count"),
    # variants x seeds; full: 4 x (1 + 7 classes) x 3; paper: 4 x (1 + classes) x 3, and 6 rows of the ablation x 3
    [
        ("reduced", 8 * 3),
        ("reduced256", 13 * 3),
        ("pill_bottle256", 3 * 3),
        ("pill_bottle_few", 3 * 3),
        ("pill_bottle_tiles", 4),
        ("tile_and_board_tiles", 3 * 3),
        ("reduced384", 3),
        ("forward256", 9 * 3),
        ("constant256", 2 * 3),
        ("parts", 15 * 3),
        ("long", 3 * 3),
        ("long256", 2 * 3),
        ("all256", 5 * 3),
        ("ablation", 8 * 3),
        ("ablation256", 8 * 3),
        ("choices", 14 * 3),
        ("full", 31 * 3 + 4 * 2),
        ("mvtec_paper", 4 * 16 * 3 + 6 * 3),
        ("visa_paper", 4 * 13 * 3),
    ],
)
def test_shipped_protocols_stand_for_so_many_runs(name: str, count: int):
    from benchmarks.accuracy.protocol import expand

    protocol = loaded(name)
    (classes,) = protocol.class_sets.values()
    runs = expand(protocol, classes)
    assert len(runs) == len({run.name for run in runs}) == count
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)  # whole seeds first


def test_realmix_protocols_have_the_agreed_development_and_held_out_classes():
    for name in (name for name in PROTOCOLS if not name.startswith(("tiny", "mvtec", "visa", "pill_bottle"))):
        protocol, development, held_out = loaded(name), ("bottle", "juice_bottle", "magnetic_tile"), ("cookie", "hazelnut", "pcb", "solar_cell")
        (classes,) = protocol.class_sets.values()
        assert protocol.development == tuple(one for one in development if one in classes)
        assert protocol.held_out == tuple(one for one in held_out if one in classes)


@pytest.mark.parametrize(
    ("protocol", "variant", "expected"),  # spatial, intra, inter, centers: the ticks of the paper's Table 5 and its Table 6
    [
        ("ablation", "cd", (0, 0, 0, 0)),
        ("ablation", "cd + sd", (1, 0, 0, 0)),
        ("ablation", "cd + sd + intra", (1, 1, 0, 0)),
        ("ablation", "cd + sd + intra + inter", (1, 1, 1, 0)),
        ("ablation", "cd + sd, CRAM", (1, 0, 0, 50)),
        ("ablation", "all, 50 centers", (1, 1, 1, 50)),
        ("ablation", "all, 25 centers", (1, 1, 1, 25)),
        ("ablation", "all, 75 centers", (1, 1, 1, 75)),
        ("ablation256", "cd", (0, 0, 0, 0)),
        ("ablation256", "cd + sd, CRAM", (1, 0, 0, 50)),
        ("ablation256", "all, 50 centers", (1, 1, 1, 50)),
        ("mvtec_paper", "cd + sd", (1, 0, 0, 0)),
        ("mvtec_paper", "cd + sd + intra", (1, 1, 0, 0)),
        ("mvtec_paper", "cd + sd + intra + inter", (1, 1, 1, 0)),
        ("mvtec_paper", "cd + sd, CRAM", (1, 0, 0, 50)),
        ("mvtec_paper", "SNL(RD)", (1, 1, 1, 50)),
    ],
)
def test_ablation_rows_train_what_the_paper_ticks(protocol: str, variant: str, expected: tuple):
    from benchmarks.accuracy.protocol import train_config

    config = train_config(loaded(protocol), variant, image_size=128)
    loss = config.loss
    assert (loss.spatial_weight, loss.intra_weight, loss.inter_weight, config.model.centers) == expected
    assert config.score.affinity_weight == (1 if loss.intra_weight else 0)


def test_paper_protocols_keep_the_paper_s_settings():
    from benchmarks.accuracy.protocol import train_config

    for name in ("mvtec_paper", "visa_paper"):
        config = train_config(loaded(name), "SNL(RD)", image_size=256)
        assert (config.model.teacher, config.optim.learning_rate, config.batch_size, config.model.centers) == ("wide_resnet50_2", 0.005, 8, 50)
        assert loaded(name).image_sizes == (256,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "unknown key 'sedes'; did you mean 'seeds'?"),
        ({"variants": {"RD": {"overides": {}}}}, "unknown key 'variants.RD.overides'; did you mean 'overrides'?"),
        ({"variants": {"RD": {"overrides": {"model.methd": "rd"}}}}, "variant 'RD' at 256 px: unknown key 'model.methd'; did you mean 'method'?"),
        ({"base": {"epochs": 0}}, "epochs must be 1 or more"),
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"SNL(RD)": {}, "snl rd": {}}}, "would write the same files"),
        ({"settings": ["two-class"]}, "must be one of multi-class, one-class"),
        ({"seeds": []}, "seeds must be not empty"),
        ({"seeds": [1, 1]}, "seeds must be not empty and without repetitions"),
        ({"development": ["a"], "held_out": ["a", "b"]}, "class 'a' is in development and in held_out"),
        ({"tables": {"T": ["FD"]}}, "table 'T' shows variant 'FD'"),
        ({"image_sizes": [100]}, "multiples of 32"),
    ],
)
def test_wrong_protocol_is_refused_with_its_reason(changes: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    assert message in str(caught.value)


def test_unknown_protocol_names_the_known_ones():
    with pytest.raises(ConfigError, match=f"known: {', '.join(PROTOCOLS)}"):
        loaded("ful")


def test_class_that_the_data_lack_is_named():
    from benchmarks.accuracy.protocol import expand

    with pytest.raises(ConfigError, match="needs class 'bottle', and the data folder has cookie"):
        expand(loaded("reduced"), ["cookie"])
