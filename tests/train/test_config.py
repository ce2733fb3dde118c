"""Contract: a configuration is a preset, a file and overrides merged; what is unknown, mistyped or out of range is named by its dotted key."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from snl_runtime import config as generic
from snl_runtime.errors import ConfigError
from snl_train.config import LossConfig, ModelConfig, TrainConfig, from_plain, load_config, preset_config, to_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """One of every supported field type."""

    watts: float
    count: int = 1
    is_on: bool = False
    color: Literal["warm", "cold"] = "warm"
    note: str | None = None
    size: tuple[int, int] = (1, 2)
    tags: tuple[str, ...] = ()
    prices: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A section within a section."""

    lamp: Lamp = field(default_factory=lambda: Lamp(watts=5.0))
    name: str = "hall"


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_type_is_read_from_yaml(tmp_path: Path) -> None:
    text = "watts: 40\ncount: 3\nis_on: true\ncolor: cold\nnote: null\nsize: [4, 5]\ntags: [a, b]\nprices: {eur: 1.5, usd: 2}\n"
    lamp = generic.load_config(Lamp, yaml_file(tmp_path, text))
    assert lamp == Lamp(watts=40.0, count=3, is_on=True, color="cold", note=None, size=(4, 5), tags=("a", "b"), prices={"eur": 1.5, "usd": 2.0})
    assert isinstance(lamp.watts, float)


def test_a_number_without_a_dot_before_its_exponent_is_a_number(tmp_path: Path) -> None:
    assert generic.load_config(Lamp, yaml_file(tmp_path, "watts: 1e-3")).watts == 0.001


