"""`perennial explain` says of a field what its reference page says."""

from __future__ import annotations

import json
import re
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
