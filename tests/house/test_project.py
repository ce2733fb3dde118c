"""What the files around the code say is so: versions, paths, extras, checks and links."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from docs import reference

if sys.version_info < (3, 11):
    pytest.skip("reads pyproject.toml with tomllib of Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
GENERATED = {ROOT / "docs" / "reference" / name for name in reference.pages()}
PAGES = [*ROOT.glob("*.md"), *(page for folder in ("docs", "deploy", "examples") for page in (ROOT / folder).rglob("*.md"))]


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_resolves(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists() or (page.parent / target).resolve() in GENERATED, target


def test_citation_names_the_software_as_the_package_does():
    citation = read_yaml("CITATION.cff")
    named = (citation["title"], citation["version"], citation["license"], citation["abstract"].rstrip("."))
    assert named == (PROJECT["name"], PROJECT["version"], PROJECT["license"], PROJECT["description"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pre_commit_runs_the_checks_of_make_lint_and_nothing_of_its_own():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == ["make lint"]


def test_workflow_leaves_the_checks_to_ci_run():
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "bash .ci/run"
    assert all("apt-get" in command for command in commands[:-1])


FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_form_asks_for_something(form):
    content = read_yaml(form.relative_to(ROOT))
    assert {"name", "description", "body"} <= set(content)
    assert any(part.get("validations", {}).get("required") for part in content["body"])


def test_docker_builds_the_wheel_from_every_package_and_sends_nothing_else():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = {name for names in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in names.split()}
    assert sent == copied
    assert {path for path in sent if not (ROOT / path).exists()} == set()
    packages = set(PYPROJECT["tool"]["setuptools"]["package-dir"].values())
    assert packages | {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= copied


def test_docker_installs_extras_that_exist_and_never_torch():
    for extras in re.findall(r"\.whl (\S+) ", DOCKERFILE):
        for extra in extras.split(","):
            assert not [needed for needed in PROJECT["optional-dependencies"][extra] if needed.startswith("torch")]


def test_every_image_runs_unprivileged_and_checks_its_model():
    images = [stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:] if "ENTRYPOINT" in stage]
    assert len(images) == 2
    for stage in images:
        assert re.search(r"^USER [1-9]\d*$", stage, re.MULTILINE)
        assert re.search(r'^HEALTHCHECK .*\n *CMD \["sh", "-c", "snl-bench --engine', stage, re.MULTILINE)