def test_plain_values_round_trip_through_yaml_and_json() -> None:
    room = Room(lamp=Lamp(watts=1.5, tags=("x",), size=(7, 8)))
    plain = generic.to_plain(room)
    assert generic.from_plain(Room, yaml.safe_load(yaml.safe_dump(plain))) == room
    assert generic.from_plain(Room, json.loads(json.dumps(plain))) == room


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamp: {wats: 3}", "unknown key 'lamp.wats'; did you mean 'watts'?"),
        ("xyz: 3", "unknown key 'xyz'; known keys here: lamp, name"),
        ("lamp: {count: 2}", "key 'lamp.watts' is missing; it has no default"),
        ("lamp: {watts: fast}", "lamp.watts must be a number, got 'fast'"),
        ("lamp: {watts: true}", "lamp.watts must be a number, got 'True'"),
        ("lamp: {watts: 1, count: 1.5}", "lamp.count must be a whole number, got '1.5'"),
        ("lamp: {watts: 1, count: true}", "lamp.count must be a whole number, got 'True'"),
        ("lamp: {watts: 1, is_on: 1}", "lamp.is_on must be true or false, got '1'"),
        ("lamp: {watts: 1, color: cald}", "lamp.color must be one of warm, cold, got 'cald'; did you mean 'cold'?"),
        ("lamp: {watts: 1, size: [1]}", "lamp.size must have 2 values, got 1"),
        ("lamp: {watts: 1, size: 12}", "lamp.size must be a list, got '12'"),
        ("lamp: {watts: 1, size: [1, x]}", "lamp.size[1] must be a whole number, got 'x'"),
        ("lamp: {watts: 1, prices: {eur: x}}", "lamp.prices.eur must be a number, got 'x'"),
        ("lamp: [1]", "lamp must be a section of keys, got a list"),
        ("name: null", "name must be text, got nothing"),
    ],
)
def test_a_wrong_entry_is_named_by_its_dotted_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        generic.load_config(Room, yaml_file(tmp_path, text))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2\n", "key 'a' is given twice"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("!!python/object:a {}", "is not YAML"),
    ],
)
def test_a_file_that_is_no_unique_mapping_is_refused_with_its_name(tmp_path: Path, text: str, part: str) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(ConfigError, match=part) as caught:
        generic.read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_binary_file_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        generic.read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        generic.read_yaml(tmp_path / "binary.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert generic.load_config(Room, yaml_file(tmp_path, "")) == Room()
    assert generic.load_config(Room, yaml_file(tmp_path, "lamp:\n"), base=Room(name="attic")).lamp == Room().lamp


def test_overrides_win_over_the_file_which_wins_over_the_base(tmp_path: Path) -> None:
    base = Room(name="attic", lamp=Lamp(watts=1.0, count=9, color="cold"))
    room = generic.load_config(Room, yaml_file(tmp_path, "lamp: {watts: 2, count: 8}"), {"lamp.watts": 3}, base=base)
    assert (room.name, room.lamp.color, room.lamp.count, room.lamp.watts) == ("attic", "cold", 8, 3.0)


def test_an_override_without_a_value_or_yaml_is_refused() -> None:
    assert generic.parse_override("size=[1, 2]") == ("size", [1, 2])
    for text in ("size", "=3"):
        with pytest.raises(ConfigError, match="name=value"):
            generic.parse_override(text)
    with pytest.raises(ConfigError, match="size"):
        generic.parse_override("size=[1")


def test_the_paper_preset_states_what_the_paper_states() -> None:
    config = preset_config("paper")
    assert (config.model.method, config.model.teacher, config.image_size, config.batch_size) == ("snl-rd", "wide_resnet50_2", (256, 256), 8)
    assert (config.optim.learning_rate, config.model.centers) == (0.005, 50)
    assert (config.loss.spatial_weight, config.loss.intra_weight, config.loss.inter_weight) == (1.0, 1.0, 1.0)
    assert config.loss.channel_focus == 0  # Eq. 2 as printed
    assert config.score.affinity_weight == 1.0
    assert load_config() == config


@pytest.mark.parametrize("name", ["paper", "best"])
def test_a_preset_survives_the_checkpoint(name: str) -> None:
    config = preset_config(name)
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


def test_a_file_may_choose_the_preset_it_starts_from(tmp_path: Path) -> None:
    config = load_config(yaml_file(tmp_path, "preset: best\nepochs: 3\n"))
    assert config == dataclasses.replace(preset_config("best"), epochs=3)
    with pytest.raises(ConfigError, match="unknown preset 'bets'"):
        load_config(overrides={"preset": "bets"})


@pytest.mark.parametrize("method", ["rd", "fd"])
def test_a_plain_method_has_cosine_distance_only_and_says_so(method: str) -> None:
    config = load_config(overrides={"model.method": method})
    assert config.model.centers == 0
    assert (config.loss.channel_weight, config.loss.spatial_weight, config.loss.intra_weight, config.loss.inter_weight) == (1.0, 0.0, 0.0, 0.0)
    assert config.score.affinity_weight == 0.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.learning_rate": 0}, "optim.learning_rate must be positive, got 0.0"),
        ({"optim.learning_rate": "nan"}, "optim.learning_rate must be positive"),
        ({"optim.betas": [0.5, 1.0]}, "optim.betas"),
        ({"model.centers": -1}, "model.centers must be 0 or more, got -1"),
        ({"model.teacher": "resnet101"}, "model.teacher must be one of resnet18, resnet34"),
        ({"model.cram_alpha": 0}, "model.cram_alpha"),
        ({"loss.intra_weight": -0.1}, "loss.intra_weight"),
        ({"loss.channel_focus": -1}, "loss.channel_focus must be 0 or more, got -1"),
        ({"loss.tile_rows": 0}, "loss.tile_rows"),
        ({"score.top_k": 0}, "score.top_k"),
        ({"data.hold_out": 1.0}, "data.hold_out"),
        ({"data.with_whole_frame": True}, "data.with_whole_frame adds the whole image to tiles, and data.tile_px gives none"),
        ({"data.tile_px": 64, "data.with_whole_frame": 1}, "data.with_whole_frame must be true or false"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"image_size": [256, 240]}, "image_size must be height and width in positive multiples of 32 for method snl-rd"),
        ({"image_size": [0, 256]}, "image_size"),
        ({"model.method": "snl-fd", "image_size": [256, 250]}, "multiples of 16 for method snl-fd"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_dotted_key(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert message in str(caught.value)


def test_settings_from_before_the_whole_frame_was_seen_beside_tiles_see_tiles_alone() -> None:
    config = load_config(overrides={"data.tile_px": 64, "data.with_whole_frame": True})
    assert from_plain(to_plain(config)) == config
    plain = to_plain(load_config(overrides={"data.tile_px": 64}))
    assert plain["data"].pop("with_whole_frame") is False
    assert from_plain(plain).data.tiles == (64, 32, False)


def test_a_forward_method_takes_multiples_of_16() -> None:
    assert load_config(overrides={"model.method": "snl-fd", "image_size": [240, 48]}).image_size == (240, 48)


def test_every_field_says_what_it_is() -> None:
    """A docstring follows each field in the source; dataclasses do not keep them, so the source is read."""
    import ast
    import inspect

    import snl_train.config as module

    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                is_documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert is_documented, f"{node.name}.{ast.unparse(statement.target)}"


def test_defaults_are_frozen() -> None:
    for config, name in ((ModelConfig(), "centers"), (LossConfig(), "intra_weight"), (TrainConfig(), "seed")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 1)
