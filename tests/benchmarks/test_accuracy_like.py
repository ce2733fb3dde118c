"""A protocol like another one says only what it has otherwise; what describes one protocol is never said of another."""

import re
from pathlib import Path

import pytest
import yaml

from snl_runtime.errors import ConfigError

RD = {"RD": {"overrides": {"model": {"method": "rd"}}}}
FD = {"FD": {"overrides": {"model": {"method": "fd"}}}}
LOWER = {
    "title": "Lower",
    "description": "What the lower one does.",
    "reduction": "Two epochs.",
    "base": {"epochs": 2, "model": {"teacher": "resnet18", "teacher_weights": "random"}, "optim": {"schedule": "constant"}},
    "image_sizes": [32, 64],
    "seeds": [3, 5],
    "variants": RD | FD,
    "tables": {"Both": ["RD", "FD"]},
    "development": ["cap"],
    "held_out": ["nut"],
}


def loaded(folder: Path, **files: dict):
    """Write protocol files into a folder and load the last one."""
    from benchmarks.accuracy.protocol import load_protocol

    for name, plain in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return load_protocol(str(folder / f"{name}.yaml"))


def test_what_a_file_does_not_say_is_as_in_the_other(tmp_path: Path):
    lower = loaded(tmp_path, lower=LOWER)
    upper = loaded(tmp_path, lower=LOWER, upper={"like": "lower.yaml", "reduction": "Two epochs, 128 px.", "image_sizes": [128]})
    assert (upper.name, upper.image_sizes, upper.reduction) == ("upper", (128,), "Two epochs, 128 px.")
    for name in ("preset", "base", "variants", "settings", "seeds", "class_sets", "development", "held_out", "tables", "resamples", "batch_size"):
        assert getattr(upper, name) == getattr(lower, name), name


def test_base_goes_section_by_section_and_every_other_key_as_a_whole(tmp_path: Path):
    own = {"base": {"epochs": 7, "model": {"teacher": "resnet34"}}, "seeds": [1], "variants": FD, "development": ["nut"], "held_out": ["cap"]}
    upper = loaded(tmp_path, lower=LOWER, upper={"like": "lower.yaml", "reduction": "", **own})
    assert upper.base == {"epochs": 7, "model": {"teacher": "resnet34", "teacher_weights": "random"}, "optim": {"schedule": "constant"}}
    assert (upper.seeds, upper.development, upper.held_out) == ((1,), ("nut",), ("cap",))
    assert list(upper.variants) == ["FD"]


def test_texts_and_tables_of_replaced_variants_are_not_taken_over(tmp_path: Path):
    upper = loaded(tmp_path, lower=LOWER, upper={"like": "lower.yaml", "reduction": "", "variants": FD})
    assert (upper.title, upper.description, upper.reduction) == ("", "", "")
    assert upper.shown_tables() == {"Methods": ("FD",)}  # "Both" names RD, which is gone


def test_a_protocol_like_a_reduced_one_says_how_it_is_reduced(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"upper\.yaml is like lower\.yaml, which is reduced; say in reduction how this one is, '' if it is not"):
        loaded(tmp_path, lower=LOWER, upper={"like": "lower.yaml"})
    whole = {key: value for key, value in LOWER.items() if key != "reduction"}
    assert loaded(tmp_path, lower=whole, upper={"like": "lower.yaml"}).reduction == ""


def test_like_goes_through_several_files_and_names_the_shipped_ones(tmp_path: Path):
    from benchmarks.accuracy.protocol import load_protocol

    middle = {"like": "reduced", "reduction": "Middle.", "base": {"epochs": 3}}
    upper = loaded(tmp_path, middle=middle, upper={"like": "middle.yaml", "reduction": "Upper.", "seeds": [9]})
    shipped = load_protocol("reduced")
    assert upper.base == {**shipped.base, "epochs": 3}
    assert (upper.variants, upper.held_out, upper.seeds, upper.reduction) == (shipped.variants, shipped.held_out, (9,), "Upper.")


def test_a_file_is_looked_for_beside_the_one_that_names_it(tmp_path: Path):
    (tmp_path / "below").mkdir()
    loaded(tmp_path / "below", lower=LOWER)
    assert loaded(tmp_path, upper={"like": "below/lower.yaml", "reduction": ""}).seeds == (3, 5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"like": "a.yaml"}}, "a.yaml -> a.yaml; leave it out"),
        ({"a": {"like": "b.yaml", "reduction": ""}, "b": {"like": "a.yaml", "reduction": ""}}, "b.yaml -> a.yaml -> b.yaml; leave it out"),
        ({"a": {"like": "no_such"}}, "there is no protocol 'no_such'; known: ablation,"),
        ({"a": {"like": ["reduced"]}}, "like must be the name of a protocol or a .yaml file, got ['reduced']"),
        ({"a": {"like": "reduced", "reduction": "", "base": 3}}, "base must be a section of keys, got 3"),
        ({"a": {"like": "reduced", "reduction": "", "seed": [1]}}, "seed"),
    ],
)
def test_a_wrong_like_is_one_line_that_names_the_file(files: dict, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        loaded(tmp_path, **files)
    assert str(error.value).startswith(f"protocol {list(files)[-1]}.yaml: ")
    assert "\n" not in str(error.value)
