"""The version, and the files that name it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import perennial

ROOT = Path(__file__).parents[2]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_read_from_the_package_alone() -> None:
    project = tomllib.loads(_text("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version", "readme"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "platform/perennial/version.py"


def test_the_changelog_begins_with_the_version_and_every_version_is_dated() -> None:
    headings = re.findall(r"^## (.+)$", _text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0].startswith(f"{perennial.__version__} ")
    dates = [re.fullmatch(r"\d+\.\d+\.\d+ \((\d{4}-\d{2}-\d{2})\)", h) for h in headings]
    assert all(dates), headings
    assert [date[1] for date in dates if date] == sorted(
        (date[1] for date in dates if date), reverse=True
    )


def test_the_citation_names_the_version_and_its_date() -> None:
    citation = yaml.safe_load(_text("CITATION.cff"))
    assert citation["version"] == perennial.__version__
    assert f"## {citation['version']} ({citation['date-released']})" in _text("CHANGELOG.md")


def test_the_images_of_the_manifests_are_of_the_version() -> None:
    tags = [
        tag
        for path in sorted((ROOT / "k8s").rglob("*.yaml"))
        for tag in re.findall(r"newTag: (\d+\.\d+\.\d+)", path.read_text(encoding="utf-8"))
    ]
    assert tags
    assert set(tags) == {perennial.__version__}


def test_hosted_ci_runs_what_everybody_runs() -> None:
    workflow = yaml.safe_load(_text(".github/workflows/ci.yml"))
    commands = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert any(command.endswith("bash .ci/run") for command in commands)
    assert "make test" in _text(".ci/run")
