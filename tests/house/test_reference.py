"""The reference pages and guides name everything that a user can meet: commands, options, keys, reason codes, errors, fields of the manifest."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from docs import build_site, reference
from snl_runtime import errors
from snl_runtime.fleet.service import SERVICE_REASON_CODES
from snl_runtime.model.manifest import Decision, Manifest
from snl_runtime.station.answers import STATION_REASON_CODES
from snl_runtime.station.station_file import station_of
from snl_runtime.verdict.ruling import REASON_CODES
from snl_train.config import TrainConfig, to_plain

ROOT = Path(__file__).parents[2]
PACKAGES = ("snl_runtime", "snl_train", "calibration", "export")
PAGES = reference.pages()
HELP = reference.command_help()
TEXTS = [ROOT / "README.md", *sorted(page for folder in ("docs", "deploy", "examples") for page in (ROOT / folder).rglob("*.md"))]


def dotted(plain: dict[str, object], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in plain.items():
        keys |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return keys


def test_every_command_shows_its_help() -> None:
    scripts = re.findall(r"^(snl-[a-z]+) = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(scripts) > 5
    for name in scripts:
        assert f"## {name}\n\n```text\nusage: {name} " in PAGES["commands.md"]


def test_every_configuration_key_has_a_default_and_a_meaning() -> None:
    keys = reference.config_keys()
    assert {name for name, *_ in keys} == dotted(to_plain(TrainConfig()))
    assert [name for name, _, default, meaning in keys if not default or not meaning] == []
    assert all(f"| `{name}` |" in PAGES["configuration.md"] for name, *_ in keys)


def test_every_key_of_a_station_file_has_a_meaning_and_a_row() -> None:
    keys = list(reference.station_keys())
    assert [name for name, _, _, meaning in keys if not meaning] == []
    plain = to_plain(station_of({"model": {"file": "x.onnx"}, "cameras": {"NAME": {"source": {"video": {"file": "x.mp4"}}}}}))
    assert dotted(plain) <= {name for name, *_ in keys}
    assert all(f"| `{name}` |" in PAGES["station.md"] for name, *_ in keys)


def test_every_reason_code_has_a_row() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGES["reason-codes.md"], re.MULTILINE) == [*REASON_CODES, *STATION_REASON_CODES, *SERVICE_REASON_CODES]


def test_every_error_has_a_row_with_its_exit_status() -> None:
    rows = dict(re.findall(r"`(\w+Error)` \| [^|]*\| (\d) \|", PAGES["errors.md"]))
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, errors.SnlError)}
    assert rows == {name: str(cls.exit_status) for name, cls in classes.items()}


def test_every_error_of_every_package_is_on_the_page() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"SnlError"}
    while grown := {name for name, parents in bases.items() if parents & found} - found:
        found |= grown
    listed = set(re.findall(r"`(\w+Error)` \| [^|]*\| \d \|", PAGES["errors.md"]))
    assert {name for name in found if not name.startswith("_")} == listed


@pytest.mark.parametrize("cls", reference.MANIFEST_PARTS, ids=lambda cls: cls.__name__)
def test_every_field_of_the_manifest_has_a_meaning(cls: type) -> None:
    assert set(reference.described_fields(cls)) == {field.name for field in dataclasses.fields(cls)}
    assert f"\n## {cls.__name__}\n" in PAGES["manifest.md"]


def test_classes_that_a_manifest_holds_have_a_section() -> None:
    held = {name for cls in (Manifest, Decision) for field in dataclasses.fields(cls) for name in re.findall(r"\.([A-Z]\w+)", str(field.type))}
    assert held - {"Any"} <= {cls.__name__ for cls in reference.MANIFEST_PARTS}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_commands_of_a_page_use_options_that_exist(page: Path) -> None:
    for line in re.findall(r"snl-[a-z]+ [^`\n#]*", page.read_text(encoding="utf-8")):
        name = line.split()[0]
        if name in HELP:
            unknown = [option for option in re.findall(r"(?<= )--[a-z0-9-]+", line) if not re.search(rf"{option}\b", HELP[name])]
            assert unknown == [], line


def test_assembled_page_keeps_its_links_inside_the_site(tmp_path: Path) -> None:
    build_site.assemble(tmp_path / "pages")
    deploy = (tmp_path / "pages" / "guides" / "deploy.md").read_text(encoding="utf-8")
    assert "(../checkout/deploy/README.md)" in deploy
    assert (tmp_path / "pages" / "checkout" / "deploy" / "README.md").is_file()
    assert "<!-- table:" not in (tmp_path / "pages" / "results" / "accuracy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/x.css">'),
        ("a.html", '<img alt="" src=http://example/x.png>'),
        ("a.css", "@font-face { src: url(https://fonts.example/x.woff2) }"),
    ],
)
def test_whatever_a_browser_would_fetch_from_elsewhere_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(list(build_site.loaded_from_elsewhere(tmp_path))) == 1


def test_links_that_a_reader_follows_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="https://arxiv.org/abs/2402.17091">paper</a><img src="x.png">', encoding="utf-8")
    assert list(build_site.loaded_from_elsewhere(tmp_path)) == []
