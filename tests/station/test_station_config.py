"""A station file says everything that a run needs, and whatever it cannot mean is refused in one line that names the key."""

import copy
import dataclasses
import enum
import random
import re
import typing

import pytest
import yaml

from snl_runtime.config import from_plain, to_plain
from snl_runtime.config_docs import commented_yaml, field_docs, section_of
from snl_runtime.errors import ConfigError
from snl_runtime.station import sources
from snl_runtime.station.build import needs_station, overflow_of
from snl_runtime.station.config import CameraQueueConfig, StationConfig, check_store
from snl_runtime.station.station_file import layered, printed, read_station_file, station_of

FULL = {
    "model": {"file": "line.onnx", "threads": 2},
    "cameras": {
        "top": {
            "source": {"camera": {"address": "rtsp://10.0.0.7/stream"}},
            "product": "washer",
            "crop_xyxy": [10, 20, 110, 220],
            "queue": {"policy": "drop_oldest", "capacity": 3},
            "trigger": {"deadline_ms": 400.0},
        },
        "side": {"source": {"images": {"path": "parts", "pages": "all"}}},
    },
    "records": {
        "store": {"path": "records.sqlite", "max_rows": 1000},
        "jsonl": {"file": "verdicts.jsonl", "max_mib": 100},
        "rejects": {"folder": "rejects"},
        "overlay": {"folder": "overlays", "frames": "not-passed"},
    },
    "outputs": {
        "plugins": ["plc:10.0.0.8"],
        "opcua": {"endpoint": "opc.tcp://127.0.0.1:4840/snl"},
        "modbus": {"port": 5020},
        "mqtt": {"host": "broker", "username": "me", "password_file": "mqtt.password"},
        "webhook": {"url": "https://host/path", "secret_file": "hook.secret"},
        "metrics": {"port": 9464},
        "outbox": {"max_backlog_rows": 50},
    },
}
WHOLE = to_plain(station_of(FULL))
SMALL = {"model": {"file": "line.onnx"}, "cameras": {"top": {"source": {"video": {"file": "line.mp4"}}}}}


def sections(plain, path=()):
    """Every section of keys that a class stands behind; the names of cameras are no keys."""
    if isinstance(plain, dict):
        if path != ("cameras",):
            yield path
        for key, value in plain.items():
            yield from sections(value, (*path, key))


def changed(plain, path, key, value):
    copy = yaml.safe_load(yaml.safe_dump(plain))
    place = copy
    for part in path:
        place = place[part]
    place[key] = value
    return copy


def at(plain, path):
    for part in path:
        plain = plain[part]
    return plain


@pytest.mark.parametrize("path", list(sections(FULL)), ids=".".join)
def test_unknown_key_is_refused_with_the_one_that_was_meant(path):
    meant = next(iter(at(FULL, path)))
    wrong = meant[:-1] + meant[-1] * 2  # a letter twice
    with pytest.raises(ConfigError, match=r"^unknown key '") as refused:
        station_of(changed(FULL, path, wrong, 1))
    assert str(refused.value) == f"unknown key '{'.'.join((*path, wrong))}'; did you mean '{meant}'?"


def leaves(plain, path=()):
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("path", list(leaves(WHOLE)), ids=".".join)
def test_value_of_another_type_is_refused_by_its_dotted_name(path):
    with pytest.raises(ConfigError) as refused:
        station_of(changed(WHOLE, path[:-1], path[-1], {"a": {"section": 1}}))
    assert str(refused.value).startswith(".".join(path)) or f"'{'.'.join(path)}" in str(refused.value)


def read(file):
    try:
        return station_of(read_station_file(file)), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("seed", range(300))
