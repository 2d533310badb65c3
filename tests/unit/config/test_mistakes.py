"""Mistakes in a file: all of them at once, each with an example of what would be right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from perennial.config import RunSpec, load, load_run
from perennial.config.changes import check_pinned
from perennial.config.examples import example_of, show_example
from perennial.config.reference import documented_sections
from perennial.config.search import TuningSpec
from perennial.config.study import StudySpec
from perennial.errors import InputError
from tests.support.tiny_run import tiny_run


def _write(folder: Path, document: Any, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def _refused(path: Path, *overrides: str) -> list[InputError]:
    with pytest.raises(InputError) as caught:
        load_run(path, overrides)
    return [caught.value, *caught.value.others]


def _fields() -> Iterator[Any]:
    for schema in (RunSpec, TuningSpec, StudySpec):
        for section in dict.fromkeys(documented_sections(schema)):
            for key in section.model_fields:
                yield pytest.param(section, key, id=f"{section.__name__}.{key}")


def test_every_field_has_an_example_that_it_accepts() -> None:
    wrong = []
    for section, key in (parameter.values for parameter in _fields()):
        example = example_of(section, key)
        TypeAdapter(section.model_fields[key].rebuild_annotation()).validate_python(example)
        line = yaml.safe_load(show_example(section, key))
        if example is None or line != {key: example}:
            wrong.append(f"{section.__name__}.{key}: {example!r}")
    assert not wrong


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    del document["name"]
    document["schedule"]["eta_min"] = 0
    document["replay"] = {"shares": 0.1, "max_epochs": 0}
    document["stages"] = {"corpora": {"a": {"budget": "0 steps", "replay": True}}}
    document["release"]["mixture"] = {"a": 0, "b": "x"}
    path = _write(tmp_path, document)
    errors = _refused(path)
    assert {error.field: error.code for error in errors} == {
        "name": "missing-key",
        "schedule.eta_min": "invalid-value",
        "replay.shares": "unknown-key",
        "replay.max_epochs": "invalid-value",
        "stages.corpora.a.budget": "invalid-value",
        "stages.corpora.a.replay": "invalid-value",
        "release.mixture.a": "invalid-value",
        "release.mixture.b": "invalid-value",
    }
    lines = str(errors[0]).splitlines()
    assert len(lines) == len(errors)
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert "such as `name: my-model`" in lines[0]
    assert errors[0].to_dict()["others"][0]["field"] == errors[1].field


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("stages.budget=0", "such as `budget: 100%`"),
        ("release.anneal=0", "such as `anneal: 10%`"),
        ("gates.tasks={piqa: 0.5}", "such as `tasks: {lambada_openai: {max_drop: 0.02}}`"),
        ("stages.only=[a, b, a]", "stages: only names a more than once; name each corpus once"),
    ],
)
def test_what_is_no_value_of_a_field_is_answered_with_one(
    tmp_path: Path, override: str, shown: str
) -> None:
    (mistake,) = _refused(_write(tmp_path, tiny_run(tmp_path)), override)
    assert shown in str(mistake)
    assert "instance of" not in str(mistake)


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("replay.share=true", "true is refused"),
        ("seed=false", "false is refused"),
        ("training.betas=[true, 0.9]", "[True, 0.9] is refused"),
        ("replay={weighting: fixed, weights: {a: yes}}", "{'a': True} is refused"),
        ("schedule.eta_max=true", "true is refused"),
        ("training.zero_stage=true", "true is refused"),
    ],
)
def test_true_is_no_number(tmp_path: Path, override: str, shown: str) -> None:
    (error,) = _refused(_write(tmp_path, tiny_run(tmp_path)), override)
    assert error.problem.startswith(shown)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("stages.budget=0%", "stages.budget"),
        ("stages.corpora.a.budget=0 tokens", "stages.corpora.a.budget"),
        ("stages.batch_arrivals={max_tokens: 0 tokens}", "stages.batch_arrivals.max_tokens"),
        ("release={policy: every, every: 0 steps}", "release.every"),
        ("training.checkpoint_every=0 steps", "training.checkpoint_every"),
    ],
)
def test_an_amount_of_zero_is_refused_where_nothing_can_come_of_it(
    tmp_path: Path, override: str, field: str
) -> None:
    (error,) = _refused(_write(tmp_path, tiny_run(tmp_path)), override)
    assert error.field == field
    assert "it must be above 0" in error.problem
    assert load_run(tmp_path / "run.yaml", ["schedule.warmup=0 steps"])


def test_keys_that_are_written_twice_are_refused_with_their_lines(tmp_path: Path) -> None:
    text = "name: a\nreplay:\n  share: 0.1\n  share: 0.2\nname: b\nreplay: {max_epochs: 2}\n"
    errors = _refused(_write(tmp_path, text))
    assert [(error.field, error.code) for error in errors] == [
        ("line 4", "key-repeated"),
        ("line 5", "key-repeated"),
        ("line 6", "key-repeated"),
    ]
    assert "the key share is there already, in line 3" in errors[0].problem
    document = yaml.safe_dump(tiny_run(tmp_path))
    merged = f"common: &common {{share: 0.1}}\n{document}\n"
    (unknown,) = _refused(_write(tmp_path, merged))
    assert unknown.field == "common"
    (error,) = _refused(_write(tmp_path, document), "replay={share: 0.1, share: 0.2}")
    assert (error.field, error.code) == ("replay", "key-repeated")


@pytest.mark.parametrize(
    "override",
    ["store=$SCRATCH/store", "store='s3://${BUCKET}/a'", "tokenizer={path: $HOME/tokenizer.json}",
     "evaluation.tasks=[$TASKS/a]", "tracking.uri='sqlite:///$HOME/m.db'"],
)  # fmt: skip
def test_a_variable_that_nothing_expands_is_refused(tmp_path: Path, override: str) -> None:
    (error,) = _refused(_write(tmp_path, tiny_run(tmp_path)), override)
    assert error.code == "variable-not-expanded"
    assert "is not expanded in a file" in error.problem


def test_a_relative_path_is_from_the_folder_of_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = tiny_run(tmp_path) | {"store": "../runs/a", "tokenizer": {"path": "tokenizer.json"}}
    document["corpora"]["steps"] = [{"kind": "url-filter", "files": {"domains": "blocked.txt"}}]
    document["evaluation"] = {"tasks": ["piqa", "tasks/own"]}
    document["gates"] = {"tasks": {"tasks/own": {"min": 0.1}, "piqa": {"min": 0.1}}}
    _write(tmp_path, document, "base/run.yaml")
    _write(tmp_path, "base: ../base/run.yaml\ninbox: inbox\n", "own/run.yaml")
    spec = load_run(Path("own/run.yaml"), ["corpora.borrow=other"])
    assert (spec.store, spec.inbox, spec.corpora.borrow) == ("runs/a", "own/inbox", "other")
    assert spec.tokenizer.path == "base/tokenizer.json"
    assert spec.corpora.steps[0].files == {"domains": "base/blocked.txt"}  # type: ignore[attr-defined]
    assert spec.evaluation.tasks == ("piqa", "base/tasks/own")
    assert set(spec.gates.tasks) == {"base/tasks/own", "piqa"}
    monkeypatch.chdir(tmp_path / "own")
    assert load_run(Path("run.yaml")).tokenizer.path == "../base/tokenizer.json"
    # One path, named from two folders, is no change of the run.
    opened = spec.model_copy(update={"inbox": None}).model_dump(mode="json")
    opened["tokenizer"]["path"] = str(tmp_path / "base" / "tokenizer.json")
    check_pinned("run.yaml", "a", opened, load_run(Path("run.yaml")))
    opened["tokenizer"]["path"] = str(tmp_path / "other" / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.path"):
        check_pinned("run.yaml", "a", opened, load_run(Path("run.yaml")))


def test_a_path_as_versions_before_read_it_is_refused_with_the_path_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run must not begin again in an empty store beside its own."""
    monkeypatch.chdir(tmp_path)
    document = tiny_run(tmp_path) | {"store": "runs/a"}
    path = _write(tmp_path, document, "files/run.yaml").relative_to(tmp_path)
    assert load_run(path).store == "files/runs/a"
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (error,) = _refused(path)
    assert (error.field, error.code) == ("store", "path-from-elsewhere")
    assert error.remedy == "write ../runs/a, or make files/runs/a"
    (tmp_path / "files" / "runs" / "a").mkdir(parents=True)
    assert load_run(path).store == "files/runs/a"
    _write(tmp_path, document | {"name": "other"}, "other.yaml")
    _write(tmp_path, "base: other.yaml\n", "files/run.yaml")
    (error,) = _refused(path)
    assert error.remedy == "write ../other.yaml"


def test_a_tuning_file_names_its_run_file_from_its_own_folder(tmp_path: Path) -> None:
    document = {"name": "t", "run": "../run.yaml", "budget": "6 steps", "replay": [0.5]}
    path = _write(tmp_path, document, "tuning/search.yaml")
    assert Path(load(path, TuningSpec).run) == tmp_path / "run.yaml"
