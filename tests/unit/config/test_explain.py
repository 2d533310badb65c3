"""`perennial explain` says of a field what its reference page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.config import RunSpec, load_run
from perennial.config.explain import explain
from perennial.config.reference import documented_keys
from perennial.errors import InputError

ROOT = Path(__file__).parents[3]


def test_every_key_of_the_run_file_is_explained_as_its_page_has_it() -> None:
    page = (ROOT / "docs/reference/run-file.md").read_text(encoding="utf-8")
    rows = page.replace("\\|", "|").replace("`", "").replace("&lt;", "<").splitlines()
    for name in documented_keys(RunSpec):
        known = {(field.name, field.file): field for field in explain(name)}
        field = known[name, "run file"]
        key = name.rpartition(".")[2]
        shown = f"| {key} | {field.type} | {field.default} | {field.change} | {field.meaning} |"
        assert shown in rows, name
        assert field.example


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("training.zero_stage", ["training.zero_stage"]),
        ("zero_stage", ["training.zero_stage"]),
        ("stages.corpora.french.budget", ["stages.corpora.NAME.budget"]),
        ("schedule.decay_shape", ["schedule of kind wsd.decay_shape"]),
        ("gates", ["gates"]),
        ("anneal", ["release.anneal", "anneal"]),
        ("seeds", ["seeds", "seeds"]),
    ],
)
def test_a_field_is_found_by_its_name_in_a_file(asked: str, names: list[str]) -> None:
    assert [field.name for field in explain(asked)] == names


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("training.zero_stag", "training.zero_stage"), ("workrs", "training.workers")],
)
def test_a_misspelt_name_is_refused_with_those_like_it(asked: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {meant}") as caught:
        explain(asked)
    assert caught.value.code == "field-unknown"


def test_the_command_shows_a_section_with_its_keys() -> None:
    shown = CliRunner().invoke(app, ["explain", "gates"]).stdout
    assert shown.startswith("gates  (run file)\n")
    assert "  max_forgetting " in shown
    (field,) = json.loads(CliRunner().invoke(app, ["explain", "seed", "--json"]).stdout)["fields"][
        :1
    ]
    assert (field["name"], field["default"], field["example"]) == ("seed", "0", "seed: 0")


def test_a_section_is_shown_whole_and_a_kind_is_no_part_of_a_name() -> None:
    shown = CliRunner().invoke(app, ["explain", "schedule"]).stdout
    assert "schedule  (run file, kind infinite)\n" in shown
    assert "..." not in shown
    assert "default 0" in " ".join(shown.split())


def test_the_keys_of_an_installed_package_are_explained(tmp_path: Path) -> None:
    package = ROOT / "examples/plugin_schedule"
    shutil.copy(package / "my_schedules.py", tmp_path)
    installed = tmp_path / "my_schedules-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-schedules\nVersion: 1.0\n")
    points = tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in named.items())
        for group, named in points.items()
    )
    (installed / "entry_points.txt").write_text(text)
    paths = os.pathsep.join([str(ROOT / "platform"), str(tmp_path)])
    shown = subprocess.run(
        [sys.executable, "-m", "perennial.cli", "explain", "schedule.rise"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "schedule.rise  (run file, kind inverse-sqrt)" in shown
    assert "optimizer steps of the warmup" in shown


def test_the_guide_shows_what_a_file_with_mistakes_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs/guide/getting-started.md").read_text(encoding="utf-8")
    shown = re.search(r"^\$ perennial plan pipelines/mine\.yaml\n(.*?)```", guide, re.M | re.S)
    assert shown is not None
    text = (ROOT / "pipelines/quickstart.yaml").read_text(encoding="utf-8")
    for right, wrong in (
        ("share: 0.25", "shares: 0.25"),
        ("global_batch: 16", "global_batch: true"),
        ("  budget: 260k", "  budget: 0"),
    ):
        assert right in text
        text = text.replace(right, wrong, 1)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_run(Path("pipelines/mine.yaml"))
    lines = [f"perennial: {line}" for line in str(caught.value).splitlines()]
    assert sorted(lines) == sorted(shown[1].splitlines())