def test_no_file_whatever_it_holds_gives_anything_but_a_station_or_one_line(seed, tmp_path):
    """Plain values replaced at random by values of every YAML type; anything but a ConfigError would be a traceback."""
    chance = random.Random(seed)
    values = [None, True, -1, 0, 3, 1.5, float("inf"), "", "text", "rtsp://a@b", [], [1, "x"], {}, {"file": "x"}, {1: 2}, "2026-11-28"]
    plain = to_plain(station_of(FULL))
    for _ in range(chance.randint(1, 3)):
        path = chance.choice([*sections(plain), ("cameras",)])
        place = at(plain, path) if plain.get("cameras") or not path else plain
        if isinstance(place, dict) and place:
            place[chance.choice(list(place))] = copy.deepcopy(chance.choice(values))
    file = tmp_path / "station.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    config, refusal = read(file)
    assert "\n" not in refusal
    if config is not None:
        assert printed(station_of(yaml.safe_load(printed(config)))) == printed(config)


@pytest.mark.parametrize("plain", [SMALL, FULL], ids=["small", "full"])
def test_printed_configuration_is_a_fixed_point(plain):
    config = station_of(plain)
    text = printed(config)
    again = station_of(yaml.safe_load(text))
    assert printed(again) == text
    assert again.cameras.keys() == config.cameras.keys()


@pytest.mark.parametrize("plain", [SMALL, FULL], ids=["small", "full"])
def test_commented_file_gives_the_configuration_that_it_was_written_of(plain):
    config = station_of(plain)
    assert from_plain(StationConfig, yaml.safe_load(commented_yaml(config))) == config


def test_every_key_of_a_commented_file_can_be_put_into_force():
    """Taking away the marks of all lines but prose gives YAML with every key there is."""
    lines = []
    for line in commented_yaml(station_of(SMALL)).splitlines():
        text = line.lstrip(" ")
        indent = line[: len(line) - len(text)]
        if text.startswith("#") and not re.match(r"# \S", text):
            line = indent + text[1:]
        lines.append(line)
    plain = yaml.safe_load("\n".join(lines))
    assert plain["records"]["overlay"] == {"folder": "...", "frames": "all", "max_mib": 10240, "max_age_days": None}
    assert set(plain["cameras"]["top"]["source"]) == {one.name for one in dataclasses.fields(sources.SourceConfig)}
    assert set(plain["cameras"]["top"]["trigger"]) == set(to_plain(station_of(FULL))["cameras"]["top"]["trigger"])


def classes(cls):
    yield cls
    for one in dataclasses.fields(cls):
        section, _ = section_of(cls, one.name)
        if section is not None:
            yield from classes(section)


def test_every_key_has_a_meaning():
    for cls in classes(StationConfig):
        docs = field_docs(cls)
        assert [one.name for one in dataclasses.fields(cls) if not docs.get(one.name)] == [], cls


def test_no_key_holds_a_secret():
    """A password, key or token is named by its file."""
    for cls in classes(StationConfig):
        for one in dataclasses.fields(cls):
            hides = any(word in one.name for word in ("password", "token", "secret", "key"))
            assert not hides or one.name.endswith("_file"), f"{cls.__name__}.{one.name}"


def test_every_key_that_names_a_file_is_a_path():
    """What a path is goes by its name: ``file``, ``folder``, ``path``, ``*_file``; a text whose meaning begins with a file must have such a name."""
    begins = re.compile(r"(The )?(\w+ )?([Ff]ile|[Ff]older|Certificate|X\.509|Private key|Public key|Ed25519)")
    paths = []
    for cls in classes(StationConfig):
        for one in dataclasses.fields(cls):
            is_text = typing.get_type_hints(cls)[one.name] in (str, str | None)
            is_path = one.name in ("file", "folder", "path") or one.name.endswith(("_file", "_folder"))
            assert is_text or not is_path
            assert is_path or not (is_text and begins.match(field_docs(cls)[one.name])), f"{cls.__name__}.{one.name}"
            paths += [one.name] if is_path else []
    assert {"file", "folder", "path", "password_file", "public_key_file"} <= set(paths)


def test_paths_are_relative_to_the_station_file(tmp_path):
    folder = tmp_path / "line 3"
    folder.mkdir()
    (folder / "station.yaml").write_text(yaml.safe_dump(FULL))
    plain = yaml.safe_load(printed(station_of(read_station_file(folder / "station.yaml"))))
    assert plain["model"]["file"] == str(folder / "line.onnx")
    assert plain["cameras"]["side"]["source"]["images"]["path"] == str(folder / "parts")
    assert plain["records"]["overlay"]["folder"] == str(folder / "overlays")
    assert plain["cameras"]["top"]["source"]["camera"]["address"] == "rtsp://10.0.0.7/stream"


