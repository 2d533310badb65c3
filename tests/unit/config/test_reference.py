"""Generated reference pages and JSON Schemas: current, complete, valid for committed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from perennial.config import RunSpec
from perennial.config.json_schema import file_schema
from perennial.config.reference import documented_keys, reference_files
from perennial.config.search import TuningSpec
from perennial.config.study import StudySpec
from perennial.fields import Section
from tests.support.tiny_run import tiny_run

ROOT = Path(__file__).parents[3]
FILES: list[tuple[type[Section], Path]] = [
    *(
        (RunSpec, path)
        for path in [*(ROOT / "pipelines").rglob("*.yaml"), *(ROOT / "k8s").rglob("run.yaml")]
        if not {"tasks", "studies"} & {*path.parts}
    ),
    *((TuningSpec, path) for path in (ROOT / "tuning").rglob("*.yaml")),
    *((StudySpec, path) for path in (ROOT / "pipelines" / "studies").rglob("*.yaml")),
]
PAGES: dict[type[Section], str] = {
    RunSpec: "run-file.md",
    TuningSpec: "tuning-file.md",
    StudySpec: "study-file.md",
}


@pytest.mark.parametrize("path", reference_files(), ids=str)
def test_a_generated_file_is_current(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == reference_files()[path], "run `make docs`"


def test_the_page_documents_every_key() -> None:
    for schema, name in PAGES.items():
        page = reference_files()[Path("docs/reference") / name]
        for key in documented_keys(schema):
            assert f"| `{key.rpartition('.')[2]}` |" in page, key
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        columns = 5 if schema is RunSpec else 4
        assert all(len(line.split(" | ")) == columns for line in rows)
        assert not any(line.endswith("|  |") or "| None |" in line for line in rows)
    keys = documented_keys(RunSpec)
    assert {"training.gpus_per_worker", "corpora.sequence_length", "training.betas"} <= set(keys)
    assert {"gates.tasks.NAME.metric", "tracking.experiment"} <= set(keys)
    assert "schedule of kind wsd.decay_shape" in keys


@pytest.mark.parametrize(
    ("schema", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES]
)
def test_a_committed_file_validates(schema: type[Section], path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(file_schema(schema, "")).validate(document)
    if path.is_relative_to(ROOT / "k8s"):
        return
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve()
    assert named.name == PAGES[schema].replace(".md", ".schema.json")
    assert named.is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": {"kind": "cosine", "eta_const": 1e-3}},
        {"schedule": {"kind": "sawtooth"}},
        {"replay": {"shares": 0.1}},
        {"replay": {"share": 2}},
        {"replay": {"weighting": "old"}},
        {"stages": {"budget": "lots"}},
        {"release": {"shape": "square"}},
        {"training": {"workers": 0}},
        {"name": None},
        {"sources": {"crawl": {"prefix": "x", "schedule": "1d", "minimum": "10"}}},
    ],
)
def test_the_schema_refuses_what_an_editor_should_mark(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    validator = jsonschema.Draft202012Validator(file_schema(RunSpec, ""))
    document: dict[str, Any] = tiny_run(tmp_path)
    validator.validate(document)
    if change == {"name": None}:
        del document["name"]
        validator.validate(document | {"base": "other.yaml"})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(document if change == {"name": None} else document | change)


@pytest.mark.parametrize(
    "part",
    [
        {"schedule": {"kind": "cosine"}},
        {"schedule": {"kind": "cosine", "eta_max": 1e-3, "eta_min": 1e-4}},
        {"stages": {"corpora": None}},
        {"training": {"workers": {"min": 1, "max": 4}}},
        {"training": {"workers": 2}},
        {"sources": {"crawl": {"prefix": "x", "schedule": "0 2 * * *", "minimum": "10 MB"}}},
        {"sources": {"crawl": {"prefix": "x", "schedule": "1d", "max_age": "7d", "minimum": 0}}},
    ],
)
def test_the_schema_accepts_the_part_that_differs_from_a_base(part: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(file_schema(RunSpec, ""))
    validator.validate({"base": "other.yaml", **part})