def test_credentials_are_not_printed():
    address = "rtsp://admin:s3cret@10.0.0.7/stream?token=abc"
    plain = layered(SMALL, {"cameras": {"top": {"source": {"camera": {"address": address}}}}})
    text = printed(station_of(plain))
    assert "s3cret" not in text
    assert "abc" not in text
    assert "rtsp://***@10.0.0.7/stream?token=***" in text


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({}, "cameras.top.source needs exactly one of "),
        ({"source": {"video": {"file": "a"}, "images": {"path": "b"}}}, "got images and video"),
        ({"source": {"camera": {}}}, "source.camera needs exactly one of number, device and address"),
        ({"source": {"camera": {"number": 0, "address": "rtsp://x"}}}, "source.camera needs exactly one of number, device and address"),
        ({"source": {"camera": {"address": "front"}}}, "source.camera.address must be an address"),
        ({"source": {"camera": {"number": 0, "username": "a"}}}, "belong together"),
        ({"crop_xyxy": [5, 5, 5, 9]}, "cameras.top.crop_xyxy must be left, top, right, bottom"),
        ({"crop_xyxy": [1, 2, 3]}, "cameras.top.crop_xyxy must have 4 values, got 3"),
        ({"trigger": {"mode": "timer"}}, "cameras.top.trigger.interval_ms is missing"),
        ({"trigger": {"interval_ms": 5}}, "cameras.top.trigger.interval_ms belongs to mode timer"),
        ({"trigger": {"mode": "command", "deadline_ms": 500}}, "cameras.top.trigger.frame_timeout_ms must be less than"),
        ({"trigger": {"mode": "comand"}}, "did you mean 'command'?"),
        ({"trigger": {"deadline_ms": -1}}, "cameras.top.trigger.deadline_ms must be positive, got -1.0"),
        ({"trigger": {"deadline_ms": 40}}, "cameras.top.trigger.record_margin_ms must be less than"),
        ({"products": ["a"], "product": "b"}, "give one of the two"),
        ({"products": ["a"]}, "needs trigger.mode command"),
        ({"products": ["a", "a"], "trigger": {"mode": "command", "deadline_ms": 900}}, "cameras.top.products must differ"),
        ({"queue": {"policy": "latest", "capacity": 2}}, "policy drop_oldest keeps several"),
        ({"queue": {"policy": "latest"}, "trigger": {"mode": "command", "deadline_ms": 900}}, "cameras.top.queue.policy latest drops frames"),
        ({"trigger": {"deadline_ms": 900}}, "cameras.top.trigger.deadline_ms needs the record store"),
        ({"trigger": {"mode": "command", "deadline_ms": 900}}, "cameras.top.trigger.mode needs the record store"),
        ({"trigger": {"heartbeat_timeout_ms": 900}}, "cameras.top.trigger.heartbeat_timeout_ms needs the record store"),
    ],
)
def test_camera_that_cannot_be_meant_is_refused_by_its_name(camera, message):
    source = {} if not camera or "source" in camera else SMALL["cameras"]["top"]
    with pytest.raises(ConfigError) as refused:
        station_of({"model": {"file": "line.onnx"}, "cameras": {"top": {**source, **camera}}})
    assert message in str(refused.value)
    assert str(refused.value).startswith("cameras.top")


@pytest.mark.parametrize("name", ["", "top.left", "1st", "süd", "a" * 33, "a b", "a/b", "+"])
def test_name_that_an_output_could_not_carry_is_refused(name):
    with pytest.raises(ConfigError, match=r"begins with a letter$"):
        station_of({"model": {"file": "line.onnx"}, "cameras": {name: SMALL["cameras"]["top"]}})


def test_camera_named_twice_is_refused(tmp_path):
    (tmp_path / "station.yaml").write_text("cameras:\n  top: {}\n  top: {}\n")
    with pytest.raises(ConfigError, match="key 'top' is given twice"):
        read_station_file(tmp_path / "station.yaml")


def test_station_without_a_camera_is_refused():
    with pytest.raises(ConfigError, match="cameras names no camera"):
        station_of({"model": {"file": "line.onnx"}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    plugins: tuple[str, ...] = ()
    mqtt: object | None = None


def test_output_that_tells_a_server_needs_the_record_store():
    cameras = station_of(SMALL).cameras
    with pytest.raises(ConfigError, match=r"^outputs.mqtt needs the record store; .* add records.store, or --store FILE$"):
        check_store(cameras, Outputs(mqtt=object()), [], has_store=False)
    check_store(cameras, Outputs(mqtt=object()), [], has_store=True)
    check_store(cameras, Outputs(plugins=("plc:1",)), [], has_store=False)


def test_source_of_another_kind_replaces_the_one_below_it():
    other = layered(to_plain(station_of(SMALL)), {"cameras": {"top": {"source": {"images": {"path": "parts"}}}}})
    assert station_of(other).cameras["top"].source == sources.SourceConfig(images=sources.ImagesSourceConfig(path="parts"))
    same = layered(FULL, {"cameras": {"side": {"source": {"images": {"path": "others"}}}}})
    assert station_of(same).cameras["side"].source.images == sources.ImagesSourceConfig(path="others", pages="all")


def test_one_camera_whose_every_frame_is_a_part_needs_no_station():
    assert not needs_station(station_of(SMALL))
    assert needs_station(station_of(FULL)), "two cameras"


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ({}, (None, None)),
        ({"policy": "latest"}, ("latest", 1)),
        ({"policy": "every", "capacity": 9}, ("every", 9)),
        ({"policy": "drop_oldest"}, ("drop_oldest", None)),
        ({"policy": "drop_oldest", "capacity": 2}, ("drop_oldest", 2)),
    ],
)
def test_policy_of_the_hand_off(queue, expected):
    policy, capacity = overflow_of(CameraQueueConfig(**queue))
    assert (None if policy is None else policy.value, capacity) == expected


class Mode(enum.Enum):
    FREE = "free"
    SOFTWARE = "software"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    camera: int | str = 0
    address: int | str | None = None
    mode: Mode = Mode.FREE
    policy: Mode | None = None


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ({"camera": 1, "mode": "software"}, Section(camera=1, mode=Mode.SOFTWARE)),
        ({"camera": "rtsp://h", "address": "x", "policy": "free"}, Section(camera="rtsp://h", address="x", policy=Mode.FREE)),
        ({"address": None, "policy": None}, Section()),
    ],
)
def test_sections_may_hold_a_number_or_text_and_choices_of_an_enumeration(plain, expected):
    config = from_plain(Section, plain)
    assert config == expected
    assert from_plain(Section, to_plain(config)) == config


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"camera": None}, "camera must be a whole number or text, got nothing"),
        ({"camera": True}, "camera must be a whole number or text, got 'True'"),
        ({"camera": 1.5}, "camera must be a whole number or text, got '1.5'"),
        ({"mode": "softwar"}, "mode must be one of free, software, got 'softwar'; did you mean 'software'?"),
        ({"mode": None}, "mode must be one of free, software, got nothing"),
    ],
)
def test_what_is_none_of_them_is_refused(plain, message):
    with pytest.raises(ConfigError) as refused:
        from_plain(Section, plain)
    assert str(refused.value) == message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    server: Section | None = None
    interval_s: float = 1.0


@pytest.mark.parametrize("config", [Whole(), Whole(server=Section()), Whole(server=Section(camera=3)), Whole(interval_s=0.5)])
def test_section_without_a_key_of_its_own_is_not_taken_for_none(config):
    assert from_plain(Whole, yaml.safe_load(commented_yaml(config)) or {}) == config


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "'inf'"])
def test_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ConfigError, match=r"^model.timeout_ms must be (finite|positive), got "):
        station_of({**SMALL, "model": {"file": "x.onnx", "timeout_ms": yaml.safe_load(value)}})
